"""Where every value lies in the arena: channels last, a halo for windows that reach over the edge, memory used again.

Values that live at the same time never overlap. A concatenation whose parts begin at whole vectors is no work: they are
made where it needs them. A sum may be written over one of its terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from billhook.errors import InputError
from billhook.formats.rules import MAX_ELEMENTS, MAX_TOTAL, short
from billhook.runtime.fuse import Fused, Step, halo

ALIGN = 64
"""Bytes; the arena begins at such an address."""
UNIT = 16
"""Elements: channels of a slice and of a pixel begin at multiples of it."""
ALIASING = 4096
"""Bytes: addresses that far apart compete for the same lines of the first cache."""
LARGEST_MAP = 2 * MAX_ELEMENTS
"""Elements of one map with its halo, channels filled up: a value may have half as many; steps count in 32 bits."""
LARGEST_ARENA = MAX_TOTAL
"""Elements of all maps that are there at a time."""


@dataclass(frozen=True)
class View:
    """A map, or some channels of one; the fields are those of ``bh_view``: elements, but ``offset`` in bytes."""

    offset: int
    height: int
    width: int
    channels: int
    padded: int
    pixel: int
    row: int
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    type: int = 0

    def slice(self, first: int, channels: int, padded: int, size: int) -> View:
        """Channels of the map from ``first`` on."""
        return replace(self, offset=self.offset + first * size, channels=channels, padded=padded)


@dataclass(frozen=True)
class Copy:
    """Channels that have to be moved into a concatenation.

    Attributes:
        source: The part.
        first: Its first channel in the whole.
        view: Where it goes; that of the last part has the channels that fill up the vector.
    """

    source: str
    first: int
    view: View


@dataclass(frozen=True)
class Options:
    """Choices that are the same for the whole network; the defaults are the fastest that were measured.

    Attributes:
        spread: When a pixel takes a vector more than its channels need: where its bytes are a multiple of 4096
            (``aliased``), always, or never.
        overwrite: Whether a sum may take the place of one of its terms.
    """

    spread: Literal["aliased", "always", "never"] = "aliased"
    overwrite: bool = True


@dataclass(frozen=True)
class Layout:
    """The memory of a network.

    Attributes:
        views: Of every value.
        arena: Bytes in all, a multiple of 64.
        copies: By name of the concatenation, what it has to move, in this order.
    """

    views: Mapping[str, View]
    arena: int
    copies: Mapping[str, tuple[Copy, ...]]


@dataclass
class _Buffer:
    """A map of its own, for one value or several."""

    height: int
    width: int
    channels: int
    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    first: int = 1 << 60
    last: int = -1
    # Values that hold channels of it, with the first of these.
    members: dict[str, int] = field(default_factory=dict)
    joined: bool = False

    def used(self, when: int) -> None:
        self.first, self.last = min(self.first, when), max(self.last, when)


def lay_out(
    fused: Fused, lanes: int, size: int, type_: int, options: Options | None = None, narrow: bool = False
) -> Layout:
    """Gives every value its place.

    Args:
        fused: The steps.
        lanes: Of a vector, 8 or 16.
        size: Bytes of an element.
        type_: Of the elements, as in ``bh_view``.
        options: See there.
        narrow: The image is only read number by number: nothing fills its few channels up to a vector, so that the
            taps of a row are one run.

    Raises:
        InputError: A map, or all of them, would take more than any sound network needs. Halos and vectors may make more
            of a value than the file says: a few bytes must not ask for all memory.
    """
    options = options or Options()
    buffers = _Buffers(fused)
    moved = {step.output: tuple(buffers.join(step)) for step in fused.steps if step.kind == "concat"}
    buffers.measure()
    if options.overwrite:
        for when, step in enumerate(fused.steps, 1):
            buffers.overwrite(step, when)
    whole = buffers.distinct()
    image = buffers.of[fused.input]
    thin = image if narrow and len(image.members) == 1 else None
    if thin:
        # Inputs that are read in pairs may end in the pixel after the last window.
        thin.halo[3] += 1
    strides = [buffer.channels if buffer is thin else _pixel(buffer, lanes, size, options) for buffer in whole]
    sizes = [
        (b.halo[0] + b.height + b.halo[2]) * (b.halo[1] + b.width + b.halo[3]) * pixel * size
        for b, pixel in zip(whole, strides, strict=True)
    ]
    for buffer, taken in zip(whole, sizes, strict=True):
        if taken > LARGEST_MAP * size:
            name = next(iter(buffer.members))
            raise _too_large(f"the map {short(name)}, padded and filled up to vectors, takes {taken} bytes")
    offsets, arena = place(sizes, [(buffer.first, buffer.last) for buffer in whole])
    if arena > LARGEST_ARENA * size:
        raise _too_large(f"its maps take {arena} bytes at a time")
    views = {}
    for buffer, pixel, offset in zip(whole, strides, offsets, strict=True):
        top, left, bottom, right = buffer.halo
        row = (left + buffer.width + right) * pixel
        map_ = View(
            offset + (top * row + left * pixel) * size,
            buffer.height,
            buffer.width,
            buffer.channels,
            pixel if buffer is thin else _up(buffer.channels, lanes),
            pixel,
            row,
            top,
            left,
            bottom,
            right,
            type_,
        )
        for name, first in buffer.members.items():
            channels = fused.shapes[name][0]
            views[name] = map_ if buffer is thin else map_.slice(first, channels, _up(channels, lanes), size)
    copies = {name: tuple(_copies(fused, views, name, parts, size)) for name, parts in moved.items() if parts}
    # In bf16 the last load of a part of a concatenation may end behind the map.
    return Layout(views, arena + (ALIGN if size == 2 else 0), copies)


def _copies(
    fused: Fused, views: Mapping[str, View], whole: str, parts: Iterable[tuple[str, int]], size: int
) -> Iterable[Copy]:
    view = views[whole]
    for name, first in parts:
        channels = fused.shapes[name][0]
        end = first + channels
        yield Copy(
            name, first, view.slice(first, channels, (end if end < view.channels else view.padded) - first, size)
        )


class _Buffers:
    def __init__(self, fused: Fused) -> None:
        self.fused = fused
        self.of: dict[str, _Buffer] = {
            name: _Buffer(height, width, channels, members={name: 0})
            for name, (channels, height, width) in fused.shapes.items()
        }

    def distinct(self) -> list[_Buffer]:
        return list({id(buffer): buffer for buffer in self.of.values()}.values())

    def join(self, step: Step) -> Iterable[tuple[str, int]]:
        """Lets the parts of a concatenation be made inside it; what cannot be is yielded."""
        first, starts = 0, []
        for name in step.inputs:
            starts.append(first)
            first += self.fused.shapes[name][0]
        target, base = self.home(step, starts)
        for name, start in zip(step.inputs, starts, strict=True):
            there = self.of[name]
            if there is target:
                if there.members[name] != base + start:
                    yield name, start
            elif self.movable(name) and self.free(target, step, name, base + start):
                for member, inside in there.members.items():
                    target.members[member] = base + start + inside
                    self.of[member] = target
            else:
                yield name, start
        target.joined = True

    def home(self, step: Step, starts: Sequence[int]) -> tuple[_Buffer, int]:
        """The buffer of a concatenation and its first channel there: another one's, if that already has parts of it."""
        for name, start in zip(step.inputs, starts, strict=True):
            there = self.of[name]
            base = there.members[name] - start
            if there.joined and self.fits(step, starts, there, base):
                there.members[step.output] = base
                there.channels = max(there.channels, base + self.fused.shapes[step.output][0])
                self.of[step.output] = there
                return there, base
        return self.of[step.output], 0

    def fits(self, step: Step, starts: Sequence[int], there: _Buffer, base: int) -> bool:
        """Whether a concatenation can lie in a buffer from channel ``base`` on, moving nothing and in nobody's way."""
        if base < 0 or len(set(step.inputs)) < len(step.inputs):
            return False
        for name, start in zip(step.inputs, starts, strict=True):
            if self.of[name] is there:
                if there.members[name] != base + start:
                    return False
            elif not self.movable(name) or not self.free(there, step, name, base + start):
                return False
        return True

    def movable(self, name: str) -> bool:
        """Whether a value has a buffer to itself, or its parts alone are in it."""
        there = self.of[name]
        return not there.joined or (there.members[name] == 0 and there.channels == self.fused.shapes[name][0])

    def free(self, buffer: _Buffer, step: Step, name: str, place: int) -> bool:
        """Whether vectors begin at ``place`` and ``name`` would meet nothing there but the concatenation itself."""
        end = place + _up(self.fused.shapes[name][0], UNIT)
        return place % UNIT == 0 and not any(
            first < end and place < first + _up(self.fused.shapes[other][0], UNIT)
            for other, first in buffer.members.items()
            if other != step.output
        )

    def measure(self) -> None:
        """Lifetimes, the loading of the image being step 0, and halos."""
        shapes = self.fused.shapes
        self.of[self.fused.input].used(0)
        for when, step in enumerate(self.fused.steps, 1):
            for name in (*step.reads, step.output):
                self.of[name].used(when)
            if step.kind in ("conv", "depthwise"):
                source = self.of[step.inputs[0]]
                reach = halo(step, shapes[step.inputs[0]], shapes[step.output])
                source.halo = [max(pair) for pair in zip(source.halo, reach, strict=True)]
        self.of[self.fused.output].used(len(self.fused.steps) + 1)

    def overwrite(self, step: Step, when: int) -> None:
        """Lets the result of a step take the place of a value that the step is the last to read."""
        made = self.of[step.output]
        for name in _terms(step):
            there = self.of[name]
            same = (there.height, there.width, there.channels) == (made.height, made.width, made.channels)
            if (
                there is made
                or there.joined
                or made.joined
                or not same
                or there.halo != made.halo
                or there.last != when
            ):
                continue
            there.members[step.output] = 0
            there.last = made.last
            self.of[step.output] = there
            return


