"""Which channels stay: the lowest scores go first, until every budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, lcm
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from billhook.cost import Cost
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, RunError, UsageError
from billhook.methods.channel_paths import with_paths
from billhook.surgery.channel_cost import QUANTITIES
from billhook.surgery.groups import ChannelGroup, Grouping

Scope = Literal["global", "uniform"]
"""Whether groups compete for the budget, or each loses the same share."""


class Costs(Protocol):
    """What a network costs with fewer channels: :class:`~billhook.surgery.channel_cost.ChannelCost`, or the like.

    Attributes:
        cost: Of the dense network with the head as it will be delivered.
        names: Groups.
        index: Their numbers.
        channels: ``[groups]``: all of them.
    """

    cost: Cost
    names: tuple[str, ...]
    index: dict[str, int]
    channels: NDArray[np.int64]

    def many(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[..., quantities]`` of ``[..., groups]``, in the order of :data:`QUANTITIES`."""
        ...

    def totals(self, kept: Mapping[str, int]) -> dict[str, float]:
        """Of one choice, by quantity; groups that are not named keep all."""
        ...

    def largest(self, kept: Mapping[str, int], quantity: str) -> str:
        """The layer that has the most of a quantity."""
        ...


TOLERANCE = 0.001
"""Overshoot of a sparsity that does not matter, as a share of the parameters (0.1 point)."""

TOLERANCE_OF_BOUND = 0.01
"""The same for all other quantities, as a share of the bound."""


