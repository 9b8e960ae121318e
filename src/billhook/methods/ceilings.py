"""Budgets as upper limits of what is counted when channels go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from billhook.cost import Cost
from billhook.cost.budget import Budget
from billhook.errors import UsageError
from billhook.surgery.channel_cost import LATENCY

TOLERANCE = 0.001
"""Overshoot of a sparsity that does not matter, as a share of the parameters (0.1 point)."""

TOLERANCE_OF_BOUND = 0.01
"""The same for all other quantities, as a share of the bound."""


class Costs(Protocol):
    """What a network costs with fewer channels: :class:`~billhook.surgery.channel_cost.ChannelCost`, or the like.

    Attributes:
        cost: Of the dense network with the head as it will be delivered.
        quantities: What is counted: :data:`~billhook.surgery.channel_cost.QUANTITIES`, and maybe the latency.
        names: Groups.
        index: Their numbers.
        channels: ``[groups]``: all of them.
    """

    cost: Cost
    quantities: tuple[str, ...]
    names: tuple[str, ...]
    index: dict[str, int]
    channels: NDArray[np.int64]

    def many(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[..., quantities]`` of ``[..., groups]``, in the order of :attr:`quantities`."""
        ...

    def totals(self, kept: Mapping[str, int]) -> dict[str, float]:
        """Of one choice, by quantity; groups that are not named keep all."""
        ...

    def largest(self, kept: Mapping[str, int], quantity: str) -> str:
        """The layer that has the most of a quantity."""
        ...


@dataclass(frozen=True)
class Ceilings:
    """What the budgets leave, each as a limit of one of the quantities.

    Attributes:
        columns: By budget: the place of its quantity.
        limits: ``[budgets]``: how much of it may be left.
        tolerances: ``[budgets]``: closer to the limit it need not be when channels are handed back.
    """

    columns: list[int]
    limits: NDArray[np.float64]
    tolerances: NDArray[np.float64]

    @classmethod
    def of(cls, budgets: Sequence[Budget], cost: Costs, dense: Mapping[str, float], fraction: float = 1.0) -> Ceilings:
        """From inequalities.

        Args:
            budgets: Them.
            cost: What the network costs with fewer channels.
            dense: Totals of the dense network, which percentages are of.
            fraction: Share of the way from the network with all channels to the budgets.

        Raises:
            UsageError: A budget on latency where no layer was timed.
        """
        whole = cost.many(cost.channels)
        columns, limits, tolerances = [], np.zeros(len(budgets)), np.zeros(len(budgets))
        for place, budget in enumerate(budgets):
            quantity, limit = _limit(budget, cost, dense)
            columns.append(cost.quantities.index(quantity))
            start = float(whole[columns[-1]])
            if fraction < 1 and limit < start:
                limit = start + fraction * (limit - start)
            limits[place] = limit
            sparsity = budget.quantity == "sparsity"
            tolerances[place] = TOLERANCE * cost.cost.params if sparsity else TOLERANCE_OF_BOUND * limit
        return cls(columns, limits, tolerances)

    def met(self, totals: NDArray[np.float64]) -> bool:
        """Whether a network that costs so much is within all of them.

        Args:
            totals: ``[quantities]``.
        """
        return bool((totals[self.columns] <= self.limits).all())

    def close(self, totals: NDArray[np.float64]) -> bool:
        """Whether one of its quantities is so close to the limit that nothing need be handed back."""
        return bool((self.limits - totals[self.columns] <= self.tolerances).any())


def _limit(budget: Budget, cost: Costs, dense: Mapping[str, float]) -> tuple[str, float]:
    if budget.quantity == LATENCY and LATENCY in cost.quantities and budget.unit == "ms":
        return LATENCY, budget.bound
    if budget.quantity == LATENCY:
        raise UsageError(
            f"{budget} cannot be counted, only measured",
            "ask for params, macs, channels, volume, bytes or sparsity",
        )
    if budget.quantity == "sparsity":
        params = cost.cost.params
        return "params", float(params - ceil(budget.bound * params - 1e-9))
    # A bound that is a whole number but for rounding counts as that number.
    rounding = 5e-13 * float(dense[budget.quantity]) if budget.unit == "ratio" else 0.0
    return budget.quantity, float(floor(budget.absolute(dense) + rounding))
