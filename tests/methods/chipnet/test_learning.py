"""Gates learnt beside the weights: losses and schedules of a step, the hard look after an epoch, which one is kept."""

import copy
from types import SimpleNamespace

import pytest
import torch

from billhook.artifact import GATES
from billhook.methods import make_config
from billhook.methods.channel_run import ChannelRun
from billhook.methods.chipnet import (
    BudgetLoss,
    Gates,
    Schedule,
    SoftCost,
    gate_rate,
    gates_of,
    learning,
)
from billhook.progress import RichProgress
from billhook.surgery import plan_channels, remove_channels
from billhook.surgery.channel_cost import QUANTITIES

from ..problems import carry_out, ready


class Setup:
    """A network with gates, and the plugin that learns them."""

    def __init__(self, budget="macs<=50%", steps=20, rate=0.02, **fields):
        self.prepared = ready("tiny", "chipnet", budget, epochs=4.0, batch_size=12, **fields)
        plan, setting = self.prepared.plan, self.prepared.setting
        self.module = copy.deepcopy(setting.network.module)
        self.gates = Gates(plan.layout, seed=0)
        self.gates.attach(self.module)
        self.cost = SoftCost(plan.limits.cost, plan.layout)
        self.plugin = learning.GateLearning(
            self.module,
            self.gates,
            BudgetLoss(self.cost, setting.problem.budgets, setting.dense),
            lambda psi: plan._choose(psi, setting.problem.budgets),
            plan.config,
            setting.problem,
            setting.room,
            steps,
            rate,
        )


def test_the_loss_is_crispness_and_budget_by_hand():
    setup = Setup(crisp_weight=7.0, budget_weight=13.0)
    gates, plugin = setup.gates, setup.plugin
    soft, z = gates.logistic(), gates.values()
    rounded = torch.sigmoid(10.0 * (z - 0.5))
    share = setup.cost.totals(rounded, branches=False)[plugin.budget.columns[0]] / plugin.budget.whole[0]
    expected = 7.0 * (z - soft).square().mean() + 13.0 * (share - plugin.budget.allowed[0]) ** 2
    assert plugin.loss(0).item() == pytest.approx(expected.item(), rel=1e-5)
    plugin.loss(0).backward()
    assert gates.psi.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in setup.module.parameters())


def test_gates_have_their_own_rate_and_no_decay():
    setup = Setup()
    (group,) = setup.plugin.parameters()
    assert group["params"] == [setup.gates.psi]
    assert group["weight_decay"] == 0
    assert group["scale"] * make_config("chipnet", {}).lr == pytest.approx(0.02)


def test_the_best_hard_network_is_kept(monkeypatch):
    setup = Setup(fold=False)
    accuracies = iter([0.4, 0.7, 0.5, 0.7])
    seen = []

    def evaluate(module, *rest, **more):
        assert gates_of(module).mask is not None
        assert module is not setup.module
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        accuracy = next(accuracies)
        return SimpleNamespace(top1_kept=accuracy, top1_full=accuracy)

    monkeypatch.setattr(learning, "evaluate", evaluate)
    kept = []
    for step in range(4):
        with torch.no_grad():
            setup.gates.psi.add_(torch.randn(setup.gates.psi.shape, generator=torch.Generator().manual_seed(step)))
            setup.module.conv1.weight.add_(0.1)
        kept.append(setup.gates.psi.detach().clone())
        (line,) = setup.plugin.after_epoch(step)
        assert line["best"] == (step != 2)
    state = setup.plugin.state()
    other = Setup(fold=False)
    other.plugin.load_state(*state)
    for each in (setup, other):
        each.plugin.restore()
        assert torch.equal(each.gates.psi, kept[3])  # of equal ones, the later
        found = each.module.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in seen[3].items())


@pytest.mark.parametrize("coupling", ["group", "independent"])
@pytest.mark.parametrize("fold", [True, False])
def test_what_is_cut_is_the_hard_network_that_was_looked_at(fold, coupling, monkeypatch):
    """Open gates multiply by what they are, or by one; the weights hold it once the gates are gone."""
    setup = Setup(fold=fold, coupling=coupling)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        setup.gates.psi.add_(0.3 * torch.randn(setup.gates.psi.shape, generator=torch.Generator().manual_seed(1)))
    seen = []

    def evaluate(module, *rest, **more):
        seen.append((gates_of(module).mask.clone(), module.eval()(images).detach()))
        return SimpleNamespace(top1_kept=0.5, top1_full=0.5)

    monkeypatch.setattr(learning, "evaluate", evaluate)
    setup.plugin.after_epoch(1)
    choice = setup.plugin.restore()
    ((mask, expected),) = seen
    open_, values = torch.as_tensor(choice.mask), setup.gates.values().detach()
    assert torch.equal(mask > 0, open_)
    assert 0.2 < open_.float().mean() < 0.95
    assert torch.equal(mask[open_], values[open_] if fold else torch.ones(int(open_.sum())))
    setup.gates.detach(setup.module)
    plan = plan_channels(setup.module, setup.gates.layout.grouping, choice.kept, choice.own)
    small = remove_channels(setup.module, plan).eval()
    torch.testing.assert_close(small(images), expected, rtol=1e-4, atol=1e-5)


