"""Which channels stay: the lowest scores go first, until every budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, RunError, UsageError
from billhook.methods.ceilings import Ceilings, Costs
from billhook.methods.channel_paths import with_paths
from billhook.methods.floor import LOWEST, Floor
from billhook.methods.kept import Kept
from billhook.surgery.channel_cost import LATENCY
from billhook.surgery.groups import Grouping

LOOKS = 4
"""At most, at what goes with branches that go."""

Scope = Literal["global", "uniform"]
"""Whether groups compete for the budget, or each loses the same share."""


def choose_channels(
    scores: Mapping[str, NDArray[np.float64]],
    grouping: Grouping,
    cost: Costs,
    budgets: Sequence[Budget],
    dense: Mapping[str, float],
    *,
    floor: Floor = LOWEST,
    scope: Scope = "global",
    fraction: float = 1.0,
) -> Kept:
    """The channels that each group keeps so that the network meets all budgets at once.

    A unit is what can be removed at a time: the lowest-scored remaining channels of each section of a group, down to
    the next number that the group may keep (:meth:`Floor.counts`). The shortest prefix of the units that meets the
    budgets goes. ``global`` orders them by mean score, never below that of the unit before them in the group;
    ``uniform`` by the share of the group that is gone with them, then by score. Equal ones go in the order of the
    groups. Then the removed units are walked back, the last one first, and each that still fits is given back, until a
    quantity is within its tolerance of the bound (1 % of it, 0.1 point of sparsity) or nothing fits.

    With a branch that goes, what its end writes goes too (:func:`overheads`). ``global`` therefore takes the channels
    of a branch that are worth most for what they cost with all that hangs on them as one unit (scores that are not
    negative only), and what hangs on a branch to be worth as much as the channels inside, by their share.

    A group that nobody writes any more but a padded shortcut keeps a channel that comes through it
    (:func:`with_paths`).

    Args:
        scores: ``[channels]`` of each group; the more important, the higher.
        grouping: The groups.
        cost: What the network costs with fewer channels.
        budgets: The inequalities.
        dense: Totals of the dense network, which percentages are of.
        floor: What groups never go below.
        scope: ``global`` or ``uniform``.
        fraction: Share of the way from the network with all channels to the budgets, for pruning in several rounds.

    Returns:
        Indices of the kept channels of every group, ascending.

    Raises:
        UsageError: A budget on latency, or a setting out of range.
        InfeasibleError: The full budgets cannot be met; names what can be.
        RunError: A score is not finite.
        ValueError: Scores and groups do not fit together.
    """
    if scope not in ("global", "uniform"):
        raise UsageError(f"unknown scope '{scope}'", "choose global or uniform")
    if not 0 <= fraction <= 1:
        raise UsageError(f"fraction = {fraction:g} is not between 0 and 1")
    check(grouping, cost, budgets, dense, floor)
    ranked = _rank(scores, grouping)
    ceilings = Ceilings.of(budgets, cost, dense, fraction)
    rows, counts = list(ranked.values()), [floor.counts(group) for group in grouping.groups.values()]
    single = _in_order(rows, counts, scope, np.zeros(len(rows)))
    hanging = overheads(counts, cost, ceilings, cost.channels) if scope == "global" else np.zeros(len(rows))
    kept = _choose(single, cost, ceilings) if not hanging.any() else cost.channels
    for _ in range(LOOKS if hanging.any() else 0):
        kept = _choose(_in_order(rows, counts, scope, hanging), cost, ceilings)
        kept = _hand_back(single, kept, cost, ceilings)  # where there is no room for what goes together
        # What goes with a branch depends on how wide the streams are that it ends on, and they on what goes.
        before, hanging = hanging, overheads(counts, cost, ceilings, kept)
        if np.array_equal(before, hanging):
            break
    chosen = {}
    for (name, (order, _)), channels in zip(ranked.items(), kept.tolist(), strict=True):
        per_section = channels // len(order)
        chosen[name] = np.sort(order[:, order.shape[1] - per_section :].ravel())
    return with_paths(grouping, chosen, scores)


def overheads(
    counts: Sequence[Sequence[int]], cost: Costs, ceilings: Ceilings, kept: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What goes with a group's last channels beside them, in channels of that group.

    A branch that goes takes along what its end writes: of the channels that may be many times what is inside.

    Args:
        counts: By group: all numbers of channels that it may keep, descending.
        cost: What the network costs with fewer channels.
        ceilings: The budgets; the costs that they limit are added up, each by its limit.
        kept: ``[groups]``: how wide the others are.

    Returns:
        ``[groups]``; 0 for those without a branch, or where less than a channel's cost hangs on it: the normalisation
        behind it, say, under a budget on parameters.
    """
    branches = [number for number, allowed in enumerate(counts) if allowed[-1] == 0 and len(allowed) > 2]
    found = np.zeros(len(counts))
    if not branches or not ceilings.columns:
        return found
    wide, narrow = (np.array([counts[number][place] for number in branches]) for place in (0, -2))
    choices = np.repeat(np.tile(kept, (len(branches), 1))[None], 3, axis=0)
    rows = np.arange(len(branches))
    for choice, channels in zip(choices, (wide, narrow, 0), strict=True):
        choice[rows, branches] = channels
    totals = (cost.many(choices)[..., ceilings.columns] / np.maximum(ceilings.limits, 1e-9)).sum(-1)
    each = (totals[0] - totals[1]) / (wide - narrow)
    beside = totals[1] - totals[2] - narrow * each
    found[branches] = np.divide(beside, each, out=np.zeros(len(branches)), where=each > 0)
    found[found < 1 - 1e-9] = 0
    return found


