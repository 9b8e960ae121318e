"""Steps on random maps: an arena full of NaN, views of any shape in it, and what a step may and may not touch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.runtime import native
from billhook.runtime.layout import View
from billhook.runtime.packing import from_bf16, to_bf16
from billhook.runtime.program import BF16, F32, Kind, ProgramStep, write_program

Array = NDArray[Any]
TOLERANCE = {F32: 2e-6, BF16: 8e-3}


def up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Machine:
    """Lays maps out one after the other, at random distances, and runs one step on them.

    Args:
        rng: Of sizes and numbers.
        isa: Instruction set.
        type_: F32 or BF16.
    """

    def __init__(self, rng: np.random.Generator, isa: int, type_: int = F32) -> None:
        self.rng, self.isa, self.type = rng, isa, type_
        self.lanes, self.size = native.lanes(isa), 2 if type_ == BF16 else 4
        self.used = 0
        self.maps: list[tuple[View, Array, bool]] = []

    def view(
        self, height: int, width: int, channels: int, halo: tuple[int, int, int, int] | None = None, loose: bool = False
    ) -> View:
        """A map somewhere; ``loose``: as thin and as unaligned as its numbers allow."""
        # Pixels of whole lines: items of bf16 load 32 numbers.
        rng, unit = self.rng, 1 if loose else 64 // self.size
        top, left, bottom, right = halo or rng.integers(0, 3, 4).tolist()
        padded = channels + int(rng.integers(0, 4)) if loose else up(channels, self.lanes)
        pixel = up(padded, unit) + unit * int(rng.integers(0, 3))
        row = pixel * (left + width + right) + unit * int(rng.integers(0, 3))
        start = up(self.used, unit) + unit * int(rng.integers(0, 3))
        first = start + top * row + left * pixel
        self.used = start + (top + height + bottom) * row
        return View(first * self.size, height, width, channels, padded, pixel, row, top, left, bottom, right, self.type)

    def map(self, shape: tuple[int, int, int], halo: Any = None, loose: bool = False, zeros: bool = True) -> View:
        """A map with random numbers. ``zeros``: its halo holds zeros, as a step may expect; else NaN."""
        height, width, channels = shape
        view = self.view(height, width, channels, halo, loose)
        self.maps.append((view, self.rounded(self.rng.standard_normal(shape)), zeros))
        return view

    def values(self, view: View) -> Array:
        """What :meth:`map` put there, [height, width, channels]."""
        return next(values for other, values, _ in self.maps if other is view)

    def rounded(self, values: Array) -> Array:
        """The nearest numbers that the maps can hold."""
        values = values.astype(np.float32)
        return from_bf16(to_bf16(values)) if self.type == BF16 else values

    def window(self, arena: Array, view: View, halo: bool = False, padded: bool = False) -> Array:
        """A view of the arena, [height, width, channels], that can be written."""
        numbers = arena[: arena.size // self.size * self.size].view(np.uint16 if self.type == BF16 else np.float32)
        top, left, bottom, right = (view.top, view.left, view.bottom, view.right) if halo else (0, 0, 0, 0)
        start = view.offset // self.size - top * view.row - left * view.pixel
        shape = top + view.height + bottom, left + view.width + right, view.padded if padded else view.channels
        return np.lib.stride_tricks.as_strided(
            numbers[start:], shape, (view.row * self.size, view.pixel * self.size, self.size)
        )

    def stored(self, values: Array) -> Array:
        return to_bf16(values.astype(np.float32)) if self.type == BF16 else values

    def loaded(self, window: Array) -> Array:
        return from_bf16(np.ascontiguousarray(window)) if self.type == BF16 else window.copy()

    def program(self, steps: list[ProgramStep], **more: Any) -> NDArray[np.uint8]:
        options = {"image": (1, 1, 1), "outputs": 1} | more
        return write_program(steps, lanes=self.lanes, type_=self.type, arena=up(self.used * self.size, 64), **options)

    def fill(self, arena: Array) -> None:
        """NaN everywhere but in the maps."""
        arena[:] = 0xFF
        for view, values, zeros in self.maps:
            if zeros:
                self.window(arena, view, halo=True, padded=True)[:] = 0
            # What fills a vector up is finite, and nothing may come of it.
            self.window(arena, view, padded=True)[:] = self.stored(np.full((1,), 7.5, np.float32))[0]
            self.window(arena, view)[:] = self.stored(values)

    def run(self, step: ProgramStep, threads: int = 1) -> Array:
        """Runs the step and looks at everything that it wrote.

        Returns:
            The output, [height, width, channels], float32.
        """
        assert step.out is not None
        out = View(**{field.name: getattr(step.out, field.name) for field in dataclasses.fields(View)})
        with native.Net(self.program([step]), self.isa, threads) as net:
            arena = net.arena
            self.fill(arena)
            before = arena.copy()
            net.steps(0, 1)
            after = arena.copy()
        result = self.loaded(self.window(after, out))
        whole = self.loaded(self.window(after, out, halo=True, padded=True))
        assert np.isfinite(whole).all(), "the output, its halo and its padded channels are finite"
        whole[out.top : out.top + out.height, out.left : out.left + out.width] = 0
        assert not whole.any(), "the halo is zero"
        for image in (before, after):
            self.window(image, out, halo=True, padded=True)[:] = 0
        assert np.array_equal(before, after), "nothing else was written"
        return result

    def check(self, step: ProgramStep, expected: Array, threads: int = 1, tolerance: float | None = None) -> None:
        """The step's output is what is expected, to within rounding of sums of its size."""
        found = self.run(step, threads)
        assert found.shape == expected.shape
        scale = max(1.0, float(np.abs(expected).max()))
        limit = TOLERANCE[self.type] if tolerance is None else tolerance
        assert float(np.abs(found - expected).max()) <= limit * scale


