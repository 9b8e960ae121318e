"""Rank columns: blocks sorted within each block row, added up over the rows, pruned by one global threshold.

Pruning the k-th weakest block *of every block row* removes the same number of blocks from each row of a layer
(uniform work, no row pointers), while different rows lose different columns (CRISP, arXiv 2311.14272).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from billhook.patterns.block import BlockGrid

Normalise = Literal["weight", "sum"]


@dataclass(frozen=True)
class RankColumns:
    """The rank columns of one layer, weakest first.

    Attributes:
        order: int64 ``[R, C]``; ``order[r, k]`` is the block column with the k-th smallest score in block row r.
        score: float64 ``[C]``, non-decreasing.
        cost: int64 ``[C]``, the surviving weights that pruning rank column k removes.
    """

    order: Tensor
    score: NDArray[np.float64]
    cost: NDArray[np.int64]


def rank_columns(score: Tensor, grid: BlockGrid, density: float = 1.0, normalise: Normalise = "weight") -> RankColumns:
    """Sort every block row by block score and add the rows up, rank by rank.

    With ``normalise="weight"`` a block's score is its mean per weight and a rank column's score is the mean of those
    weighted by row height, so that layers of any size meet on one scale. With ``"sum"`` both are raw sums, as
    published (small layers then go first). Of two equal blocks the one with the higher column
    index is pruned first.

    Args:
        score: Non-negative ``[O, taps, I]``; zero where the N:M mask is closed.
        grid: The block grid of the layer.
        density: N/M, the share of each block's weights that survives the N:M mask.
        normalise: ``"weight"`` or ``"sum"``.
    """
    block_score = grid.sums(score).to(torch.float64)
    widths = grid.widths().to(score.device)
    heights = grid.heights().to(score.device)
    if normalise == "weight":
        block_score = block_score / (heights[:, None] * widths[None, :])
    # A stable sort of the reversed columns gives the tie rule.
    flipped = torch.argsort(block_score.flip(1), dim=1, stable=True)
    order = grid.columns - 1 - flipped
    ordered = torch.gather(block_score, 1, order)
    if normalise == "weight":
        column_score = (ordered * heights[:, None]).sum(dim=0) / grid.outputs
    else:
        column_score = ordered.sum(dim=0)
    # Sums of tied columns may differ in the last bit, by the order they were added in.
    column_score = column_score.cummax(dim=0).values
    area = (heights[:, None] * widths[order]).sum(dim=0)
    cost = np.rint(area.cpu().numpy() * density).astype(np.int64)
    return RankColumns(order, column_score.cpu().numpy(), cost)


def choose_removed(
    scores: Sequence[NDArray[np.float64]],
    costs: Sequence[NDArray[np.float64]],
    need: NDArray[np.float64],
    tolerance: NDArray[np.float64],
    keep_at_least: int = 1,
) -> list[int]:
    """How many rank columns each layer loses: one global threshold, counted in what the budget counts.

    Columns go in ascending order of score over all layers until every need is met. A column that would overshoot by
    more than the tolerance is passed over in favour of a smaller one further up; if none fits, the smallest goes.

    Args:
        scores: Per layer ``[C]``, non-decreasing.
        costs: Per layer ``[C, Q]``: what each column saves of each of the Q budgeted quantities.
        need: ``[Q]``, what has to be saved of each quantity.
        tolerance: ``[Q]``, the overshoot that does not matter.
        keep_at_least: Rank columns that every layer keeps (a layer never vanishes).

    Returns:
        The number of removed columns per layer, always the weakest ones.

    Raises:
        ValueError: All removable columns together do not meet the need.
    """
    layer = np.concatenate([np.full(max(len(s) - keep_at_least, 0), i) for i, s in enumerate(scores)])
    score = np.concatenate([s[: max(len(s) - keep_at_least, 0)] for s in scores])
    cost = np.concatenate([c[: max(len(c) - keep_at_least, 0)] for c in costs]).reshape(-1, len(need))
    removed = [0] * len(scores)
    if np.all(need <= 0):
        return removed
    if np.any(cost.sum(axis=0) < need):
        raise ValueError("the budget is below what one rank column per layer leaves")
    queue = np.argsort(score, kind="stable")
    total = np.cumsum(cost[queue], axis=0)
    # Everything strictly before the crossing is below the threshold whatever happens at the edge.
    crossing = int(np.argmax(np.all(total >= need, axis=1)))
    for item in queue[:crossing]:
        removed[layer[item]] += 1
    left = need - (total[crossing - 1] if crossing else 0)
    closed: set[int] = set()
    for item in queue[crossing:]:
        at = int(layer[item])
        if at in closed:
            continue
        open_needs = left > 0
        if np.any(open_needs & (cost[item] > 0) & (cost[item] <= left + tolerance)):
            removed[at] += 1
            left = left - cost[item]
            if np.all(left <= 0):
                return removed
        else:
            closed.add(at)
    while np.any(left > 0):
        # Nothing fits within the tolerance: the smallest column of those that help, the weakest of equals.
        candidates = []
        for at, (layer_score, layer_cost) in enumerate(zip(scores, costs, strict=True)):
            k = removed[at]
            if k < len(layer_score) - keep_at_least:
                saving = float(np.max(np.where(left > 0, layer_cost[k] / np.maximum(need, 1e-300), 0.0)))
                if saving > 0:
                    candidates.append((saving, float(layer_score[k]), at))
        enough = [c for c in candidates if np.all(costs[c[2]][removed[c[2]]] >= left)]
        at = min(enough or candidates)[2]
        left = left - costs[at][removed[at]]
        removed[at] += 1
    return removed