def smallest(grouping: Grouping, cost: Costs, floor: Floor = LOWEST) -> dict[str, int]:
    """The fewest channels that each group can keep.

    Args:
        grouping: The groups.
        cost: What the network costs with fewer channels.
        floor: What groups never go below.

    Raises:
        ValueError: The cost is that of other groups.
    """
    if tuple(grouping.groups) != cost.names:
        raise ValueError("the cost is that of other channel groups")
    return {name: floor.counts(group)[-1] for name, group in grouping.groups.items()}


def feasibility(
    grouping: Grouping, cost: Costs, budgets: Sequence[Budget], dense: Mapping[str, float], floor: Floor = LOWEST
) -> list[dict[str, object]]:
    """One row per budget: dense, smallest reachable, asked, the layer that has the most of what is left, feasible.

    Args:
        grouping: The groups.
        cost: What the network costs with fewer channels.
        budgets: The inequalities.
        dense: Totals of the dense network, which percentages are of.
        floor: What groups never go below.

    Raises:
        UsageError: A budget on latency.
    """
    fewest = smallest(grouping, cost, floor)
    totals = cost.totals(fewest)
    ceilings = Ceilings.of(budgets, cost, dense)
    rows: list[dict[str, object]] = []
    for budget, column, limit in zip(budgets, ceilings.columns, ceilings.limits, strict=True):
        quantity = cost.quantities[column]
        if budget.quantity == "sparsity":
            asked, before, after = budget.bound, 0.0, 1 - totals["params"] / cost.cost.params
        else:
            whole = cost.totals({}) if quantity == LATENCY else dense  # milliseconds as the layers' times tell them
            asked, before, after = budget.absolute(whole), float(whole[quantity]), totals[quantity]
        rows.append(
            {
                "quantity": budget.quantity,
                "dense": before,
                "smallest": after,
                "asked": asked,
                "binding_layer": cost.largest(fewest, quantity),
                "feasible": bool(totals[quantity] <= limit),
            }
        )
    return rows


def check(
    grouping: Grouping, cost: Costs, budgets: Sequence[Budget], dense: Mapping[str, float], floor: Floor = LOWEST
) -> None:
    """Refuse budgets that removing channels cannot meet; the arguments are those of :func:`feasibility`.

    Raises:
        UsageError: A budget on latency.
        InfeasibleError: With the best that can be reached.
    """
    for budget, row in zip(budgets, feasibility(grouping, cost, budgets, dense, floor), strict=True):
        if not row["feasible"]:
            raise InfeasibleError(
                f"{budget} cannot be reached: keeping {floor.words(grouping)} leaves {_reached(budget, row)}",
                "ask for less" + (", or let the groups keep fewer channels" if floor.raised else ""),
            )


def _reached(budget: Budget, row: Mapping[str, object]) -> str:
    after, before = float(str(row["smallest"])), float(str(row["dense"]))
    if budget.quantity == "sparsity":
        return f"{100 * after:.2f} % sparsity"
    if budget.unit == "ratio":
        return f"{100 * after / before:.2f} % of dense"
    return f"{after:,.0f} {budget.quantity}"


