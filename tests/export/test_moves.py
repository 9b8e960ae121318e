"""Tensors that are only moved about, at random, against the same moves of numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from billhook.errors import InputError
from billhook.export.numbering import Numbering
from billhook.export.values import Builder, View
from billhook.formats.graph import Graph

from .interpreter import interpret

Move = Callable[[Tensor, float], Tensor]


@st.composite
def channels(draw: st.DrawFn, count: int) -> tuple[list[int], int]:
    """A choice of channels, -1 for zeros."""
    chosen = draw(st.lists(st.integers(-1, count - 1), min_size=1, max_size=7))
    return chosen, len(chosen)


@st.composite
def moves(draw: st.DrawFn, shape: tuple[int, int, int]) -> tuple[list[Move], tuple[int, int, int]]:
    """Channels chosen, rows and columns strided, cut and padded with zeros, in this order, and the shape after it."""
    count, height, width = shape
    chosen, outputs = draw(channels(count))
    steps = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    start = (draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1)))
    end = (draw(st.integers(start[0] + 1, height)), draw(st.integers(start[1] + 1, width)))
    pad = draw(st.tuples(*[st.integers(0, 2)] * 4)) if draw(st.booleans()) else (0, 0, 0, 0)

    def choose(x: Tensor, zero: float) -> Tensor:
        kept = torch.cat([x, torch.full_like(x[:, :1], zero)], 1)
        return kept[:, [count if channel < 0 else channel for channel in chosen]]

    def cut(x: Tensor, zero: float) -> Tensor:
        return x[:, :, start[0] : end[0] : steps[0], start[1] : end[1] : steps[1]]

    def around(x: Tensor, zero: float) -> Tensor:
        return F.pad(x, pad, value=zero)

    high, wide = -(-(end[0] - start[0]) // steps[0]), -(-(end[1] - start[1]) // steps[1])
    return [choose, cut, around], (outputs, high + pad[2] + pad[3], wide + pad[0] + pad[1])


def carried_out(builder: Builder, index: Tensor, x: Tensor) -> Tensor:
    """What the operators of a view make of an image."""
    node = fx.Graph().placeholder("x")
    name = builder.place(View(node, tuple(index.shape), None, index), "map")
    return interpret(Graph("input", tuple(x.shape[1:]), tuple(builder.operators), name), builder.tensors, x)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)))
def test_random_moves(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    todo, after = data.draw(moves(shape))
    builder = Builder(shape)
    x = torch.randn(1, *shape) + 3
    index, expected = builder.numbering.positions("input")[None], x
    for move in todo:
        # One is a copy of numbers; what is not there is -1 in the other.
        index, expected = move(index.double(), -1).long(), move(expected, 0)
    assert tuple(index.shape[1:]) == after
    zeros = bool((index < 0).all())
    # Zeros alone are a gather, in rows and columns that some stride over the image gives.
    steps = [max(1, side // count) for side, count in zip(shape[1:], after[1:], strict=True)]
    if zeros and tuple(-(-side // step) for side, step in zip(shape[1:], steps, strict=True)) != after[1:]:
        with pytest.raises(InputError, match="nothing but padding"):
            carried_out(builder, index, x)
        return
    assert torch.equal(carried_out(builder, index, x), expected)


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (4, 2), (3, 3), (2, 4), (1, 8)])
def test_zeros_alone_are_channels_of_none(side: int, stride: int) -> None:
    builder = Builder((2, 8, 8))
    x = torch.randn(1, 2, 8, 8) + 3
    index = torch.full((1, 5, side, side), -1)
    if side == 3:  # rounding down, 8 // 3 is 2, and every second row is four of them
        with pytest.raises(InputError, match="nothing but padding"):
            carried_out(builder, index, x)
        return
    assert torch.equal(carried_out(builder, index, x), torch.zeros(1, 5, side, side))
    (gather,) = builder.operators
    assert (gather.kind, gather.settings["stride"]) == ("gather", [stride, stride])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 3), st.integers(1, 4))
def test_channels_of_several_values_in_any_order(data: st.DataObject, values: int, side: int) -> None:
    builder = Builder((3, side, side))
    node = fx.Graph().placeholder("x")
    x = torch.randn(1, 3, side, side)
    parts, indices = [x], [builder.numbering.positions("input")]
    for number in range(1, values):
        name = builder.emit("relu", node, ("input",), (3, side, side), suffix=f"relu{number}")
        indices.append(builder.numbering.positions(name))
        parts.append(x.relu())
    chosen, _ = data.draw(channels(3 * values).filter(lambda pair: max(pair[0]) >= 0))
    every, numbers = torch.cat(indices), torch.cat(parts, 1)
    index = torch.stack([torch.full((side, side), -1) if c < 0 else every[c] for c in chosen])[None]
    expected = torch.stack([torch.zeros(side, side) if c < 0 else numbers[0, c] for c in chosen])[None]
    assert torch.equal(carried_out(builder, index, x), expected)


def test_a_guess_is_compared_with_every_position() -> None:
    numbering = Numbering()
    numbering.add("input", (2, 4, 4))
    index = numbering.positions("input").clone()
    assert numbering.select(index) is not None
    for place in ((0, 0, 0), (1, 3, 3), (1, 1, 2)):
        wrong = index.clone()
        wrong[place] = (wrong[place] + 1) % 32
        assert numbering.select(wrong) is None
        wrong[place] = -1
        assert numbering.select(wrong) is None
