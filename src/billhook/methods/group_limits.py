"""How far a method can go that removes a number of channels of each of many groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, InputError
from billhook.methods.channel_choice import Costs, check, feasibility, smallest
from billhook.methods.channel_latency import Clock
from billhook.methods.counted import Counted
from billhook.surgery import ChannelGroup, Grouping


class Bounds(Protocol):
    """What a method that removes channels never goes below."""

    @property
    def round_to(self) -> int: ...
    @property
    def least(self) -> float: ...
    @property
    def branches(self) -> bool: ...


class GroupLimits(ABC):
    """What can be removed, and what the budgets count on it.

    Args:
        counted: The network.
        budgets: The inequalities; may be none.
        config: Of the method.

    Raises:
        InputError: There are budgets, and no channel that could go.
        UsageError: A budget that the method cannot move.
    """

    def __init__(self, counted: Counted, budgets: Sequence[Budget], config: Bounds) -> None:
        self.counted, self.config = counted, config
        self.budgets = [budget for budget in budgets if budget.quantity != "latency"]
        self.clocked = [budget for budget in budgets if budget.quantity == "latency"]
        layers = [layer.name for layer in counted.cost.layers if layer.macs]
        try:
            self.grouping = self.find_groups()
        except InputError as error:
            if budgets:
                raise
            self.left_dense = [{"name": name, "reason": error.message} for name in layers]
            return
        self.left_dense = [
            {"name": name, "reason": self.grouping.refused.get(name, "its channels are in no group")}
            for name in layers
            if self.grouping.of_writer(name) is None
        ]
        if budgets and not self.grouping.groups:
            reasons = "; ".join(f"{entry['name']}: {entry['reason']}" for entry in self.left_dense[:3])
            raise InputError(f"no channel of {counted.network.spec} can be removed ({reasons})")

    @abstractmethod
    def find_groups(self) -> Grouping:
        """What keeps a number of channels.

        Raises:
            InputError: That cannot be found out.
        """

    @property
    @abstractmethod
    def cost(self) -> Costs:
        """What the network costs with fewer channels."""

    @abstractmethod
    def milliseconds(self, kept: Mapping[str, NDArray[np.int64]]) -> float:
        """On this machine, when the groups keep these channels."""

    @cached_property
    def clock(self) -> Clock:
        """Milliseconds on this machine; the dense network is timed when a latency is first asked for."""
        return Clock(self.counted, self.counted.cost.input_size[0])

    @cached_property
    def _clocked_rows(self) -> list[dict[str, object]]:
        if not self.clocked:
            return []
        fewest = smallest(self.grouping, self.cost, **self.bounds)
        floor = self.milliseconds({name: _first(self.grouping.groups[name], number) for name, number in fewest.items()})
        binding = self.cost.largest(fewest, "macs")
        return [self.clock.row(budget, floor, binding) for budget in self.clocked]

    @property
    def bounds(self) -> dict[str, Any]:
        """Keywords of :func:`~billhook.methods.channel_choice.smallest` and the like."""
        config = self.config
        return {"round_to": config.round_to, "least": config.least, "branches": config.branches}

    def check(self) -> None:
        """Refuse what is out of reach.

        Raises:
            InfeasibleError: The budget is below what must be left.
        """
        check(self.grouping, self.cost, self.budgets, self.counted.dense, **self.bounds)
        for budget, row in zip(self.clocked, self._clocked_rows, strict=True):
            if not row["feasible"]:
                raise InfeasibleError(
                    f"{budget} cannot be reached: the smallest network takes {row['smallest']:.3g} ms here",
                    "ask for less",
                )

    def feasibility(self) -> list[dict[str, object]]:
        """One row per budget: dense, smallest reachable, asked, feasible."""
        rows = feasibility(self.grouping, self.cost, self.budgets, self.counted.dense, **self.bounds)
        return rows + self._clocked_rows


def _first(group: ChannelGroup, number: int) -> NDArray[np.int64]:
    """As many channels of a group, the first ones of every section."""
    starts = np.arange(group.sections, dtype=np.int64) * (group.channels // group.sections)
    return (starts[:, None] + np.arange(number // group.sections, dtype=np.int64)).ravel()
