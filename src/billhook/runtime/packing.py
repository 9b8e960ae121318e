"""Weights in the order in which the native kernels read them.

Zeros around the edges fill vectors up; the layouts are those of native/include/billhook.h, with L lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.formats.hybrid import HybridLayer, checked_positions, hybrid_offsets


@dataclass(frozen=True, eq=False)
class SparseRows:
    """The non-zeros of a convolution, by output, tap and input, in no particular order.

    Attributes:
        outputs: Output channels O.
        taps: Kernel positions, row by row.
        inputs: Input channels I, over all groups.
        row: ``[nnz]``: output channel.
        tap: ``[nnz]``.
        column: ``[nnz]``: input channel.
        values: float32 ``[nnz]``.
    """

    outputs: int
    taps: int
    inputs: int
    row: NDArray[np.int64]
    tap: NDArray[np.int64]
    column: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Stream:
    """A sparse convolution as items: W inputs of one tap, for L outputs, ``slots`` non-zeros (bf16: pairs) of each.

    W is what one load brings: L inputs, in bf16 2 L.

    Attributes:
        values: float32 ``[items, slots, L]``; bf16, as its bits, uint16 ``[items, slots, L, 2]``.
        index: uint8, of the same shape: which of the item's inputs.
        tap: int32 ``[items]``.
        slice: int32 ``[items]``: the first input channel is ``slice * W``.
        first: int32 ``[ceil(O / L) + 1]``: where the items of each L outputs begin.
        useful: Stored non-zeros; the other slots multiply by zero.
    """

    values: NDArray[Any]
    index: NDArray[np.uint8]
    tap: NDArray[np.int32]
    slice: NDArray[np.int32]
    first: NDArray[np.int32]
    useful: int

    @property
    def lanes(self) -> int:
        """L."""
        return int(self.values.shape[2])

    @property
    def width(self) -> int:
        """W."""
        return self.lanes * (self.values.shape[3] if self.values.ndim == 4 else 1)

    def offsets(self, kernel_x: int, pixel: int, row: int, dilation: tuple[int, int] = (1, 1)) -> NDArray[np.int32]:
        """``[items]``: elements from the first pixel of a window to the item's inputs.

        Args:
            kernel_x: Width of the kernel.
            pixel: Elements from one pixel of the input to the next.
            row: From one row to the next.
            dilation: Vertical, horizontal.
        """
        down, along = np.divmod(self.tap, kernel_x)
        offsets: NDArray[Any] = down * (row * dilation[0]) + along * (pixel * dilation[1]) + self.slice * self.width
        return offsets.astype(np.int32)


# ---------------------------------------------------------------------- from what is stored
def dense_rows(weight: NDArray[np.float32], groups: int = 1, mask: NDArray[np.bool_] | None = None) -> SparseRows:
    """The non-zeros of a weight in full.

    Args:
        weight: ``[O, I / groups, kh, kw]`` or ``[O, I]``.
        groups: Of the convolution.
        mask: What counts as there, of the same shape; None: what is not zero.
    """
    weight = weight.reshape(*weight.shape, 1, 1)[..., :1, :1] if weight.ndim == 2 else weight
    outputs, each, down, along = weight.shape
    there = weight != 0 if mask is None else mask.reshape(weight.shape)
    row, column, y, x = np.nonzero(there)
    return SparseRows(
        outputs,
        down * along,
        each * groups,
        row,
        y * along + x,
        column + row // (outputs // groups) * each,
        weight[there],
    )


def hybrid_rows(layer: HybridLayer) -> SparseRows:
    """The values of a packed layer, without making its weight.

    Raises:
        PackedLayerError: The layer contradicts itself.
        ValueError: Its geometry is impossible.
    """
    geometry = layer.geometry
    columns, offsets = checked_positions(layer)
    unit, per_unit = geometry.unit()
    first = geometry.unit_positions(columns)[:, None] * unit
    inside = offsets.astype(np.int64) if layer.m > 1 else np.arange(per_unit, dtype=np.int64)[None, :]
    row, rest = np.divmod((first + inside).reshape(-1), layer.taps * layer.inputs)
    tap, column = np.divmod(rest, layer.inputs)
    return SparseRows(layer.rows, layer.taps, layer.inputs, row, tap, column, layer.values)


# ---------------------------------------------------------------------- into streams
def pack_stream(rows: SparseRows, lanes: int, slots: int, bf16: bool = False) -> Stream:
    """Any pattern as items; lanes that have fewer non-zeros in an item than others get zeros.

    Args:
        rows: The non-zeros.
        lanes: L.
        slots: Of an item: 1, 2 or 4.
        bf16: Values in bf16, two to a slot.
    """
    pair = 2 if bf16 else 1
    width = lanes * pair
    groups, slices = -(-rows.outputs // lanes), -(-rows.inputs // width)
    group, lane = np.divmod(rows.row, lanes)
    piece, inside = np.divmod(rows.column, width)
    key = (group * rows.taps + rows.tap) * slices + piece
    order = np.argsort((key * lanes + lane) * width + inside, kind="stable")
    key, lane, inside = key[order], lane[order], inside[order]
    run = key * lanes + lane
    starts = np.flatnonzero(np.r_[True, run[1:] != run[:-1]]) if run.size else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, run.size])
    rank = np.arange(run.size) - np.repeat(starts, lengths)
    # Of the lanes of one piece, the one with the most non-zeros says how many items it takes.
    pieces, where = np.unique(key[starts], return_inverse=True)
    most = np.zeros(pieces.size, np.int64)
    np.maximum.at(most, where, lengths)
    needed = -(-most // (slots * pair))
    begin = np.r_[0, np.cumsum(needed)]
    items = int(begin[-1])
    values = np.zeros((items, slots, lanes, pair), np.float32)
    index = np.zeros((items, slots, lanes, pair), np.uint8)
    item = np.repeat(begin[where], lengths) + rank // (slots * pair)
    slot, half = np.divmod(rank % (slots * pair), pair)
    values[item, slot, lane, half] = rows.values[order]
    index[item, slot, lane, half] = inside
    owner = np.repeat(pieces, needed)
    first = np.searchsorted(owner, np.arange(groups + 1) * (rows.taps * slices))
    return _stream(values, index, owner // slices % rows.taps, owner % slices, first, rows.values.size, bf16)


def pack_hybrid(layer: HybridLayer, lanes: int, slots: int, bf16: bool = False) -> Stream:
    """A packed layer as items; whole vectors are moved where blocks and groups line up with the lanes.

    Args:
        layer: As stored.
        lanes: L.
        slots: Of an item: 1, 2 or 4.
        bf16: Values in bf16, two to a slot.

    Raises:
        PackedLayerError: The layer contradicts itself.
        ValueError: Its geometry is impossible.
    """
    pair = 2 if bf16 else 1
    geometry = layer.geometry
    block, m, n = layer.block, layer.m, layer.n
    aligned = block and not (block % lanes or layer.rows % block or layer.inputs % block or lanes % m) and layer.kept
    each = lanes * n // m if m else 0
    if not aligned or each % (slots * pair) or lanes > 256:
        return pack_stream(hybrid_rows(layer), lanes, slots, bf16)
    columns, _ = checked_positions(layer)
    offsets = hybrid_offsets(layer) if m > 1 else np.zeros((layer.values.size, 1), np.uint8)
    # From [block row, kept block, row in it, groups of a row, n]
    # to   [block row, vector of rows, kept block, slice, non-zero, lane].
    shape = (geometry.block_rows, layer.kept, block // lanes, lanes, block // lanes, lanes // m, n)
    inside = offsets.reshape(shape) + (np.arange(lanes // m, dtype=np.uint8) * m)[:, None]
    axes = (0, 2, 1, 4, 5, 6, 3)
    flat = (-1, each // (slots * pair), slots, pair, lanes)
    values = layer.values.reshape(shape).transpose(axes).reshape(flat)
    tap, piece = np.divmod(columns.astype(np.int64), geometry.blocks_per_tap)
    per_row = block // lanes
    slices = piece[:, :, None] * per_row + np.arange(per_row)
    if bf16:
        # A load begins at an even slice: an odd one is its second half.
        slices, odd = np.divmod(slices, 2)
        inside = inside + (odd * lanes).astype(np.uint8)[:, :, None, None, :, None, None]
    index = inside.transpose(axes).reshape(flat)
    repeat = each // (slots * pair)

    def spread(whole: NDArray[Any]) -> NDArray[Any]:
        """[block row, kept, slice] for every vector of rows of the block row and every item of the slice."""
        return np.repeat(np.repeat(whole[:, None], per_row, axis=1).reshape(-1), repeat)

    per_group = layer.kept * per_row * repeat
    groups = geometry.block_rows * per_row
    return _stream(
        np.moveaxis(values, 3, 4).reshape(-1, slots, lanes, pair),
        np.moveaxis(index, 3, 4).reshape(-1, slots, lanes, pair).astype(np.uint8),
        spread(np.broadcast_to(tap[:, :, None], slices.shape)),
        spread(slices),
        np.arange(groups + 1) * per_group,
        layer.values.size,
        bf16,
    )


def _stream(
    values: NDArray[Any],
    index: NDArray[np.uint8],
    tap: NDArray[Any],
    piece: NDArray[Any],
    first: NDArray[Any],
    useful: int,
    bf16: bool,
) -> Stream:
    values = np.ascontiguousarray(values)
    return Stream(
        to_bf16(values) if bf16 else values[..., 0],
        np.ascontiguousarray(index if bf16 else index[..., 0]),
        tap.astype(np.int32),
        piece.astype(np.int32),
        first.astype(np.int32),
        useful,
    )


# ---------------------------------------------------------------------- dense
def pack_dense(
    weight: NDArray[np.float32], lanes: int, vectors: int, bf16: bool = False, run: bool = False
) -> NDArray[Any]:
    """``[O, I, kh, kw]`` as ``[ceil(O / VL), kh kw, I, VL]``; bf16 as bits: ``[.., ceil(I / 2), VL, 2]``.

    Args:
        weight: Of a convolution without groups, or ``[O, I]``.
        lanes: L.
        vectors: V, of one tile.
        bf16: Inputs in pairs.
        run: A row of taps is one run of inputs: the weight counts as ``[O, kw I, kh, 1]``.
    """
    if run and weight.ndim == 4:
        outputs, inputs, down, along = weight.shape
        weight = weight.transpose(0, 3, 1, 2).reshape(outputs, along * inputs, down, 1)
    outputs, inputs = weight.shape[:2]
    taps = math.prod(weight.shape[2:])
    wide = vectors * lanes
    padded = np.zeros((-(-outputs // wide) * wide, inputs + (inputs % 2 if bf16 else 0), taps), np.float32)
    padded[:outputs, :inputs] = weight.reshape(outputs, inputs, taps)
    tiles = padded.reshape(-1, wide, padded.shape[1], taps)
    if not bf16:
        return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1))
    pairs = tiles.reshape(-1, wide, padded.shape[1] // 2, 2, taps)
    return to_bf16(np.ascontiguousarray(pairs.transpose(0, 4, 2, 1, 3)))


def pack_depthwise(weight: NDArray[np.float32], lanes: int) -> NDArray[np.float32]:
    """``[C, 1, kh, kw]`` as ``[ceil(C / L), kh kw, L]``."""
    channels, taps = weight.shape[0], math.prod(weight.shape[1:])
    padded = np.zeros((-(-channels // lanes) * lanes, taps), np.float32)
    padded[:channels] = weight.reshape(channels, taps)
    return np.ascontiguousarray(padded.reshape(-1, lanes, taps).transpose(0, 2, 1))


def pad_vector(values: NDArray[np.float32] | None, length: int) -> NDArray[np.float32]:
    """A bias, or the like, filled up with zeros to ``length``; zeros alone for None."""
    result = np.zeros(length, np.float32)
    if values is not None:
        result[: values.size] = values
    return result


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bf16 as its bits, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 of the same value."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
