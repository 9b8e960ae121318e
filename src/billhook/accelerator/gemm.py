"""A layer as a matrix product, and the zeros in its weights.

M x K x N: output channels x (kernel taps x input channels) x output positions, weights [M, K] times activations [K, N].
Columns of the weights are ordered as everywhere here: taps, then input channels, the latter fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from billhook.formats import Geometry


@dataclass(frozen=True)
class Pattern:
    """The hybrid pattern of one layer.

    Args:
        n: Weights kept of every ``m`` consecutive input channels; n = m = 1 without N:M.
        block: Side of a block; 0 without blocks.
        kept: Block columns that every block row keeps; None: all of them.
        columns: Which ones, per block row, ascending; None: not known, taken for drawn at random.
    """

    n: int = 1
    m: int = 1
    block: int = 0
    kept: int | None = None
    columns: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Gemm:
    """One layer.

    Args:
        name: Of the layer.
        rows: M, output channels of one group.
        taps: Kernel positions.
        channels: Input channels of one group; K = taps x channels.
        columns: N, output positions of one image.
        groups: Groups of a grouped or depthwise convolution: as many products of M x K x N.
        inputs: Words of the layer's input as they lie in memory, over all groups; 0: K x N x groups, the matrix itself.
            A convolution with overlapping windows has fewer.
        pattern: Of the weights; None: dense.
        weight_density: Share of the weights that is not zero where there is no pattern.
        activation_density: Share of the layer's inputs that is not zero.

    Raises:
        ValueError: A size below one, a density outside (0, 1], a pattern on groups, or one that does not fit.
    """

    name: str
    rows: int
    taps: int
    channels: int
    columns: int
    groups: int = 1
    inputs: int = 0
    pattern: Pattern | None = None
    weight_density: float = 1.0
    activation_density: float = 1.0

    def __post_init__(self) -> None:
        if min(self.rows, self.taps, self.channels, self.columns, self.groups) < 1 or self.inputs < 0:
            raise ValueError(f"layer '{self.name}' has a side below 1")
        if not (0 <= self.weight_density <= 1 and 0 <= self.activation_density <= 1):
            raise ValueError(f"layer '{self.name}' has a density outside 0..1")
        pattern = self.pattern
        if pattern is None:
            return
        if self.groups > 1:
            raise ValueError(f"layer '{self.name}' has {self.groups} groups: the pattern needs one matrix")
        columns = self.geometry.block_columns
        if pattern.kept is not None and not 0 <= pattern.kept <= columns:
            raise ValueError(f"layer '{self.name}': {pattern.kept} of {columns} block columns cannot be kept")
        if pattern.columns is not None:
            rows = self.geometry.block_rows
            if len(pattern.columns) != rows or any(len(row) != pattern.kept for row in pattern.columns):
                raise ValueError(f"layer '{self.name}': {rows} block rows of {pattern.kept} columns are needed")

    @property
    def depth(self) -> int:
        """K."""
        return self.taps * self.channels

    @property
    def weights(self) -> int:
        """Of all groups, zeros included."""
        return self.groups * self.rows * self.depth

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those with zeros included."""
        return self.weights * self.columns

    @property
    def sums(self) -> int:
        """Output words of all groups."""
        return self.groups * self.rows * self.columns

    @property
    def input_words(self) -> int:
        """Words that have to come from memory at least once."""
        whole = self.groups * self.depth * self.columns
        return min(self.inputs, whole) if self.inputs else whole

    @cached_property
    def geometry(self) -> Geometry:
        """Blocks and M-groups of the pattern. Raises ValueError where they are impossible."""
        pattern = self.pattern or Pattern()
        return Geometry(self.rows, self.taps, self.channels, pattern.n, pattern.m, pattern.block)

    @cached_property
    def kept_columns(self) -> int:
        """Block columns that every block row keeps; without blocks all of them."""
        if self.pattern is None or not self.pattern.block or self.pattern.kept is None:
            return self.geometry.block_columns
        return self.pattern.kept

    @property
    def skips(self) -> bool:
        """Whether whole blocks are gone."""
        return self.kept_columns < self.geometry.block_columns

    @cached_property
    def kept_depth(self) -> int:
        """Positions of K inside the kept blocks of a block row: of the longest one, where blocks are ragged."""
        if not self.skips:
            return self.depth
        if self.pattern is not None and self.pattern.columns is not None:
            kept = self.geometry.column_inputs(np.array(self.pattern.columns, dtype=np.int64))
            return int(kept.sum(axis=1).max())
        width = self.geometry.width
        full = self.taps * (self.channels // width)
        wide = min(self.kept_columns, full)
        return wide * width + (self.kept_columns - wide) * (self.channels % width)

    @cached_property
    def nonzeros(self) -> float:
        """Weights that are not zero; a mean where only the density is known."""
        pattern = self.pattern
        if pattern is None:
            return self.weights * self.weight_density
        if self.skips and pattern.columns is not None:
            return self.geometry.value_count(np.array(pattern.columns, dtype=np.int64))
        return self.rows * (self.kept_depth // pattern.m) * pattern.n

    @property
    def density(self) -> float:
        """Share of the weights that is not zero."""
        return self.nonzeros / self.weights

    def live_depth(self, height: int) -> float:
        """Positions of K that any kept block of a run of ``height`` rows needs, added up over all such runs.

        Known block columns are united; unknown ones are taken for drawn at random, row by row: of r rows that keep the
        share f each, 1 - (1 - f)^r is needed.
        """
        starts = range(0, self.rows, height)
        if not self.skips or self.pattern is None:
            return float(len(starts) * self.depth)
        block, columns = self.pattern.block, self.pattern.columns
        total = 0.0
        share = self.kept_depth / self.depth
        for start in starts:
            first, last = start // block, -(-min(start + height, self.rows) // block)
            if columns is None:
                total += self.depth * (1 - (1 - share) ** (last - first))
            else:
                union = sorted(set().union(*columns[first:last]))
                total += float(self.geometry.column_inputs(np.array(union, dtype=np.int64)).sum())
        return total
