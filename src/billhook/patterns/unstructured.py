"""Unstructured sparsity: one global threshold over the scores of all weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def choose_threshold_mask(scores: Sequence[Tensor], remove: int, keep_at_least: int = 1) -> list[Tensor]:
    """Close exactly ``remove`` weights, the lowest scores of all layers together; ties close the lower position.

    Args:
        scores: One tensor per layer, any shape.
        remove: Weights to close in total.
        keep_at_least: Weights that every layer keeps, its highest-scored ones.

    Returns:
        Boolean masks in the shapes of ``scores``.

    Raises:
        ValueError: Fewer than ``remove`` weights may be closed.
    """
    return choose_saving_mask(scores, np.ones((len(scores), 1)), np.array([float(remove)]), keep_at_least)


def choose_saving_mask(
    scores: Sequence[Tensor], savings: NDArray[np.float64], need: NDArray[np.float64], keep_at_least: int = 1
) -> list[Tensor]:
    """Close the lowest scores of all layers together, as few as save what is needed.

    Args:
        scores: One tensor per layer, any shape.
        savings: ``[layers, Q]``, what one closed weight of a layer saves of each of the Q budgeted quantities.
        need: ``[Q]``, what has to be saved.
        keep_at_least: Weights that every layer keeps, its highest-scored ones.

    Returns:
        Boolean masks in the shapes of ``scores``.

    Raises:
        ValueError: All weights that may be closed do not save enough.
    """
    flat = [_guard(score.reshape(-1).clone().to(torch.float32), keep_at_least) for score in scores]
    pooled = torch.cat(flat)
    order = torch.argsort(pooled, stable=True)[: int(torch.isfinite(pooled).sum())]
    layer = torch.repeat_interleave(
        torch.arange(len(flat), device=pooled.device), torch.tensor([len(row) for row in flat], device=pooled.device)
    )[order]
    remove = 0
    for saving, needed in zip(savings.T, need, strict=True):
        if needed > 0:
            saved = torch.cumsum(torch.as_tensor(saving, dtype=torch.float64, device=pooled.device)[layer], dim=0)
            remove = max(remove, int(torch.searchsorted(saved, needed)) + 1)
    if remove > len(order):
        raise ValueError("the budget asks for more weights than may be removed")
    mask = torch.ones(pooled.shape, dtype=torch.bool, device=pooled.device)
    mask[order[:remove]] = False
    pieces = torch.split(mask, [len(row) for row in flat])
    return [piece.reshape(score.shape) for piece, score in zip(pieces, scores, strict=True)]


def _guard(row: Tensor, keep: int) -> Tensor:
    """Lift the ``keep`` highest scores of a layer out of reach; of ties at the edge the later ones."""
    keep = min(keep, len(row))
    if keep:
        edge = torch.topk(row, keep).values[-1]
        above, level = row > edge, (row == edge).nonzero().reshape(-1)
        row[level[len(level) - (keep - int(above.sum())) :]] = torch.inf
        row[above] = torch.inf
    return row
