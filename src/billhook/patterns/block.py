"""The grid of B×B blocks over the matrix view, with ragged blocks at the edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockGrid:
    """B×B blocks over ``[O, taps, I]``: ``B`` output channels × ``B`` consecutive input channels of one tap.

    Args:
        outputs: O, rows of the matrix view.
        taps: kh·kw.
        inputs: I.
        block: B. The last block row and the last block of every tap may be smaller.
    """

    outputs: int
    taps: int
    inputs: int
    block: int

    @property
    def rows(self) -> int:
        """R, the number of block rows."""
        return -(-self.outputs // self.block)

    @property
    def per_tap(self) -> int:
        """Block columns of one tap."""
        return -(-self.inputs // self.block)

    @property
    def columns(self) -> int:
        """C, the number of block columns: column ``tap * per_tap + j``."""
        return self.taps * self.per_tap

    def heights(self) -> Tensor:
        """Rows of the matrix in every block row, int64 ``[R]``."""
        heights = torch.full((self.rows,), self.block)
        heights[-1] = self.outputs - self.block * (self.rows - 1)
        return heights

    def widths(self) -> Tensor:
        """Input channels in every block column, int64 ``[C]``."""
        widths = torch.full((self.taps, self.per_tap), self.block)
        widths[:, -1] = self.inputs - self.block * (self.per_tap - 1)
        return widths.reshape(-1)

    def sums(self, values: Tensor) -> Tensor:
        """Sum ``values`` ``[O, taps, I]`` over every block, ``[R, C]``."""
        pad_rows = self.rows * self.block - self.outputs
        pad_inputs = self.per_tap * self.block - self.inputs
        if pad_rows or pad_inputs:
            values = torch.nn.functional.pad(values, (0, pad_inputs, 0, 0, 0, pad_rows))
        # Rows first: a reduction over whole contiguous rows is the fast one, and leaves 1/B of the data.
        by_row = values.reshape(self.rows, self.block, self.taps * self.per_tap * self.block).sum(dim=1)
        return by_row.reshape(self.rows, self.columns, self.block).sum(dim=2)

    def expand(self, kept: Tensor) -> Tensor:
        """Spread a block mask ``[R, C]`` over the weights, ``[O, taps, I]``."""
        wide = kept.reshape(self.rows, self.taps, self.per_tap, 1).expand(-1, -1, -1, self.block)
        wide = wide.reshape(self.rows, self.taps, self.per_tap * self.block)[:, :, : self.inputs]
        return wide.repeat_interleave(self.block, dim=0)[: self.outputs]
