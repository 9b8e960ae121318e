import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.formats import (
    Geometry,
    HybridLayer,
    PackedLayerError,
    bitmap_mask,
    checked_positions,
    decode_bitmap,
    decode_hybrid,
    encode_bitmap,
    encode_hybrid,
    hybrid_columns,
    hybrid_mask,
    hybrid_offsets,
)

from .masks import bits_of, hybrid_case, slow_pack


@st.composite
def cases(draw):
    m = draw(st.integers(1, 9))
    n = 1 if m == 1 else draw(st.integers(1, m))
    block = draw(st.integers(0, 4)) * m
    inputs = draw(st.integers(1, 6)) * m
    taps = draw(st.sampled_from([1, 2, 9]))
    rows = draw(st.integers(1, 20))
    total = taps * -(-inputs // block) if block else 0
    kept = draw(st.integers(0, total))
    seed = draw(st.integers(0, 1 << 32))
    return (n, m, block), hybrid_case(seed, rows, taps, inputs, n, m, block, kept)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_round_trip_is_bit_exact_on_ragged_shapes(case):
    pattern, (weight, mask) = case
    layer = encode_hybrid(weight, mask, *pattern)
    expected = bits_of(weight).copy()
    expected[~mask] = 0
    decoded = decode_hybrid(layer)
    assert decoded.dtype == np.float32
    assert np.array_equal(bits_of(decoded), expected)
    assert np.array_equal(hybrid_mask(layer), mask)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_stream_order_is_the_documented_one(case):
    pattern, (weight, mask) = case
    values, offsets, columns = slow_pack(weight, mask, *pattern)
    layer = encode_hybrid(weight, mask, *pattern)
    assert bits_of(layer.values).tolist() == values
    assert hybrid_offsets(layer).reshape(-1).tolist() == offsets
    if pattern[2]:
        assert hybrid_columns(layer).reshape(-1).tolist() == columns
    else:
        assert layer.columns.size == 0


@pytest.mark.parametrize("m", [300, 512])
def test_offsets_wider_than_a_byte(m):
    weight, mask = hybrid_case(1, 3, 2, 2 * m, 5, m, m, 3)
    layer = encode_hybrid(weight, mask, 5, m, m)
    assert layer.geometry.offset_width == 9
    assert np.array_equal(hybrid_mask(layer), mask)


def test_a_layer_that_keeps_nothing():
    weight = np.ones((4, 1, 8), np.float32)
    layer = encode_hybrid(weight, np.zeros(weight.shape, bool), 2, 4, 4)
    assert (layer.kept, layer.values.size, layer.offsets.size, layer.columns.size) == (0, 0, 0, 0)
    assert not decode_hybrid(layer).any()


def test_block_none_is_block_zero():
    weight, mask = hybrid_case(2, 3, 2, 8, 1, 4, 0, 0)
    layer = encode_hybrid(weight, mask, 1, 4, None)
    assert (layer.block, layer.kept) == (0, 2)


def test_weights_outside_the_mask_are_dropped_and_zeros_inside_kept():
    weight = np.array([[[0.0, 5.0, -0.0, 7.0]]], np.float32)
    mask = np.array([[[True, False, True, False]]])
    layer = encode_hybrid(weight, mask, 2, 4, 0)
    assert bits_of(layer.values).tolist() == [0, 0x80000000]


def test_strided_weights_are_read_in_their_own_order():
    weight, mask = hybrid_case(3, 8, 4, 8, 2, 4, 4, 5)
    turned = encode_hybrid(np.asfortranarray(weight), np.asfortranarray(mask), 2, 4, 4)
    assert np.array_equal(bits_of(decode_hybrid(turned)), bits_of(decode_hybrid(encode_hybrid(weight, mask, 2, 4, 4))))


def _broken(kind):
    _, mask = hybrid_case(4, 8, 2, 8, 2, 4, 4, 2)
    row, tap, group = np.argwhere(mask.reshape(8, 2, 2, 4).any(-1))[0]
    if kind == "group":
        mask[row, tap, group * 4 : group * 4 + 4] = True
    elif kind == "block":
        mask[row, tap, group * 4 : group * 4 + 4] = False
    else:
        mask[0:4] = False
    return mask


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("group", r"row \d, tap \d, inputs \d to \d keep 4 of 4 weights, the pattern is 2:4"),
        ("block", r"block row 0, block column \d keeps 3 of its 4 groups"),
        ("row", "block row 1 keeps 2 block columns, block row 0 keeps 0"),
    ],
)
def test_a_mask_that_breaks_the_pattern_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        encode_hybrid(np.ones((8, 2, 8), np.float32), _broken(kind), 2, 4, 4)


def test_an_empty_group_breaks_plain_nm():
    mask = np.array([[[True, True, False, False, False, False, False, False]]])
    with pytest.raises(ValueError, match="row 0, tap 0, inputs 4 to 7 keep 0 of 4 weights"):
        encode_hybrid(np.ones((1, 1, 8), np.float32), mask, 2, 4, 0)


def test_a_torn_block_breaks_plain_blocks():
    mask = np.ones((2, 1, 4), bool)
    mask[1, 0, 3] = False
    with pytest.raises(ValueError, match="a block kept or removed as a whole"):
        encode_hybrid(np.ones((2, 1, 4), np.float32), mask, 1, 1, 2)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ((2, 3, 3), "M = 3 must divide"),
        ((2, 4, 6), "M = 4 must divide"),
        ((3, 2, 4), "no N:M pattern"),
        ((0, 4, 4), "no N:M pattern"),
        ((1, 1, -1), "outside"),
    ],
)
def test_impossible_patterns_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        encode_hybrid(np.ones((4, 1, 8), np.float32), np.ones((4, 1, 8), bool), *pattern)


