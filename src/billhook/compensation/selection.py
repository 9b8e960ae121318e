"""Which filters of a layer stay, for every number of them at once, and how the others are made of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from billhook.errors import InputError

Solver = Literal["exact", "pseudo-inverse", "ridge"]
"""How the least squares were solved: the filters are independent; some are exactly made of others; with a ridge."""

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

DEPENDENT = 1e-12
"""A filter is made of others when no more than this share of its squared length, a millionth of its length, is its own:
what is left of an exact dependence after rounding to float32."""

TIE = 1e-9
"""Values closer than this, relative to the better one, are equal, and the smaller index goes first: exact duplicates
may differ in their last bits, and differently on another machine."""


@dataclass(frozen=True)
class Path:
    """The filters of one section in the order of their importance: those that stay are always the first ones.

    Attributes:
        order: ``[filters]``, int64: the last to be removed, or the first to be selected, comes first.
        factor: ``[filters, rank]``: Cholesky factor, in this order, of the Gram matrix of the filters at unit length
            (with the ridge on its diagonal). Its leading rows belong to any number of filters that stay, so that one
            pass answers for all of them.
        scale: ``[filters]``: lengths, in the order of the filters; 1 for those of zeros.
        errors: ``[filters + 1]``: squared error over all filters when that many stay, by least squares. With a ridge
            its penalty is in it.
        solver: See :data:`Solver`.
        ridge: What stands on the diagonal besides the one; 0 without.
    """

    order: Indices
    factor: Matrix
    scale: Matrix
    errors: Matrix
    solver: Solver
    ridge: float

    @property
    def rank(self) -> int:
        """Independent filters."""
        return int(self.factor.shape[1])

    def compensation(self, count: int) -> Matrix:
        """``[filters - count, count]``: removed filters by those that stay, both in ascending order.

        Filters that are linearly dependent on others which stay get no share.
        """
        used = min(count, self.rank)
        factor = torch.from_numpy(self.factor)
        lower, rest = factor[:used, :used], factor[count:, :used]
        scaled = torch.linalg.solve_triangular(lower, rest, upper=False, left=False).numpy()
        stay, go = self.order[:count], self.order[count:]
        matrix = np.zeros((len(go), count))
        matrix[:, :used] = scaled * self.scale[go][:, None] / self.scale[stay[:used]]
        # Coefficients come in the order of selection, filters are kept in the order of the layer.
        return matrix[np.argsort(go)][:, np.argsort(stay)]


@dataclass(frozen=True)
class Selection:
    """What stays of a layer's filters (or of its input slices), for every number of them.

    Where the layer is a grouped convolution, each group of filters is a section: equally many stay in each, and no
    filter is made of those of another section.

    Attributes:
        paths: One per section, all of the same length.
    """

    paths: tuple[Path, ...]

    @property
    def sections(self) -> int:
        """Runs of filters that keep equally many."""
        return len(self.paths)

    @property
    def size(self) -> int:
        """Filters of one section."""
        return len(self.paths[0].order)

    @property
    def order(self) -> Indices:
        """``[sections, size]``: positions in the layer, those that stay longest first."""
        return np.stack([number * self.size + path.order for number, path in enumerate(self.paths)])

    @property
    def errors(self) -> Matrix:
        """``[size + 1]``: squared error when that many filters of each section stay; of none, all there is."""
        return np.asarray(np.sum([path.errors for path in self.paths], axis=0))

    @property
    def relative_errors(self) -> Matrix:
        """``[size + 1]``: the errors over the squared length of all filters (zero where that is zero)."""
        errors = self.errors
        return errors / errors[0] if errors[0] > 0 else errors

    @property
    def solver(self) -> Solver:
        """What the section in the worst condition needed."""
        found = {path.solver for path in self.paths}
        return "ridge" if "ridge" in found else "pseudo-inverse" if "pseudo-inverse" in found else "exact"

    @property
    def ridge(self) -> float:
        """The largest ridge of a section."""
        return max(path.ridge for path in self.paths)

    @property
    def rank(self) -> int:
        """Independent filters, of all sections together."""
        return sum(path.rank for path in self.paths)

    def kept(self, count: int) -> Indices:
        """``[sections * count]``: positions that stay when each section keeps ``count``, ascending."""
        self._check(count)
        return np.sort(self.order[:, :count], axis=1).ravel()

    def removed(self, count: int) -> Indices:
        """``[sections * (size - count)]``: positions that go when each section keeps ``count``, ascending."""
        self._check(count)
        return np.sort(self.order[:, count:], axis=1).ravel()

    def compensation(self, count: int) -> Matrix:
        """What the removed filters are made of.

        Args:
            count: Filters of each section that stay.

        Returns:
            ``[removed, kept]``: ``filters[removed]`` is about ``compensation @ filters[kept]``, in the order of
            :meth:`removed` and :meth:`kept`; zero between sections.
        """
        self._check(count)
        gone = self.size - count
        matrix = np.zeros((self.sections * gone, self.sections * count))
        for number, path in enumerate(self.paths):
            rows = slice(number * gone, (number + 1) * gone)
            matrix[rows, number * count : (number + 1) * count] = path.compensation(count)
        return matrix

    def _check(self, count: int) -> None:
        if not 0 <= count <= self.size:
            raise ValueError(f"{count} of {self.size} filters cannot stay")


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
