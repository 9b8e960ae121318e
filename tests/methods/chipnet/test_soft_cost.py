"""The cost of gates: exact against networks that are really made smaller, and its derivatives by differences."""

import numpy as np
import pytest
import torch

from billhook.cost import count
from billhook.cost.budget import Budget
from billhook.errors import UsageError
from billhook.methods.chipnet import BudgetLoss, SoftCost, crispness, gate_values, logistic, soft_round
from billhook.methods.chipnet.threshold import choice_of
from billhook.surgery import Grouping, plan_channels, remove_channels
from billhook.surgery.channel_cost import QUANTITIES
from surgery.test_channels import SIZE

from .networks import BUILD, random_mask, tiny

COUPLINGS = ["group", "independent"]
FOUR = ("channels", "volume", "params", "macs")


def soft_cost(name, coupling="group"):
    case = tiny(name)
    return case, SoftCost(case.cost, case.layout(coupling))


def by_name(totals):
    return dict(zip(QUANTITIES, np.asarray(totals).tolist(), strict=True))


def random_values(total, seed=0):
    return torch.rand(total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- exact where gates are 0 or 1
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", BUILD)
def test_all_open_is_the_dense_network(name, coupling):
    case, cost = soft_cost(name, coupling)
    mask = np.ones(cost.layout.total, dtype=bool)
    assert by_name(cost.hard(mask)) == case.dense
    assert by_name(cost.totals(torch.ones(len(mask)), branches=False)) == case.dense


@pytest.mark.parametrize("name", BUILD)
def test_hard_gates_of_groups_cost_what_their_channels_do(name):
    case, cost = soft_cost(name)
    for seed in range(12):
        mask = random_mask(cost.layout, seed, empty=0.3)
        kept = choice_of(mask, np.zeros(len(mask)), cost.layout).kept
        expected = case.cost.totals({group: len(channels) for group, channels in kept.items()})
        assert by_name(cost.hard(mask)) == expected
        if all(len(channels) for channels in kept.values()):
            assert by_name(cost.totals(torch.from_numpy(mask).double(), branches=False)) == expected


@pytest.mark.parametrize("name", BUILD)
def test_independent_hard_gates_cost_what_surgery_leaves(name):
    case, cost = soft_cost(name, "independent")
    for seed in range(6 if "net" not in name else 2):
        mask = random_mask(cost.layout, seed, empty=0.3)
        choice = choice_of(mask, np.zeros(len(mask)), cost.layout)
        small = remove_channels(case.module, plan_channels(case.module, case.grouping, choice.kept, choice.own))
        said, found = by_name(cost.hard(mask)), count(small, SIZE)
        assert {name: said[name] for name in FOUR} == {name: getattr(found, name) for name in FOUR}, seed


def test_the_union_of_a_stream_by_hand():
    _, cost = soft_cost("residual", "independent")
    layout = cost.layout
    # Four channels: the stem writes 0 and 1, the branches 1 and 2: the stream keeps three of them.
    open_ = {"norm": [1, 1, 0, 0], "an2": [0, 1, 0, 0], "bn2": [0, 0, 1, 0], "an1": [1, 0, 0], "bn1": [1, 1, 0]}
    rows = {vector.name: open_[vector.places[0].name] for vector in layout.vectors}
    mask = layout.join({name: np.array(row, dtype=bool) for name, row in rows.items()})
    params = {
        "stem": 27 * 2 + 4,
        "a": 9 * 3 * 1 + 2 + 9 * 1 * 1 + 2,
        "b": 9 * 3 * 2 + 4 + 9 * 2 * 1 + 2,
        "fc": 3 * 3 + 3,
    }
    assert by_name(cost.hard(mask))["params"] == sum(params.values())


def test_groups_that_die_with_a_branch():
    _, cost = soft_cost("preresnet")
    mask = cost.layout.join({v.name: np.full(v.channels, v.name != "layer2.1.conv2") for v in cost.layout.vectors})
    assert cost.dead(mask) == {"layer2.1.conv2", "layer2.1.conv1"}


# ---------------------------------------------------------------------- soft
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", ["residual", "pre", "concat", "scaled", "chain"])
def test_derivatives_are_those_of_differences(name, coupling):
    case, cost = soft_cost(name, coupling)
    psi = (4 * random_values(cost.layout.total, 1) - 2).requires_grad_()
    whole = torch.tensor(list(case.dense.values()), dtype=torch.float64)

    def shares(psi):
        return cost.totals(gate_values(psi, 1.2, 3.0), branches=False) / whole

    assert torch.autograd.gradcheck(shares, (psi,), eps=1e-6, atol=1e-7)
    loss = BudgetLoss(cost, [Budget.parse("macs<=30%"), Budget.parse("params<=90%")], case.dense)
    assert torch.autograd.gradcheck(lambda psi: loss(gate_values(psi, 1.2, 3.0), 10.0), (psi,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", BUILD)
def test_more_open_costs_more_and_every_gate_counts(name, coupling):
    case, cost = soft_cost(name, coupling)
    values = (0.2 + 0.5 * random_values(cost.layout.total, 2)).requires_grad_()
    totals = cost.totals(values)
    assert (totals.detach().numpy() < np.array(list(case.dense.values()))).all()
    for number, quantity in enumerate(QUANTITIES):
        (gradient,) = torch.autograd.grad(totals[number], values, retain_graph=True)
        assert (gradient >= 0).all()
        if coupling == "group" and quantity in FOUR:
            assert (gradient > 0).all()


def test_grouped_and_depthwise_by_hand():
    _, cost = soft_cost("scaled")
    widths = {"up": 3.0, "grouped": 4.5, "turn": 2.5}
    values = torch.cat([torch.full((v.channels,), 0.5, dtype=torch.float64) for v in cost.layout.vectors])
    up, grouped, turn = widths.values()
    area = SIZE * SIZE
    macs = area * (3 * up + 9 * up * grouped / 3 + 9 * grouped + 4 * grouped * turn) + 3 * turn
    params = (3 + 1) * up + 9 * up * grouped / 3 + grouped + 2 * grouped + 9 * grouped + grouped
    params += 4 * grouped * turn + turn + turn + 3 * turn + 3
    found = by_name(cost.totals(values))
    assert (found["macs"], found["params"]) == pytest.approx((macs, params))
    assert found["channels"] == pytest.approx(up + 2 * grouped + turn)
    assert found["volume"] == pytest.approx(area * (up + 2 * grouped + 4 * turn))


def test_the_cost_of_other_groups_is_refused():
    case = tiny("residual")
    layout = type(case.layout())(Grouping({}), "group", (), ())
    with pytest.raises(ValueError, match="other channel groups"):
        SoftCost(case.cost, layout)


# ---------------------------------------------------------------------- losses
def test_crispness():
    crisp = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert float(crispness(crisp, crisp)) == 0
    soft, gates = torch.tensor([0.5, 0.2]), torch.tensor([0.7, 0.3])
    assert float(crispness(soft, gates)) == pytest.approx(0.025)
    assert float(crispness(soft, gates, "sum")) == pytest.approx(0.05)


def test_crispness_vanishes_only_at_zero_and_one():
    psi = torch.linspace(-8, 8, 33, dtype=torch.float64)
    soft, gates = logistic(psi, 1.0), gate_values(psi, 1.0, 16.0)
    assert all(float(crispness(soft[i : i + 1], gates[i : i + 1])) > 0 for i in range(len(psi)))


def test_soft_rounding():
    assert float(soft_round(torch.tensor(0.6998), 10.0)) == pytest.approx(0.881, abs=1e-3)
    assert float(soft_round(torch.tensor(0.5), 60.0)) == pytest.approx(0.5)


@pytest.mark.parametrize("quantity", FOUR)
def test_the_share_of_a_budget(quantity):
    case, cost = soft_cost("residual")
    loss = BudgetLoss(cost, [Budget.parse(f"{quantity}<=25%")], case.dense)
    assert float(loss.shares(torch.ones(cost.layout.total))[0]) == 1
    assert loss.allowed[0] == pytest.approx(0.25, abs=1 / case.dense[quantity])
    gates = random_values(cost.layout.total)
    share = float(loss.shares(soft_round(gates, 10.0))[0])
    assert float(loss(gates, 10.0)) == pytest.approx((share - loss.allowed[0]) ** 2)


def test_one_budget_pulls_from_both_sides_and_of_several_only_the_tightest():
    case, cost = soft_cost("residual")
    gates = torch.full((cost.layout.total,), 0.5, dtype=torch.float64)

    def loss(*texts):
        return float(BudgetLoss(cost, [Budget.parse(text) for text in texts], case.dense)(gates, 10.0))

    shares = {
        q: float(BudgetLoss(cost, [Budget.parse(f"{q}<=1%")], case.dense).shares(soft_round(gates, 10.0))[0])
        for q in ("macs", "params")
    }
    below = {q: f"{q}<={100 * share + 20:.6f}%" for q, share in shares.items()}
    above = {q: f"{q}<={100 * share - 5:.6f}%" for q, share in shares.items()}
    # Bounds are whole numbers: the network is so small that half a parameter shows.
    assert loss(below["macs"]) == pytest.approx(0.04, rel=0.02)
    assert loss(above["macs"], below["params"]) == pytest.approx(loss(above["macs"]))
    assert loss(above["macs"], above["params"]) == pytest.approx(loss(above["macs"]) + loss(above["params"]))
    assert loss(below["macs"], below["params"]) == pytest.approx(min(loss(below["macs"]), loss(below["params"])))


def test_sparsity_is_a_budget_on_parameters():
    case, cost = soft_cost("residual")
    one = BudgetLoss(cost, [Budget.parse("sparsity>=60%")], case.dense)
    other = BudgetLoss(cost, [Budget.parse("params<=40%")], case.dense)
    gates = random_values(cost.layout.total)
    assert one.allowed == pytest.approx(other.allowed, abs=1 / case.dense["params"])
    assert float(one(gates, 10.0)) == pytest.approx(float(other(gates, 10.0)), abs=1e-2)


def test_budgets_that_gates_cannot_count():
    case, cost = soft_cost("residual")
    with pytest.raises(UsageError, match="no budget"):
        BudgetLoss(cost, [], case.dense)
    with pytest.raises(UsageError, match="measured"):
        BudgetLoss(cost, [Budget.parse("latency<=1ms")], case.dense)


def test_gradients_are_finite_however_steep():
    case, cost = soft_cost("residual", "independent")
    loss = BudgetLoss(cost, [Budget.parse("channels<=12.5%")], case.dense)
    psi = torch.linspace(-40, 40, cost.layout.total).requires_grad_()
    gates = gate_values(psi, 6.0, 256.0)
    total = loss(gates, 60.0) + crispness(logistic(psi, 6.0), gates)
    (gradient,) = torch.autograd.grad(total, psi)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
