"""Budgets seen from a search that removes a few channels at a time: how far it is, and what a removal saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, lcm

import numpy as np
from numpy.typing import NDArray

from billhook.cost.budget import Budget
from billhook.methods.channel_choice import Costs, limit
from billhook.surgery.channel_cost import QUANTITIES
from billhook.surgery.groups import ChannelGroup


def allowed_counts(group: ChannelGroup, round_to: int, least: float, branches: bool) -> list[int]:
    """All numbers of channels that a group may keep, descending, as
    :func:`~billhook.methods.channel_choice.choose_channels` has them.

    Args:
        group: The group.
        round_to: Kept channels are a multiple of it, or all.
        least: Share of the group that always stays.
        branches: A group whose branch can go may keep none (if ``least`` is 0).
    """
    unit = lcm(round_to, group.sections)
    bottom = unit * max(1, ceil(least * group.channels / unit - 1e-9))
    counts = [group.channels, *range((group.channels - 1) // unit * unit, bottom - 1, -unit)]
    return [*counts, 0] if branches and group.branch is not None and least == 0 else counts


def next_count(counts: Sequence[int], kept: int, step: float) -> int | None:
    """How many channels a group keeps after a step; None where it can lose no more.

    Args:
        counts: All numbers that it may keep, descending.
        kept: How many it has.
        step: To lose: a count, or a share of all channels. At least one unit goes, and the last unit goes alone.
    """
    lower = [count for count in counts if count < kept]
    if not lower:
        return None
    wanted = kept - (step if step >= 1 else step * counts[0])
    within = [count for count in lower if count >= max(wanted - 1e-9, 1)]
    return within[-1] if within else lower[0]


class Goals:
    """Upper limits of what is counted.

    Args:
        budgets: The inequalities, none on latency.
        cost: What the network costs with fewer channels.
        dense: Totals of the dense network, which percentages are of.
        gross: ``[..., quantities]`` of ``[..., groups]``: what savings are told from, and what falls with every
            removal; None: the cost.
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        cost: Costs,
        dense: Mapping[str, float],
        gross: Callable[[NDArray[np.int64]], NDArray[np.float64]] | None = None,
    ) -> None:
        self.cost, self.gross = cost, gross or cost.many
        found = [limit(budget, cost, dense) for budget in budgets]
        self._columns = [QUANTITIES.index(quantity) for quantity, _ in found]
        self._limits = np.array([bound for _, bound in found], dtype=np.float64)
        self._start = self._of(cost.channels)
        # A limit that holds from the start asks for nothing; no division by what is not there.
        self._gap = np.where(self._start > self._limits, self._start - self._limits, np.inf)

    def met(self, kept: NDArray[np.int64]) -> bool:
        """Whether every limit holds."""
        return bool((self._of(kept) <= self._limits).all())

    def gone(self, kept: NDArray[np.int64]) -> float:
        """Share of the way that is behind, of the goal that is furthest off; 1: all are met."""
        if self.met(kept):
            return 1.0
        left = (self._of(kept) - self._limits) / self._gap
        return float(np.clip(1 - left.max(), 0, 1))

    def saved(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
        """Share of the way that a removal saves, added up over the goals; what is below a limit counts for nothing."""
        first, last = (np.maximum(self.gross(kept)[..., self._columns], self._limits) for kept in (before, after))
        return float(((first - last) / self._gap)[self._of(before) > self._limits].sum())

    def _of(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(self.cost.many(kept)[..., self._columns])

    def rounds(self, counts: Mapping[str, Sequence[int]], step: float, step_end: float) -> int:
        """About how many rounds a search takes: as many as when all groups lose the same share.

        Args:
            counts: By group: all numbers of channels that it may keep, descending.
            step: See :func:`next_count`.
            step_end: Over the last tenth of the way.
        """
        kept = self.cost.channels.copy()
        rounds = 0
        while not self.met(kept):
            order = np.argsort(-(kept / self.cost.channels), kind="stable")
            size = step if self.gone(kept) < END else step_end
            for place in order.tolist():
                after = next_count(counts[self.cost.names[place]], int(kept[place]), size)
                if after is not None:
                    kept[place] = after
                    rounds += 1
                    break
            else:
                break
        return rounds


END = 0.9
"""From here on the way is its end, and steps are smaller."""