def place(sizes: Sequence[int], lives: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Offsets such that what lives at the same time does not overlap: the largest first, each as low as it goes.

    Args:
        sizes: Bytes.
        lives: First and last step, both included.

    Returns:
        Offsets, multiples of 64, and the bytes in all.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], lives[item])):
        begin, end = lives[item]
        meets = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in placed
            if lives[other][0] <= end and begin <= lives[other][1]
        )
        offset = 0
        for start, stop in meets:
            if offset + sizes[item] <= start:
                break
            offset = max(offset, _up(stop, ALIGN))
        offsets[item] = offset
        placed.append(item)
    arena = max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)
    return offsets, _up(arena, ALIGN)


def _terms(step: Step) -> tuple[str, ...]:
    """What a step reads at the place where it writes, and nowhere else, so that writing over it does no harm."""
    if step.kind in ("conv", "depthwise"):
        # With these the activation is a second pass over what was written, and the term is added after it.
        twice = step.residual_last and step.activation not in ("", "relu", "relu6")
        return () if twice or not step.residual or step.residual in step.inputs else (step.residual,)
    if step.kind == "add":
        return step.inputs
    return step.inputs[:1] if step.kind in ("multiply", "scale", "unary") else ()


def _too_large(reason: str) -> InputError:
    return InputError(
        f"{reason}; native kernels take {LARGEST_MAP} numbers in one map, {LARGEST_ARENA} in all",
        "a smaller image, or BILLHOOK_NATIVE=0, which runs it in numpy",
    )


def _pixel(buffer: _Buffer, lanes: int, size: int, options: Options) -> int:
    # Whole lines: what one load brings never crosses one.
    pixel = _up(_up(buffer.channels, lanes), max(UNIT, ALIGN // size))
    aliased = pixel * size % ALIASING == 0
    if buffer.height * buffer.width > 1 and (options.spread == "always" or (aliased and options.spread == "aliased")):
        pixel += ALIGN // size
    return pixel


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
