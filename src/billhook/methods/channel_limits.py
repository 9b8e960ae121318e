"""How far a method can go that removes channels by groups, as surgery finds them."""

from __future__ import annotations

from functools import cached_property

from billhook.cost.budget import Budget
from billhook.latency.networks import OURS
from billhook.methods.base import Setting
from billhook.methods.channel_times import ChannelTimes, measured
from billhook.methods.counted import Counted
from billhook.methods.floor import Floor
from billhook.methods.group_limits import Choose, GroupLimits
from billhook.methods.kept import Kept
from billhook.surgery import Grouping
from billhook.surgery.channel_cost import ChannelCost, Times


class ChannelLimits(GroupLimits):
    """Which channels can be removed, and what the budgets count on them; groups are channel groups.

    Args:
        counted: The network.
        budgets: The inequalities; may be none.
        config: Of the method.

    Raises:
        InputError: There are budgets, and no channel that could go.
        UsageError: A budget that the method cannot move.
    """

    def find_groups(self) -> Grouping:
        """The channel groups."""
        return self.counted.groups()

    @cached_property
    def cost(self) -> ChannelCost:
        """What the network costs with fewer channels; worked out when it is asked for."""
        return self.cost_of(self.counted)

    def cost_of(self, counted: Counted) -> ChannelCost:
        """The same of a network that has lost channels already."""
        return channel_cost(counted, None if self.table is None else self.table.times())

    @cached_property
    def table(self) -> ChannelTimes | None:
        """Milliseconds by the widths of layers, in our runtime."""
        if not self.clocked or self.clock.engine != OURS:
            return None
        setting = self.counted if isinstance(self.counted, Setting) else None
        if setting is None:
            return measured(self.counted, None)
        return setting.room.from_first(lambda: measured(self.counted, setting.earlier))

    def milliseconds(self, kept: Kept) -> float:
        """On this machine, when the groups keep these channels."""
        return self.clock.without(self.counted.network.module, self.counted, kept)

    def counted_of(self, smaller: Counted, cost: ChannelCost, choose: Choose, floor: Floor) -> tuple[Budget, ...]:
        """:meth:`counted_as` for a network that has lost channels already.

        Args:
            smaller: The network.
            cost: What it costs with fewer channels.
            choose: Channels of it that stay under further budgets.
            floor: What its groups never go below.

        Raises:
            InfeasibleError: The smallest is too slow.
        """

        def milliseconds(kept: Kept) -> float:
            return self.clock.without(smaller.network.module, smaller, kept)

        return self._counted_as(choose, cost.grouping, cost, milliseconds, floor)


def channel_cost(counted: Counted, times: Times | None = None) -> ChannelCost:
    """What the network costs with fewer channels, its head as delivered.

    Args:
        counted: The network.
        times: Of its layers, by which it also tells milliseconds.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in counted.network.module.state_dict().items()}
    return ChannelCost(counted.delivered, counted.groups(), counted.file_bytes({}), shapes=shapes, times=times)
