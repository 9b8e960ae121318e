"""1x1 convolutions around every convolution, as published: costs, candidates, errors, whole runs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from billhook import artifact
from billhook.cli.prune import describe
from billhook.compensation import PointwiseShape, insert_pointwise, pointwise_layers, pointwise_shapes, shape_pointwise
from billhook.cost import count
from billhook.cost.budget import parse_budgets
from billhook.errors import InfeasibleError, InputError, UsageError
from billhook.methods import METHODS, make_config
from billhook.methods.channel_run import ChannelRun
from billhook.methods.counted import count_network
from billhook.methods.greedy import greedy_limits
from billhook.methods.greedy.changes import applied
from billhook.methods.greedy.goals import Goals
from billhook.methods.greedy.removable import removable
from billhook.methods.greedy.shrinking_sides import kept_shapes, side_names
from billhook.models import open_network
from billhook.models.cifar_resnet import CifarResNet
from billhook.report.read import Run
from billhook.report.tables import comparison
from billhook.surgery.channel_cost import QUANTITIES
from training.small import seeded

from .killed import check_killed_runs
from .problems import NETWORKS, carry_out, counted_and_bound, ready
from .test_greedy_parts import Grouped, images, network

METHODS_HERE = ("fp-backward", "fp-omp", "hbgs", "hbgts", "fp-omp-search")
SEARCHES = METHODS_HERE[2:]
POINTWISE = {"compensation": "pointwise"}


class Biased(nn.Module):
    """Convolutions with biases, one of them in groups, one strided, one on its own, one used twice, a padded 1x1."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.groups = nn.Conv2d(12, 16, 3, padding=1, groups=2)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.strided = nn.Conv2d(16, 20, (3, 5), stride=2, padding=(1, 2))
        self.twice = nn.Conv2d(20, 20, 3, padding=1)
        self.point = nn.Conv2d(20, 14, 1)
        self.fc = nn.Linear(14, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.deep(self.groups(self.first(x).relu()).relu())
        x = self.strided(x).relu()
        x = self.twice(self.twice(x).relu())
        return self.fc(self.point(x).relu().mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def more_networks(monkeypatch):
    monkeypatch.setitem(NETWORKS, "grouped", lambda classes: Grouped(classes))
    monkeypatch.setitem(NETWORKS, "biased", lambda classes: Biased(classes))
    monkeypatch.setitem(NETWORKS, "resnet8", lambda classes: seeded(CifarResNet, 1, classes, "a"))


def counted(name, rows=(0, 2), size=8):
    return count_network(open_network(network(name)), size, rows)


def begin(module, method="hbgs", **fields):
    found = removable(count_network(open_network(module), 8, None), (), make_config(method, POINTWISE | fields))
    return found, found.begin(torch.device("cpu"), False, list)


def as_kept(cost, numbers):
    return {name: np.arange(number) for name, number in zip(cost.names, numbers.tolist(), strict=True)}


# ---------------------------------------------------------------------- costs
@pytest.mark.parametrize("name", ["tiny", "ragged", "resnet20", "grouped", "biased"])
def test_costs_are_those_of_the_real_network(name):
    """At random widths, some sides whole: every quantity exactly, the file within its header's digits."""
    found = counted(name)
    limits = greedy_limits(found, (), make_config("hbgs", POINTWISE))
    cost, rng = limits.cost, np.random.default_rng(0)
    sections = np.array([group.sections for group in limits.grouping.groups.values()])
    for trial in range(4):
        numbers = np.array([rng.integers(1, c // s + 1) * s for c, s in zip(cost.channels, sections, strict=True)])
        whole = rng.random(len(numbers)) < 0.4 if trial else np.ones(len(numbers), dtype=bool)
        numbers = np.where(whole, cost.channels, numbers)
        small = copy.deepcopy(found.network.module)
        shape_pointwise(small, kept_shapes(limits.grouping, as_kept(cost, numbers)))
        small = artifact.slice_head(small, found.head, (0, 2))
        real = count(small, 8).totals() | {"bytes": artifact.file_bytes(artifact.state_arrays(small), {})}
        told = dict(zip(QUANTITIES, cost.many(numbers).tolist(), strict=True))
        for quantity in ("params", "macs", "channels", "volume"):
            assert told[quantity] == real[quantity], quantity
        assert real["bytes"] <= told["bytes"] <= real["bytes"] + 64 + 20 * len(small.state_dict())
        assert told == cost.totals(dict(zip(cost.names, numbers.tolist(), strict=True)))
        assert (cost.gross(numbers)[:-1] >= cost.many(numbers)[:-1]).all()


@pytest.mark.parametrize("name", ["resnet20", "biased"])
def test_reductions_of_the_enlarged_network(name):
    """The paper starts from a network with identities around its convolutions; only pointwise runs have one."""
    done = carry_out(ready(name, "fp-backward", "params<=70%", **POINTWISE))
    whole = copy.deepcopy(done.prepared.setting.network.module)
    limits = greedy_limits(done.prepared.setting, (), make_config("fp-backward", POINTWISE)).grouping.groups
    insert_pointwise(whole, list(dict.fromkeys(group.members[0].layer for group in limits.values())))
    expected = count(whole, 8).totals()
    assert done.outcome.enlarged == {key: expected[key] for key in ("params", "macs", "channels", "volume")}
    assert carry_out(ready(name, "fp-backward", "params<=70%")).outcome.enlarged is None


def test_the_reductions_are_said():
    summary = {
        "dense": {"params": 100, "macs": 1000},
        "dense_finetuned": None,
        "pruned": {"params": 60, "macs": 500},
        "enlarged": {"params": 120, "macs": 2000},
        "budget": [],
    }
    assert "1x1 convolutions: 50.00 % fewer parameters, 75.00 % fewer MACs" in describe(summary)
    rows = dict(comparison(Run(summary, None, [], 0, {}, {})))
    cells = rows["Parameters, of the network with all its 1×1 convolutions"]
    assert [cell.text for cell in cells] == ["120", "–", "60"]
    assert "2" in cells[2].note
    del summary["enlarged"]
    assert "1x1" not in describe(summary)
    assert not [label for label, _ in comparison(Run(summary, None, [], 0, {}, {})) if "1×1" in label]


def test_which_convolutions_can_lose_something():
    limits = greedy_limits(counted("biased"), (), make_config("hbgs", POINTWISE))
    assert set(limits.grouping.groups) == {name for layer in ("groups", "strided") for name in side_names(layer)}
    assert [limits.grouping.groups[f"groups:{side}"].channels for side in ("in", "out")] == [12, 16]
    assert limits.grouping.groups["groups:in"].sections == 2
    reasons = {entry["name"]: entry["reason"] for entry in limits.left_dense}
    for layer, word in {"first": "first", "deep": "depthwise", "twice": "more than one", "point": "1x1",
                        "fc": "two-dimensional"}.items():  # fmt: skip
        assert word in reasons[layer]
    with pytest.raises(InputError, match=r"no channel of .* can be removed"):
        ready("mobilenet_v2", "hbgs", "params<=50%", size=32, **POINTWISE)


def test_half_of_every_side_is_the_published_network():
    """ResNet-32 on CIFAR-10: 170,394 parameters, 63.29 % fewer than the original."""
    found = count_network(open_network("resnet32", 10), 32, None)
    cost = greedy_limits(found, (), make_config("fp-backward", POINTWISE)).cost
    assert cost.totals({})["params"] == 464_154
    assert cost.gross(cost.channels)[0] == 567_834
    assert cost.enlarged()["params"] == 567_834
    assert cost.many(cost.channels // 2)[0] == 170_394


def test_what_cannot_be_reached():
    """1x1 convolutions put channels out, too; and where everything holds from the start, nothing goes."""
    for budget in ("channels<=90%", "volume<=90%", "params<=1%", ["params<=80%", "channels<=100%"]):
        with pytest.raises(InfeasibleError, match="cannot be reached"):
            ready("resnet20", "hbgs", budget, **POINTWISE)
    with pytest.raises(InfeasibleError):
        ready("resnet20", "fp-backward", "params<=60%", least=0.9, **POINTWISE)
    for method in ("fp-backward", "hbgs"):
        done = carry_out(ready("resnet20", method, ["params<=100%", "channels<=100%"], least=0.9, **POINTWISE))
        assert not pointwise_layers(done.full)
    with pytest.raises(UsageError, match="score must be filters"):
        make_config("hbgs", POINTWISE | {"score": "activations"})
    with pytest.raises(UsageError, match="compensation"):
        make_config("lrf", POINTWISE)


def test_goals_of_sides():
    """The first channel of a side costs more than it saves; it is worth something all the same."""
    found = counted("resnet20", None)
    sides = removable(found, (), make_config("hbgs", POINTWISE))
    cost = sides.limits.cost
    goals = Goals(parse_budgets(["params<=50%"]), cost, found.dense, sides.gross)
    one = cost.channels.copy()
    one[-1] -= 1
    assert cost.many(one)[0] > cost.many(cost.channels)[0]
    assert goals.gone(one) == 0
    assert 0 < goals.saved(cost.channels, one) < 1
    half = cost.channels // 2
    assert goals.met(half)
    assert goals.saved(half, half // 2) == 0


# ---------------------------------------------------------------------- candidates
@pytest.mark.parametrize("selector", ["backward", "omp"])
@pytest.mark.parametrize("name", ["tiny", "resnet20", "grouped", "biased"])
def test_changes_are_what_removal_does(name, selector):
    """Again and again on both sides: looked at, carried out, restored from its state, widened, rebuilt: the same."""
    module = network(name)
    found, sides = begin(module, selector=selector)
    batch = images(3)
    for name in list(sides.kept) * 2:
        count_ = max(sides.kept[name].size * 3 // 4, 1)
        count_ -= count_ % sides.grouping.groups[name].sections
        candidate = sides.propose({name: count_})[name]
        assert len(candidate.kept) == count_
        assert set(candidate.kept) <= set(sides.kept[name])
        state = copy.deepcopy(sides.module.state_dict())
        with torch.no_grad(), applied(sides.module, sides.changes(name, candidate)):
            looked = sides.module(batch)
        assert all(torch.equal(tensor, state[key]) for key, tensor in sides.module.state_dict().items())
        assert sides.remove(name, candidate) == set(side_names(name.partition(":")[0]))
        with torch.no_grad():
            assert torch.equal(sides.module(batch), looked)
    assert sides.numbers.tolist() == [len(kept) for kept in sides.kept.values()]
    run = ChannelRun.__new__(ChannelRun)
    run.history = []
    outcome = sides.outcome(run, sides.cut(run))
    assert count(outcome.module, 8).params == found.limits.cost.many(sides.numbers)[0]
    other = begin(module)[1]
    other.restore({name: kept.tolist() for name, kept in sides.kept.items()}, sides.tensors())
    with torch.no_grad():
        assert torch.equal(other.module(batch), looked)
        torch.testing.assert_close(outcome.masked(batch), looked, atol=1e-5, rtol=1e-5)
    # Full width: every weight of the network as it came is there, as many zeros as filters that went.
    for layer, part in pointwise_layers(outcome.masked).items():
        assert part.conv.weight.shape == module.get_submodule(layer).weight.shape
        gone = np.setdiff1d(np.arange(part.conv.out_channels), sides.kept[f"{layer}:out"])
        assert not part.conv.weight[torch.from_numpy(gone)].any()


def test_dependent_filters_and_slices_go_for_nothing():
    module = network("resnet20")
    batch = images(4)
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and name != "conv1":
            with torch.no_grad():
                half = part.out_channels // 2
                part.weight[half:] = torch.einsum("ij,jklm->iklm", 0.3 * torch.randn(half, half), part.weight[:half])
    expected = module(batch)
    sides = begin(module)[1]
    for name in sides.kept:
        if name.endswith("out"):
            half = {name: sides.kept[name].size // 2}
            sides.lose(half, half)
    assert all(
        part.conv.out_channels * 2 == part.after.out_channels for part in pointwise_layers(sides.module).values()
    )
    torch.testing.assert_close(sides.module(batch), expected, atol=1e-4, rtol=1e-4)


def test_what_is_remembered_belongs_to_the_weights():
    sides = begin(network("resnet20"))[1]
    names = list(sides.kept)
    first = sides.propose(dict.fromkeys(names, 8))
    assert all(again is first[name] for name, again in sides.propose(dict.fromkeys(names, 8)).items())
    sides.remove(names[0], first[names[0]])
    again = sides.propose(dict.fromkeys(names[1:], 8))
    # The other side of that convolution has other weights now.
    assert [again[name] is first[name] for name in names[1:]] == [False] + [True] * (len(names) - 2)
    sides.take_back(sides.small())
    assert all(sides.propose({name: 8})[name] is not again[name] for name in names[1:])


def test_errors_are_those_of_the_convolutions():
    """Current inputs against original outputs."""
    module = network("resnet20")
    _, sides = begin(module)
    batch = images(6, seed=5)
    original = copy.deepcopy(module)
    errors = sides.layer_errors(original, lambda: [batch[:4], batch[4:]], {})
    layer = "layer2.0.conv2"
    wanted = {"layer1.0.conv1:out": 8, f"{layer}:out": 24}
    sides.lose(wanted, wanted)  # so that inputs and weights are others
    proposed = sides.propose(dict.fromkeys(side_names(layer), 12))
    measured = errors.measure({name: sides.changes(name, candidate) for name, candidate in proposed.items()})
    seen = {}

    def look(net, what):
        handle = net.get_submodule(layer).register_forward_hook(lambda part, i, o: seen.update({what: (i[0], o)}))
        with torch.no_grad():
            net(batch)
        handle.remove()
        return seen[what]

    target, (taken, now) = look(original, "original")[1], look(sides.module, "current")
    for name, candidate in proposed.items():
        with torch.no_grad():
            after = candidate.part(taken)
        energy = float(target.square().sum())
        assert measured[name][0] == pytest.approx(float((now - target).square().sum()) / energy, rel=1e-4)
        assert measured[name][1] == pytest.approx(float((after - target).square().sum()) / energy, rel=1e-4)
        assert measured[name][1] > measured[name][0] > 0


# ---------------------------------------------------------------------- whole runs
@pytest.mark.parametrize(
    ("method", "name"),
    [(method, "resnet8") for method in METHODS_HERE]
    + [(method, name) for method in ("fp-backward", "hbgs") for name in ("ragged", "grouped", "biased")],
)
def test_conformance(method, name):
    fields = {"step": 0.3, "selection": 8, "finetune_every": 0} if method in SEARCHES else {}
    prepared = ready(name, method, "params<=70%", keep=[0, 2], **POINTWISE, **fields)
    done = carry_out(prepared)
    dense = prepared.setting.dense["params"]
    assert 0.62 * dense <= done.cost.params <= 0.7 * dense
    assert done.cost.params == sum(parameter.numel() for parameter in done.small.parameters())
    assert done.outcome.channels == ()
    assert pointwise_layers(done.small)
    masked = artifact.deliverable(done.outcome.masked)
    batch = images(3)
    with torch.no_grad():
        expected, found = masked(batch), done.full(batch)
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()
    line = next(line for line in done.outcome.history if line["event"] == "channels")
    assert line["params"] == count(done.small, 8).params


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("fp-omp", budget)
        for budget in ("params<=60%", "macs<=60%", "bytes<=65%", "sparsity>=40%", "effective_macs<=60%")
    ]
    + [("hbgs", "bytes<=65%"), ("hbgs", "macs<=60%"), ("hbgts", "sparsity>=40%")],
)
def test_every_quantity_ends_at_its_bound(method, budget):
    """At or below; one channel of a side of so small a network is 2 % of what is left."""
    fields = {"step": 5, "selection": 8, "stale": 20, "finetune_every": 0} if method in SEARCHES else {}
    done = carry_out(ready("resnet8", method, [budget], **POINTWISE, **fields))
    _, found, bound = counted_and_bound(done, budget)
    assert 0.965 * bound <= found <= bound


def test_dependent_filters_leave_a_whole_run_as_it_was(monkeypatch):
    """From the plan to its outcome, with the training left out: the same outputs of a smaller network."""
    monkeypatch.setattr(ChannelRun, "train", lambda self, module, phase, steps, **more: self.record({"event": "none"}))
    module = network("resnet8")
    batch = images(4)
    with torch.no_grad():
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d) and name != "conv1":
                rank = part.out_channels // 4
                mix = torch.randn(part.out_channels, rank, generator=torch.Generator().manual_seed(1))
                part.weight.copy_(torch.einsum("ij,jklm->iklm", 0.5 * mix, part.weight[:rank].clone()))
        expected = module(batch)
    for method in ("fp-backward", "hbgs"):
        fields = {"step": 0.25, "selection": 8, "finetune_every": 0, "weigh": "error"} if method == "hbgs" else {}
        # Three quarters of the outputs are made of the others, and nothing that is asked goes beyond.
        done = carry_out(ready(module, method, "params<=75%", **POINTWISE, **fields))
        assert done.cost.params <= 0.75 * done.prepared.setting.dense["params"]
        for found in (done.full, artifact.deliverable(done.outcome.masked)):
            with torch.no_grad():
                difference = float((found(batch) - expected).abs().max() / expected.abs().max())
            assert (difference < 1e-3) == (method == "hbgs"), (method, difference)


def test_rounds_and_fine_tuning():
    done = carry_out(
        ready("resnet8", "hbgs", "params<=70%", epochs=20.0, finetune_every=3, selection=8, step=0.15, **POINTWISE)
    )
    rounds = [line for line in done.outcome.history if line["event"] == "round"]
    assert {line["group"].rpartition(":")[2] for line in rounds} == {"in", "out"}
    assert all(line["error"] == line["errors"][line["group"]] for line in rounds)
    assert rounds[-1]["params"] == done.cost.params
    phases = {line["phase"] for line in done.outcome.history if line["event"] == "epoch"}
    assert {"round-1", "prune"} <= phases
    plan, problem = done.prepared.plan, done.prepared.setting.problem
    assert plan.steps == pytest.approx((1 - rounds[-1]["images"] / problem.images) * problem.steps, abs=2)


@pytest.mark.parametrize("method", ["hbgs", "hbgts"])
def test_a_killed_run_goes_on(method, tmp_path, monkeypatch):
    fields = {"epochs": 12.0, "selection": 8, "step": 0.15, "finetune_every": 3, "stale": 2} | POINTWISE
    check_killed_runs(lambda: ready("resnet8", method, "params<=70%", **fields), (3, -1), tmp_path, monkeypatch)


@pytest.mark.parametrize("method", ["fp-backward", "hbgs"])
def test_a_search_goes_on_while_the_network_is_too_slow(method, monkeypatch):
    """A machine on which inputs cost twice as much as outputs, and 1x1 convolutions nothing."""
    monkeypatch.setattr(
        "billhook.methods.channel_latency.Clock.__post_init__",
        lambda self: self.__dict__.update(dense_ms=10.0, engine="torch", note=""),
    )

    def of(self, small):
        return sum((2 * part.in_channels + part.out_channels) / 100 for part in small.modules()
                   if isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1)  # fmt: skip

    monkeypatch.setattr("billhook.methods.channel_latency.Clock.of", of)
    fields = {"selection": 8, "step": 0.3, "stale": 50, "finetune_every": 0} if method == "hbgs" else {}
    whole = of(None, NETWORKS["resnet8"](4))
    done = carry_out(ready("resnet8", method, f"latency<={0.7 * whole:.3f}ms", **POINTWISE, **fields))
    assert of(None, done.full) <= 0.7 * whole


def test_the_registry_asks_for_what_will_be_removed():
    found = counted("resnet20", None)
    config = make_config("hbgs", POINTWISE)
    rows = METHODS["hbgs"].limits(found, parse_budgets(["params<=40%"]), config).feasibility()
    assert rows[0]["feasible"]
    assert rows[0]["smallest"] > METHODS["hbgs"].limits(
        found, parse_budgets(["params<=40%"]), make_config("hbgs", {})
    ).feasibility()[0]["smallest"]  # fmt: skip


@pytest.mark.parametrize("compensation", ["pointwise", "next-layer"])
def test_such_a_network_cannot_lose_channels_again(compensation):
    module = network("resnet20")
    shape_pointwise(module, {"layer1.0.conv1": PointwiseShape(8, None)})
    assert pointwise_shapes(module)
    with pytest.raises(InputError, match="1x1 convolutions around its layers"):
        ready(module, "hbgs", "params<=80%", compensation=compensation)
