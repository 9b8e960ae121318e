"""The hard threshold: within the budget, the highest stay, ties by index, nothing that is needed goes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.cost import count
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, RunError
from billhook.methods.chipnet import SoftCost, harden
from billhook.methods.floor import Floor
from billhook.surgery import plan_channels, remove_channels
from billhook.surgery.channel_cost import QUANTITIES
from surgery.test_channels import SIZE

from .networks import IMAGES, tiny

COUPLINGS = ["group", "independent"]
NETWORKS = ["residual", "plain", "pre", "ends", "concat", "shared norm", "chain", "scaled"]


def draw(layout, seed, levels=None):
    rng = np.random.default_rng(seed)
    row = rng.normal(size=layout.total)
    return layout.split(row if levels is None else np.round(levels * row) / levels)


def chosen(case, layout, psi, *budgets, **fields):
    return harden(psi, layout, case.cost, [Budget.parse(text) for text in budgets], case.dense, **fields)


def small(case, choice):
    return remove_channels(case.module, plan_channels(case.module, case.grouping, choice.kept, choice.own))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("quantity", ["channels", "volume", "params", "macs"])
def test_the_budget_holds_in_the_network_that_is_left(name, coupling, quantity):
    case = tiny(name)
    layout = case.layout(coupling)
    reached = 0
    for seed, share in enumerate((90, 60, 35, 20)):
        try:
            choice = chosen(case, layout, draw(layout, seed), f"{quantity}<={share}%")
        except InfeasibleError:
            continue
        network = small(case, choice)
        found = count(network, SIZE)
        assert getattr(found, quantity) <= share / 100 * case.dense[quantity]
        if coupling == "group" or layout.streams:
            assert getattr(found, quantity) == SoftCost(case.cost, layout).hard(choice.mask)[QUANTITIES.index(quantity)]
        assert network(IMAGES).isfinite().all()
        reached += 1
    assert reached


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", ["resnet20", "preresnet"])
def test_real_architectures_down_to_a_sixteenth(name, coupling):
    case = tiny(name)
    layout = case.layout(coupling)
    for budget in ("macs<=6.25%", "channels<=6.25%"):
        choice = chosen(case, layout, draw(layout, 7), budget)
        network = small(case, choice)
        quantity = budget.partition("<")[0]
        assert 0.9 * 0.0625 < getattr(count(network, SIZE), quantity) / case.dense[quantity] <= 0.0625
        with torch.no_grad():
            assert network(IMAGES).isfinite().all()


# ---------------------------------------------------------------------- against all choices
@pytest.mark.parametrize("name", ["residual", "pre", "ends"])
def test_no_other_gate_would_fit(name):
    """Opening any one closed gate breaks the budget, unless it is within its tolerance: what was freed went back."""
    case = tiny(name)
    layout = case.layout("independent")
    cost = SoftCost(case.cost, layout)
    column, bound = QUANTITIES.index("params"), np.floor(0.5 * case.dense["params"])
    looked = 0
    for seed in range(8):
        mask = chosen(case, layout, draw(layout, seed), "params<=50%").mask
        if bound - cost.hard(mask)[column] <= 0.01 * bound or cost.dead(mask):
            continue
        for gate in np.flatnonzero(~mask):
            more = mask.copy()
            more[gate] = True
            assert cost.hard(more)[column] > bound
            looked += 1
    assert looked


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([40, 55, 70, 85]), st.sampled_from(["params", "macs", "channels"]))
def test_independent_gates_are_a_threshold(seed, share, quantity):
    """Against every threshold there is: none higher up would do, and what lies below was spared or handed back."""
    case = tiny("plain")
    layout = case.layout("independent")
    cost = SoftCost(case.cost, layout)
    psi = draw(layout, seed)
    row = layout.join(psi)
    bound = share / 100 * case.dense[quantity]
    column = QUANTITIES.index(quantity)
    choice = chosen(case, layout, psi, f"{quantity}<={share}%")
    assert cost.hard(choice.mask)[column] <= bound
    best = np.zeros(layout.total, dtype=bool)
    for part in layout.slices:  # no branch can go, and everybody reads the stream as it comes
        best[part.start + int(row[part].argmax())] = True
    fitting = [t for t in [-np.inf, *np.sort(row)] if cost.hard((row > t) | best)[column] <= bound]
    lowest = min(fitting)
    assert ((row > lowest) <= choice.mask).all()
    assert choice.mask[best].all()


def test_every_choice_of_a_tiny_network_by_brute_force():
    """Of all masks within the budget, the chosen one keeps the highest gates first."""
    case = tiny("residual")
    layout = case.layout()
    cost = SoftCost(case.cost, layout)
    column = QUANTITIES.index("params")
    psi = draw(layout, 3)
    row = layout.join(psi)
    total = layout.total
    assert total == 10
    masks = [np.array(bits, dtype=bool) for bits in itertools.product((False, True), repeat=total)]
    masks = [mask for mask in masks if mask[:4].any()]  # the stream needs a channel
    costs = [cost.hard(mask)[column] for mask in masks]
    for share in (80, 50, 30):
        bound = share / 100 * case.dense["params"]
        choice = chosen(case, layout, psi, f"params<={share}%")
        within = [mask for mask, value in zip(masks, costs, strict=True) if value <= bound]
        assert any(np.array_equal(mask, choice.mask) for mask in within)
        prefixes = [mask for mask in within if mask.any() and row[mask].min() > row[~mask].max(initial=-np.inf)]
        longest = max(prefixes, key=lambda mask: int(mask.sum()), default=None)
        if longest is not None:
            assert (longest <= choice.mask).all()


# ---------------------------------------------------------------------- ties and saturation
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_equal_gates_go_in_the_order_of_their_index(coupling):
    case = tiny("plain")
    layout = case.layout(coupling)
    psi = {vector.name: np.zeros(vector.channels) for vector in layout.vectors}
    choice = chosen(case, layout, psi, "params<=50%")
    for part in layout.slices:
        assert (np.diff(choice.mask[part].astype(int)) >= 0).all()  # the first go first
    assert np.array_equal(chosen(case, layout, psi, "params<=50%").mask, choice.mask)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_saturated_gates_still_meet_the_budget(coupling):
    """Every z is exactly 1 in float32; psi still tells them apart, and the network does not exceed its budget."""
    case = tiny("residual")
    layout = case.layout(coupling)
    gates = case.gates(coupling)
    with torch.no_grad():
        gates.psi.copy_(3 + torch.rand(len(gates.psi)))
    gates.advance(6.0, 256.0)
    assert (gates.values().float() == 1).all()
    choice = chosen(case, layout, gates.named(), "channels<=60%")
    assert count(small(case, choice), SIZE).channels <= 0.6 * case.dense["channels"]
    assert choice.mask.any()


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_gates_far_beyond_saturation_are_still_told_apart(coupling):
    """Not even float64 has room for the logistic function of them; the highest stay, whatever their index."""
    case = tiny("plain")
    layout = case.layout(coupling)
    psi = {vector.name: 50 - 0.01 * np.arange(vector.channels) for vector in layout.vectors}
    choice = chosen(case, layout, psi, "params<=50%")
    assert not choice.mask.all()
    for part in layout.slices:
        assert (np.diff(choice.mask[part].astype(int)) <= 0).all()  # the last, which are lower, go first


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_budget_that_is_met_removes_nothing(coupling):
    case = tiny("pre")
    layout = case.layout(coupling)
    choice = chosen(case, layout, draw(layout, 0), "params<=100%", "macs<=100%")
    assert choice.mask.all()
    assert choice.threshold == -np.inf


def test_several_budgets_at_once():
    case = tiny("residual")
    for coupling in COUPLINGS:
        layout = case.layout(coupling)
        found = count(small(case, chosen(case, layout, draw(layout, 1), "macs<=70%", "params<=45%")), SIZE)
        assert found.macs <= 0.7 * case.dense["macs"]
        assert found.params <= 0.45 * case.dense["params"]


def test_sections_keep_equally_many():
    case = tiny("scaled")
    for coupling in COUPLINGS:
        layout = case.layout(coupling)
        choice = chosen(case, layout, draw(layout, 2), "macs<=55%")
        for name, group in case.grouping.groups.items():
            counts = np.bincount(choice.kept[name] // (group.channels // group.sections), minlength=group.sections)
            assert len(set(counts.tolist())) == 1


# ---------------------------------------------------------------------- branches and what is needed
def test_branches_without_gates_go_and_take_their_readers_along():
    case = tiny("preresnet")
    layout = case.layout("independent")
    psi = {vector.name: np.linspace(0.5, 1, vector.channels) for vector in layout.vectors}
    psi["layer2.1.conv2"] = psi["layer2.1.conv2"] - 10  # the inside of a block: the lowest of all
    # As much as the whole block takes with it, and no less.
    without = layout.join({name: np.full(len(row), name != "layer2.1.conv2") for name, row in psi.items()})
    left = SoftCost(case.cost, layout).hard(without)[QUANTITIES.index("params")]
    choice = chosen(case, layout, psi, f"params<={left:.0f}")
    assert not len(choice.kept["layer2.1.conv2"])
    assert not len(choice.own["layer2.1.bn1"])  # reads the stream for nobody
    assert not len(choice.own["layer2.1.conv3"])  # would write a constant
    plan = plan_channels(case.module, case.grouping, choice.kept, choice.own)
    assert plan.layers["layer2.1.conv1"].role == "silent"


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_network_still_works(name, coupling):
    case = tiny(name)
    layout = case.layout(coupling)
    psi = draw(layout, 5, levels=2)
    smallest = None
    for share in np.arange(0.01, 1, 0.01):
        try:
            smallest = chosen(case, layout, psi, f"params<={100 * share:.3f}%")
            break
        except InfeasibleError:
            continue
    assert smallest is not None
    assert small(case, smallest)(IMAGES).isfinite().all()


def test_what_is_refused():
    case = tiny("residual")
    layout = case.layout("independent")
    psi = draw(layout, 0)
    with pytest.raises(InfeasibleError, match=r"params<=1% cannot be reached: .* leaves \d+ params"):
        chosen(case, layout, psi, "params<=1%")
    with pytest.raises(RunError, match="not finite"):
        chosen(case, layout, psi | {"norm": np.full(4, np.nan)}, "params<=50%")
    with pytest.raises(ValueError, match="'norm' needs 4 gates"):
        chosen(case, layout, psi | {"norm": np.zeros(3)}, "params<=50%")


def test_round_to_and_least_are_those_of_channel_pruning():
    case = tiny("resnet20")
    layout = case.layout()
    choice = chosen(case, layout, draw(layout, 0), "macs<=40%", floor=Floor(4, 0.2, branches=False))
    assert all(len(channels) % 4 == 0 and len(channels) for channels in choice.kept.values())