@pytest.mark.parametrize(
    ("weight", "mask"),
    [
        (np.ones((2, 1, 4)), np.ones((2, 1, 4), bool)),
        (np.ones((2, 4), np.float32), np.ones((2, 4), bool)),
        (np.ones((2, 1, 4), np.float32), np.ones((2, 1, 4), np.uint8)),
        (np.ones((2, 1, 4), np.float32), np.ones((2, 1, 8), bool)),
    ],
)
def test_wrong_types_and_shapes_are_refused(weight, mask):
    with pytest.raises(ValueError, match="is needed"):
        encode_hybrid(weight, mask, 4, 4, 4)


def test_a_side_below_one_is_refused():
    with pytest.raises(ValueError, match="below 1"):
        Geometry(0, 1, 4, 2, 4, 4)


def _layer():
    weight, mask = hybrid_case(5, 6, 3, 9, 2, 3, 6, 4)
    return encode_hybrid(weight, mask, 2, 3, 6)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda layer: {"kept": 7}, "columns"),
        (lambda layer: {"kept": -1}, "columns"),
        (lambda layer: {"kept": 3}, "columns"),
        (lambda layer: {"block": 0}, "columns"),
        (lambda layer: {"columns": np.array([0xFF, 0x0F], np.uint8)}, "columns"),
        (lambda layer: {"columns": np.array([0, 0], np.uint8)}, "columns"),
        (lambda layer: {"columns": layer.columns[:-1]}, "columns"),
        (lambda layer: {"values": layer.values[:-1]}, "values"),
        (lambda layer: {"values": layer.values[:-2]}, "values"),
        (lambda layer: {"values": layer.values.astype(np.float64)}, "values"),
        (lambda layer: {"offsets": layer.offsets[:-1]}, "offsets"),
        (lambda layer: {"offsets": layer.offsets * 0}, "offsets"),
        (lambda layer: {"offsets": layer.offsets | 3}, "offsets"),
        (lambda layer: {"rows": 12}, "columns"),
        (lambda layer: {"rows": 1 << 40}, "columns"),
    ],
)
def test_a_layer_that_contradicts_itself_is_refused(change, part):
    layer = _layer()
    with pytest.raises(PackedLayerError) as caught:
        decode_hybrid(dataclasses.replace(layer, **change(layer)))
    assert caught.value.part == part


@pytest.mark.parametrize(
    ("sides", "kept"),
    [((1 << 27, 1, 1, 1, 1, 0), 1), ((1 << 27, 1, 1, 1, 1, 1), 1), ((1, 1 << 27, 1, 1, 1, 0), 1 << 27)],
)
def test_a_layer_is_refused_in_less_memory_than_it_claims(sides, kept):
    layer = HybridLayer(*sides, kept, np.empty(0, np.float32), np.empty(0, np.uint8), np.empty(0, np.uint8))
    tracemalloc.start()
    try:
        with pytest.raises(PackedLayerError, match="134217728 or more expected"):
            decode_hybrid(layer)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_layer_that_keeps_nothing_is_checked_in_no_memory():
    nothing = np.empty(0, np.float32), np.empty(0, np.uint8), np.empty(0, np.uint8)
    tracemalloc.start()
    try:
        columns, offsets = checked_positions(HybridLayer(1 << 27, 1, 1, 1, 1, 1, 0, *nothing))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert (columns.shape, offsets.shape) == ((1 << 27, 0), (0, 1))
    assert not decode_hybrid(HybridLayer(6, 2, 4, 2, 4, 4, 0, *nothing)).any()


def test_plain_nm_layer_with_columns_is_refused():
    layer = HybridLayer(
        1, 1, 4, 2, 4, 0, 1, np.ones(2, np.float32), np.array([0b0100], np.uint8), np.zeros(1, np.uint8)
    )
    with pytest.raises(PackedLayerError, match="stores none"):
        decode_hybrid(layer)


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.floats(0, 1))
def test_bitmap_round_trip(seed, shape, density):
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    mask = rng.random(shape) < density
    values, bitmap = encode_bitmap(weight, mask)
    assert bitmap.size == -(-weight.size // 8)
    expected = np.where(mask, bits_of(weight), 0)
    assert np.array_equal(bits_of(decode_bitmap(values, bitmap, shape)).reshape(shape), expected)
    assert np.array_equal(bitmap_mask(bitmap, shape), mask)


def test_bitmap_literal():
    values, bitmap = encode_bitmap(np.arange(10, dtype=np.float32), np.isin(np.arange(10), [0, 2, 7, 9]))
    assert values.tolist() == [0, 2, 7, 9]
    assert bitmap.tolist() == [0b1000_0101, 0b10]


@pytest.mark.parametrize(
    ("values", "bitmap", "part"),
    [
        (np.ones(2, np.float32), [0b11, 0], "bitmap"),
        (np.ones(2, np.float32), [0b1001_0000], "bitmap"),
        (np.ones(3, np.float32), [0b11], "values"),
        (np.ones(2), [0b11], "values"),
    ],
)
def test_damaged_bitmaps_are_refused(values, bitmap, part):
    with pytest.raises(PackedLayerError) as caught:
        decode_bitmap(values, np.array(bitmap, np.uint8), (1, 6))
    assert caught.value.part == part


def test_bitmap_refuses_other_types():
    with pytest.raises(ValueError, match="float32 and bool"):
        encode_bitmap(np.ones(4), np.ones(4, bool))
