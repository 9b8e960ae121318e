"""What a greedy method removes, by how it makes up for it."""

from __future__ import annotations

from collections.abc import Sequence

from billhook.cost.budget import Budget
from billhook.methods.counted import Counted
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.groups import Groups
from billhook.methods.greedy.shrinking import Removable
from billhook.methods.greedy.sides import Sides
from billhook.methods.group_limits import GroupLimits


def removable(counted: Counted, budgets: Sequence[Budget], config: GreedyConfig) -> Removable:
    """Channel groups, or sides of convolutions with 1x1 convolutions around them.

    Raises:
        InputError: There are budgets, and nothing that could go.
        UsageError: A budget that the method cannot move.
    """
    kind = Sides if config.compensation == "pointwise" else Groups
    return kind(counted, budgets, config)


def greedy_limits(counted: Counted, budgets: Sequence[Budget], config: GreedyConfig) -> GroupLimits:
    """How far a greedy method can go; raises as :func:`removable` does."""
    return removable(counted, budgets, config).limits
