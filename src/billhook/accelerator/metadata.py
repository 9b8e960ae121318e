"""Bits that say where the weights of a layer are, in CRISP's format and in the common ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from billhook.accelerator.gemm import Gemm
from billhook.formats import bitmap_bits, csr_bits, ellpack_bits


@dataclass(frozen=True)
class Metadata:
    """Position bits of one layer, or of several together; values cost the same in the first four formats.

    Attributes:
        crisp: Offsets inside the M-groups and block columns, as ``billhook.formats`` stores them (padding of the last
            bytes not counted).
        csr: Compressed sparse rows.
        ellpack: ELLPACK; the kept columns of the longest row.
        bitmap: One bit per weight.
        blocked_ell: Block columns alone. The blocks are stored whole, so that it stores more values.
        values: Values that the first four store.
        blocked_ell_values: Values that blocked-ELL stores.
    """

    crisp: int = 0
    csr: int = 0
    ellpack: int = 0
    bitmap: int = 0
    blocked_ell: int = 0
    values: int = 0
    blocked_ell_values: int = 0

    def __add__(self, other: Metadata) -> Metadata:
        return Metadata(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def metadata_of(gemm: Gemm) -> Metadata:
    """Bits of one layer that has a pattern; zeros for one that has none.

    With O rows, K columns, B x B blocks, C = K / B, C' of them kept and nnz = O C' B N/M values: CRISP
    nnz ⌈log2 M⌉ + (O/B) C' ⌈log2 C⌉, CSR nnz ⌈log2 K⌉ + (O + 1) ⌈log2(nnz + 1)⌉, ELLPACK O L ⌈log2 K⌉ with
    L = C' B N/M, bitmap O K, blocked-ELL (O/B) C' ⌈log2 C⌉. Ragged blocks are counted as they are.
    """
    pattern = gemm.pattern
    if pattern is None:
        return Metadata()
    geometry, values = gemm.geometry, int(gemm.nonzeros)
    index = geometry.column_count(gemm.kept_columns) * geometry.column_width
    longest = gemm.kept_depth // pattern.m * pattern.n
    whole = gemm.rows * gemm.kept_depth
    if pattern.columns is not None and gemm.skips:
        kept = geometry.column_inputs(np.array(pattern.columns, dtype=np.int64)).sum(axis=1)
        whole = int((geometry.row_heights() * kept).sum())
    return Metadata(
        crisp=values * geometry.offset_width + index,
        csr=csr_bits(gemm.rows, gemm.depth, values),
        ellpack=ellpack_bits(gemm.rows, gemm.depth, longest),
        bitmap=bitmap_bits(gemm.rows, gemm.depth),
        blocked_ell=index,
        values=values,
        blocked_ell_values=whole,
    )


def total_metadata(gemms: Iterable[Gemm]) -> Metadata:
    """Bits of all layers together."""
    return sum((metadata_of(gemm) for gemm in gemms), Metadata())
