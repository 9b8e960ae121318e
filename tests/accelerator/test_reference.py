"""The models beside the reference outputs of Sparseloop's artifact."""

from __future__ import annotations

import pytest

from billhook.accelerator import Pattern, built_in, run_layer

from .reference import ROWS, Reference, other_technology

ids = [f"{row.m}x{row.k}x{row.n}-{row.weights}" for row in ROWS]
every = pytest.mark.parametrize("row", ROWS, ids=ids)


def microjoules(outcome) -> float:
    return outcome.total_pj / 1e6


@every
def test_dense(row: Reference) -> None:
    outcome = run_layer(row.gemm(), other_technology())
    assert outcome.cycles == row.dense[0] == row.m * row.k * row.n // 1024
    assert microjoules(outcome) == pytest.approx(row.dense[1], rel=0.05)


@every
def test_two_of_four(row: Reference) -> None:
    """The artifact runs whatever is sparser as 2:4, too."""
    outcome = run_layer(row.gemm(Pattern(2, 4) if row.weights < 1 else None), built_in("nvidia-stc"))
    assert outcome.cycles == row.stc[0]
    assert microjoules(outcome) == pytest.approx(row.stc[1], rel=0.05)


@every
def test_flexible(row: Reference) -> None:
    """Asked are 10 %; cycles are the same to the last one, because the limits are the same."""
    outcome = run_layer(row.gemm(row.pattern), built_in("flexible-stc"))
    assert outcome.cycles == row.flexible[0]
    assert microjoules(outcome) == pytest.approx(row.flexible[1], rel=0.06)


@every
def test_dual_side(row: Reference) -> None:
    outcome = run_layer(row.gemm(weights=row.weights), built_in("dstc"))
    assert outcome.cycles == pytest.approx(row.dstc[0], rel=0.03)
    if (row.activations, row.weights) != (0.82, 1.0):
        assert microjoules(outcome) == pytest.approx(row.dstc[1], rel=0.10)


def test_dual_side_where_the_artifact_counts_no_zeros() -> None:
    """At 82 % of the activations and all weights the artifact's figures are those of a dense product."""
    (row,) = [row for row in ROWS if (row.activations, row.weights) == (0.82, 1.0)]
    dense = run_layer(row.gemm(activations=1.0), built_in("dstc"))
    assert dense.cycles == row.dstc[0]
    assert microjoules(dense) == pytest.approx(row.dstc[1], rel=0.10)
    ours = run_layer(row.gemm(), built_in("dstc"))
    assert microjoules(ours) < 0.9 * row.dstc[1]


@every
def test_hybrid_without_blocks_is_flexible(row: Reference) -> None:
    flexible, hybrid = (run_layer(row.gemm(row.pattern), built_in(name)) for name in ("flexible-stc", "crisp-stc"))
    assert (flexible.limits, flexible.energy_pj) == (hybrid.limits, hybrid.energy_pj)
