"""Budgets seen from a search that removes a few channels at a time: how far it is, and what a removal saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from billhook.cost.budget import Budget
from billhook.methods.ceilings import Ceilings, Costs


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
        self.ceilings = Ceilings.of(budgets, cost, dense)
        # A limit that holds from the start asks for nothing; no division by what is not there.
        gap = self._above(cost.channels)
        self._gap = np.where(gap > 0, gap, np.inf)

    def met(self, kept: NDArray[np.int64]) -> bool:
        """Whether every limit holds."""
        return self.ceilings.met(self.cost.many(kept))

    def gone(self, kept: NDArray[np.int64]) -> float:
        """Share of the way that is behind, of the goal that is furthest off; 1: all are met."""
        if self.met(kept):
            return 1.0
        return float(np.clip(1 - (self._above(kept) / self._gap).max(), 0, 1))

    def saved(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
        """Share of the way that a removal saves, added up over the goals; what is below a limit counts for nothing."""
        columns, limits = self.ceilings.columns, self.ceilings.limits
        first, last = (np.maximum(self.gross(kept)[columns], limits) for kept in (before, after))
        return float(((first - last) / self._gap)[self._above(before) > 0].sum())

    def _above(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[budgets]``: how far each quantity is above its limit."""
        return np.asarray(self.cost.many(kept)[self.ceilings.columns] - self.ceilings.limits)

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
