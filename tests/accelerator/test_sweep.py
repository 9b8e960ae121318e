"""The sweep: the same figures as layer by layer, and how far to go for a factor."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from billhook.accelerator import Gemm, Pattern, machines, simulate
from billhook.accelerator.sweep import NM, SHARES, Choice, Sweep, apply_choice, parse_choice
from billhook.errors import UsageError

LAYERS = [
    Gemm("stem", 64, 9, 3, 400),
    Gemm("a", 128, 9, 128, 100, inputs=12800),
    Gemm("b", 128, 9, 128, 100, inputs=12800),
    Gemm("c", 256, 1, 128, 100, activation_density=0.5),
    Gemm("odd", 64, 1, 66, 100),
    Gemm("dw", 1, 9, 1, 100, groups=256),
]
PRUNABLE = frozenset({"a", "b", "c", "odd"})


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return Sweep(LAYERS, PRUNABLE, machines())


def test_rows_are_what_layer_by_layer_gives(sweep: Sweep) -> None:
    for choice in (Choice(2, 4, 32, 0.5), Choice(1, 4, 64, 0.875), Choice(3, 4, 16, 0.0)):
        (*rows,) = sweep.rows([(choice.n, choice.m)], [choice.block], [choice.share])
        gemms = [apply_choice(gemm, choice) if gemm.name in PRUNABLE else gemm for gemm in LAYERS]
        made = simulate(gemms, machines())
        assert [row["design"] for row in rows] == [machine.name for machine in machines()]
        for row in rows:
            total = made.total(row["design"])
            assert row["layer"] == "total"
            assert row["cycles"] == total.cycles
            assert row["bound_by"] == total.bound_by
            for key in ("energy_uj", "speedup", "energy_ratio", "latency_us", "energy_delay", "energy_by_level"):
                assert row[key] == pytest.approx(getattr(total, key)), key
            sparse = [gemm for gemm in gemms if gemm.name in PRUNABLE]
            zeros = 1 - sum(gemm.nonzeros for gemm in sparse) / sum(gemm.weights for gemm in sparse)
            assert row["sparsity"] == pytest.approx(zeros)


def test_more_pruned_blocks_never_cost(sweep: Sweep) -> None:
    lines: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in sweep.rows():
        lines[row["design"], row["nm"], row["block"]].append((row["cycles"], row["energy_uj"]))
    assert len(lines) == 5 * 9
    for line in lines.values():
        assert len(line) == len(SHARES)
        for before, after in itertools.pairwise(line):
            assert after[0] <= before[0]
            assert after[1] <= before[1] * (1 + 1e-9)


def test_the_share_that_is_found_is_the_first(sweep: Sweep) -> None:
    """By brute force over all shares in hundredths."""
    entry, *_ = sweep.reached([2.5])
    assert (entry.scope, entry.metric, entry.met) == ("network", "latency", True)
    best: tuple[float, Choice] | None = None
    for n, m in NM:
        for block in (16, 32, 64):
            for hundredth in range(100):
                choice = Choice(n, m, block, hundredth / 100)
                (row,) = [r for r in sweep.rows([(n, m)], [block], [choice.share]) if r["design"] == "crisp-stc"]
                if row["speedup"] >= 2.5:
                    if best is None or row["sparsity"] < best[0]:
                        best = row["sparsity"], choice
                    break
    assert best is not None
    assert (entry.sparsity, entry.nm, entry.block) == (pytest.approx(best[0]), best[1].nm, best[1].block)
    assert entry.value >= 2.5


def test_what_is_not_reached_says_how_far_it_gets(sweep: Sweep) -> None:
    for entry in sweep.reached([1000.0]):
        assert not entry.met
        assert 1 < entry.value < 1000
        assert entry.block_sparsity == 0.99
        assert entry.bound_by
        assert (entry.layer in PRUNABLE) == (entry.scope == "layer")


def test_a_choice_on_a_layer() -> None:
    gemm = LAYERS[1]
    assert apply_choice(gemm, Choice(2, 4, 32, 0.5)).pattern == Pattern(2, 4, 32, 18)
    assert apply_choice(gemm, Choice(2, 4, 32, 1.0)).pattern == Pattern(2, 4, 32, 1)
    assert apply_choice(gemm, Choice(2, 4, 0, 0.0)).pattern == Pattern(2, 4)
    assert apply_choice(LAYERS[4], Choice(2, 4, 32, 0.5)) == LAYERS[4]
    assert apply_choice(LAYERS[5], Choice(1, 1, 32, 0.5)) == LAYERS[5]


def test_choices_from_the_command_line() -> None:
    assert parse_choice(None, 0, 0.0) is None
    assert parse_choice("2:4", 64, 0.5) == Choice(2, 4, 64, 0.5)
    assert parse_choice(None, 64, 0.5) == Choice(1, 1, 64, 0.5)
    for nm, block, share, message in (
        ("4:2", 0, 0.0, "4:2"),
        ("2:4", 30, 0.0, "does not divide"),
        ("2:4", 0, 0.5, "size of a block"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_choice(nm, block, share)
