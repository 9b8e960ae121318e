import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.formats import (
    bitmap_bits,
    csr_bits,
    decode_hybrid,
    ellpack_bits,
    encode_hybrid,
    layer_metadata_bits,
    metadata_bits,
    packed_size,
)

from .masks import hybrid_case

# Two layers worked by hand: half of the block columns kept.
GOLDEN = [
    # rows, taps, inputs, block, n, m, hybrid, CSR, ELLPACK, bitmap
    (256, 9, 256, 16, 2, 4, 304_128, 1_774_098, 1_769_472, 589_824),
    (512, 1, 1024, 64, 1, 4, 131_328, 664_081, 655_360, 524_288),
]


@pytest.mark.parametrize(("rows", "taps", "inputs", "block", "n", "m", "hybrid", "csr", "ell", "bitmap"), GOLDEN)
def test_golden_bits_by_formula_and_by_packing(rows, taps, inputs, block, n, m, hybrid, csr, ell, bitmap):
    columns = taps * inputs
    kept = columns // block // 2
    longest = kept * block * n // m
    assert metadata_bits(rows, columns, block, n, m, kept) == hybrid
    assert csr_bits(rows, columns, rows * longest) == csr
    assert ellpack_bits(rows, columns, longest) == ell
    assert bitmap_bits(rows, columns) == bitmap

    weight, mask = hybrid_case(0, rows, taps, inputs, n, m, block, kept)
    layer = encode_hybrid(weight, mask, n, m, block)
    assert layer.values.size == rows * longest
    assert layer_metadata_bits(layer) == hybrid
    assert 8 * (layer.offsets.size + layer.columns.size) == hybrid
    assert np.array_equal(decode_hybrid(layer).view(np.uint32), np.where(mask, weight.view(np.uint32), 0))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_packed_size_foretells_the_layer(data):
    n, m = data.draw(st.sampled_from([(1, 1), (2, 4), (2, 3), (1, 8)]))
    block = data.draw(st.integers(0, 3)) * m
    rows, taps = data.draw(st.integers(1, 13)), data.draw(st.sampled_from([1, 9]))
    inputs = data.draw(st.integers(1, 7)) * m
    kept = data.draw(st.integers(0, taps * -(-inputs // block))) if block else taps
    weight, mask = hybrid_case(0, rows, taps, inputs, n, m, block, kept)
    layer = encode_hybrid(weight, mask, n, m, block)
    exact = packed_size(rows, taps, inputs, n, m, block, mask=mask)
    assert (exact.values, exact.offsets, exact.columns) == (
        layer.values.nbytes,
        layer.offsets.nbytes,
        layer.columns.nbytes,
    )
    assert exact.metadata_bits == layer_metadata_bits(layer)
    planned = packed_size(rows, taps, inputs, n, m, block, kept)
    if block and inputs % block:
        assert planned.total >= exact.total
    else:
        assert planned == exact


def test_plain_nm_costs_offsets_only():
    assert metadata_bits(8, 32, 0, 2, 4, 0) == 8 * 32 // 2 * 2
    assert packed_size(8, 1, 32, 2, 4, None).columns == 0


def test_the_formula_refuses_ragged_columns():
    with pytest.raises(ValueError, match="does not divide"):
        metadata_bits(8, 36, 16, 2, 4, 1)


@pytest.mark.parametrize(("block", "kept"), [(16, 5), (16, -1), (16, None), (0, 3)])
def test_impossible_counts_are_refused(block, kept):
    with pytest.raises(ValueError, match="kept"):
        packed_size(8, 1, 64, 2, 4, block, kept)
