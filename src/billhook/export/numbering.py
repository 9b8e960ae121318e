"""Moving numbers about, without numbers: where in which value each element of a tensor comes from.

Slices, reshapes, shuffles, concatenations and zero-padding compute nothing. They are carried out on tensors of
positions, by the very function that the network calls; what comes out is looked at when an operator reads it. Every
element of every value has a position of its own, so that one position says both which value and where in it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

ZERO = -1
"""In place of a position: an element that is zero."""

LOWEST = -2
"""An element that never wins a maximum."""


@dataclass(frozen=True)
class Axis:
    """How rows (or columns) of a map come from rows of a source: output ``i`` is row ``stride * i + shift``.

    Attributes:
        stride: Rows between two that are taken.
        before: Rows of padding in front of the source.
        after: Rows of padding behind it.
        kernel: Rows of the window that a convolution needs which takes them out.
        offset: Which row of that window is taken.
    """

    stride: int
    before: int
    after: int
    kernel: int
    offset: int

    @property
    def plain(self) -> bool:
        """A gather can do it: every ``stride``-th row, from the first."""
        return not self.before and not self.after and self.kernel == 1

    @property
    def padding(self) -> bool:
        """Nothing but padding, if anything."""
        return self.stride == 1 and self.kernel == 1


@dataclass(frozen=True)
class Selection:
    """A map [C, H, W] that is made of channels of one source.

    Attributes:
        source: Which value.
        channels: Of the source, one per output channel; :data:`ZERO` for a channel of zeros.
        vertical: Which rows.
        horizontal: Which columns.
        lowest: The padding is :data:`LOWEST`, not zero.
    """

    source: str
    channels: Tensor
    vertical: Axis
    horizontal: Axis
    lowest: bool


class Numbering:
    """Values and the positions of their elements.

    Attributes:
        shapes: [C, H, W] or [N] of every value.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._names: list[str] = []
        self._starts: list[int] = []
        self._bases: dict[str, int] = {}
        self._next = 0

    def add(self, name: str, shape: tuple[int, ...]) -> None:
        """A new value."""
        self._names.append(name)
        self._starts.append(self._next)
        self._bases[name] = self._next
        self.shapes[name] = shape
        self._next += torch.Size(shape).numel()

    def base(self, name: str) -> int:
        """Position of the first element of a value."""
        return self._bases[name]

    def positions(self, name: str) -> Tensor:
        """Positions of all elements of a value, in its shape."""
        shape, base = self.shapes[name], self.base(name)
        return torch.arange(base, base + torch.Size(shape).numel()).view(shape)

    def sources(self, index: Tensor) -> tuple[str, ...]:
        """The values that a tensor of positions refers to, in the order in which they are met."""
        found, rest = [], index[index >= 0]
        while len(rest):
            name = self._names[bisect_right(self._starts, int(rest[0])) - 1]
            found.append(name)
            start = self._bases[name]
            rest = rest[(rest < start) | (rest >= start + torch.Size(self.shapes[name]).numel())]
        return tuple(found)

    def select(self, index: Tensor) -> Selection | None:
        """How a map comes from one source.

        Args:
            index: Positions [C, H, W] in one value of three dimensions.

        Returns:
            None when it is not made of whole channels, at equal distances, with padding around.
        """
        sources = self.sources(index)
        if len(sources) != 1 or index.ndim != 3 or len(self.shapes[sources[0]]) != 3:
            return None
        _, height, width = self.shapes[sources[0]]
        local = torch.where(index >= 0, index - self.base(sources[0]), -1)
        there = local >= 0
        live = there.flatten(1).any(1)
        window = there[live][0]
        rows, columns = window.any(1).nonzero()[:, 0], window.any(0).nonzero()[:, 0]
        corner = local[:, rows[0], columns[0]]
        first = local[live][0]
        vertical = _axis(rows, first[rows, columns[0]] % (height * width) // width, height, index.shape[1])
        horizontal = _axis(columns, first[rows[0], columns] % width, width, index.shape[2])
        if vertical is None or horizontal is None:
            return None
        channels = torch.where(live, corner // (height * width), ZERO)
        lowest = bool((index[live] == LOWEST).any())
        selection = Selection(sources[0], channels, vertical, horizontal, lowest)
        return selection if torch.equal(index, self._carried_out(selection, index.shape)) else None

    def _carried_out(self, selection: Selection, shape: tuple[int, ...]) -> Tensor:
        """The positions that a selection stands for: what was guessed from a few of them is compared with all."""
        _, height, width = self.shapes[selection.source]
        r = torch.arange(shape[1]) * selection.vertical.stride + selection.vertical.offset - selection.vertical.before
        c = torch.arange(shape[2]) * selection.horizontal.stride
        c = c + selection.horizontal.offset - selection.horizontal.before
        inside = ((r >= 0) & (r < height))[:, None] & ((c >= 0) & (c < width))[None]
        plane = torch.where(inside, r[:, None] * width + c[None], LOWEST if selection.lowest else ZERO)
        whole = torch.where(inside, plane + self.base(selection.source), plane)
        steps = selection.channels[:, None, None] * (height * width)
        return torch.where(selection.channels[:, None, None] < 0, ZERO, torch.where(inside, whole + steps, whole))


def _axis(places: Tensor, values: Tensor, size: int, count: int) -> Axis | None:
    """How ``count`` rows come from ``size``: those at ``places`` are rows ``values`` of the source, others padding."""
    start, first = int(places[0]), int(values[0])
    # One row says nothing about a stride: with one as large as the source no second row is met.
    stride = int(values[1] - values[0]) if len(places) > 1 else size
    if stride < 1:
        return None
    shift = first - stride * start
    before, offset = max(0, -shift), max(0, shift)
    after = max(0, shift + stride * (count - 1) - (size - 1))
    # Rows behind the last one that is taken: a window as small as the count of rows allows.
    kernel = offset + 1 if after else max(offset + 1, size + before - stride * (count - 1) - (stride - 1))
    if (size + before + after - kernel) // stride + 1 != count:
        return None
    return Axis(stride, before, after, kernel, offset)
