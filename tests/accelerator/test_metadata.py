"""Bits of positions: the formulas, and what ``billhook.formats`` really stores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.accelerator import Gemm, Metadata, Pattern, metadata_of, total_metadata
from billhook.formats import encode_hybrid, hybrid_columns


@pytest.mark.parametrize(
    ("gemm", "crisp", "csr", "ellpack", "bitmap"),
    [
        (Gemm("x", 256, 9, 256, 1, pattern=Pattern(2, 4, 16, 72)), 304_128, 1_774_098, 1_769_472, 589_824),
        (Gemm("x", 512, 1, 1024, 1, pattern=Pattern(1, 4, 64, 8)), 131_328, 664_081, 655_360, 524_288),
    ],
)
def test_worked_values(gemm: Gemm, crisp: int, csr: int, ellpack: int, bitmap: int) -> None:
    bits = metadata_of(gemm)
    assert (bits.crisp, bits.csr, bits.ellpack, bits.bitmap) == (crisp, csr, ellpack, bitmap)
    geometry = gemm.geometry
    assert bits.blocked_ell == geometry.block_rows * gemm.kept_columns * geometry.column_width
    assert bits.blocked_ell_values == bits.values * geometry.m // geometry.n == gemm.weights // 2


def mask_of(rng: np.random.Generator, shape: tuple[int, int, int], n: int, m: int, block: int, kept: int) -> np.ndarray:
    """A hybrid mask [O, taps, I] with ``kept`` random blocks in every block row."""
    rows, taps, inputs = shape
    order = np.argsort(rng.random((rows, taps, inputs // m, m)), axis=-1)
    mask = (order < n).reshape(shape)
    if block:
        per_tap = -(-inputs // block)
        for top in range(0, rows, block):
            for dead in rng.permutation(taps * per_tap)[kept:]:
                tap, left = dead // per_tap, dead % per_tap * block
                mask[top : top + block, tap, left : left + block] = False
    return mask


@given(st.data())
def test_crisp_is_what_formats_store(data: st.DataObject) -> None:
    """Ragged blocks included: the packed layer's own arrays are counted, less the empty bits of their last bytes."""
    m = data.draw(st.sampled_from([1, 2, 4]))
    n = data.draw(st.integers(1, m))
    block = m * data.draw(st.sampled_from([0, 2, 4]))
    shape = (data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 9])), m * data.draw(st.integers(1, 8)))
    bare = Gemm("x", shape[0], shape[1], shape[2], 1, pattern=Pattern(n, m, block))
    columns = bare.geometry.block_columns
    kept = data.draw(st.integers(0, columns)) if block else columns
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight = rng.standard_normal(shape).astype(np.float32)
    layer = encode_hybrid(weight, mask_of(rng, shape, n, m, block, kept), n, m, block)
    which = tuple(tuple(int(column) for column in row) for row in hybrid_columns(layer)) if block else None
    gemm = Gemm("x", *shape, 1, pattern=Pattern(n, m, block, kept if block else None, which))
    bits = metadata_of(gemm)
    assert bits.values == gemm.nonzeros == layer.values.size
    stored = layer.values.size * layer.geometry.offset_width
    stored += layer.geometry.column_count(layer.kept) * layer.geometry.column_width
    assert bits.crisp == stored
    assert 0 <= 8 * (layer.offsets.nbytes + layer.columns.nbytes) - bits.crisp < 16
    if block and not shape[2] % block:
        # Which blocks they are is then of no account.
        assert metadata_of(Gemm("x", *shape, 1, pattern=Pattern(n, m, block, kept))) == bits


def test_totals_and_layers_without_a_pattern() -> None:
    sparse = Gemm("a", 16, 1, 64, 1, pattern=Pattern(2, 4, 16, 2))
    assert metadata_of(Gemm("b", 16, 1, 64, 1)) == Metadata()
    assert total_metadata([sparse, Gemm("b", 16, 1, 64, 1), sparse]) == metadata_of(sparse) + metadata_of(sparse)
    assert metadata_of(sparse).crisp == 16 * 16 * 2 + 1 * 2 * 2
