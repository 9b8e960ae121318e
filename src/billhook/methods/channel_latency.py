"""A budget in milliseconds for methods that remove channels: MACs are bisected, milliseconds are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from billhook import latency
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError
from billhook.methods.counted import Counted
from billhook.methods.kept import Kept
from billhook.surgery import plan_channels, remove_channels, slice_head
from billhook.training.precision import Room

CLOSE = 0.01
"""The search ends when its MACs are this close together, as a share."""

MARGIN = 0.98
"""Of the bound: what the search aims at, since a time measured again is never quite the same."""


@dataclass
class Clock:
    """Milliseconds of networks against the dense one's, all in the engine that takes the dense one best.

    Args:
        counted: The dense network.
        size: Height and width of the image in pixels.
        room: Of a run in several processes, which must all go by the same times.
    """

    counted: Counted
    size: int
    room: Room | None = None

    def __post_init__(self) -> None:
        self.dense = self.delivered(self.counted.network.module)
        found = self._timed(self.dense, None)
        self.dense_ms, self.engine, self.note = found.p50_ms, found.engine, found.note

    def delivered(self, module: nn.Module) -> nn.Module:
        """The network with the head as it will be delivered."""
        rows = self.counted.rows
        return module if rows is None else slice_head(module, self.counted.head, rows)

    def without(
        self, module: nn.Module, counted: Counted, kept: Mapping[str, Sequence[int] | NDArray[np.int64]]
    ) -> float:
        """Milliseconds of ``module`` when its groups keep these channels; weights do not matter."""
        return self.of(remove_channels(module, plan_channels(module, counted.groups(), kept)))

    def of(self, small: nn.Module) -> float:
        """Milliseconds of a network with all outputs of its head, when it is delivered."""
        return self._timed(self.delivered(small), self.engine).p50_ms

    def _timed(self, module: nn.Module, engine: str | None) -> latency.Latency:
        def work() -> latency.Latency:
            return latency.measure({"network": module}, self.size, engine=engine)["network"]

        return work() if self.room is None else self.room.from_first(work)

    def bound(self, budget: Budget) -> float:
        """The budget in milliseconds."""
        return budget.bound * self.dense_ms if budget.unit == "ratio" else budget.bound

    def row(self, budget: Budget, floor_ms: float, binding: str) -> dict[str, object]:
        """The entry of the feasibility table."""
        asked = self.bound(budget)
        return {
            "quantity": "latency",
            "dense": self.dense_ms,
            "smallest": floor_ms,
            "asked": asked,
            "binding_layer": binding,
            "feasible": floor_ms <= asked,
        }


def within(
    choose: Callable[[Sequence[Budget]], Kept],
    milliseconds: Callable[[Kept], float],
    bound: float,
    macs: tuple[float, float],
) -> Kept:
    """The most channels that run within ``bound`` milliseconds.

    Args:
        choose: Channels that stay under further budgets.
        milliseconds: Measures a choice.
        bound: In milliseconds.
        macs: Of the smallest and of the largest network that can be chosen.

    Raises:
        InfeasibleError: The smallest is too slow already.
    """
    low, high = macs  # of all choices; the floor may be above the lowest of them
    everything = choose(())
    if milliseconds(everything) <= MARGIN * bound:
        return everything
    best = choose((_macs(low),))
    if milliseconds(best) > bound:
        raise InfeasibleError(f"no choice of channels runs within {bound:.3g} ms", "ask for less")
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        kept = choose((_macs(middle),))
        if milliseconds(kept) <= MARGIN * bound:
            low, best = middle, kept
        else:
            high = middle
    return best


def _macs(bound: float) -> Budget:
    return Budget("macs", float(np.ceil(bound)), "count")