def every_kind(isa: int, type_: int = F32, seed: int = 0) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """A program with a step of every kind, and the shape of its images; each seed but 0 gives other sizes and tiles."""
    rng = np.random.default_rng(seed)

    def some(usual: int, low: int, high: int) -> int:
        return usual if seed == 0 else int(rng.integers(low, high + 1))

    machine = Machine(rng, isa, type_)
    lanes, pair = machine.lanes, 2 if type_ == BF16 else 1
    height, width, wide, halo = some(9, 3, 17), some(7, 3, 17), some(20, 2, 70), (1, 1, 1, 1)
    image = machine.view(height, width, 3, halo)
    image = dataclasses.replace(image, padded=4)
    a, b, c = (machine.view(height, width, wide, halo) for _ in range(3))
    down, along = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    small, d, e, f = (machine.view(down, along, wide) for _ in range(4))
    few = some(10, 1, 30)
    chosen, whole, mean = (
        machine.view(down, along, few),
        machine.view(down, along, few + 2),
        machine.view(1, 1, few + 2),
    )
    outputs = down * along * (few + 2)
    flat, result = machine.view(1, 1, outputs), machine.view(1, 1, outputs)
    groups, slots, vectors = up(wide, lanes) // lanes, 1 << some(1, 0, 2), 1 << some(1, 0, 2)
    per_group = 3 if seed == 0 else rng.integers(0, 6, groups)
    first = np.r_[0, np.cumsum(np.full(groups, per_group))].astype(np.int32)
    count = int(first[-1])
    index = rng.integers(0, min(lanes * pair, a.padded), (count, slots, lanes, pair)).astype(np.uint8)
    offsets = rng.integers(0, 3, count) * a.row + rng.integers(0, 3, count) * a.pixel

    def floats(*size: int) -> Array:
        return (rng.standard_normal(size) / 4).astype(np.float32)

    def packed(values: Array) -> Array:
        return to_bf16(values) if type_ == BF16 else values

    window: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1)}
    ways: list[dict[str, Any]] = [
        {"tile": some(5, 0, 17), "rows": some(2, 1, 4), "order": some(0, 0, 1), "split": some(i, 0, 1)}
        for i in (0, 1, 0)
    ]
    steps = [
        ProgramStep(Kind.LOAD, out=image),
        ProgramStep(
            Kind.DENSE,
            in_=image,
            out=a,
            values=packed(floats(up(wide, vectors * lanes), 9, 4 if type_ == BF16 else 3)),
            bias=floats(a.padded),
            vectors=vectors,
            **window,
            **ways[0],
        ),
        ProgramStep(
            Kind.HYBRID,
            in_=a,
            out=b,
            other=a,
            flags=1,
            activation=1,
            values=packed(floats(*index.shape)),
            index=index,
            offsets=offsets.astype(np.int32),
            first=first,
            count=count,
            slots=slots,
            bias=floats(a.padded),
            **window,
            **ways[1],
        ),
        ProgramStep(
            Kind.DEPTHWISE,
            in_=b,
            out=c,
            values=floats(c.padded // lanes, 9, lanes),
            activation=6,
            **window,
            **ways[2],
        ),
        ProgramStep(Kind.MAXPOOL, in_=c, out=small, kernel=(3, 3), stride=(2, 2)),
        ProgramStep(Kind.AVGPOOL, in_=small, out=d, flags=4, **window),
        ProgramStep(Kind.ADD, in_=small, other=d, out=e, activation=2),
        ProgramStep(Kind.SCALE, in_=e, out=f, values=floats(e.padded), bias=floats(e.padded)),
        ProgramStep(Kind.UNARY, in_=f, out=d, activation=5),
        ProgramStep(Kind.GATHER, in_=d, out=chosen, index=rng.integers(-1, wide, few).astype(np.int32)),
        ProgramStep(Kind.COPY, in_=chosen, out=dataclasses.replace(whole, channels=few, padded=few)),
        ProgramStep(
            Kind.COPY,
            in_=dataclasses.replace(small, channels=2, padded=2),
            out=dataclasses.replace(
                whole, offset=whole.offset + few * machine.size, channels=2, padded=whole.padded - few
            ),
        ),
        ProgramStep(Kind.GLOBAL, in_=whole, out=mean),
        ProgramStep(Kind.MULTIPLY, in_=whole, other=mean, out=whole),
        ProgramStep(Kind.FLATTEN, in_=whole, out=flat),
        ProgramStep(Kind.SOFTMAX, in_=flat, out=result),
        ProgramStep(Kind.STORE, in_=result),
    ]
    shape = 3, height, width
    return machine.program(steps, image=shape, outputs=outputs, scaling=(floats(3), floats(3))), shape


def activated(values: Array, activation: int) -> Array:
    """Activations, by their definitions, in float64."""
    x = values.astype(np.float64)
    half = np.clip(x / 6 + 0.5, 0, 1)
    sigmoid = 1 / (1 + np.exp(-x))
    return (x, np.maximum(x, 0), np.clip(x, 0, 6), sigmoid, half, x * half, x * sigmoid)[activation]


def windows(
    image: Array, out: tuple[int, int], kernel: Any, stride: Any, dilation: Any, padding: Any, outside: float = 0.0
) -> Array:
    """Every tap of every window, [kernel_y, kernel_x, out_y, out_x, channels], float64; ``outside`` beyond the map."""
    height, width, channels = image.shape
    result = np.full((*kernel, *out, channels), outside)
    for ky, kx, y, x in np.ndindex(*kernel, *out):
        v = y * stride[0] - padding[0] + ky * dilation[0]
        h = x * stride[1] - padding[1] + kx * dilation[1]
        if 0 <= v < height and 0 <= h < width:
            result[ky, kx, y, x] = image[v, h]
    return result