def choose_channels(
    scores: Mapping[str, NDArray[np.float64]],
    grouping: Grouping,
    cost: Costs,
    budgets: Sequence[Budget],
    dense: Mapping[str, float],
    *,
    scope: Scope = "global",
    round_to: int = 1,
    least: float = 0.0,
    branches: bool = True,
    fraction: float = 1.0,
) -> dict[str, NDArray[np.int64]]:
    """The channels that each group keeps so that the network meets all budgets at once.

    A unit is what can be removed at a time: the lowest-scored remaining channel of each section of a group, as many
    times as ``round_to`` asks. The shortest prefix of the units that meets the budgets goes. ``global`` orders them by
    mean score, never below that of the unit before them in the group; ``uniform`` by the share of the group that is
    gone with them, then by score. Equal ones go in the order of the groups. Then the removed units are walked back,
    the last one first, and each that still fits is given back, until a quantity is within its tolerance of the bound
    (1 % of it, 0.1 point of sparsity) or nothing fits.

    A group keeps all its channels, or a multiple of ``round_to`` and of its sections, or none where its branch may go.
    One that has fewer than such a multiple keeps them all (or none). A group that nobody writes any more but a padded
    shortcut keeps a channel that comes through it (:func:`with_paths`).

    Args:
        scores: ``[channels]`` of each group; the more important, the higher.
        grouping: The groups.
        cost: What the network costs with fewer channels.
        budgets: The inequalities.
        dense: Totals of the dense network, which percentages are of.
        scope: ``global`` or ``uniform``.
        round_to: Kept channels are a multiple of it.
        least: Share of every group that always stays.
        branches: A group whose branch can go may keep no channel (if ``least`` is 0).
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
    check(grouping, cost, budgets, dense, round_to=round_to, least=least, branches=branches)
    ranked = _rank(scores, grouping)
    goals = [_goal(budget, cost, dense, fraction) for budget in budgets]
    counts = [_counts(group, round_to, least, branches) for group in grouping.groups.values()]
    units = _in_order(list(ranked.values()), counts, scope)
    kept = _hand_back(units, _shortest_prefix(units, cost, goals), cost, goals)
    chosen = {}
    for (name, (order, _)), channels in zip(ranked.items(), kept.tolist(), strict=True):
        per_section = channels // len(order)
        chosen[name] = np.sort(order[:, order.shape[1] - per_section :].ravel())
    return with_paths(grouping, chosen, scores)


def smallest(
    grouping: Grouping, cost: Costs, round_to: int = 1, least: float = 0.0, *, branches: bool = True
) -> dict[str, int]:
    """The fewest channels that each group can keep.

    Args:
        grouping: The groups.
        cost: What the network costs with fewer channels.
        round_to: Kept channels are a multiple of it.
        least: Share of every group that always stays.
        branches: A group whose branch can go may keep no channel (if ``least`` is 0).

    Raises:
        UsageError: A setting out of range.
        ValueError: The cost is that of other groups.
    """
    if round_to < 1:
        raise UsageError(f"round_to = {round_to} is less than 1")
    if not 0 <= least <= 1:
        raise UsageError(f"least = {least:g} is not between 0 and 1", "it is a share of every group's channels")
    if tuple(grouping.groups) != cost.names:
        raise ValueError("the cost is that of other channel groups")
    return {name: _counts(group, round_to, least, branches)[-1] for name, group in grouping.groups.items()}


def feasibility(
    grouping: Grouping,
    cost: Costs,
    budgets: Sequence[Budget],
    dense: Mapping[str, float],
    *,
    round_to: int = 1,
    least: float = 0.0,
    branches: bool = True,
) -> list[dict[str, object]]:
    """One row per budget: dense, smallest reachable, asked, the layer that has the most of what is left, feasible.

    Args:
        grouping: The groups.
        cost: What the network costs with fewer channels.
        budgets: The inequalities.
        dense: Totals of the dense network, which percentages are of.
        round_to: Kept channels are a multiple of it.
        least: Share of every group that always stays.
        branches: A group whose branch can go may keep no channel (if ``least`` is 0).

    Raises:
        UsageError: A budget on latency, or a setting out of range.
    """
    fewest = smallest(grouping, cost, round_to, least, branches=branches)
    totals = cost.totals(fewest)
    rows: list[dict[str, object]] = []
    for budget in budgets:
        goal = _goal(budget, cost, dense)
        quantity = QUANTITIES[goal.column]
        if budget.quantity == "sparsity":
            asked, before, after = budget.bound, 0.0, 1 - totals["params"] / cost.cost.params
        else:
            asked, before, after = budget.absolute(dense), float(dense[budget.quantity]), totals[quantity]
        rows.append(
            {
                "quantity": budget.quantity,
                "dense": before,
                "smallest": after,
                "asked": asked,
                "binding_layer": cost.largest(fewest, quantity),
                "feasible": bool(totals[quantity] <= goal.limit),
            }
        )
    return rows


def check(
    grouping: Grouping,
    cost: Costs,
    budgets: Sequence[Budget],
    dense: Mapping[str, float],
    *,
    round_to: int = 1,
    least: float = 0.0,
    branches: bool = True,
) -> None:
    """Refuse budgets that removing channels cannot meet; the arguments are those of :func:`feasibility`.

    Raises:
        UsageError: A budget on latency, or a setting out of range.
        InfeasibleError: With the best that can be reached.
    """
    rows = feasibility(grouping, cost, budgets, dense, round_to=round_to, least=least, branches=branches)
    fewest = f"{100 * least:g} % of every group" if least else "one channel of every group"
    if not least and branches and any(group.branch is not None for group in grouping.groups.values()):
        fewest += " outside the branches that can go"
    if round_to > 1:
        fewest += f", in multiples of {round_to},"
    for budget, row in zip(budgets, rows, strict=True):
        if not row["feasible"]:
            raise InfeasibleError(
                f"{budget} cannot be reached: keeping {fewest} leaves {_reached(budget, row)}",
                "ask for less" + (", or let the groups keep fewer channels" if least or round_to > 1 else ""),
            )


def _reached(budget: Budget, row: Mapping[str, object]) -> str:
    after, before = float(str(row["smallest"])), float(str(row["dense"]))
    if budget.quantity == "sparsity":
        return f"{100 * after:.2f} % sparsity"
    if budget.unit == "ratio":
        return f"{100 * after / before:.2f} % of dense"
    return f"{after:,.0f} {budget.quantity}"


# ---------------------------------------------------------------------- budgets as upper limits
@dataclass(frozen=True)
class _Goal:
    """A quantity may be at most ``limit``; closer to it than ``tolerance`` need not be."""

    column: int
    limit: float
    tolerance: float


def limit(budget: Budget, cost: Costs, dense: Mapping[str, float]) -> tuple[str, float]:
    """What a budget counts when channels go, one of :data:`QUANTITIES`, and how much of it may be left.

    Args:
        budget: The inequality.
        cost: What the network costs with fewer channels.
        dense: Totals of the dense network, which percentages are of.

    Raises:
        UsageError: A budget on latency.
    """
    if budget.quantity == "latency":
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


def tolerance(budget: Budget, bound: float, cost: Costs) -> float:
    """How far below ``bound`` a quantity may stay when channels are handed back."""
    return TOLERANCE * cost.cost.params if budget.quantity == "sparsity" else TOLERANCE_OF_BOUND * bound


def _goal(budget: Budget, cost: Costs, dense: Mapping[str, float], fraction: float = 1.0) -> _Goal:
    quantity, bound = limit(budget, cost, dense)
    column = QUANTITIES.index(quantity)
    start = float(cost.many(cost.channels)[column])
    if fraction < 1 and bound < start:
        bound = start + fraction * (bound - start)
    return _Goal(column, bound, tolerance(budget, bound, cost))


# ---------------------------------------------------------------------- units
@dataclass(frozen=True)
class _Units:
    """What can be removed at a time, in the order of removal: number of its group, and how many channels."""

    group: NDArray[np.int64]
    size: NDArray[np.int64]

    def left(self, removed: int, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[groups]``: channels that are left after the first ``removed`` units."""
        gone = np.bincount(self.group[:removed], self.size[:removed], minlength=len(channels))
        return channels - gone.astype(np.int64)