def test_the_hard_check_leaves_the_soft_network_alone():
    setup = Setup()
    before = {name: tensor.clone() for name, tensor in setup.module.state_dict().items()}
    setup.plugin.after_epoch(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.module.state_dict().items())
    assert setup.gates.mask is None


def test_the_hard_check_measures_batchnorm_again(monkeypatch):
    """Its statistics are those of the hard network's own maps, over the training images."""
    setup = Setup()
    seen = []

    def evaluate(module, *rest, **more):
        seen.append(module)
        return SimpleNamespace(top1_kept=0.5, top1_full=0.5)

    monkeypatch.setattr(learning, "evaluate", evaluate)
    setup.plugin.after_epoch(1)
    (module,) = seen
    maps = []
    module.bn2.register_forward_pre_hook(lambda part, inputs: maps.append(inputs[0]))
    problem = setup.plugin.problem
    with torch.no_grad():
        for batch in problem.data.train.batches(100, problem.preprocess):
            module.eval()(batch.images)
    expected = torch.cat(maps).mean((0, 2, 3))
    found, soft = module.bn2.running_mean, setup.module.bn2.running_mean
    assert (found - expected).abs().max() < 0.01 * expected.abs().max() < 0.1 * (soft - expected).abs().max()


def test_steps_move_the_schedules_and_the_weight(capsys):
    """At half of the way; gates that stand still far above their budget raise its weight, and the log says so."""
    setup = Setup("macs<=30%", steps=40)
    plugin = setup.plugin
    with torch.no_grad():
        setup.gates.psi.fill_(1.0)
    events = [event for step in range(21) for event in plugin.before_step(step)]
    stage = Schedule(plugin.config, 20).at(0.5)
    told = plugin.describe()
    assert [told[name] for name in ("beta", "gamma", "steepness")] == pytest.approx(list(stage))
    assert events
    assert all((event["phase"], event["event"]) == ("gates", "budget_weight") for event in events)
    assert events[-1]["after"] == plugin.weight.value == told["budget_weight"] > plugin.config.budget_weight
    assert [event["step"] for event in events] == sorted({event["step"] for event in events})
    RichProgress().line(events[0])
    assert "its weight rises from 30 to 45" in capsys.readouterr().err
    excess = plugin.budget.excess(torch.sigmoid(stage.steepness * (setup.gates.values() - 0.5))).item()
    crisp = plugin.config.crisp_weight * (setup.gates.values() - setup.gates.logistic()).square().mean().item()
    assert plugin.loss(21).item() == pytest.approx(crisp + plugin.weight.value * excess**2, rel=1e-5)


@pytest.mark.parametrize(("initialise", "distil_gates"), [("identity", True), ("published", False)])
def test_what_learning_begins_with(initialise, distil_gates, monkeypatch):
    prepared = ready("tiny", "chipnet", "macs<=50%", initialise=initialise, distil_gates=distil_gates, batch_size=6)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    dense = copy.deepcopy(prepared.setting.network.module).eval()
    calls = []

    def train(run, module, phase, steps, *, recipe=None, plugin=None, distil=True):
        with torch.no_grad():
            calls.append((phase, recipe, distil, copy.deepcopy(module).eval()(images) - dense(images)))
        if plugin is not None:
            plugin.after_epoch(1)

    monkeypatch.setattr(ChannelRun, "train", train)
    carry_out(prepared)
    (phase, recipe, distil, away), (last, other, _, _) = calls
    assert (phase, distil) == ("gates", distil_gates)
    assert (away.abs().max() < 1e-5) == (initialise == "identity")
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.batch_size) == ("adamw", 1e-3, 1e-3, 6)
    assert (recipe.schedule, recipe.warmup, recipe.ema, recipe.distil_features) == ("constant", 0.0, None, 0.0)
    assert (last, other) == ("prune", None)


def test_the_best_look_is_what_is_cut(monkeypatch):
    accuracies = iter([0.9, 0.4, 0.2, *[0.1] * 20])
    first = []

    def evaluate(module, *rest, **more):
        accuracy = next(accuracies)
        if not first:
            first.append(gates_of(module))
        return SimpleNamespace(top1_kept=accuracy, top1_full=accuracy)

    monkeypatch.setattr(learning, "evaluate", evaluate)
    done = carry_out(ready("tiny", "chipnet", "macs<=50%", epochs=8.0, share=0.5, batch_size=12))
    looks = [line for line in done.outcome.history if line["event"] == "gates"]
    assert [line["best"] for line in looks] == [True] + [False] * (len(looks) - 1)
    assert len(looks) > 2
    gates = first[0]
    saved = done.outcome.files[GATES][0]
    for name, psi in gates.named().items():
        assert (saved[f"psi/{name}"] == psi).all()
    expected = SoftCost(done.prepared.plan.limits.cost, gates.layout).hard(gates.mask.numpy() > 0)
    assert dict(zip(QUANTITIES, expected, strict=True))["macs"] == done.cost.macs


def test_gates_close_until_the_soft_network_is_within_its_budget():
    rate = gate_rate(make_config("chipnet", {}), 300)
    setup = Setup("macs<=50%", steps=300, rate=rate)
    optimizer = torch.optim.AdamW(setup.plugin.parameters(), lr=rate)
    for step in range(300):
        setup.plugin.before_step(step)
        loss = setup.plugin.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    excess = setup.plugin.budget.excess(setup.gates.values())
    assert excess.max() <= 0.02
