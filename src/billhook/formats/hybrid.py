"""The packed form of one hybrid-sparse layer: kept blocks, N weights of every M inside them.

A weight is [O, taps, I], the matrix W2 of O rows and taps * I columns with the input channels fastest. A block is
``block`` consecutive rows by ``block`` consecutive input channels of one tap; blocks at the edges may be smaller.
Block columns are numbered c = tap * ceil(I / block) + j. ``block`` 0 means N:M only: a block is then one row by all
inputs of one tap, every block is kept, and no columns are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.formats.bits import index_width, pack_bits, packed_bytes, unpack_bits

MAX_GROUP = 1 << 16
MAX_BLOCK = 1 << 16


class PackedLayerError(ValueError):
    """A packed layer that contradicts itself.

    Args:
        part: The array at fault: ``values``, ``offsets``, ``columns`` or ``bitmap``; empty for the layer as a whole.
    """

    def __init__(self, part: str, message: str) -> None:
        super().__init__(f"{part}: {message}" if part else message)
        self.part = part
        self.reason = message


@dataclass(frozen=True)
class Geometry:
    """Where blocks and groups lie in a weight of shape [rows, taps, inputs].

    Args:
        n: Weights kept of every ``m`` consecutive input channels; n = m = 1 for block sparsity alone.
        block: Side of a block; 0 for N:M sparsity alone.

    Raises:
        ValueError: sizes below one, n > m, or an m that divides not both ``block`` and ``inputs``.
    """

    rows: int
    taps: int
    inputs: int
    n: int
    m: int
    block: int

    def __post_init__(self) -> None:
        if min(self.rows, self.taps, self.inputs) < 1:
            raise ValueError(f"shape [{self.rows}, {self.taps}, {self.inputs}] has a side below 1")
        if not 1 <= self.n <= self.m <= MAX_GROUP:
            raise ValueError(f"{self.n}:{self.m} is no N:M pattern: 1 <= N <= M <= {MAX_GROUP} is needed")
        if not 0 <= self.block <= MAX_BLOCK:
            raise ValueError(f"block {self.block} is outside 0..{MAX_BLOCK}")
        if self.inputs % self.m or self.block % self.m:
            raise ValueError(f"M = {self.m} must divide the {self.inputs} inputs and the block of {self.block}")

    @property
    def height(self) -> int:
        """Rows of a full block."""
        return self.block or 1

    @property
    def width(self) -> int:
        """Input channels of a full block."""
        return self.block or self.inputs

    @property
    def block_rows(self) -> int:
        """R = ceil(O / B)."""
        return -(-self.rows // self.height)

    @property
    def blocks_per_tap(self) -> int:
        """ceil(I / B)."""
        return -(-self.inputs // self.width)

    @property
    def block_columns(self) -> int:
        """C = taps * ceil(I / B)."""
        return self.taps * self.blocks_per_tap

    @property
    def offset_width(self) -> int:
        """Bits of one offset: ceil(log2 M)."""
        return index_width(self.m)

    @property
    def column_width(self) -> int:
        """Bits of one block column: ceil(log2 C)."""
        return index_width(self.block_columns)

    def column_count(self, kept: int) -> int:
        """Stored block columns: R * C', none without blocks."""
        return self.block_rows * kept if self.block else 0

    def row_heights(self) -> NDArray[np.int64]:
        """Rows of each block row, [R]."""
        return np.minimum(self.height, self.rows - self.height * np.arange(self.block_rows, dtype=np.int64))

    def column_inputs(self, columns: NDArray[Any]) -> NDArray[np.int64]:
        """Input channels that each block column covers; same shape as ``columns``."""
        return np.minimum(self.width, self.inputs - self.width * (columns.astype(np.int64) % self.blocks_per_tap))

    def value_count(self, columns: NDArray[Any]) -> int:
        """Stored values of a layer that keeps ``columns`` [R, kept]."""
        kept_inputs = self.column_inputs(columns).sum(axis=1)
        return int((self.row_heights() * (kept_inputs // self.m)).sum()) * self.n

    def unit(self) -> tuple[int, int]:
        """Channels gathered at a time and how many of them are kept.

        The M-group, or without N:M the widest run that no block edge cuts: same order, far fewer pieces.
        """
        if self.m > 1:
            return self.m, self.n
        run = math.gcd(self.width, self.inputs)
        return run, run

    def unit_positions(self, columns: NDArray[Any]) -> NDArray[np.int64]:
        """Indices of the kept units in the weight seen as [rows * taps * inputs / unit, unit], in stream order.

        Args:
            columns: [R, kept] kept block columns of each block row.
        """
        unit, _ = self.unit()
        row_step = self.taps * self.inputs // unit
        wide = columns.astype(np.int64)
        tap, slot = wide // self.blocks_per_tap, wide % self.blocks_per_tap
        first_row = self.height * np.arange(self.block_rows, dtype=np.int64)[:, None]
        first = (first_row * row_step + (tap * self.inputs + slot * self.width) // unit).reshape(-1)
        across = self.column_inputs(wide) // unit
        counts = (self.row_heights()[:, None] * across).reshape(-1)
        owner = np.repeat(np.arange(counts.size), counts)
        local = np.arange(owner.size) - np.repeat(np.cumsum(counts) - counts, counts)
        down, along = np.divmod(local, across.reshape(-1)[owner])
        positions: NDArray[np.int64] = first[owner] + down * row_step + along
        return positions


@dataclass(frozen=True, eq=False)
class HybridLayer:
    """One packed layer.

    Args:
        rows: Output rows O.
        taps: kh * kw; 1 for a linear layer.
        inputs: Input channels I.
        n: Weights kept of every ``m``; n = m = 1 means no N:M.
        block: Side B of a block; 0 means no blocks.
        kept: Block columns kept in every block row, C'.
        values: float32 [nnz], by block row, kept block, row in the block, M-group, offset.
        offsets: uint8, ceil(log2 M) bits per value, in the same order.
        columns: uint8, ceil(log2 C) bits per kept block, block row by block row, ascending.
    """

    rows: int
    taps: int
    inputs: int
    n: int
    m: int
    block: int
    kept: int
    values: NDArray[np.float32]
    offsets: NDArray[np.uint8]
    columns: NDArray[np.uint8]

    @property
    def geometry(self) -> Geometry:
        """The layer's blocks and groups. Raises ValueError when they are impossible."""
        return Geometry(self.rows, self.taps, self.inputs, self.n, self.m, self.block)


def kept_columns(geometry: Geometry, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The kept block columns of a hybrid mask.

    Args:
        mask: bool [rows, taps, inputs].

    Returns:
        [R, kept], ascending along a row.

    Raises:
        ValueError: the mask has another shape or breaks the pattern; says where.
    """
    if mask.shape != (geometry.rows, geometry.taps, geometry.inputs) or mask.dtype != np.bool_:
        raise ValueError(
            f"the mask is {mask.dtype} {list(mask.shape)}, "
            f"bool {[geometry.rows, geometry.taps, geometry.inputs]} is needed"
        )
    unit, per_unit = geometry.unit()
    alive = np.count_nonzero(mask.reshape(geometry.rows, geometry.taps, -1, unit), axis=-1)
    wrong = (alive != per_unit) & (alive != 0) if geometry.block else alive != per_unit
    if wrong.any():
        row, tap, index = (int(axis[0]) for axis in np.nonzero(wrong))
        pattern = f"{geometry.n}:{geometry.m}" if geometry.m > 1 else "a block kept or removed as a whole"
        raise ValueError(
            f"row {row}, tap {tap}, inputs {index * unit} to {(index + 1) * unit - 1} keep {alive[row, tap, index]} "
            f"of {unit} weights, the pattern is {pattern}"
        )
    if not geometry.block:
        return _all_columns(geometry)
    starts = np.arange(0, alive.shape[2], geometry.block // unit)
    whole = np.add.reduceat(alive > 0, starts, axis=2, dtype=np.int64)
    whole = np.add.reduceat(whole, np.arange(0, geometry.rows, geometry.block), axis=0)
    whole = whole.reshape(geometry.block_rows, geometry.block_columns)
    across = geometry.column_inputs(np.arange(geometry.block_columns)) // unit
    full = geometry.row_heights()[:, None] * across
    partial = (whole != 0) & (whole != full)
    if partial.any():
        row, column = (int(axis[0]) for axis in np.nonzero(partial))
        raise ValueError(
            f"block row {row}, block column {column} keeps {whole[row, column]} of its {full[row, column]} groups; "
            "a block is kept or removed as a whole"
        )
    per_row = np.count_nonzero(whole, axis=1)
    if (per_row != per_row[0]).any():
        row = int(np.nonzero(per_row != per_row[0])[0][0])
        raise ValueError(
            f"block row {row} keeps {per_row[row]} block columns, block row 0 keeps {per_row[0]}; all must keep as many"
        )
    return np.nonzero(whole)[1].reshape(geometry.block_rows, int(per_row[0]))


def encode_hybrid(
    weight: NDArray[np.float32], mask: NDArray[np.bool_], n: int, m: int, block: int | None
) -> HybridLayer:
    """Packs a masked weight. The mask alone decides: weights outside it are not stored, zeros inside it are.

    Args:
        weight: float32 [O, taps, I].
        mask: bool, same shape: ``n`` of every ``m`` consecutive inputs in the kept blocks, nothing elsewhere, the same
            number of kept blocks in every block row.
        n: 1 with ``m`` 1 for blocks alone.
        block: 0 or None for N:M alone.

    Raises:
        ValueError: wrong shapes or types, or a mask that breaks the pattern; says where.
    """
    if weight.ndim != 3 or weight.dtype != np.float32:
        raise ValueError(f"the weight is {weight.dtype} {list(weight.shape)}, float32 [O, taps, I] is needed")
    rows, taps, inputs = weight.shape
    geometry = Geometry(rows, taps, inputs, n, m, block or 0)
    columns = kept_columns(geometry, mask)
    unit, _ = geometry.unit()
    positions = geometry.unit_positions(columns)
    chosen = mask.reshape(-1, unit)[positions]
    offsets = np.empty(0, np.uint8)
    if m > 1:
        counted = np.arange(m, dtype=np.uint8 if m <= 256 else np.uint16)
        offsets = pack_bits(np.broadcast_to(counted, chosen.shape)[chosen], geometry.offset_width)
    return HybridLayer(
        rows=rows,
        taps=taps,
        inputs=inputs,
        n=n,
        m=m,
        block=geometry.block,
        kept=columns.shape[1],
        values=weight.reshape(-1, unit)[positions][chosen],
        offsets=offsets,
        columns=pack_bits(columns, geometry.column_width) if geometry.block else np.empty(0, np.uint8),
    )


def hybrid_columns(layer: HybridLayer) -> NDArray[Any]:
    """The kept block columns, unsigned [R, kept], ascending along a row, checked.

    Raises:
        PackedLayerError: the stored columns have the wrong size, are out of range or out of order.
    """
    geometry = layer.geometry
    if not 0 <= layer.kept <= geometry.block_columns:
        raise PackedLayerError("columns", f"{layer.kept} of {geometry.block_columns} block columns cannot be kept")
    if not geometry.block:
        if layer.kept != geometry.block_columns or layer.columns.size:
            raise PackedLayerError("columns", "a layer without blocks keeps all columns and stores none")
        return _all_columns(geometry)
    count = geometry.column_count(layer.kept)
    columns = _unpack("columns", layer.columns, geometry.column_width, count).reshape(-1, layer.kept or 1)
    if not layer.kept:
        return columns.reshape(geometry.block_rows, 0)
    if int(columns.max()) >= geometry.block_columns:
        raise PackedLayerError("columns", f"column {columns.max()} is beyond the {geometry.block_columns} of the layer")
    if (columns[:, 1:] <= columns[:, :-1]).any():
        raise PackedLayerError("columns", "the columns of a block row are not strictly ascending")
    return columns


def hybrid_offsets(layer: HybridLayer) -> NDArray[Any]:
    """The offset of every value inside its M-group, unsigned [nnz / N, N], ascending along a group, checked.

    Raises:
        PackedLayerError: the stored offsets have the wrong size, are out of range or out of order.
    """
    width = layer.geometry.offset_width
    if layer.values.size % layer.n:
        raise PackedLayerError("values", f"{layer.values.size} values do not fill groups of {layer.n}")
    offsets = _unpack("offsets", layer.offsets, width, layer.values.size).reshape(-1, layer.n)
    if offsets.size and int(offsets.max()) >= layer.m:
        raise PackedLayerError("offsets", f"offset {offsets.max()} is outside a group of {layer.m}")
    if (offsets[:, 1:] <= offsets[:, :-1]).any():
        raise PackedLayerError("offsets", "the offsets of a group are not strictly ascending")
    return offsets


def checked_positions(layer: HybridLayer) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where the layer's values belong, all three arrays checked against each other and the geometry.

    Takes time and memory in proportion to what is stored, whatever shape the layer claims.

    Returns:
        As :func:`hybrid_columns` and :func:`hybrid_offsets` return them.

    Raises:
        PackedLayerError: the layer contradicts itself.
        ValueError: its geometry is impossible.
    """
    geometry = layer.geometry
    values = layer.values
    # Each kept block has a group in each of its rows. Columns that take no bytes do not vouch for the count of rows.
    least = geometry.rows * layer.kept * layer.n
    free = not geometry.column_count(layer.kept) * geometry.column_width
    if free and values.size < least and layer.kept <= geometry.block_columns:
        raise PackedLayerError("values", f"{list(values.shape)} stored, {least} or more expected")
    columns = hybrid_columns(layer)
    expected = geometry.value_count(columns) if layer.kept else 0
    if values.shape != (expected,) or values.dtype != np.float32:
        raise PackedLayerError("values", f"{values.dtype} {list(values.shape)} stored, float32 [{expected}] expected")
    return columns, hybrid_offsets(layer)


def decode_hybrid(layer: HybridLayer) -> NDArray[np.float32]:
    """The weight, float32 [O, taps, I]: the stored values bit for bit, +0.0 elsewhere.

    Raises:
        PackedLayerError: the layer contradicts itself; nothing of the weight's size was allocated.
        ValueError: its geometry is impossible.
    """
    return _scatter(layer, layer.values, np.dtype(np.float32))


def hybrid_mask(layer: HybridLayer) -> NDArray[np.bool_]:
    """Where the layer keeps weights, bool [O, taps, I].

    Raises:
        PackedLayerError, ValueError: as :func:`decode_hybrid`.
    """
    return _scatter(layer, np.broadcast_to(np.True_, layer.values.shape), np.dtype(np.bool_))


def _scatter(layer: HybridLayer, stream: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    geometry = layer.geometry
    columns, offsets = checked_positions(layer)
    result = np.zeros((geometry.rows, geometry.taps, geometry.inputs), dtype)
    if not stream.size:
        return result
    unit, per_unit = geometry.unit()
    positions = geometry.unit_positions(columns)
    pieces = stream.reshape(-1, per_unit)
    if geometry.m > 1:
        result.reshape(-1)[positions[:, None] * unit + offsets] = pieces
    else:
        result.reshape(-1, unit)[positions] = pieces
    return result


def _all_columns(geometry: Geometry) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(geometry.block_columns), (geometry.block_rows, geometry.block_columns))


def _unpack(part: str, data: NDArray[np.uint8], width: int, count: int) -> NDArray[Any]:
    # The size is compared before anything is unpacked, so a false count allocates nothing; width 0 needs no bytes.
    if data.shape != (packed_bytes(count, width),):
        raise PackedLayerError(part, f"{list(data.shape)} bytes stored, {packed_bytes(count, width)} expected")
    try:
        return unpack_bits(data, width, count)
    except ValueError as error:
        raise PackedLayerError(part, str(error)) from error
