"""What changes while gates are learnt: the published values, stretched; and the budget's weight."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from billhook.methods.chipnet import BudgetWeight, ChipNet, Schedule, gate_rate

CONFIG = ChipNet()


@pytest.mark.parametrize(
    ("epoch", "beta", "gamma", "steepness"),
    [
        (0, 1.0, 2.0, 10.0),
        (1, 1.02, 2 * 2**0.5, 15.0),
        (2, 1.04, 4.0, 20.0),
        (8, 1.16, 32.0, 50.0),
        (14, 1.28, 256.0, 60.0),
        (19, 1.38, 256.0, 60.0),
    ],
)
def test_the_published_values(epoch, beta, gamma, steepness):
    assert Schedule(CONFIG, 20).at(epoch / 20) == pytest.approx((beta, gamma, steepness))


def test_within_an_epoch_only_the_steepness_moves():
    schedule = Schedule(CONFIG, 20)
    early, late = schedule.at(3 / 20), schedule.at(3.9 / 20)
    assert early[:2] == late[:2]
    assert late.steepness == pytest.approx(10 + 5 * 3.9)


def test_fewer_epochs_go_through_all_of_it():
    short = Schedule(CONFIG, 2.5)
    assert short.at(0.0) == Schedule(CONFIG, 20).at(0.0)
    assert short.at(0.4) == Schedule(CONFIG, 20).at(0.4)
    assert short.at(1.0) == pytest.approx((1.38, 256.0, 60.0))


def test_more_epochs_take_smaller_steps():
    longer = Schedule(CONFIG, 40)
    assert longer.at(1 / 40).beta == pytest.approx(1.01)
    assert longer.at(8 / 40).gamma == pytest.approx(8.0)
    assert longer.at(39 / 40).beta == pytest.approx(1.39)


@settings(max_examples=50)
@given(st.floats(0.01, 100), st.lists(st.floats(-0.5, 1.5), min_size=2, max_size=5))
def test_nothing_ever_falls_or_passes_its_end(epochs, moments):
    stages = [Schedule(CONFIG, epochs).at(moment) for moment in sorted(moments)]
    for before, after in pairwise(stages):
        assert all(one <= other for one, other in zip(before, after, strict=True))
    assert 1 <= stages[0].beta <= stages[-1].beta <= 6
    assert stages[-1].gamma <= 256
    assert stages[-1].steepness <= 60


def test_a_beginning_above_the_end_is_refused():
    with pytest.raises(ValidationError, match="gamma begins above gamma_most"):
        ChipNet(gamma=300.0)
    with pytest.raises(ValidationError, match="coupled gates"):
        ChipNet(coupling="independent", round_to=8)
    assert all(field.description for name, field in ChipNet.model_fields.items() if name != "name")


def test_gates_have_further_to_go_in_fewer_steps():
    assert gate_rate(CONFIG, 28_125) == pytest.approx(1e-3)
    assert gate_rate(CONFIG, 100_000) == pytest.approx(1e-3)
    assert gate_rate(CONFIG, 2_812) == pytest.approx(1e-2, rel=1e-3)
    assert gate_rate(CONFIG, 1) == 0.1
    assert gate_rate(ChipNet(gate_lr=0.004), 1) == 0.004


# ---------------------------------------------------------------------- the budget's weight
def run(looks, **fields):
    weight = BudgetWeight(ChipNet(**fields))
    return [(weight.look(*look), weight.value) for look in looks]


def test_the_weight_stays_while_the_budget_comes_nearer():
    # At 0.75 the pace of the last stretch brings the excess to zero.
    rows = run([(0.0, 0.75), (0.25, 0.5), (0.5, 0.25), (0.75, 0.0), (1.0, -0.01)])
    assert rows == [(None, 30.0)] * 5


def test_the_weight_rises_when_it_does_not():
    rows = run([(0.1, 0.6), (0.2, 0.59), (0.3, 0.3), (0.8, 0.02), (0.9, 0.005)])
    assert [value for _, value in rows] == [30.0, 45.0, 45.0, pytest.approx(67.5), pytest.approx(67.5)]
    event = rows[1][0]
    assert event == {
        "event": "budget_weight",
        "before": 30.0,
        "after": 45.0,
        "excess": 0.59,
        "expected": pytest.approx(0.59 - 0.1 * 0.55),
    }
    json.dumps(event)


def test_the_weight_has_an_end():
    rows = run([(n / 100, 0.5) for n in range(100)])
    assert rows[-1] == (None, 300.0)
    assert run([(n / 100, 0.5) for n in range(100)], growth=1.0)[-1] == (None, 30.0)
    assert [value for _, value in run([(n / 10, 0.5) for n in range(10)], most=1.0)] == [30.0] * 10


def test_a_resumed_weight_goes_on():
    looks = [(0.1, 0.6), (0.2, 0.59), (0.3, 0.58), (0.8, 0.5)]
    whole, first = BudgetWeight(CONFIG), BudgetWeight(CONFIG)
    for look in looks[:2]:
        whole.look(*look), first.look(*look)
    second = BudgetWeight(CONFIG)
    second.load_state(json.loads(json.dumps(first.state())))
    assert [whole.look(*look) for look in looks[2:]] == [second.look(*look) for look in looks[2:]]
    assert whole.value == second.value
