"""Which filters of a layer stay, for every number of them at once, and how the others are made of those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Solver = Literal["exact", "pseudo-inverse", "ridge"]
"""How the least squares were solved: the filters are independent; some are exactly made of others; with a ridge."""

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


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
