"""Programs: what the native library runs, written and read back. The structs are those of native/include/billhook.h.

A program is one block of bytes: a header, steps, and weights that begin on multiples of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError

MAGIC = b"BILLHOOK"
VERSION = 1
ALIGN = 64
"""Bytes: where a program, its weights and every array of them begin."""

F32, BF16 = 0, 1
RESIDUAL, RESIDUAL_LAST, COUNT_PADDING = 1, 2, 4


class Kind(IntEnum):
    """What a step does."""

    LOAD = 0
    STORE = 1
    DENSE = 2
    HYBRID = 3
    DEPTHWISE = 4
    MAXPOOL = 5
    AVGPOOL = 6
    GLOBAL = 7
    ADD = 8
    MULTIPLY = 9
    SCALE = 10
    UNARY = 11
    GATHER = 12
    COPY = 13
    FLATTEN = 14
    SOFTMAX = 15


class Activation(IntEnum):
    """What is done to each number of an output."""

    NONE = 0
    RELU = 1
    RELU6 = 2
    SIGMOID = 3
    HARDSIGMOID = 4
    HARDSWISH = 5
    SILU = 6


def _words(*names: str) -> list[tuple[str, str]]:
    return [(name, "<i4") for name in names]


_SIDES = ("top", "left", "bottom", "right")

VIEW = np.dtype(
    [("offset", "<i8"), *_words("height", "width", "channels", "padded", "pixel", "row", *_SIDES, "type", "reserved")]
)
"""``bh_view``, 56 bytes."""

STEP = np.dtype(
    [
        *_words("kind", "activation", "flags", "groups", "kernel_y", "kernel_x", "stride_y", "stride_x"),
        *_words("dilation_y", "dilation_x", "pad_top", "pad_left"),
        *_words("tile", "vectors", "slots", "order", "split", "rows"),
        ("reserved", "<i4", (2,)),
        ("in", VIEW),
        ("other", VIEW),
        ("out", VIEW),
        *((name, "<i8") for name in ("values", "index", "offsets", "first", "bias", "count")),
    ]
)
"""``bh_step``, 296 bytes."""

HEADER = np.dtype(
    [
        ("magic", "S8"),
        *_words("version", "lanes", "type", "steps"),
        *((name, "<i8") for name in ("arena", "weights", "bytes")),
        *_words("channels", "height", "width", "outputs"),
        ("scale", "<f4", (4,)),
        ("shift", "<f4", (4,)),
        ("named", "<i4"),
        ("reserved", "<i4", (7,)),
    ]
)
"""``bh_header``, 128 bytes."""

_ARRAYS = ("values", "index", "offsets", "first", "bias")


class MapView(Protocol):
    """A map in the arena: the fields of ``bh_view``, in elements but for ``offset``, which is in bytes."""

    @property
    def offset(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def padded(self) -> int: ...
    @property
    def pixel(self) -> int: ...
    @property
    def row(self) -> int: ...
    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def bottom(self) -> int: ...
    @property
    def right(self) -> int: ...
    @property
    def type(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ProgramStep:
    """One step; what is left out is not used by its kind. Pairs are (vertical, horizontal).

    Attributes:
        kind: What it does.
        in_: What it reads.
        other: What it adds or multiplies with as well.
        out: What it writes.
        activation: Of the output.
        flags: RESIDUAL, RESIDUAL_LAST or COUNT_PADDING.
        groups: Of a hybrid convolution; for people only.
        kernel: Sides of the window.
        stride: From window to window.
        dilation: From tap to tap.
        padding: Pixels above and left of the map where windows begin.
        tile, vectors, slots, order, split, rows: How a kernel goes about it; see ``bh_step``.
        values: Weights, in the order that the kernel reads.
        index: Of the items of a hybrid convolution (uint8), or of the channels of a gather (int32).
        offsets: int32, of the items.
        first: int32, of the items of each group of outputs.
        bias: float32, one per padded output.
        count: Items.
    """

    kind: Kind
    in_: MapView | None = None
    other: MapView | None = None
    out: MapView | None = None
    activation: int = 0
    flags: int = 0
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    tile: int = 1
    vectors: int = 1
    slots: int = 1
    order: int = 0
    split: int = 0
    rows: int = 1
    values: NDArray[Any] | None = None
    index: NDArray[Any] | None = None
    offsets: NDArray[np.int32] | None = None
    first: NDArray[np.int32] | None = None
    bias: NDArray[np.float32] | None = None
    count: int = 0


class Weights:
    """Arrays one after the other, each on a multiple of 64 bytes; the same array is there once."""

    def __init__(self) -> None:
        self._arrays: list[tuple[int, NDArray[Any]]] = []
        self._known: dict[int, int] = {}
        self.size = 0

    def add(self, array: NDArray[Any]) -> int:
        """Appends an array; returns where it begins, in bytes."""
        if id(array) in self._known:
            return self._known[id(array)]
        offset = self.size
        self._arrays.append((offset, array))
        self._known[id(array)] = offset
        self.size = _up(offset + array.nbytes)
        return offset

    def write(self, target: NDArray[np.uint8]) -> None:
        """Copies everything into ``target``, uint8 of at least ``size`` bytes."""
        for offset, array in self._arrays:
            whole = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            target[offset : offset + whole.size] = whole


def write_program(
    steps: Sequence[ProgramStep],
    *,
    lanes: int,
    type_: int,
    arena: int,
    image: tuple[int, int, int],
    outputs: int,
    scaling: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> NDArray[np.uint8]:
    """Writes a program.

    Args:
        steps: In the order in which they run.
        lanes: Of the vectors that its weights are packed for.
        type_: F32 or BF16: of the activations.
        arena: Bytes.
        image: (channels, height, width) of what the first step loads.
        outputs: Numbers that the last step stores.
        scaling: Factor and term per channel that bring a byte to the network's range; at most four channels.

    Returns:
        uint8, aligned to 64 bytes. Whether it holds together is for ``bh_open`` to say.
    """
    table = np.zeros(len(steps), STEP)
    weights = Weights()
    for entry, step in zip(table, steps, strict=True):
        for name in (
            "kind",
            "activation",
            "flags",
            "groups",
            "tile",
            "vectors",
            "slots",
            "order",
            "split",
            "rows",
            "count",
        ):
            entry[name] = getattr(step, name)
        for name in ("kernel", "stride", "dilation"):
            entry[f"{name}_y"], entry[f"{name}_x"] = getattr(step, name)
        entry["pad_top"], entry["pad_left"] = step.padding
        for name, view in (("in", step.in_), ("other", step.other), ("out", step.out)):
            if view is not None:
                entry[name] = tuple(getattr(view, field, 0) for field in VIEW.names or ())
        for name in _ARRAYS:
            array = getattr(step, name)
            entry[name] = -1 if array is None else weights.add(array)
    start = _up(HEADER.itemsize + table.nbytes)
    program = aligned(start + weights.size)
    header = program[: HEADER.itemsize].view(HEADER)[0]
    header["magic"], header["version"], header["lanes"], header["type"] = MAGIC, VERSION, lanes, type_
    header["steps"], header["arena"], header["weights"], header["bytes"] = len(steps), arena, start, program.size
    header["channels"], header["height"], header["width"] = image
    header["outputs"] = outputs
    if scaling is not None:
        for name, values in zip(("scale", "shift"), scaling, strict=True):
            header[name][: len(values)] = values
        header["named"] = 1
    program[HEADER.itemsize : HEADER.itemsize + table.nbytes] = table.view(np.uint8)
    weights.write(program[start:])
    return program


def header_of(program: NDArray[np.uint8]) -> np.void:
    """The header of a program, of dtype HEADER; a view of it.

    Raises:
        InputError: These bytes are no program.
    """
    if program.size < HEADER.itemsize or program[:8].tobytes() != MAGIC:
        raise InputError("these bytes are no program", "Network.save_program writes one")
    header: np.void = program[: HEADER.itemsize].view(HEADER)[0]
    return header


def steps_of(program: NDArray[np.uint8]) -> NDArray[np.void]:
    """The steps of a program, of dtype STEP; a view of it.

    Raises:
        InputError: These bytes are no program, or end before its steps do.
    """
    count = int(header_of(program)["steps"])
    end = HEADER.itemsize + count * STEP.itemsize
    if count < 0 or end > program.size:
        raise InputError(f"{program.size} bytes do not hold {count} steps", "the program is cut short")
    steps: NDArray[np.void] = program[HEADER.itemsize : end].view(STEP)
    return steps


def aligned(size: int) -> NDArray[np.uint8]:
    """Zeros, uint8 ``[size]``, that begin on a multiple of 64 bytes."""
    room = np.zeros(size + ALIGN, np.uint8)
    start = -room.ctypes.data % ALIGN
    return room[start : start + size]


def _up(value: int) -> int:
    return -(-value // ALIGN) * ALIGN