def _counts(group: ChannelGroup, round_to: int, least: float, branches: bool) -> list[int]:
    """All numbers of channels that a group may keep, descending."""
    if group.channels % group.sections:
        raise ValueError(f"the {group.channels} channels of '{group.name}' do not fall into {group.sections} sections")
    step = lcm(round_to, group.sections)
    bottom = step * max(1, ceil(least * group.channels / step - 1e-9))
    highest = (group.channels - 1) // step * step
    counts = [group.channels, *range(highest, bottom - 1, -step)]
    return [*counts, 0] if branches and group.branch is not None and least == 0 else counts


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


def _in_order(ranked: Sequence[_Ranked], counts: Sequence[Sequence[int]], scope: Scope) -> _Units:
    groups: list[int] = []
    sizes: list[int] = []
    shares: list[float] = []
    means: list[float] = []
    for number, ((_, score), allowed) in enumerate(zip(ranked, counts, strict=True)):
        sections, top = len(score), -np.inf
        for before, after in pairwise(allowed):
            start, stop = ((allowed[0] - count) // sections for count in (before, after))
            top = max(top, float(score[:, start:stop].mean()))
            groups.append(number)
            sizes.append(before - after)
            shares.append((allowed[0] - after) / allowed[0])
            means.append(top)
    # Stable: equal units stay in the order of groups, and of removal within them.
    keys = (means,) if scope == "global" else (means, shares)
    order = np.lexsort(keys) if groups else np.zeros(0, dtype=np.int64)
    return _Units(np.array(groups, dtype=np.int64)[order], np.array(sizes, dtype=np.int64)[order])


# ---------------------------------------------------------------------- selection
def _met(totals: NDArray[np.float64], goals: Sequence[_Goal]) -> bool:
    return all(totals[goal.column] <= goal.limit for goal in goals)


def _close(totals: NDArray[np.float64], goals: Sequence[_Goal]) -> bool:
    return any(goal.limit - totals[goal.column] <= goal.tolerance for goal in goals)


def _shortest_prefix(units: _Units, cost: Costs, goals: Sequence[_Goal]) -> int:
    """How many units have to go; the cost never rises with one of them."""
    low, high = 0, len(units.group)
    while low < high:
        middle = (low + high) // 2
        if _met(cost.many(units.left(middle, cost.channels)), goals):
            high = middle
        else:
            low = middle + 1
    return low


def _hand_back(units: _Units, removed: int, cost: Costs, goals: Sequence[_Goal]) -> NDArray[np.int64]:
    """Give back what fits, the last removed first.

    A unit that does not fit never will: the more channels there are, the more it costs. So its group is done with; and
    so is one inside a branch that has gone, whose channels would be there in name only.
    """
    kept = units.left(removed, cost.channels)
    totals = cost.many(kept)
    done: set[int] = set()
    for group, size in zip(units.group[:removed][::-1].tolist(), units.size[:removed][::-1].tolist(), strict=True):
        if len(done) == len(kept) or _close(totals, goals):
            break
        if group in done:
            continue
        kept[group] += size
        larger = cost.many(kept)
        if _met(larger, goals) and not np.array_equal(larger, totals):
            totals = larger
        else:
            kept[group] -= size
            done.add(group)
    return kept
