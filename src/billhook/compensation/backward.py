"""FP-Backward: filters removed one by one, each time the one whose removal costs least, from a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from billhook.compensation.gram import DEPENDENT, Scaled, first_best, make_path, sections_of
from billhook.compensation.selection import Matrix, Path, Selection, Solver

SAFE = 1e-10
"""A Gram matrix is inverted as it is when its smallest eigenvalue is at least this share of the largest."""


def fp_backward(filters: Tensor | Matrix, *, ridge: float | None = None) -> Selection:
    """Order filters so that the first ones represent all, by backward elimination (FP-Backward, Purohit et al. 2024;
    Reeves 1999).

    With ``A`` the filters that are left and ``B`` all of them, as columns, let ``G = (A^T A)^-1`` and ``X = G A^T B``,
    the least-squares coefficients of all filters. Removing filter ``k`` raises the squared error by exactly

        u_k = ||X_k||^2 / gamma_k,    X_k row k of X, gamma_k = G_kk,

    and leaves ``G - g_k g_k^T / gamma_k`` and ``X - g_k X_k / gamma_k`` without row (and column) ``k``, where ``g_k``
    is column ``k`` of ``G``. The smallest ``u_k`` goes; ties go by the smaller index.

    One removal from ``m`` filters of ``n`` costs ``m^2`` multiply-adds for ``G``, and ``m (n - m)`` for ``X`` and as
    many for ``||X_k||^2``: a filter that is left is made of itself alone, so only columns of removed ones are stored.
    All ``n`` removals cost ``2 n^3 / 3``, after ``n^2 d`` for the Gram matrix of filters of length ``d``, ``n^3`` for
    one inverse and ``n^3 / 3`` for the factor that answers for every number of filters. The published code has a new
    inverse, of ``m^3``, for every removal, and a product with all filters for every candidate.

    Where the Gram matrix cannot be inverted (duplicates, filters of zeros, more filters than features), what to do is
    chosen by its eigenvalues, at unit length of the filters, and reported as ``solver``:

    * ``pseudo-inverse``: some are zero and the others are not. As long as filters depend on each other, removals cost
      nothing. The limit of a vanishing ridge is taken, which removes the one whose coefficients stay smallest: G and X
      are down-dated as above with the projector on the null space in the place of ``G``.
    * ``ridge``: they decline without a gap, so that no rank can be told. The smallest ridge that gives a condition of
      :data:`SAFE` is taken.

    Args:
        filters: ``[n, features]``, or ``[sections, n, features]``: see :class:`Selection`.
        ridge: Added to the Gram matrix of filters at unit length, whose diagonal is one. Filters that stay are made of
            themselves all the same. None: chosen as above.

    Raises:
        ValueError: Another shape, or a negative ridge.
        InputError: Filters that are not finite.
    """
    rows = sections_of(filters)
    return backward_on_gram(rows @ rows.mT, ridge=ridge)


def backward_on_gram(
    gram: Tensor | Matrix, targets: Tensor | Matrix | None = None, *, ridge: float | None = None
) -> Selection:
    """:func:`fp_backward` for signals of which nothing but the inner products is known: second moments, say.

    Args:
        gram: ``[n, n]`` or ``[sections, n, n]``, symmetric and positive semi-definite.
        targets: In the same shape, likewise: with ``D`` the matrix of inner products of what least squares leaves of
            the signals, the error is ``trace(targets D)`` in the place of ``trace(D)``. Where the signals are read by
            weights ``W [outputs, n]``, ``W^T W`` makes it the error of what is put out. ``X`` then has a column per
            signal from the start, and all removals cost ``4 n^3 / 3``.
        ridge: As there.

    Raises:
        ValueError: Another shape, or a negative ridge.
        InputError: Values that are not finite.
    """
    if ridge is not None and not ridge >= 0:
        raise ValueError(f"a ridge is not negative: {ridge}")
    products = sections_of(gram)
    aims = None if targets is None else sections_of(targets)
    if products.shape[1] != products.shape[2] or (aims is not None and aims.shape != products.shape):
        raise ValueError("inner products, and targets, are square and of one shape")
    return Selection(
        tuple(_path(section, None if aims is None else aims[number], ridge) for number, section in enumerate(products))
    )


def _path(gram: Tensor, targets: Tensor | None, ridge: float | None) -> Path:
    scaled = Scaled.of(gram)
    unit = scaled.gram
    solver, extra, null = ("ridge", ridge, None) if ridge else _condition(unit)
    if extra:
        unit = unit.clone()
        unit.diagonal().add_(extra)
    left = torch.arange(len(gram))
    gone: list[int] = []
    if null is not None:
        # What costs nothing goes first; all filters count alike there, for it is about rounding.
        first = _Elimination(null, left, torch.eye(len(gram), dtype=torch.float64), diagonal=True)
        gone = first.run(int(null.trace().round()))
        left = first.names[: len(gram) - len(gone)].sort().values
    rank = len(left)
    out = torch.tensor(gone[::-1], dtype=torch.int64)
    everyone = torch.cat([left, out])
    inverse = _inverse(unit[left][:, left])
    to_others = inverse @ unit[left][:, out]
    root, diagonal = _root(targets, scaled.scale, everyone)
    coefficients = torch.zeros(len(gram), root.shape[1], dtype=torch.float64)
    coefficients[:rank] = root[:rank] + to_others @ root[rank:]
    second = _Elimination(inverse, left.clone(), coefficients, diagonal=diagonal)
    order = second.run(rank)[::-1] + gone[::-1]
    index = torch.tensor(order)
    inner = unit[index][:, index]
    factor = torch.zeros(len(order), rank, dtype=torch.float64)
    lower = torch.linalg.cholesky(inner[:rank, :rank])
    factor[:rank] = lower
    factor[rank:] = torch.linalg.solve_triangular(lower, inner[:rank, rank:], upper=False).T
    return make_path(order, factor, scaled, solver, extra, targets)


def _condition(unit: Tensor) -> tuple[Solver, float, Tensor | None]:
    """How a Gram matrix of ones on the diagonal can be inverted: solver, ridge, projector on the null space."""
    lower, failed = torch.linalg.cholesky_ex(unit)
    if not failed and unit.abs().sum(0).max() * torch.cholesky_inverse(lower).abs().sum(0).max() < 1 / SAFE:
        return "exact", 0.0, None
    values, vectors = torch.linalg.eigh(unit)
    largest = float(values[-1])
    if largest <= 0:
        return "pseudo-inverse", 0.0, torch.eye(len(unit), dtype=torch.float64)
    zero = values <= DEPENDENT * largest
    if not bool((zero | (values >= SAFE * largest)).all()):
        return "ridge", SAFE * largest, None
    if not zero.any():
        return "exact", 0.0, None
    return "pseudo-inverse", 0.0, vectors[:, zero] @ vectors[:, zero].T


def _inverse(gram: Tensor) -> Tensor:
    if not len(gram):
        return gram.clone()
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return (inverse + inverse.T) / 2


def _root(targets: Tensor | None, scale: Tensor, names: Tensor) -> tuple[Tensor, bool]:
    """A square root of the targets for filters at unit length, rows in the order of ``names``; is it diagonal?"""
    if targets is None:
        return scale[names].diag(), True
    full = (targets * scale[:, None] * scale[None, :])[names][:, names]
    values, vectors = torch.linalg.eigh((full + full.T) / 2)
    return vectors * values.clamp(min=0).sqrt(), False


@dataclass
class _Elimination:
    """G and X of the filters that are left, which stand in front; what is removed is written over from behind.

    Attributes:
        inverse: ``[n, n]``: G, or the projector on the null space; worked on in place.
        names: ``[n]``: which filter stands where.
        coefficients: ``[at least n, columns]``: X times a square root of the targets; worked on in place.
        diagonal: That root is diagonal: a filter that is left has one entry in its own place, and the columns of those
            that are removed follow behind the filters that are left.
    """

    inverse: Tensor
    names: Tensor
    coefficients: Tensor
    diagonal: bool

    def run(self, removals: int) -> list[int]:
        """Remove that many; returns which, in order."""
        count = len(self.names)
        return [self._remove(left) for left in range(count, count - removals, -1)]

    def _remove(self, left: int) -> int:
        last = left - 1
        gamma = self.inverse.diagonal()[:left]
        own = self.coefficients.diagonal()[:left].square() if self.diagonal else 0
        first = left if self.diagonal else 0
        size = torch.linalg.vector_norm(self.coefficients[:left, first:], dim=1).square() + own
        # In a null space, filters without a part in it cannot go; rounding leaves them a tiny one.
        costs = torch.where(gamma > DEPENDENT, size / gamma.clamp(min=DEPENDENT), torch.inf)
        self._swap(first_best(costs, self.names[:left], largest=False), last)
        pivot = self.inverse[last, last].clone()
        shares = (self.inverse[:last, last] / pivot)[:, None]
        row = self.inverse[last, :last].clone()
        self.inverse[:last, :last].addmm_(shares, row[None], alpha=-1)
        begin = last if self.diagonal else 0
        if self.diagonal:
            self.coefficients[:last, last] = 0
        self.coefficients[:last, begin:].addmm_(shares, self.coefficients[last, begin:][None].clone(), alpha=-1)
        return int(self.names[last])

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        pair, turned = [one, other], [other, one]
        for tensor in (self.inverse, self.coefficients, self.names):
            tensor[pair] = tensor[turned]
        self.inverse[:, pair] = self.inverse[:, turned]
        if self.diagonal:
            self.coefficients[:, pair] = self.coefficients[:, turned]
