"""What a model says of one layer on one machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEVELS = ("dram", "smem", "metadata", "accumulators", "operands", "macs")
"""Where energy goes, from far to near; ``metadata``: positions, wherever they are moved."""

TITLES = {
    "dram": "DRAM",
    "smem": "SMEM",
    "metadata": "positions",
    "accumulators": "accumulators",
    "operands": "operand registers",
    "macs": "MACs",
}


@dataclass(frozen=True)
class Outcome:
    """One layer on one machine.

    Attributes:
        limits: Cycles that each resource alone needs: ``compute``, ``smem read``, ``smem write``, ``dram read``,
            ``dram write``.
        energy_pj: By level, see :data:`LEVELS`.
        macs: Multiply-accumulates that are carried out.
        useful: Those of them with a weight (and, where activations are looked at, an activation) that is not zero.
        runs_as: What the machine makes of the weights, in words.
    """

    limits: Mapping[str, float]
    energy_pj: Mapping[str, float]
    macs: float
    useful: float
    runs_as: str

    @property
    def cycles(self) -> int:
        """The largest limit: all resources work at the same time."""
        # A product that is a whole number but for its last bit must not cost a cycle.
        return math.ceil(max(self.limits.values()) * (1 - 1e-12))

    @property
    def bound_by(self) -> str:
        """The resource that needs the most cycles; the first of equals."""
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def total_pj(self) -> float:
        """Energy over all levels."""
        return sum(self.energy_pj.values())
