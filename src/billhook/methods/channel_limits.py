"""How far a method can go that removes channels by groups, as surgery finds them."""

from __future__ import annotations

from functools import cached_property

from billhook.cost.budget import Budget
from billhook.methods.counted import Counted
from billhook.methods.floor import Floor
from billhook.methods.group_limits import Choose, GroupLimits
from billhook.methods.kept import Kept
from billhook.surgery import Grouping
from billhook.surgery.channel_cost import ChannelCost


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
        return channel_cost(self.counted)

    def milliseconds(self, kept: Kept) -> float:
        """On this machine, when the groups keep these channels."""
        return self.clock.without(self.counted.network.module, self.counted, kept)

    def in_macs_of(self, smaller: Counted, cost: ChannelCost, choose: Choose, floor: Floor) -> tuple[Budget, ...]:
        """:meth:`in_macs` for a network that has lost channels already.

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

        return self._in_macs(choose, cost.grouping, cost, milliseconds, floor)


def channel_cost(counted: Counted) -> ChannelCost:
    """What the network costs with fewer channels, its head as delivered."""
    shapes = {name: tuple(tensor.shape) for name, tensor in counted.network.module.state_dict().items()}
    return ChannelCost(counted.delivered, counted.groups(), counted.file_bytes({}), shapes=shapes)
