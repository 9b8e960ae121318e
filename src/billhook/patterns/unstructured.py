"""Unstructured sparsity: one global threshold over the scores of all weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    flat = []
    for score in scores:
        row = score.reshape(-1).clone().to(torch.float32)
        if keep_at_least:
            row[torch.topk(row, min(keep_at_least, row.numel())).indices] = torch.inf
        flat.append(row)
    pooled = torch.cat(flat)
    if remove > int(torch.isfinite(pooled).sum()):
        raise ValueError("the budget asks for more weights than may be removed")
    mask = torch.ones(pooled.shape, dtype=torch.bool, device=pooled.device)
    if remove > 0:
        mask[torch.argsort(pooled, stable=True)[:remove]] = False
    pieces = torch.split(mask, [row.numel() for row in flat])
    return [piece.reshape(score.shape) for piece, score in zip(pieces, scores, strict=True)]
