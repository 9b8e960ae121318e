"""Weights in kernel order: what a stream multiplies equals the weight, whatever the pattern."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from billhook.formats import decode_hybrid, encode_hybrid
from billhook.runtime.packing import (
    Stream,
    dense_rows,
    from_bf16,
    hybrid_rows,
    pack_dense,
    pack_depthwise,
    pack_hybrid,
    pack_stream,
    to_bf16,
)


def unpack(stream: Stream, outputs: int, taps: int, inputs: int) -> NDArray[np.float32]:
    """The weight ``[O, taps, I]`` that a kernel would multiply with, item by item."""
    lanes = stream.lanes
    weight = np.zeros((-(-outputs // lanes) * lanes, taps, -(-inputs // stream.width) * stream.width), np.float32)
    values = from_bf16(stream.values) if stream.values.dtype == np.uint16 else stream.values[..., None]
    index = stream.index if stream.index.ndim == 4 else stream.index[..., None]
    for group, (begin, end) in enumerate(zip(stream.first[:-1], stream.first[1:], strict=True)):
        for item in range(begin, end):
            for slot in range(values.shape[1]):
                for lane in range(lanes):
                    for half in range(values.shape[3]):
                        column = stream.slice[item] * stream.width + index[item, slot, lane, half]
                        weight[group * lanes + lane, stream.tap[item], column] += values[item, slot, lane, half]
    assert not weight[outputs:].any()
    assert not weight[:, :, inputs:].any()
    return weight[:outputs, :, :inputs]


def hybrid(rng: np.random.Generator, outputs: int, taps: int, inputs: int, n: int, m: int, block: int, kept: int):
    weight = rng.normal(size=(outputs, taps, inputs)).astype(np.float32)
    score = rng.random((outputs, taps, inputs // m, m))
    mask = (np.argsort(np.argsort(score, axis=-1), axis=-1) < n).reshape(weight.shape)
    if block:
        across = -(-inputs // block)
        blocks = np.zeros((-(-outputs // block), taps * across), bool)
        for row in blocks:
            row[rng.choice(taps * across, kept, replace=False)] = True
        wide = blocks.reshape(-1, taps, across).repeat(block, 0)[:outputs].repeat(block, 2)[:, :, :inputs]
        mask &= wide
    return encode_hybrid(np.where(mask, weight, 0), mask, n, m, block)


@given(
    seed=st.integers(0, 1000),
    outputs=st.integers(1, 40),
    taps=st.sampled_from([1, 4, 9]),
    groups=st.integers(1, 9),
    pattern=st.sampled_from([(1, 4), (2, 4), (3, 4), (1, 2), (1, 8), (1, 1), (2, 16)]),
    block=st.sampled_from([0, 16, 32]),
    lanes=st.sampled_from([8, 16]),
    slots=st.sampled_from([1, 2, 4]),
    bf16=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_stream_of_a_hybrid_layer_is_its_weight(seed, outputs, taps, groups, pattern, block, lanes, slots, bf16):
    n, m = pattern
    inputs = groups * m
    rng = np.random.default_rng(seed)
    columns = taps * -(-inputs // block) if block else 0
    layer = hybrid(rng, outputs, taps, inputs, n, m, block, int(rng.integers(0, columns + 1)))
    expected = decode_hybrid(layer)
    if bf16:
        expected = from_bf16(to_bf16(expected))
    for stream in (pack_hybrid(layer, lanes, slots, bf16), pack_stream(hybrid_rows(layer), lanes, slots, bf16)):
        assert stream.values.shape[:3] == (len(stream.tap), slots, lanes)
        assert stream.index.max(initial=0) < stream.width == lanes * (2 if bf16 else 1)
        np.testing.assert_array_equal(unpack(stream, outputs, taps, inputs), expected)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize(("n", "m", "block"), [(2, 4, 16), (1, 4, 32), (3, 4, 16), (2, 4, 64), (1, 8, 16), (1, 2, 16)])
def test_layers_that_line_up_are_packed_without_sorting_to_the_same_bits(lanes, n, m, block):
    layer = hybrid(np.random.default_rng(1), 128, 9, 64, n, m, block, 5)
    slots = 1 if lanes * n // m % 2 else 2
    fast = pack_hybrid(layer, lanes, slots)
    slow = pack_stream(hybrid_rows(layer), lanes, slots)
    for name in ("tap", "slice", "first", "values", "index"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)


@given(
    seed=st.integers(0, 1000),
    groups=st.integers(1, 4),
    outputs=st.integers(1, 12),
    inputs=st.integers(1, 12),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    lanes=st.sampled_from([8, 16]),
)
@settings(max_examples=50, deadline=None)
def test_any_pattern_and_grouped_convolutions(seed, groups, outputs, inputs, density, lanes):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(outputs * groups, inputs, 2, 3)).astype(np.float32)
    weight *= rng.random(weight.shape) < density
    full = np.zeros((outputs * groups, 6, inputs * groups), np.float32)
    for row in range(outputs * groups):
        start = row // outputs * inputs
        full[row, :, start : start + inputs] = weight[row].reshape(inputs, 6).T
    stream = pack_stream(dense_rows(weight, groups), lanes, 2)
    np.testing.assert_array_equal(unpack(stream, outputs * groups, 6, inputs * groups), full)


def test_offsets_are_elements_from_the_first_pixel_of_a_window():
    weight = np.zeros((16, 32, 3, 3), np.float32)
    weight[0, 20, 2, 1] = 1
    stream = pack_stream(dense_rows(weight), 16, 1)
    assert stream.offsets(3, pixel=48, row=1000).tolist() == [2 * 1000 + 48 + 16]
    assert stream.offsets(3, pixel=48, row=1000, dilation=(2, 3)).tolist() == [4 * 1000 + 3 * 48 + 16]


def test_dense_weights_by_tiles():
    weight = np.arange(3 * 2 * 1 * 2, dtype=np.float32).reshape(3, 2, 1, 2)
    packed = pack_dense(weight, lanes=2, vectors=1)
    assert packed.shape == (2, 2, 2, 2)
    assert packed[0, 1, 0].tolist() == [weight[0, 0, 0, 1], weight[1, 0, 0, 1]]
    assert packed[1, 0, 1].tolist() == [weight[2, 1, 0, 0], 0]
    halves = from_bf16(pack_dense(weight[:, :1], lanes=2, vectors=2, bf16=True))
    assert halves.shape == (1, 2, 1, 4, 2)
    assert halves[0, 1, 0].tolist() == [[1, 0], [5, 0], [9, 0], [0, 0]]


def test_a_row_of_taps_as_one_run_of_inputs():
    weight = np.arange(2 * 3 * 2 * 3, dtype=np.float32).reshape(2, 3, 2, 3)
    plain, run = pack_dense(weight, 2, 1), pack_dense(weight, 2, 1, run=True)
    assert run.shape == (1, 2, 9, 2)
    np.testing.assert_array_equal(run.ravel(), plain.ravel())
    pairs = from_bf16(pack_dense(weight, 2, 1, bf16=True, run=True))
    assert pairs.shape == (1, 2, 5, 2, 2)
    # The second pair of the lower row: input 2 of tap 0 and input 0 of tap 1, for both outputs.
    np.testing.assert_array_equal(pairs[0, 1, 1], [[weight[o, 2, 1, 0], weight[o, 0, 1, 1]] for o in (0, 1)])
    assert not pairs[:, :, 4, :, 1].any()


def test_depthwise_weights_by_vectors():
    weight = np.arange(3 * 4, dtype=np.float32).reshape(3, 1, 2, 2)
    packed = pack_depthwise(weight, 2)
    assert packed.shape == (2, 4, 2)
    assert packed[0, 3].tolist() == [3, 7]
    assert packed[1, 0].tolist() == [8, 0]


def test_bf16_rounds_to_nearest_even_and_keeps_nan():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, np.inf, np.nan, 3.4e38], np.float32)
    assert to_bf16(values).tolist()[:5] == [0x3F80, 0x3F80, 0x3F82, 0x8000, 0x7F80]
    assert np.isnan(from_bf16(to_bf16(values))[5])
    assert from_bf16(to_bf16(values))[6] == np.inf