# ---------------------------------------------------------------------- units
@dataclass(frozen=True)
class _Units:
    """What can be removed at a time, in the order of removal: number of its group, how many channels, and how many of
    the group are left without them.
    """

    group: NDArray[np.int64]
    size: NDArray[np.int64]
    after: NDArray[np.int64]

    def left(self, removed: int, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[groups]``: channels that are left after the first ``removed`` units."""
        gone = np.bincount(self.group[:removed], self.size[:removed], minlength=len(channels))
        return channels - gone.astype(np.int64)


_Ranked = tuple[NDArray[np.int64], NDArray[np.float64]]
"""``[sections, channels of each]``: the channels of each section by ascending score, and those scores."""


def _rank(scores: Mapping[str, NDArray[np.float64]], grouping: Grouping) -> dict[str, _Ranked]:
    ranked = {}
    for name, group in grouping.groups.items():
        if name not in scores or np.shape(scores[name]) != (group.channels,):
            raise ValueError(f"group '{name}' has {group.channels} channels, and needs a score for each")
        score = np.asarray(scores[name], dtype=np.float64).reshape(group.sections, -1)
        if not np.isfinite(score).all():
            raise RunError(f"a channel of the group '{name}' has a score that is not finite", "look at the loss")
        order = np.argsort(score, axis=1, kind="stable")
        first = np.arange(group.sections)[:, None] * score.shape[1]
        ranked[name] = (order + first, np.take_along_axis(score, order, axis=1))
    return ranked


def _last_ones(score: NDArray[np.float64], allowed: Sequence[int], overhead: float) -> int:
    """How many channels of a group with a branch are worth most per channel, what hangs on them included: they stay
    together, or go together.
    """
    sums = np.cumsum(score.sum(0)[::-1])
    few = np.array(allowed[:-1][::-1])
    return int(few[np.argmax(sums[few // len(score) - 1] / (few + overhead))])


def _in_order(
    ranked: Sequence[_Ranked],
    counts: Sequence[Sequence[int]],
    scope: Scope,
    hanging: NDArray[np.float64],
) -> _Units:
    """The units of all groups; of a branch those that are worth most with what hangs on it are one."""
    groups: list[int] = []
    sizes: list[int] = []
    left: list[int] = []
    shares: list[float] = []
    means: list[float] = []
    for number, ((_, score), allowed, overhead) in enumerate(zip(ranked, counts, hanging.tolist(), strict=True)):
        sections, top = len(score), -np.inf
        if overhead and score.min() >= 0:
            last = _last_ones(score, allowed, overhead)
            allowed = [*(count for count in allowed if count >= last), 0]
        else:
            overhead = 0.0
        for before, after in pairwise(allowed):
            start, stop = ((allowed[0] - count) // sections for count in (before, after))
            worth = float(score[:, start:stop].sum()) / (before - after + (0 if after else overhead))
            # What hangs on a branch is worth something as well: as much as the channels inside, by their share.
            top = max(top, worth * (1 + overhead / allowed[0]))
            groups.append(number)
            sizes.append(before - after)
            left.append(after)
            shares.append((allowed[0] - after) / allowed[0])
            means.append(top)
    # Stable: equal units stay in the order of groups, and of removal within them.
    keys = (means,) if scope == "global" else (means, shares)
    order = np.lexsort(keys) if groups else np.zeros(0, dtype=np.int64)
    return _Units(*(np.array(row, dtype=np.int64)[order] for row in (groups, sizes, left)))


# ---------------------------------------------------------------------- selection
def _choose(units: _Units, cost: Costs, ceilings: Ceilings) -> NDArray[np.int64]:
    kept = units.left(_shortest_prefix(units, cost, ceilings), cost.channels)
    return _hand_back(units, kept, cost, ceilings)


def _shortest_prefix(units: _Units, cost: Costs, ceilings: Ceilings) -> int:
    """How many units have to go; the cost never rises with one of them."""
    low, high = 0, len(units.group)
    while low < high:
        middle = (low + high) // 2
        if ceilings.met(cost.many(units.left(middle, cost.channels))):
            high = middle
        else:
            low = middle + 1
    return low


def _hand_back(units: _Units, kept: NDArray[np.int64], cost: Costs, ceilings: Ceilings) -> NDArray[np.int64]:
    """Give back what fits, the last removed first.

    A unit that does not fit never will: the more channels there are, the more it costs. So its group is done with; and
    so is one inside a branch that has gone, whose channels would be there in name only.
    """
    kept = kept.copy()
    totals = cost.many(kept)
    done: set[int] = set()
    gone = np.flatnonzero(kept[units.group] <= units.after)[::-1]
    for group, size, after in zip(*(row[gone].tolist() for row in (units.group, units.size, units.after)), strict=True):
        if len(done) == len(kept) or ceilings.close(totals):
            break
        if group in done:
            continue
        assert kept[group] == after
        kept[group] += size
        larger = cost.many(kept)
        if ceilings.met(larger) and not np.array_equal(larger, totals):
            totals = larger
        else:
            kept[group] -= size
            done.add(group)
    return kept
