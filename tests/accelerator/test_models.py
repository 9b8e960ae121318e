"""What the models must obey on any layer, and layers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from billhook.accelerator import Gemm, Pattern, built_in, machines, run_layer, simulate
from billhook.accelerator.outer import issues
from billhook.accelerator.traffic import Operand, loads

STATIONARY = ("dense-tc", "nvidia-stc", "flexible-stc", "crisp-stc")
NAMES = (*STATIONARY, "dstc")
EXACT = 1 + 1e-9


@st.composite
def layers(draw: st.DrawFn, group: int = 1) -> Gemm:
    """Ragged layers; the channels are a multiple of ``group``."""
    taps = draw(st.sampled_from([1, 2, 9, 25]))
    channels = group * draw(st.integers(1, 400 // group))
    columns = draw(st.sampled_from([1, 2, 49, 127, 128, 129, 784]))
    return Gemm(
        "x",
        draw(st.integers(1, 300)),
        taps,
        channels,
        columns,
        inputs=draw(st.sampled_from([0, channels * columns])),
        activation_density=draw(st.floats(0.01, 1)),
    )


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Gemm, Pattern]:
    """A layer and a hybrid pattern that fits it."""
    m = draw(st.sampled_from([1, 2, 4, 8]))
    gemm = draw(layers(m))
    n = draw(st.integers(1, m))
    block = m * draw(st.sampled_from([0, 2, 4, 8, 16]))
    bare = Pattern(n, m, block)
    if not block:
        return gemm, bare
    columns = replace(gemm, pattern=bare).geometry.block_columns
    return gemm, replace(bare, kept=draw(st.integers(1, columns)))


def costs(gemm: Gemm, name: str) -> tuple[int, float]:
    outcome = run_layer(gemm, built_in(name))
    return outcome.cycles, outcome.total_pj


# Bounds


@given(patterns(), st.sampled_from(NAMES))
def test_never_below_the_work(case: tuple[Gemm, Pattern], name: str) -> None:
    gemm = replace(case[0], pattern=case[1])
    machine = built_in(name)
    outcome = run_layer(gemm, machine)
    assert outcome.useful <= outcome.macs * EXACT
    assert outcome.cycles >= outcome.macs / machine.macs_per_cycle / EXACT
    assert outcome.total_pj >= outcome.macs * machine.mac_pj
    assert outcome.energy_pj["macs"] == pytest.approx(outcome.macs * machine.mac_pj)
    assert all(value >= 0 and math.isfinite(value) for value in (*outcome.limits.values(), *outcome.energy_pj.values()))
    # Off-chip: every input, every weight that is stored and every sum at least once.
    floor = (gemm.nonzeros + gemm.sums) * machine.dram.word_read_pj
    assert outcome.energy_pj["dram"] >= floor / EXACT


@given(layers(), st.sampled_from(STATIONARY))
def test_no_zeros_is_dense(gemm: Gemm, name: str) -> None:
    dense = run_layer(gemm, built_in("dense-tc"))
    whole = replace(gemm, pattern=Pattern(1, 1, 16, None))
    all_kept = replace(gemm, pattern=Pattern(1, 1, 16, whole.geometry.block_columns))
    for same in (gemm, replace(gemm, pattern=Pattern()), whole, all_kept):
        outcome = run_layer(same, built_in(name))
        assert (outcome.limits, outcome.energy_pj) == (dense.limits, dense.energy_pj)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 4))
def test_no_zeros_is_dense_on_both_sides(down: int, deep: int, across: int) -> None:
    """Where both arrays are full: the dual-side design is dense cycle for cycle; its sums cost more."""
    gemm = Gemm("x", 128 * down, 1, 16 * deep, 128 * across, activation_density=1.0)
    dense, both = (run_layer(gemm, built_in(name)) for name in ("dense-tc", "dstc"))
    assert both.limits["compute"] == pytest.approx(dense.limits["compute"])
    assert both.limits["smem read"] <= both.limits["compute"]
    assert both.total_pj > dense.total_pj


# More sparsity never costs


@given(patterns(), st.data(), st.sampled_from(NAMES))
def test_fewer_blocks_never_cost(case: tuple[Gemm, Pattern], data: st.DataObject, name: str) -> None:
    gemm, pattern = case
    assume(pattern.block and pattern.kept)
    assert pattern.kept
    fewer = replace(pattern, kept=data.draw(st.integers(0, pattern.kept)))
    more, less = (costs(replace(gemm, pattern=p), name) for p in (pattern, fewer))
    assert less[0] <= more[0]
    assert less[1] <= more[1] * EXACT


@given(patterns(), st.data(), st.sampled_from(NAMES))
def test_fewer_of_m_never_cost(case: tuple[Gemm, Pattern], data: st.DataObject, name: str) -> None:
    gemm, pattern = case
    fewer = replace(pattern, n=data.draw(st.integers(1, pattern.n)))
    more, less = (costs(replace(gemm, pattern=p), name) for p in (pattern, fewer))
    assert less[0] <= more[0]
    assert less[1] <= more[1] * EXACT


@given(patterns(), st.sampled_from(NAMES))
def test_a_pattern_never_costs_more_than_none(case: tuple[Gemm, Pattern], name: str) -> None:
    gemm, pattern = case
    dense, sparse = costs(gemm, name), costs(replace(gemm, pattern=pattern), name)
    assert sparse[0] <= dense[0]
    assert sparse[1] <= dense[1] * EXACT


@given(layers(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_zeros_of_activations_and_weights_never_cost_the_dual_side_design(
    gemm: Gemm, weights: float, less_weights: float, less_activations: float
) -> None:
    before = replace(gemm, weight_density=weights)
    after = replace(
        before,
        weight_density=weights * less_weights,
        activation_density=gemm.activation_density * less_activations,
    )
    more, less = costs(before, "dstc"), costs(after, "dstc")
    assert less[0] <= more[0]
    assert less[1] <= more[1] * EXACT


@given(layers(), st.floats(0, 1), st.sampled_from(STATIONARY))
def test_unstructured_zeros_are_of_no_account_elsewhere(gemm: Gemm, density: float, name: str) -> None:
    assert costs(replace(gemm, weight_density=density), name) == costs(gemm, name)
    assert costs(replace(gemm, activation_density=0.5), name) == costs(gemm, name)


@given(patterns())
def test_blocks_help_nobody_but_the_hybrid_design(case: tuple[Gemm, Pattern]) -> None:
    gemm, pattern = case
    bare = replace(gemm, pattern=Pattern(pattern.n, pattern.m))
    for name in ("dense-tc", "nvidia-stc", "flexible-stc"):
        assert costs(replace(gemm, pattern=pattern), name) == costs(bare, name)
    hybrid, flexible = (costs(replace(gemm, pattern=pattern), name) for name in ("crisp-stc", "flexible-stc"))
    assert hybrid[0] <= flexible[0]
    assert hybrid[1] <= flexible[1] * EXACT


# Patterns


@pytest.mark.parametrize(
    ("pattern", "speedup"),
    [((2, 4), 2.0), ((1, 4), 2.0), ((3, 4), 1.0), ((2, 8), 2.0), ((4, 8), 1.0), ((1, 2), 2.0), ((2, 6), 1.0)],
)
def test_what_runs_as_two_of_four(pattern: tuple[int, int], speedup: float) -> None:
    """1:4 at the speed of 2:4; 3:4 dense, and what may have three in an aligned four as well."""
    gemm = Gemm("x", 64, 1, 960, 128)
    after = run_layer(replace(gemm, pattern=Pattern(*pattern)), built_in("nvidia-stc"))
    assert run_layer(gemm, built_in("dense-tc")).limits["compute"] / after.limits["compute"] == speedup


def test_offsets_that_cost_more_than_they_leave_out_are_not_used() -> None:
    """7:8 would store 7 x (8 + 4) bits in place of 8 x 8."""
    gemm = Gemm("x", 64, 1, 64, 128)
    assert costs(replace(gemm, pattern=Pattern(7, 8)), "flexible-stc") == costs(gemm, "dense-tc")
    assert costs(replace(gemm, pattern=Pattern(5, 8)), "flexible-stc") < costs(gemm, "dense-tc")


def test_the_hand_worked_layer() -> None:
    """The layer of docs/accelerator.md: 256 x 2304 x 196, 2:4, blocks of 64, 9 of 36 block columns."""
    gemm = Gemm("conv", 256, 9, 256, 196, inputs=50176, pattern=Pattern(2, 4, 64, 9))
    outcome = run_layer(gemm, built_in("crisp-stc"))
    assert outcome.limits == pytest.approx(
        {
            "compute": 4 * 18 * 196,  # row tiles, ceil(576 / 2 / 16) steps, positions
            "smem read": (4 * 576 * 196 + 2 * (73728 + 73728 / 4 + 27)) / 42,
            "smem write": (92187 + 50176) / 42,
            "dram read": (92187 + 50176) / 32,
            "dram write": 50176 / 32,
        }
    )
    assert (outcome.cycles, outcome.bound_by) == (15142, "smem read")
    dense = run_layer(replace(gemm, pattern=None), built_in("dense-tc"))
    assert (dense.cycles, dense.bound_by) == (112896, "compute")
    assert outcome.energy_pj["macs"] == pytest.approx(73728 * 196 * 0.5608)
    assert outcome.energy_pj["accumulators"] == pytest.approx(50176 * (17 * 1.659 + 19 * 1.676))


def test_activations_are_read_once_for_all_block_rows_that_need_them() -> None:
    gemm = Gemm("x", 64, 1, 256, 100)
    halves = tuple((0, 1, 2, 3, 4, 5, 6, 7) if row % 2 else (8, 9, 10, 11, 12, 13, 14, 15) for row in range(4))
    alike = tuple((0, 1, 2, 3, 4, 5, 6, 7) for _ in range(4))
    reads = {}
    for name, columns in (("halves", halves), ("alike", alike), ("unknown", None)):
        pruned = replace(gemm, pattern=Pattern(1, 1, 16, 8, columns))
        reads[name] = pruned.live_depth(64)
    assert reads == {"halves": 256, "alike": 128, "unknown": 256 * (1 - 0.5**4)}
    assert replace(gemm, pattern=Pattern(1, 1, 64, 2)).live_depth(64) == 128
    assert replace(gemm, rows=100, pattern=Pattern(1, 1, 64, 2)).live_depth(64) == 256


def test_narrow_groups_share_the_array_and_nothing_else() -> None:
    depthwise = Gemm("x", 1, 9, 1, 100, groups=128)
    outcome = run_layer(depthwise, built_in("dense-tc"))
    assert outcome.limits["compute"] == 2 * 1 * 100  # 64 channels at a time
    assert outcome.limits["smem read"] == pytest.approx((128 * 9 * 100 + 128 * 9) / 42)
    grouped = Gemm("x", 128, 1, 32, 100, groups=3)
    assert run_layer(grouped, built_in("dense-tc")).limits["compute"] == 3 * 2 * 2 * 100
    assert run_layer(depthwise, built_in("dstc")).cycles > 0


# Parts


@settings(max_examples=60)
@given(st.integers(1, 70), st.integers(1, 20), st.data())
def test_issues_never_fall_with_the_density(places: int, side: int, data: st.DataObject) -> None:
    high = data.draw(st.floats(0.01, 1))
    low = high * data.draw(st.floats(0, 1))
    assert issues(places, low, side) <= issues(places, high, side) * EXACT
    assert issues(places, 1.0, side) == math.ceil(places / side)
    assert issues(places, 0.0, side) == 0
    if high < 1:
        assert issues(places, high, side) * EXACT >= 1
        assert issues(places, high, side) <= math.ceil(places / side) * EXACT


def test_issues_by_hand() -> None:
    """Two places, two values a cycle: one value (chance 1/2) uses half, two (1/4) use all: mean 1/2, work 1/2."""
    assert issues(2, 0.5, 2) == pytest.approx(1.0)
    # One value a cycle: every cycle is full as long as there is a value (3/4); mean work 1 value.
    assert issues(2, 0.5, 1) == pytest.approx(4 / 3)


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.integers(1, 9), st.integers(1, 9), st.floats(0, 2e6), st.floats(0, 1))
def test_fewer_words_never_need_more_loads(
    first: float, second: float, uses: int, other: int, capacity: float, part: float
) -> None:
    def read(words: float) -> float:
        return loads(Operand(words, words, uses), Operand(second, second, other), capacity)

    assert read(first * part) <= read(first) * EXACT
    assert first + second <= read(first) * EXACT
    assert read(first) <= (first * uses + second * other) * EXACT
    assert loads(Operand(first, first, uses), Operand(second, second, other), 2e6 + 1) == pytest.approx(first + second)


def test_loads_by_hand() -> None:
    """Room for 100: positions outside, all 60 activations of a part stay, and 40 of 100 weights."""
    assert loads(Operand(100, 100, 2), Operand(120, 120, 5), 100) == pytest.approx(2 * 100 - 40 + 120)
    assert loads(Operand(100, 100, 1), Operand(120, 120, 1), 0) == 220


# Totals


def test_totals_are_sums_and_speedups_are_over_dense_weights() -> None:
    gemms = [
        Gemm("a", 64, 1, 64, 128, pattern=Pattern(2, 4)),
        Gemm("b", 128, 9, 64, 128, pattern=Pattern(2, 4, 64, 3)),
    ]
    made = simulate(gemms, machines())
    assert not made.notes
    for name in NAMES:
        rows, total = made.layers(name), made.total(name)
        assert [row.layer for row in rows] == ["a", "b"]
        assert total.cycles == sum(row.cycles for row in rows)
        assert total.energy_uj == pytest.approx(sum(row.energy_uj for row in rows))
        assert total.energy_uj == pytest.approx(sum(total.energy_by_level.values()))
        assert total.energy_delay == pytest.approx(total.energy_uj * total.latency_us)
        assert total.speedup == pytest.approx(made.total("dense-tc").cycles / total.cycles)
    assert made.total("dense-tc").speedup == made.total("dense-tc").energy_ratio == 1
    assert made.total("crisp-stc").speedup > made.total("flexible-stc").speedup > 1
    with pytest.raises(ValueError, match="dense-tc"):
        simulate(gemms, [built_in("dstc")])
    with pytest.raises(ValueError):
        simulate([], machines())


def test_energies_of_two_technologies_are_pointed_out() -> None:
    other = built_in("crisp-stc").model_copy(update={"name": "mine", "mac_pj": 0.1})
    (note,) = simulate([Gemm("a", 1, 1, 4, 1)], machines((other,))).notes
    assert note.startswith("mine pays other energies than dense-tc for mac_pj")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"weight_density": 1.5},
        {"activation_density": -0.1},
        {"groups": 2, "pattern": Pattern(2, 4)},
        {"pattern": Pattern(1, 1, 16, 5)},
        {"pattern": Pattern(2, 3)},
        {"pattern": Pattern(1, 1, 16, 2, ((0, 1), (1,)))},
    ],
)
def test_layers_that_make_no_sense(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(Gemm("x", 32, 1, 64, 8), **change)
