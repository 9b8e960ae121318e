"""The list of operators while it grows, and views of its values: what no operator has made yet, only moved about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from billhook.export.numbering import ZERO, Axis, Numbering, Selection
from billhook.export.trace import module_of, refusal
from billhook.formats.graph import Operator

Form = Literal["map", "vector", "any"]
NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class View:
    """A tensor of the network.

    Attributes:
        node: The call that gives it.
        shape: As PyTorch sees it, with the batch.
        source: The value that it is, in order; None: see ``index``.
        index: Positions of its elements, in ``shape``; None: all of ``source``.
    """

    node: fx.Node
    shape: tuple[int, ...]
    source: str | None = None
    index: Tensor | None = None


@dataclass(frozen=True)
class Operand:
    """A weight or bias of an operator.

    Attributes:
        value: The tensor.
        origin: Its name in the state dictionary, when it is such a tensor in its own order; else empty.
    """

    value: Tensor
    origin: str = ""


class Builder:
    """Operators and values made so far.

    Attributes:
        operators: In the order of their making.
        tensors: Of all operators, floats as they come and int64.
        origins: Names in the state dictionary, by names in ``tensors``, where a tensor is one of those.
        numbering: Positions of the values' elements.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.operators: list[Operator] = []
        self.tensors: dict[str, NDArray[Any]] = {}
        self.origins: dict[str, str] = {}
        self.numbering = Numbering()
        self.numbering.add("input", shape)
        self._placed: dict[tuple[View, Form | Literal["padded"]], tuple[str, tuple[int, ...], bool]] = {}

    def emit(
        self,
        kind: str,
        node: fx.Node,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        settings: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Operand] | None = None,
        suffix: str = "",
    ) -> str:
        """Append an operator.

        Args:
            node: The call that it carries out, which gives it its name.
            shape: Of its output.
            suffix: For a name that is not the layer's own.

        Returns:
            The name of its output, which is the operator's.
        """
        name = self._name(node, suffix)
        stored = {}
        for role, operand in (tensors or {}).items():
            stored[role] = key = f"{name}.{role}"
            value = operand.value.detach()
            self.tensors[key] = value.contiguous().numpy()
            if operand.origin:
                self.origins[key] = operand.origin
        self.operators.append(Operator(kind, name, inputs, name, dict(settings or {}), stored))
        self.numbering.add(name, shape)
        return name

    def _name(self, node: fx.Node, suffix: str) -> str:
        module, layer = module_of(node)
        packet = getattr(node.target, "overloadpacket", None)
        own = suffix or ("" if layer and module else str(getattr(packet, "__name__", "value")).strip("_"))
        name = ".".join(part for part in (module, own) if part)
        number, unique = 1, name
        while unique in self.numbering.shapes:
            number += 1
            unique = f"{name}_{number}"
        return unique

    # ------------------------------------------------------------------ views
    def positions(self, view: View) -> Tensor:
        """Where the elements of a view come from, in its shape."""
        if view.index is not None:
            return view.index
        assert view.source is not None
        return self.numbering.positions(view.source).view(view.shape)

    def sources(self, view: View) -> tuple[str, ...]:
        """The values that the elements of a view come from."""
        return self.numbering.sources(self.positions(view)) if view.source is None else (view.source,)

    def whole(self, view: View) -> str | None:
        """The value that a view shows, all of it and in its own order, in whatever shape."""
        if view.source is not None:
            return view.source
        index, sources = self.positions(view).reshape(-1), self.sources(view)
        same = len(sources) == 1 and torch.equal(index, self.numbering.positions(sources[0]).reshape(-1))
        return sources[0] if same else None

    def place(self, view: View, form: Form) -> str:
        """A value that holds a view's elements, made now where none does.

        Args:
            form: ``map``: [C, H, W]; ``vector``: [N]; ``any``: as the value that it is, else by the view's shape.

        Raises:
            InputError: No operator makes it.
        """
        return self._remember(view, form)[0]

    def place_padded(self, view: View) -> tuple[str, tuple[int, ...], bool]:
        """Like :meth:`place` for a map, less its padding.

        Returns:
            The value; the padding around it, (top, left, bottom, right); whether the padding never wins a maximum.
        """
        return self._remember(view, "padded")

    def _remember(self, view: View, form: Form | Literal["padded"]) -> tuple[str, tuple[int, ...], bool]:
        key = (view, form)
        if key not in self._placed:
            self._placed[key] = self._place(view, form)
        return self._placed[key]

    def _place(self, view: View, form: Form | Literal["padded"]) -> tuple[str, tuple[int, ...], bool]:
        name = self.whole(view)
        whole = None if name is None else self.numbering.shapes[name]
        flat = len(view.shape) <= 2 or form == "vector"
        if name is not None and whole is not None:
            as_vector, as_map = len(whole) == 1, self._map_shape(view) == whole
            if (form == "vector" and as_vector) or (form in ("map", "padded") and as_map):
                return name, NO_PADDING, False
            if form == "any" and (as_map or as_vector or whole[1:] == (1, 1)):
                return name, NO_PADDING, False
            if flat and form in ("vector", "any") and not as_vector:
                return self._flatten(view, name), NO_PADDING, False
        if form == "vector" or (form == "any" and flat):
            return self._flatten(view, self._map(view, self._unflattened(view))[0]), NO_PADDING, False
        shape = self._map_shape(view)
        if shape is None:
            raise refusal(view.node, f"a tensor of shape {list(view.shape)} is read where a map of channels is needed")
        return self._map(view, self.positions(view).reshape(shape), padded=form == "padded")

    def _map_shape(self, view: View) -> tuple[int, ...] | None:
        if view.shape[0] != 1 or len(view.shape) not in (2, 4):
            return None
        return (*view.shape[1:], 1, 1)[:3]

    def _unflattened(self, view: View) -> Tensor:
        """Positions of a vector as the map that it was, as far as that can be known from where it comes from."""
        index, sources = self.positions(view).reshape(-1), self.sources(view)
        plane = self.numbering.shapes[sources[0]][1:] if sources else ()
        if len(plane) == 2 and len(index) % (plane[0] * plane[1]) == 0:
            return index.view(-1, *plane)
        return index.view(-1, 1, 1)

    def _flatten(self, view: View, name: str) -> str:
        return self.emit("flatten", view.node, (name,), (torch.Size(self.numbering.shapes[name]).numel(),), {}, {},
                         "flatten")  # fmt: skip

    def _map(self, view: View, index: Tensor, *, padded: bool = False) -> tuple[str, tuple[int, ...], bool]:
        sources = self.numbering.sources(index)
        if not sources:
            return self._zeros(view, index), NO_PADDING, False
        if len(sources) > 1:
            index = self._joined(view, index, sources)
        selection = self.numbering.select(index)
        if selection is None:
            rows, columns = _inside(index)
            if index[:, rows, columns].shape != index.shape:  # first what is inside of the padding, then the padding
                name = self._map(view, index[:, rows, columns])[0]
                index = index.clone()
                index[:, rows, columns] = self.numbering.positions(name)
                return self._map(view, index, padded=padded)
            raise refusal(
                view.node,
                "it moves elements about in a way that no operator does",
                "whole channels can be chosen, repeated, shuffled and joined; rows and columns be strided and padded",
            )
        down, across = selection.vertical, selection.horizontal
        name = self._gather(view, selection)
        if down.plain and across.plain:
            return name, NO_PADDING, False
        if padded and down.padding and across.padding:
            return name, (down.before, across.before, down.after, across.after), selection.lowest
        if selection.lowest:
            raise refusal(view.node, "padding with minus infinity is understood before a maximum only")
        return self._window(view, name, down, across), NO_PADDING, False

    def _joined(self, view: View, index: Tensor, sources: tuple[str, ...]) -> Tensor:
        """The same elements in one value, which holds all of the sources."""
        shapes = [self.numbering.shapes[name] for name in sources]
        if len({shape[1:] for shape in shapes}) != 1 or len(shapes[0]) != 3:
            raise refusal(view.node, f"it joins maps of different sizes ({', '.join(str(list(s)) for s in shapes)})")
        channels = sum(shape[0] for shape in shapes)
        name = self.emit("concat", view.node, sources, (channels, *shapes[0][1:]), {}, {}, "concat")
        result, place = index.clone(), self.numbering.base(name)
        for source, shape in zip(sources, shapes, strict=True):
            base, count = self.numbering.base(source), torch.Size(shape).numel()
            mine = (index >= base) & (index < base + count)
            result[mine] = index[mine] - base + place
            place += count
        return result

    def _gather(self, view: View, selection: Selection) -> str:
        """Channels of the source, and every second or third pixel where a gather alone does that."""
        channels, height, width = self.numbering.shapes[selection.source]
        rows, columns = selection.vertical, selection.horizontal
        plain = rows.plain and columns.plain
        stride = (rows.stride, columns.stride) if plain else (1, 1)
        same = torch.equal(selection.channels, torch.arange(channels))
        if same and stride == (1, 1):
            return selection.source
        if same and not plain:
            return selection.source
        shape = (len(selection.channels), -(-height // stride[0]), -(-width // stride[1]))
        return self.emit("gather", view.node, (selection.source,), shape, {"stride": list(stride)},
                         {"index": Operand(selection.channels)}, "gather")  # fmt: skip

    def _zeros(self, view: View, index: Tensor) -> str:
        """A map of nothing but zeros: channels that are none of those of another map, whose rows and columns fit."""
        channels, height, width = index.shape
        maps = [(name, shape) for name, shape in self.numbering.shapes.items() if len(shape) == 3]
        for name, (_, high, wide) in reversed(maps):
            stride = (max(1, high // height), max(1, wide // width))
            if (-(-high // stride[0]), -(-wide // stride[1])) == (height, width) and bool((index == ZERO).all()):
                return self.emit("gather", view.node, (name,), (channels, height, width), {"stride": list(stride)},
                                 {"index": Operand(torch.full((channels,), ZERO))}, "gather")  # fmt: skip
        raise refusal(view.node, "what is read is nothing but padding", "leave it out of the network")

    def _window(self, view: View, name: str, rows: Axis, columns: Axis) -> str:
        """Padding, cutting and striding by a depthwise convolution with a single one in its kernel."""
        channels, height, width = self.numbering.shapes[name]
        weight = torch.zeros(channels, 1, rows.kernel, columns.kernel)
        weight[:, :, rows.offset, columns.offset] = 1
        padding = [rows.before, columns.before, rows.after, columns.after]
        shape = (
            channels,
            (height + rows.before + rows.after - rows.kernel) // rows.stride + 1,
            (width + columns.before + columns.after - columns.kernel) // columns.stride + 1,
        )
        settings = {"stride": [rows.stride, columns.stride], "padding": padding, "dilation": [1, 1], "groups": channels}
        return self.emit("conv", view.node, (name,), shape, settings, {"weight": Operand(weight)}, "window")


def _inside(index: Tensor) -> tuple[slice, slice]:
    """Rows and columns without those at the edges that are nothing but padding."""
    there = (index >= 0).any(0)
    rows, columns = there.any(1).nonzero()[:, 0], there.any(0).nonzero()[:, 0]
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
