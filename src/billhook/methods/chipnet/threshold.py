"""The hard threshold: from real-valued gates to channels that stay, within every budget.

Gates are ranked by psi, which never saturates as z does, and equal ones by index. As many of the lowest are shut as
the budgets ask for; what orphans free is handed back; what the network needs keeps its best channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, RunError
from billhook.methods.ceilings import Ceilings
from billhook.methods.channel_choice import choose_channels
from billhook.methods.chipnet.places import Layout
from billhook.methods.chipnet.soft_cost import SoftCost, with_unread
from billhook.methods.floor import LOWEST, Floor
from billhook.methods.kept import Kept
from billhook.surgery.channel_cost import ChannelCost

_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """What the threshold leaves.

    Attributes:
        mask: ``[gates]``: open ones; what gates are hardened with.
        kept: Channels that stay, ascending, of every group with one vector of gates.
        own: Positions that stay, ascending, of every place with gates of its own.
        threshold: The highest psi that was shut; -inf where none was. Higher ones are open but for the rounding of
            channels; lower ones are open where they were handed back or could not be spared.
    """

    mask: _Mask
    kept: Kept
    own: dict[str, NDArray[np.int64]]
    threshold: float


def harden(
    psi: Mapping[str, NDArray[np.floating]],
    layout: Layout,
    cost: ChannelCost,
    budgets: Sequence[Budget],
    dense: Mapping[str, float],
    floor: Floor = LOWEST,
) -> Choice:
    """Which gates stay open so that the network meets all budgets at once.

    Args:
        psi: Of each vector, by name.
        layout: The gates.
        cost: What the network costs with fewer channels.
        budgets: The inequalities.
        dense: Totals of the dense network, which percentages are of.
        floor: What groups never go below, the one that gates were laid out for; coupled gates only.

    Raises:
        InfeasibleError: The budgets cannot be met; names what can be.
        RunError: A gate is not finite.
        UsageError: A budget on latency.
        ValueError: The vectors are not those of the layout.
    """
    row = np.asarray(layout.join(psi), dtype=np.float64)
    if not np.isfinite(row).all():
        raise RunError("a gate is not finite", "lower the learning rate")
    if layout.streams:
        mask = _Search(row, layout, SoftCost(cost, layout), budgets, dense).run()
    else:
        scores = {name: np.zeros(group.channels) for name, group in layout.grouping.groups.items()}
        # Never negative, so that a branch may be weighed by the sum of its gates: the logistic function, and as much of
        # one that does not saturate as keeps the order of psi.
        open_ = np.exp(-np.logaddexp(0, -row)) + 1e-9 * np.logaddexp(0, row)
        scores |= {vector.group: open_[part] for vector, part in zip(layout.vectors, layout.slices, strict=True)}
        kept = choose_channels(scores, layout.grouping, cost, budgets, dense, floor=floor)
        mask = np.zeros(layout.total, dtype=bool)
        for vector, part in zip(layout.vectors, layout.slices, strict=True):
            mask[part][kept[vector.group]] = True
    return choice_of(mask, row, layout)


def choice_of(mask: _Mask, row: NDArray[np.float64], layout: Layout) -> Choice:
    """The choice that leaves these gates open.

    Args:
        mask: ``[gates]``: open ones.
        row: ``[gates]``: psi.
        layout: The gates.
    """
    kept: Kept = {}
    own: dict[str, NDArray[np.int64]] = {}
    for vector, part in zip(layout.vectors, layout.slices, strict=True):
        open_ = np.flatnonzero(mask[part]).astype(np.int64)
        if vector.shared:
            kept[vector.group] = open_
        else:
            own[vector.places[0].name] = np.sort(vector.places[0].index[open_].ravel())
    return Choice(mask, kept, own, float(row[~mask].max(initial=-np.inf)))


def _last(row: NDArray[np.float64]) -> int:
    """The place of the highest; of equal ones, which go in order, the one that goes last."""
    return int(np.argsort(row, kind="stable")[-1])


class _Search:
    """Independent gates: the shortest run of the lowest that meets the budgets once its orphans are gone."""

    def __init__(
        self,
        row: NDArray[np.float64],
        layout: Layout,
        cost: SoftCost,
        budgets: Sequence[Budget],
        dense: Mapping[str, float],
    ) -> None:
        self.row, self.layout, self.cost, self.budgets = row, layout, cost, budgets
        self.ceilings = Ceilings.of(budgets, cost.cost, dense)
        self.spared: set[int] = set()  # gates of readers that stay, whether what is behind them goes or not
        self.units = self._in_order(self._needed())

    def run(self) -> _Mask:
        """The open gates."""
        low, high = 0, len(self.units)
        best = self._after(high)
        if not self._met(best):
            raise self._infeasible(best)
        while low < high:
            middle = (low + high) // 2
            mask = self._after(middle)
            if self._met(mask):
                high, best = middle, mask
            else:
                low = middle + 1
        best = self._hand_back(best, high)
        if not self._met(best):
            raise RunError("the channels that were chosen do not meet the budget", "this is an error of billhook")
        return best

    # ------------------------------------------------------------------ gates that can be shut
    def _needed(self) -> _Mask:
        """Gates that must stay: the best one of each layer that the network cannot do without."""
        needed = np.zeros(self.layout.total, dtype=bool)
        groups, parts = self.layout.grouping.groups, self.layout.slices
        branches = {name for name, group in groups.items() if group.branch is not None}
        mortal = with_unread(self.layout.grouping, branches)
        passing = {member.layer for name in mortal for member in groups[name].writers}
        for vector, part in zip(self.layout.vectors, parts, strict=True):
            if vector.shared and groups[vector.group].branch is None:
                for run in np.arange(part.start, part.stop).reshape(vector.sections, -1):
                    needed[run[_last(self.row[run])]] = True
        for stream in self.layout.streams:
            gated = [(reader.vector, reader.layer) for reader in stream.readers if reader.vector is not None]
            for_sure = {number for number, layer in gated if layer not in passing}
            if len(gated) == len(stream.readers) and not for_sure:
                for_sure = {number for number, _ in gated}
                self.spared |= for_sure
            # Channels that somebody is sure to read, whichever branches go.
            read = np.full(stream.group.channels, len(gated) < len(stream.readers))
            for number, _ in gated:
                best = _last(self.row[parts[number]])
                needed[parts[number].start + best] = True
                read[best] |= number in for_sure
            writers = [(writer.vector, writer.inner) for writer in stream.writers if writer.vector is not None]
            must = [number for number, inner in writers if inner is None]
            if len(writers) == len(stream.writers) and not must:
                must = [writers[0][0]]
            for number in must:
                best = _last(np.where(read, self.row[parts[number]], -np.inf))
                needed[parts[number].start + best] = True
        return needed

    def _in_order(self, needed: _Mask) -> list[NDArray[np.int64]]:
        """What is shut at a time, one gate or one of each section, in the order of psi."""
        units: list[tuple[float, int, NDArray[np.int64]]] = []
        for vector, part in zip(self.layout.vectors, self.layout.slices, strict=True):
            runs = self.row[part].reshape(vector.sections, -1)
            order = np.argsort(runs, axis=1, kind="stable")
            gates = part.start + order + np.arange(vector.sections)[:, None] * runs.shape[1]
            top = -np.inf
            for column in gates.T:
                if needed[column].any():
                    continue  # the best of every section, all in one column
                top = max(top, float(self.row[column].mean()))
                units.append((top, len(units), column))
        return [gates for _, _, gates in sorted(units, key=lambda unit: unit[:2])]

    def _after(self, removed: int) -> _Mask:
        """The gates that are open once as many units and what they leave without a purpose are shut."""
        mask = np.ones(self.layout.total, dtype=bool)
        for gates in self.units[:removed]:
            mask[gates] = False
        return self._without_orphans(mask)

    def _without_orphans(self, mask: _Mask) -> _Mask:
        """Shut the gates of branches that are gone, before and behind them."""
        mask, groups, parts = mask.copy(), self.layout.grouping.groups, self.layout.slices
        while True:
            dead = self.cost.dead(mask)
            silent = {member.layer for name in dead for member in groups[name].writers}
            orphans = np.zeros_like(mask)
            for vector, part in zip(self.layout.vectors, parts, strict=True):
                if vector.shared and vector.group in dead and groups[vector.group].branch is not None:
                    orphans[part] = True
            for stream in self.layout.streams:
                for reader in stream.readers:
                    if reader.vector is None or reader.vector in self.spared:
                        continue
                    if reader.layer in silent:
                        orphans[parts[reader.vector]] = True
                for writer in stream.writers:
                    if writer.vector is not None and writer.inner in dead:
                        orphans[parts[writer.vector]] = True
            if not (mask & orphans).any():
                return mask
            mask &= ~orphans

    # ------------------------------------------------------------------ budgets
    def _met(self, mask: _Mask) -> bool:
        return self.ceilings.met(self.cost.hard(mask))

    def _hand_back(self, mask: _Mask, removed: int) -> _Mask:
        """Open what still fits, the last shut first, until a quantity is near its bound or nothing fits.

        What did not fit may do so later: a channel of a stream costs less once another layer has it too.
        """
        totals, before = self.cost.hard(mask), -1
        while before != mask.sum():
            before = mask.sum()
            for gates in reversed(self.units[:removed]):
                if self.ceilings.close(totals):
                    return mask
                more = mask.copy()
                more[gates] = True
                larger = self.cost.hard(more)
                if not self.ceilings.met(larger) or np.array_equal(more, mask):
                    continue
                if np.array_equal(self._without_orphans(more), more):
                    mask, totals = more, larger
        return mask

    def _infeasible(self, mask: _Mask) -> InfeasibleError:
        columns = self.ceilings.columns
        counted = self.cost.hard(mask)[columns]
        worst = int(np.argmax(counted / np.maximum(self.ceilings.limits, 1e-9)))
        return InfeasibleError(
            f"{self.budgets[worst]} cannot be reached: the best channel of every layer that has to stay leaves "
            f"{counted[worst]:,.0f} {self.cost.cost.quantities[columns[worst]]}",
            "ask for less, or choose the coupling group",
        )
