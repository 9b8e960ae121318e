"""Filters by their inner products: what algorithms that order them work on, and the path that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from billhook.compensation.selection import Matrix, Path, Solver
from billhook.errors import InputError

DEPENDENT = 1e-12
"""A filter is made of others when no more than this share of its squared length, a millionth of its length, is its own:
what is left of an exact dependence after rounding to float32."""

TIE = 1e-9
"""Values closer than this, relative to the better one, are equal, and the smaller index goes first: exact duplicates
may differ in their last bits, and differently on another machine."""


@dataclass(frozen=True)
class Scaled:
    """Filters at unit length: their condition does not depend on how long each of them is.

    Attributes:
        gram: ``[n, n]`` float64, ones on the diagonal, or zero for a filter of zeros.
        scale: ``[n]``: lengths, 1 for filters of zeros.
    """

    gram: Tensor
    scale: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Scaled:
        """From the inner products of the filters as they are."""
        lengths = gram.diagonal().clamp(min=0).sqrt()
        live = lengths > 0
        scale = torch.where(live, lengths, torch.ones_like(lengths))
        unit = gram / scale[:, None] / scale[None, :]
        unit[~live] = 0
        unit[:, ~live] = 0
        unit.diagonal()[live] = 1
        return cls(unit, scale)


def sections_of(filters: Tensor | Matrix) -> Tensor:
    """``[sections, n, features]`` in float64 on the CPU, from one matrix of filters or one per section.

    Raises:
        ValueError: Another shape.
        InputError: Values that are not finite.
    """
    rows = torch.as_tensor(filters).detach().to("cpu", torch.float64)
    rows = rows[None] if rows.ndim == 2 else rows
    if rows.ndim != 3 or not rows.shape[0] or not rows.shape[1]:
        raise ValueError(f"filters are [n, features] or [sections, n, features], not {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise InputError("filters that are not finite cannot be compared", "check the weights")
    return rows


def first_best(values: Tensor, names: Tensor, *, largest: bool) -> int:
    """The place of the best value; among ties the one of the smallest name."""
    best = values.max() if largest else values.min()
    room = TIE * best.abs()
    tied = (values >= best - room if largest else values <= best + room).nonzero().flatten()
    return int(tied[names[tied].argmin()])


def make_path(
    order: Sequence[int], factor: Tensor, scaled: Scaled, solver: Solver, ridge: float, targets: Tensor | None = None
) -> Path:
    """A path with its errors, which follow from the factor.

    Column ``i`` of the factor is what the ``i``-th filter adds to all later ones, orthogonal to what came before; with
    ``count`` filters the error is what later columns hold. With a ridge, the diagonal of filters that are not kept
    holds one ridge that is no error.

    Args:
        targets: ``[n, n]``: see :func:`billhook.compensation.backward.backward_on_gram`.
    """
    index = torch.as_tensor(list(order), dtype=torch.int64)
    rank = factor.shape[1]
    if targets is None:
        weights = scaled.scale.square()[index]
        gains = weights @ factor.square()
    else:
        full = (targets * scaled.scale[:, None] * scaled.scale[None, :])[index][:, index]
        weights = full.diagonal()
        gains = (factor * (full @ factor)).sum(dim=0)
    errors = np.zeros(len(index) + 1)
    errors[:rank] = np.cumsum(gains.numpy()[::-1])[::-1]
    if ridge:
        errors[:-1] -= ridge * np.cumsum(weights.numpy()[::-1])[::-1]
    # What rounding leaves may be negative, or rise by a bit.
    errors = np.minimum.accumulate(np.maximum(errors, 0))
    return Path(index.numpy(), factor.numpy(), scaled.scale.numpy(), errors, solver, ridge)
