"""How far a method can go that removes a number of channels of each of many groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, InputError
from billhook.methods.base import Setting
from billhook.methods.ceilings import Ceilings, Costs
from billhook.methods.channel_choice import check, choose_channels, feasibility, smallest
from billhook.methods.channel_latency import Clock, Memory, stand_in, within
from billhook.methods.channel_times import ChannelTimes
from billhook.methods.counted import Counted
from billhook.methods.floor import Floor, RemovalConfig
from billhook.methods.kept import Kept, first_channels, how_many
from billhook.surgery import Grouping
from billhook.surgery.channel_cost import LATENCY

Choose = Callable[[Sequence[Budget]], Kept]
"""Channels that stay under further budgets."""

ROOM = 1.5
"""Streams stay as wide as leaves the budgets this many times what they and the least of all else cost."""

STEPS = 16
"""In which that width is found."""


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

    def __init__(self, counted: Counted, budgets: Sequence[Budget], config: RemovalConfig) -> None:
        self.counted, self.config = counted, config
        self.memory = Memory(counted.earlier if isinstance(counted, Setting) else None)
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
    def milliseconds(self, kept: Kept) -> float:
        """On this machine, when the groups keep these channels."""

    @property
    def floor(self) -> Floor:
        """What groups never go below under these budgets."""
        return self._floor

    @property
    def reach(self) -> Floor:
        """What groups never go below under any budgets."""
        return replace(self.floor, streams=0.0) if self.config.either else self.floor

    @property
    def _open(self) -> bool:
        """Whether there are streams and the budgets decide about them."""
        return self.config.either and any(group.stream for group in self.grouping.groups.values())

    @cached_property
    def _floor(self) -> Floor:
        lowest = self.config.floor
        if not self._open:
            return lowest

        def roomy(steps: int) -> bool:
            # Where branches are not weighed as a whole, many would be left with a channel each.
            branches = lowest.branches and self.config.whole_branches
            return self._roomy(replace(lowest, streams=steps / STEPS, branches=branches))

        if roomy(STEPS):
            return replace(lowest, streams=1.0)
        # Less is never dearer: the most that there is room for, if there is for anything.
        return replace(lowest, streams=bisect_left(range(1, STEPS), True, key=lambda steps: not roomy(steps)) / STEPS)

    @property
    def notes(self) -> list[str]:
        """What is to be said of how channels are chosen."""
        if not self._open or self.floor.streams == 1:
            return []
        left = f", to no less than {100 * self.floor.streams:g} % of them" if self.floor.streams else ""
        return [f"residual streams lose channels too{left}: the budgets cannot well be met by narrower branches"]

    def _roomy(self, floor: Floor) -> bool:
        """Whether the budgets leave much more than the smallest network of a floor."""
        fewest = smallest(self.grouping, self.cost, floor)
        found = self.cost.totals(fewest)
        totals = np.array([found[quantity] for quantity in self.cost.quantities])
        if not Ceilings.of(self.budgets, self.cost, self.counted.dense).met(ROOM * totals):
            return False
        if not self.clocked:
            return True
        # A clock does not say the same twice: what goes on after an interruption goes by what was found before.
        return bool(self.memory.recall(lambda: float(ROOM * self._milliseconds(fewest) <= self.bound)))

    def _milliseconds(self, fewest: Mapping[str, int]) -> float:
        groups = self.grouping.groups
        return self.milliseconds({name: first_channels(groups[name], number) for name, number in fewest.items()})

    # ------------------------------------------------------------------ feasibility
    @cached_property
    def _clocked_rows(self) -> list[dict[str, object]]:
        if not self.clocked:
            return []
        fewest = smallest(self.grouping, self.cost, self.reach)
        floor = self._milliseconds(fewest)
        binding = self.cost.largest(fewest, "macs")
        return [self.clock.row(budget, floor, binding) for budget in self.clocked]

    def check(self) -> None:
        """Refuse what is out of reach.

        Raises:
            InfeasibleError: The budget is below what must be left.
        """
        check(self.grouping, self.cost, self.budgets, self.counted.dense, self.reach)
        for budget, row in zip(self.clocked, self._clocked_rows, strict=True):
            if not row["feasible"]:
                raise InfeasibleError(
                    f"{budget} cannot be reached: the smallest network takes {row['smallest']:.3g} ms here",
                    "ask for less",
                )

    def feasibility(self) -> list[dict[str, object]]:
        """One row per budget: dense, smallest reachable, asked, feasible."""
        rows = feasibility(self.grouping, self.cost, self.budgets, self.counted.dense, self.reach)
        return rows + self._clocked_rows

    # ------------------------------------------------------------------ latency
    @cached_property
    def clock(self) -> Clock:
        """Milliseconds on this machine; the dense network is timed when a latency is first asked for."""
        room = self.counted.room if isinstance(self.counted, Setting) else None
        return Clock(self.counted, self.counted.cost.input_size[0], room)

    @property
    def table(self) -> ChannelTimes | None:
        """Milliseconds by the widths of layers; None where there are none, or no latency is asked for."""
        return None

    @property
    def quantity(self) -> str:
        """What a latency comes to when channels are chosen."""
        return LATENCY if LATENCY in self.cost.quantities else "macs"

    @property
    def bound(self) -> float:
        """Milliseconds that the network may take; there is a budget on latency."""
        return min(self.clock.bound(budget) for budget in self.clocked)

    def same_share(self, more: Sequence[Budget] = ()) -> Kept:
        """As many channels of every group as meet all budgets, and more of them, when each loses the same share.

        Args:
            more: Further budgets.

        Raises:
            InfeasibleError: They cannot be met.
        """
        scores = {
            name: np.arange(group.channels, 0, -1, dtype=np.float64) for name, group in self.grouping.groups.items()
        }
        budgets, dense = [*self.budgets, *more], self.counted.dense
        return choose_channels(scores, self.grouping, self.cost, budgets, dense, floor=self.floor, scope="uniform")

    def counted_as(self, choose: Choose) -> tuple[Budget, ...]:
        """What the latency asked for comes to in something counted, by measuring choices of channels; nothing when none
        is.

        Args:
            choose: Channels that stay under further budgets.

        Raises:
            InfeasibleError: The smallest is too slow.
        """
        return self._counted_as(choose, self.grouping, self.cost, self.milliseconds, self.floor)

    def _counted_as(
        self, choose: Choose, grouping: Grouping, cost: Costs, milliseconds: Callable[[Kept], float], floor: Floor
    ) -> tuple[Budget, ...]:
        if not self.clocked:
            return ()
        quantity = self.quantity

        def work() -> float:
            few, most = (cost.totals(kept)[quantity] for kept in (smallest(grouping, cost, floor), {}))
            return cost.totals(how_many(within(choose, milliseconds, self.bound, (quantity, few, most))))[quantity]

        # A little more than it costs exactly: it is told anew from sums in another order.
        return (stand_in(quantity, (1 + 1e-9) * self.memory.recall(work)),)
