"""The pattern functions again, as slow Python loops over single weights."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from billhook.patterns import BlockGrid


def nm_oracle(score: Tensor, n: int, m: int) -> Tensor:
    """Keep the n largest of every m; the earlier of equals."""
    flat = score.reshape(-1).tolist()
    mask = [False] * len(flat)
    for start in range(0, len(flat), m):
        group = sorted(range(start, start + m), key=lambda place: (-flat[place], place))
        for place in group[:n]:
            mask[place] = True
    return torch.tensor(mask).reshape(score.shape)


def blocks(grid: BlockGrid) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """(block row, block column, the positions in it) of every block."""
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for o, tap, i in product(range(grid.outputs), range(grid.taps), range(grid.inputs)):
        per_tap = -(-grid.inputs // grid.block)
        found.setdefault((o // grid.block, tap * per_tap + i // grid.block), []).append((o, tap, i))
    return [(row, column, places) for (row, column), places in sorted(found.items())]


def sums_oracle(values: Tensor, grid: BlockGrid) -> Tensor:
    """Sum over every block."""
    out = torch.zeros(grid.rows, grid.columns, dtype=torch.float64)
    for row, column, places in blocks(grid):
        out[row, column] = sum(float(values[place]) for place in places)
    return out


def expand_oracle(kept: Tensor, grid: BlockGrid) -> Tensor:
    """Every weight gets its block's bit."""
    mask = torch.zeros(grid.outputs, grid.taps, grid.inputs, dtype=torch.bool)
    for row, column, places in blocks(grid):
        for place in places:
            mask[place] = bool(kept[row, column])
    return mask


def rank_columns_oracle(
    score: Tensor, grid: BlockGrid, density: float, normalise: str
) -> tuple[list[list[int]], list[float], list[int]]:
    """(order, scores, costs) by sorting plain lists; integer scores make every float below exact."""
    cells: dict[int, list[tuple[float, int, int, int]]] = {}
    for row, column, places in blocks(grid):
        total = sum(float(score[place]) for place in places)
        value = total / len(places) if normalise == "weight" else total
        height = len({place[0] for place in places})
        cells.setdefault(row, []).append((value, -column, height, len(places)))
    order, scores, costs = [], [], []
    rows = [sorted(cells[row]) for row in sorted(cells)]
    order = [[-column for _, column, _, _ in row] for row in rows]
    for k in range(grid.columns):
        if normalise == "weight":
            scores.append(sum(row[k][0] * row[k][2] for row in rows) / grid.outputs)
        else:
            scores.append(sum(row[k][0] for row in rows))
        costs.append(round(sum(row[k][3] for row in rows) * density))
    return order, scores, costs


def threshold_oracle(scores: list[Tensor], remove: int, keep_at_least: int) -> list[Tensor]:
    """Close the lowest of all; guard each layer's highest; ties close the earlier position."""
    pool = []
    for layer, score in enumerate(scores):
        flat = score.reshape(-1).tolist()
        ranked = sorted(range(len(flat)), key=lambda place: (flat[place], place))
        pool += [(flat[place], layer, place) for place in ranked[: max(len(flat) - keep_at_least, 0)]]
    masks = [np.ones(score.numel(), dtype=bool) for score in scores]
    for _, layer, place in sorted(pool)[:remove]:
        masks[layer][place] = False
    return [torch.from_numpy(mask).reshape(score.shape) for mask, score in zip(masks, scores, strict=True)]
