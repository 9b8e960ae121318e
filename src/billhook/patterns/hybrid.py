"""The hybrid pattern of one layer: N:M inside the blocks that survive, equally many blocks in every block row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from billhook.patterns.block import BlockGrid
from billhook.patterns.nm import NM, check_nm


@dataclass(frozen=True)
class HybridPattern:
    """What a hybrid-sparse layer obeys.

    Attributes:
        nm: N:M inside the blocks; ``NM(1, 1)`` when only blocks are pruned.
        block: B; 0 when only N:M is applied (every block column is kept).
    """

    nm: NM
    block: int

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block = {self.block} is negative")
        if self.block and self.block % self.nm.m:
            raise ValueError(f"M = {self.nm.m} does not divide the block size {self.block}")

    def grid(self, outputs: int, taps: int, inputs: int) -> BlockGrid:
        """The block grid over a layer; without blocks, one block over all rows and inputs of each tap."""
        return BlockGrid(outputs, taps, inputs, self.block or max(outputs, inputs))


def hybrid_mask(nm: Tensor, grid: BlockGrid, order: Tensor, removed: int) -> Tensor:
    """Close the ``removed`` weakest blocks of every block row on top of an N:M mask.

    Args:
        nm: Boolean N:M mask ``[O, taps, I]``.
        grid: The block grid.
        order: int64 ``[R, C]``, block columns of each row, weakest first.
        removed: Blocks that each block row loses.

    Returns:
        Boolean ``[O, taps, I]``.
    """
    if removed == 0:
        return nm
    kept = torch.ones((grid.rows, grid.columns), dtype=torch.bool, device=nm.device)
    kept.scatter_(1, order[:, :removed], False)
    return nm & grid.expand(kept)


def check_hybrid(mask: Tensor, pattern: HybridPattern) -> int:
    """Assert the pattern and return the kept blocks per block row.

    Args:
        mask: Boolean ``[O, taps, I]``.
        pattern: The pattern that the mask must obey.

    Raises:
        ValueError: A group keeps a wrong number of weights, a block is half closed, or rows keep unequal blocks.
    """
    check_nm(mask, pattern.nm)
    grid = pattern.grid(*mask.shape)
    # Whole numbers: N/M is not a float for every M, and a block may hold more weights than float32 counts.
    survivors = grid.sums(mask.to(torch.int32))
    heights, widths = grid.heights().to(mask.device), grid.widths().to(mask.device)
    full = heights[:, None] * widths[None, :] // pattern.nm.m * pattern.nm.n
    if not torch.all((survivors == 0) | (survivors == full)):
        raise ValueError("a block is neither fully closed nor fully open")
    kept = (survivors > 0).sum(dim=1)
    if not torch.all(kept == kept[0]):
        raise ValueError(f"block rows keep unequal numbers of blocks: {kept.tolist()}")
    return int(kept[0])
