"""FP-OMP: filters selected one by one, by simultaneous orthogonal matching pursuit with a least-squares refit."""

from __future__ import annotations

import torch
from torch import Tensor

from billhook.compensation.gram import DEPENDENT, Scaled, first_best, make_path, sections_of
from billhook.compensation.selection import Matrix, Path, Selection, Solver


def fp_omp(filters: Tensor | Matrix, *, ridge: float | None = None, normalised: bool = False) -> Selection:
    """Order filters so that the first ones represent all (FP-OMP, Purohit et al. 2022 and 2024).

    With the filters ``S`` selected so far, every filter ``f_j`` has a residual ``r_j``, what least squares on ``S``
    leaves of it. The next one is the ``i`` with the largest ``sum_j |<r_j, f_i>|``. Ties go to the smaller index.
    Filters that the selected ones already span add nothing and come last, in the order of the layer.

    Residuals are orthogonal to what is selected, so ``<r_j, f_i> = <r_j, r_i>``: the matrix of these products is the
    Schur complement of the Gram matrix, and the next filter's column of it the next column of the Cholesky factor. One
    selection among ``m`` filters reads ``m^2`` numbers for the scores and updates ``m^2``; all ``n`` of them cost
    ``n^3 / 3`` multiply-adds and as many additions, after ``n^2 d`` for the Gram matrix, and the refits are in the
    factor. Solving anew for every selection would cost ``n^4 / 12``.

    The published code applies coefficients in the order of selection to filters in the order of the layer, and those of
    filters at unit length to filters as they are. Here both are put right, and there is no ridge unless asked for.

    Args:
        filters: ``[n, features]``, or ``[sections, n, features]``: see :class:`Selection`.
        ridge: Added to the Gram matrix of filters at unit length, whose diagonal is one; 1 is what the published code
            has. None, or zero: least squares.
        normalised: Score filters at unit length, as the published code does, in the place of filters as they are, as
            the published formula has it. Short filters, dead ones too, then have as much to say as long ones.

    Returns:
        Its solver is ``ridge`` where one was asked for, ``pseudo-inverse`` where some filters depend on others, and
        ``exact`` otherwise.

    Raises:
        ValueError: Another shape, or a negative ridge.
        InputError: Filters that are not finite.
    """
    if ridge is not None and not ridge >= 0:
        raise ValueError(f"a ridge is not negative: {ridge}")
    rows = sections_of(filters)
    return Selection(tuple(_path(section @ section.T, ridge or 0.0, normalised) for section in rows))


def _path(gram: Tensor, ridge: float, normalised: bool) -> Path:
    scaled = Scaled.of(gram)
    count = len(gram)
    weights = torch.ones(count, dtype=torch.float64) if normalised else scaled.scale.clone()
    rest = scaled.gram.clone()
    rest.diagonal().add_(ridge)
    names = torch.arange(count)
    factor = torch.zeros(count, count, dtype=torch.float64)
    rank = 0
    while rank < count:
        # rest[rank:, rank:] holds the products of the residuals of what is not selected.
        block, mine = rest[rank:, rank:], weights[rank:]
        live = block.diagonal() > DEPENDENT
        if not live.any():
            break
        # A filter's own product holds the ridge once; it is no part of its residual.
        scores = mine * (block.abs() @ mine) - ridge * mine.square()
        scores[~live] = -torch.inf
        _swap(rest, factor, names, weights, rank, rank + first_best(scores, names[rank:], largest=True))
        column = rest[rank:, rank] / rest[rank, rank].sqrt()
        factor[rank:, rank] = column
        rank += 1
        rest[rank:, rank:].addmm_(column[1:, None], column[None, 1:], alpha=-1)
    # The others stand in any order so far; their rows of the factor move with them.
    tail = names[rank:].argsort()
    names[rank:], factor[rank:] = names[rank:][tail], factor[rank:][tail]
    solver: Solver = "ridge" if ridge else "exact" if rank == count else "pseudo-inverse"
    return make_path(names.tolist(), factor[:, :rank].clone(), scaled, solver, ridge)


def _swap(rest: Tensor, factor: Tensor, names: Tensor, weights: Tensor, one: int, other: int) -> None:
    pair, turned = [one, other], [other, one]
    rest[pair] = rest[turned]
    rest[:, pair] = rest[:, turned]
    for tensor in (factor, names, weights):
        tensor[pair] = tensor[turned]
