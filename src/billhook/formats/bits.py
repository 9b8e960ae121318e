"""Fixed-width unsigned integers in a dense little-endian bit stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_WIDTH = 32


def index_width(choices: int) -> int:
    """Bits that tell ``choices`` things apart: ceil(log2(choices)); 0 for a single choice.

    Raises:
        ValueError: fewer than one choice.
    """
    if choices < 1:
        raise ValueError(f"an index needs at least one choice, not {choices}")
    return (choices - 1).bit_length()


def packed_bytes(count: int, width: int) -> int:
    """Bytes of ``count`` values of ``width`` bits each; the last byte may be part empty."""
    return (count * width + 7) // 8


def pack_bits(values: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """Packs integers into ``width`` bits each, least significant bit first.

    Value i occupies bits [i * width, (i + 1) * width) of the stream; bit b of the stream is bit b % 8 of byte b // 8.
    The unused high bits of the last byte are zero.

    Args:
        values: Unsigned integers (signed ones are taken when none is negative), any shape, read in C order.
        width: Bits per value, 0 to 32. Width 0 gives no bytes.

    Returns:
        uint8 [ceil(count * width / 8)].

    Raises:
        ValueError: the width is out of range, the values are not integers, or one does not fit in ``width`` bits.
    """
    _check_width(width)
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.kind not in "ui":
        raise ValueError(f"only integers can be packed, not {flat.dtype}")
    if flat.size and (int(flat.max()) >> width or (flat.dtype.kind == "i" and int(flat.min()) < 0)):
        raise ValueError(f"values from {flat.min()} to {flat.max()} do not fit in {width} bits")
    if width == 0 or flat.size == 0:
        return np.empty(0, np.uint8)
    small = flat.astype(_holder(width), copy=False)
    if 8 % width == 0:
        per_byte = 8 // width
        padded = np.zeros(packed_bytes(flat.size, width) * per_byte, np.uint8)
        padded[: flat.size] = small
        packed = padded[0::per_byte].copy()
        for slot in range(1, per_byte):
            packed |= padded[slot::per_byte] << np.uint8(slot * width)
        return packed
    octets = small.reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(octets, axis=1, count=width, bitorder="little"), bitorder="little")


def unpack_bits(data: NDArray[np.uint8], width: int, count: int) -> NDArray[Any]:
    """Undoes :func:`pack_bits`.

    Args:
        data: uint8, exactly the ceil(count * width / 8) bytes of the stream.
        width: Bits per value, 0 to 32.
        count: Number of values; with width 0 they are all zero.

    Returns:
        [count] of the smallest unsigned type that holds ``width`` bits (uint8, uint16 or uint32).

    Raises:
        ValueError: the width or the count is out of range, the number of bytes is wrong, or a padding bit is set.
    """
    _check_width(width)
    if count < 0:
        raise ValueError(f"the count of packed values is {count}, it cannot be negative")
    stream = np.ascontiguousarray(data).reshape(-1)
    if stream.dtype != np.uint8:
        raise ValueError(f"packed bits are uint8, not {stream.dtype}")
    if stream.size != packed_bytes(count, width):
        raise ValueError(
            f"{count} values of {width} bits take {packed_bytes(count, width)} bytes, there are {stream.size}"
        )
    used = count * width % 8
    if used and int(stream[-1]) >> used:
        raise ValueError("the unused bits of the last byte are not zero")
    holder = _holder(width)
    if width == 0:
        return np.zeros(count, holder)
    if 8 % width == 0:
        per_byte = 8 // width
        spread = np.empty((stream.size, per_byte), np.uint8)
        for slot in range(per_byte):
            np.right_shift(stream, np.uint8(slot * width), out=spread[:, slot])
        spread &= np.uint8((1 << width) - 1)
        return spread.reshape(-1)[:count]
    bits = np.unpackbits(stream, count=count * width, bitorder="little").reshape(count, width)
    octets = np.zeros((count, holder.itemsize), np.uint8)
    octets[:, : (width + 7) // 8] = np.packbits(bits, axis=1, bitorder="little")
    return octets.view(holder).reshape(-1)


def _check_width(width: int) -> None:
    if not 0 <= width <= MAX_WIDTH:
        raise ValueError(f"a width of {width} bits is outside 0..{MAX_WIDTH}")


def _holder(width: int) -> np.dtype[Any]:
    return np.dtype("u1" if width <= 8 else "<u2" if width <= 16 else "<u4")
