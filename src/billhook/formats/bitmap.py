"""The packed form of an unstructured-sparse layer: kept values and one bit per weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from billhook.formats.bits import packed_bytes, unpack_bits
from billhook.formats.hybrid import PackedLayerError


def encode_bitmap(
    weight: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Packs a masked weight, read in C order. The mask alone decides what is stored.

    Args:
        weight: float32, any shape.
        mask: bool, same shape.

    Returns:
        Values float32 [nnz]; bitmap uint8 [ceil(size / 8)], weight i in bit i % 8 of byte i // 8.

    Raises:
        ValueError: wrong shapes or types.
    """
    if weight.dtype != np.float32 or mask.dtype != np.bool_ or mask.shape != weight.shape:
        raise ValueError(
            f"the weight is {weight.dtype} {list(weight.shape)} and the mask {mask.dtype} {list(mask.shape)}; "
            "float32 and bool of one shape are needed"
        )
    return weight[mask], np.packbits(mask.reshape(-1), bitorder="little")


def bitmap_mask(bitmap: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Where weights are kept, bool of ``shape``.

    Raises:
        PackedLayerError: the bitmap has the wrong size or a padding bit set; nothing was allocated.
    """
    count = math.prod(shape)
    if bitmap.shape != (packed_bytes(count, 1),):
        raise PackedLayerError("bitmap", f"{list(bitmap.shape)} bytes stored, {packed_bytes(count, 1)} expected")
    try:
        bits = unpack_bits(bitmap, 1, count)
    except ValueError as error:
        raise PackedLayerError("bitmap", str(error)) from error
    return bits.astype(np.bool_).reshape(tuple(shape))


def check_bitmap(values: NDArray[np.float32], bitmap: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.bool_]:
    """The mask, as :func:`bitmap_mask` returns it, when there is a value for each of its weights and no other.

    Raises:
        PackedLayerError: values, bitmap and shape do not agree.
    """
    mask = bitmap_mask(bitmap, shape)
    kept = int(np.count_nonzero(mask))
    if values.shape != (kept,) or values.dtype != np.float32:
        raise PackedLayerError("values", f"{values.dtype} {list(values.shape)} stored, float32 [{kept}] expected")
    return mask


def decode_bitmap(values: NDArray[np.float32], bitmap: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.float32]:
    """The weight, float32 of ``shape``: the stored values bit for bit, +0.0 elsewhere.

    Raises:
        PackedLayerError: values, bitmap and shape do not agree.
    """
    mask = check_bitmap(values, bitmap, shape)
    weight = np.zeros(mask.shape, np.float32)
    weight[mask] = values
    return weight
