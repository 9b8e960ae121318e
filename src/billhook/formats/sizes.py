"""Bits and bytes of packed layers, and of the formats they are compared with.

Formulas count positions only (metadata): the values cost 32 bits each in every format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from billhook.formats.bits import index_width, packed_bytes
from billhook.formats.hybrid import Geometry, HybridLayer, hybrid_columns, kept_columns


@dataclass(frozen=True)
class PackedSize:
    """Bytes of one packed layer.

    Args:
        values: Bytes of the float32 values.
        offsets: Bytes of the offsets, the part-empty last byte included.
        columns: Bytes of the block columns, the part-empty last byte included.
        padding_bits: Unused bits inside ``offsets`` and ``columns`` together.
    """

    values: int
    offsets: int
    columns: int
    padding_bits: int

    @property
    def total(self) -> int:
        """Bytes of the three arrays; the file's header comes on top."""
        return self.values + self.offsets + self.columns

    @property
    def metadata_bits(self) -> int:
        """Bits that say where the values are, without padding."""
        return 8 * (self.offsets + self.columns) - self.padding_bits


def metadata_bits(rows: int, columns: int, block: int, n: int, m: int, kept: int) -> int:
    """Position bits of a hybrid layer: nnz * ceil(log2 M) + R * C' * ceil(log2 C), nnz = O * C' * B * N / M.

    Args:
        rows: O; the last block row may be ragged.
        columns: K = taps * I, where ``block`` divides I.
        block: B; 0 for N:M alone, where ``kept`` is of no account.
        kept: Block columns kept in each block row, C'.

    Raises:
        ValueError: ``block`` does not divide ``columns`` (ragged blocks differ in size: use :func:`layer_metadata_bits`
            or :func:`packed_size` with a mask), or the pattern is impossible.
    """
    if block and columns % block:
        raise ValueError(f"block {block} does not divide {columns} columns: the bits depend on which blocks are kept")
    return packed_size(rows, 1, columns, n, m, block, kept if block else 1).metadata_bits


def layer_metadata_bits(layer: HybridLayer) -> int:
    """Position bits of a packed layer from its true counts, ragged blocks included; padding bits not counted.

    Raises:
        ValueError: the layer contradicts itself.
    """
    geometry = layer.geometry
    values = geometry.value_count(hybrid_columns(layer))
    return values * geometry.offset_width + geometry.column_count(layer.kept) * geometry.column_width


def csr_bits(rows: int, columns: int, nnz: int) -> int:
    """Compressed sparse rows: nnz * ceil(log2 K) + (O + 1) * ceil(log2(nnz + 1))."""
    return nnz * index_width(columns) + (rows + 1) * index_width(nnz + 1)


def ellpack_bits(rows: int, columns: int, longest: int) -> int:
    """ELLPACK: O * Lmax * ceil(log2 K), where ``longest`` is Lmax, the most non-zeros that a row has."""
    return rows * longest * index_width(columns)


def bitmap_bits(rows: int, columns: int) -> int:
    """One bit per weight: O * K."""
    return rows * columns


def packed_size(
    rows: int,
    taps: int,
    inputs: int,
    n: int,
    m: int,
    block: int | None,
    kept: int | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> PackedSize:
    """Bytes of a packed layer before it is packed.

    Exact when ``block`` divides ``inputs`` or a mask is given; otherwise the size when the widest blocks are kept,
    which no choice of ``kept`` blocks exceeds.

    Args:
        kept: Block columns kept in each block row; None with a mask, or with ``block`` 0.
        mask: bool [rows, taps, inputs]; settles ``kept`` and which blocks are ragged.

    Raises:
        ValueError: the pattern is impossible, the mask breaks it, or neither ``kept`` nor a mask was given.
    """
    geometry = Geometry(rows, taps, inputs, n, m, block or 0)
    if mask is not None:
        columns = kept_columns(geometry, mask)
        kept = columns.shape[1]
        count = geometry.value_count(columns)
    else:
        if kept is None:
            kept = geometry.block_columns
            if geometry.block:
                raise ValueError("either the number of kept block columns or a mask is needed")
        if not 0 <= kept <= geometry.block_columns or (not geometry.block and kept != geometry.block_columns):
            raise ValueError(f"{kept} of {geometry.block_columns} block columns cannot be kept")
        full = taps * (inputs // geometry.width)
        wide = min(kept, full)
        narrow = (kept - wide) * (inputs % geometry.width)
        count = rows * ((wide * geometry.width + narrow) // m) * n
    columns_bits = geometry.column_count(kept) * geometry.column_width
    offsets_bits = count * geometry.offset_width
    return PackedSize(
        values=4 * count,
        offsets=packed_bytes(count, geometry.offset_width),
        columns=packed_bytes(columns_bits, 1),
        padding_bits=-offsets_bits % 8 + -columns_bits % 8,
    )
