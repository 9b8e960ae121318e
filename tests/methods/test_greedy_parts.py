"""The parts of the greedy methods against brute force: candidates, errors of layers and of the end, goals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from billhook.compensation.next_layer_network import no_maps
from billhook.cost.budget import parse_budgets
from billhook.errors import UsageError
from billhook.methods import CHANNEL_METHODS, METHODS, make_config
from billhook.methods.channel_choice import smallest
from billhook.methods.channel_limits import channel_cost
from billhook.methods.counted import count_network
from billhook.methods.floor import Floor
from billhook.methods.greedy import GREEDY_PLANS
from billhook.methods.greedy.candidates import Candidate, Candidates, changes, lrf_order
from billhook.methods.greedy.changes import applied
from billhook.methods.greedy.current import Current
from billhook.methods.greedy.end_errors import EndErrors, SharedPrefix
from billhook.methods.greedy.goals import Goals, next_count
from billhook.methods.greedy.layer_errors import LayerErrors
from billhook.models import open_network
from billhook.surgery import channel_groups

from .problems import NETWORKS, ready

SIZE = 8


def network(name="resnet20", classes=4):
    module = NETWORKS[name](classes).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(0.5 + torch.rand(part.num_features, generator=generator))
                part.bias.copy_(0.3 * torch.randn(part.num_features, generator=generator))
                part.running_mean.copy_(0.2 * torch.randn(part.num_features, generator=generator))
    return module


def images(count=12, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def begin(module, method="hbgs", **fields):
    grouping = channel_groups(module, SIZE)
    current = Current(module, grouping, torch.device("cpu"), channels_last=False)
    return current, Candidates(make_config(method, fields), current, lambda: [images()])


def proposed(module, share=0.75, **fields):
    current, candidates = begin(module, **fields)
    wanted = {name: int(share * len(kept)) for name, kept in current.kept.items()}
    found = candidates.propose(wanted)
    groups = current.grouping.groups
    return current, found, {name: changes(current.module, groups[name], found[name]) for name in found}


# ---------------------------------------------------------------------- candidates
@pytest.mark.parametrize("selector", ["backward", "omp"])
@pytest.mark.parametrize("name", ["tiny", "resnet20"])
def test_duplicates_go_and_nothing_changes(name, selector):
    """Filters with a twin, the normalisation behind them too: half of them can go for nothing."""
    module = network(name)
    grouping = channel_groups(module, SIZE)
    group = list(grouping.groups.values())[1]
    half = group.channels // 2
    state = module.state_dict()
    for member in group.members:
        if member.side == "in":
            continue
        for key, tensor in state.items():
            if key.startswith(f"{member.layer}.") and tensor.ndim:
                tensor[half:] = tensor[:half]
    current, candidates = begin(module, selector=selector)
    before = module(images(3, seed=9))
    candidate = candidates.propose({group.name: half})[group.name]
    assert len(candidate.kept) == half
    assert len(set(candidate.kept % half)) == half
    current.remove(group.name, candidate.kept, candidate.maps)
    torch.testing.assert_close(current.module(images(3, seed=9)), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(current.small()(images(3, seed=9)), before, atol=1e-4, rtol=1e-4)


def test_compensation_helps():
    module, batch = network(), images()
    with torch.no_grad():
        target = module(batch)
        error = {}
        for kind in ("next-layer", "none"):
            current, found, _ = proposed(module, compensation=kind)
            for name, candidate in found.items():
                current.remove(name, candidate.kept, candidate.maps)
            error[kind] = float((current.module(batch) - target).norm() / target.norm())
    assert error["next-layer"] < 0.8 * error["none"]


@pytest.mark.parametrize("score", ["filters", "activations"])
@pytest.mark.parametrize("name", ["tiny", "resnet20", "mobilenet_v2"])
def test_changes_are_what_removal_does(name, score):
    """A candidate looked at computes what the network computes once the channels have really gone."""
    module = network(name)
    batch = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    grouping = channel_groups(module, 32)
    current = Current(module, grouping, torch.device("cpu"), channels_last=False)
    candidates = Candidates(make_config("hbgs", {"score": score}), current, lambda: [batch])
    group = next(iter(grouping.groups.values()))
    candidate = candidates.propose({group.name: group.channels // 2})[group.name]
    state = copy.deepcopy(current.module.state_dict())
    with torch.no_grad(), applied(current.module, changes(current.module, group, candidate)):
        looked = current.module(batch)
    assert all(torch.equal(tensor, state[key]) for key, tensor in current.module.state_dict().items())
    current.remove(group.name, candidate.kept, candidate.maps)
    with torch.no_grad():
        torch.testing.assert_close(current.small()(batch), looked, atol=1e-4, rtol=1e-4)


def test_an_order_serves_until_filters_change():
    module = network()
    current, candidates = begin(module)
    stream, inner = list(current.grouping.groups)[:2]
    first = candidates.order(inner, {})
    found = candidates.propose({inner: 12})[inner]
    near = current.remove(inner, found.kept, found.maps)
    assert {inner, stream} <= near
    candidates.changed(near, own=inner)
    again = candidates.propose({inner: 8})[inner]
    assert set(again.kept) == set(first[0, :8].tolist())
    assert set(again.kept) <= set(found.kept)
    assert stream not in candidates._orders
    candidates.changed()
    assert not candidates._orders


class Own(nn.Module):
    """A convolution that reads the stream it writes to."""

    def __init__(self, classes=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.a(x).relu()
        return self.fc((x + self.b(x)).relu().mean(dim=(2, 3)))


def test_an_order_goes_when_its_own_removal_changes_the_filters(monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", lambda classes: Own(classes))
    module = network("own")
    current, candidates = begin(module)
    (name,) = current.grouping.groups
    assert {member.side for member in current.grouping.groups[name].members if member.layer == "b"} == {"in", "out"}
    found = candidates.propose({name: 6})[name]
    candidates.changed(current.remove(name, found.kept, found.maps), own=name)
    assert name not in candidates._orders
    fresh = begin(current.small())[1].propose({name: 4})[name]
    assert candidates.propose({name: 4})[name].kept.tolist() == found.kept[fresh.kept].tolist()


def test_lrf_removes_the_filter_nearest_to_the_span_of_the_others():
    rows = torch.randn(1, 7, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[0, 4] = rows[0, 1]
    left, gone = list(range(7)), []
    while left:
        distance = {}
        for one in left:
            others = rows[0, [other for other in left if other != one]].T
            target = rows[0, one][:, None]
            rest = (
                target - others @ torch.linalg.lstsq(others, target, driver="gelsd").solution
                if len(left) > 1
                else target
            )
            distance[one] = round(float(rest.norm()), 6)
        gone.append(min(left, key=lambda one: (distance[one], one)))
        left.remove(gone[-1])
    assert lrf_order(rows)[0].tolist() == gone[::-1]


# ---------------------------------------------------------------------- errors of layers
def test_layer_errors_are_those_of_the_real_layers():
    module = network()
    current, _, changed = proposed(module)
    batch = images(6, seed=5)
    original = copy.deepcopy(module)
    errors = LayerErrors(original, current, lambda: [batch[:4], batch[4:]])
    found = errors.measure(changed)
    seen = {}

    def outputs(net, layer):
        handle = net.get_submodule(layer).register_forward_hook(lambda part, i, o: seen.update({layer: o.clone()}))
        with torch.no_grad():
            net(batch)
        handle.remove()
        return seen[layer]

    name = "layer1.0.conv1"  # read by conv2 alone, and bn2 follows
    target, now = outputs(original, "layer1.0.bn2"), outputs(current.module, "layer1.0.bn2")
    with applied(current.module, changed[name]):
        after = outputs(current.module, "layer1.0.bn2")
    energy = float(target.square().sum())
    assert found[name][0] == pytest.approx(float((now - target).square().sum()) / energy, abs=1e-6)
    assert found[name][1] == pytest.approx(float((after - target).square().sum()) / energy, rel=1e-4)
    assert all(after > now for now, after in found.values())
    # What was there before counts: the original outputs stay the measure.
    candidate = proposed(module)[1][name]
    current.remove(name, candidate.kept, candidate.maps)
    assert errors.measure({name: changed[name]})[name][0] == pytest.approx(found[name][1], rel=1e-3)


@pytest.mark.parametrize("name", ["tiny", "conv head"])
def test_of_the_classifier_only_kept_classes_count(name, monkeypatch):
    """A channel that only the other classes use goes for nothing."""
    monkeypatch.setitem(NETWORKS, "conv head", lambda classes: ConvHead(classes))
    module = network(name)
    with torch.no_grad():
        module.fc.weight[1:, ::2] = 5.0
        module.fc.weight[:1, ::2] = 0.0
    current, _ = begin(module)
    last = next(g for g, group in current.grouping.groups.items() if any(m.layer == "fc" for m in group.readers))
    kept = np.arange(1, current.grouping.groups[last].channels, 2)
    candidate = Candidate(last, kept, no_maps(module, current.grouping.groups[last], kept))
    change = {last: changes(module, current.grouping.groups[last], candidate)}

    def error(counted):
        return LayerErrors(copy.deepcopy(module), current, lambda: [images(6)], counted).measure(change)[last]

    assert error({"fc": [0]}) == pytest.approx((0, 0), abs=1e-10)
    assert error({"fc": [0, 2]})[1] > 1e-3
    assert error({"fc": [0, 1, 2, 3]}) == pytest.approx(error({}))


def test_plans_compare_the_kept_classes_of_the_classifier():
    plan = ready("tiny", "hbgs", "params<=60%", keep=[1, 3]).plan
    assert plan.errors(plan.begin(4))._counted == {"fc": [1, 3]}


# ---------------------------------------------------------------------- errors at the end
@pytest.mark.parametrize("tap", ["logits", "last-block", "cross-entropy", "accuracy"])
def test_shared_prefix_is_the_naive_evaluation(tap):
    module = network()
    current, _, changed = proposed(module, share=0.5)
    labels = torch.arange(10) % 4
    batch = images(10, seed=4)

    def batches(size):
        return zip(torch.split(batch, min(size, 7)), torch.split(labels, min(size, 7)), strict=True)

    def errors():
        return EndErrors(copy.deepcopy(module), current, batches, tap=tap, head="linear", kept=[0, 2, 3])

    if tap in ("cross-entropy", "accuracy"):
        labels = torch.tensor([0, 2, 3])[labels % 3]
    shared, naive = errors().measure(changed), errors().measure(changed, shared=False)
    for name in changed:
        assert shared[name] == pytest.approx(naive[name], rel=1e-5, abs=1e-7)
    with torch.no_grad():
        logits = module(batch)[:, [0, 2, 3]]
        name = list(changed)[4]
        with applied(current.module, changed[name]):
            after = current.module(batch)[:, [0, 2, 3]]
    if tap == "logits":
        assert shared[name][1] == pytest.approx(float((after - logits).norm() ** 2 / logits.norm() ** 2), rel=1e-4)
    if tap == "cross-entropy":
        place = torch.tensor([0, -1, 1, 2])[labels]
        assert shared[name][1] == pytest.approx(float(nn.functional.cross_entropy(after, place)), rel=1e-5)
    if tap == "accuracy":
        place = torch.tensor([0, -1, 1, 2])[labels]
        assert shared[name][1] == pytest.approx(float((after.argmax(1) != place).double().mean()))


@pytest.mark.parametrize("tap", ["logits", "last-block"])
@pytest.mark.parametrize("name", ["tiny", "resnet20", "conv head"])
def test_what_the_classifier_alone_reads_is_not_free(tap, name, monkeypatch):
    """A candidate's error is what the error is once it was carried out, at the last group too."""
    monkeypatch.setitem(NETWORKS, "conv head", lambda classes: ConvHead(classes))
    module = network(name)
    current, found, changed = proposed(module, share=0.5)
    head = "linear" if name == "resnet20" else "fc"
    batch = images(10, seed=4)

    def batches(size):
        return zip(torch.split(batch, size), torch.split(torch.zeros(10).long(), size), strict=True)

    errors = EndErrors(copy.deepcopy(module), current, batches, tap=tap, head=head, kept=[0, 1, 2, 3])
    groups = current.grouping.groups
    last = next(group for group in groups if any(member.layer == head for member in groups[group].readers))
    now, after = errors.measure({last: changed[last]})[last]
    assert now == pytest.approx(0, abs=1e-10)
    assert after > 1e-5
    current.remove(last, found[last].kept, found[last].maps)
    other = next(group for group in groups if group != last)
    assert errors.measure({other: changed[other]})[other][0] == pytest.approx(after, rel=1e-4)


class ConvHead(nn.Module):
    """A convolution as the classifier."""

    def __init__(self, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.fc = nn.Conv2d(16, classes, 1)

    def forward(self, x):
        return self.fc(self.b(self.a(x).relu()).relu()).mean(dim=(2, 3))


def test_a_round_costs_about_half_of_naive():
    module = network()
    _, _, changed = proposed(module)
    batch = images(2)
    calls = []
    prefix = SharedPrefix(module, batch, [change.layers for change in changed.values()])
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda p, i, o: calls.append("forward" not in p.__dict__))
    with torch.no_grad():
        prefix.record(batch)
        whole = sum(calls)
        calls.clear()
        for change in changed.values():
            prefix.run(batch, change.layers)
    assert sum(calls) <= 0.6 * whole * len(changed)
    assert all("forward" not in part.__dict__ for part in module.modules())


class InPlace(nn.Module):
    """An addition and activations that write into what came before."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.a(x))
        z = self.b(y)
        z += y
        return self.c(self.relu(z)).mean(dim=(2, 3))


def test_what_is_changed_in_place_is_handed_out_whole():
    module = InPlace().eval()
    batch = images(2)
    with torch.no_grad():
        expected = module(batch)
        prefix = SharedPrefix(module, batch, [["b"], ["c"]])
        prefix.record(batch)
        for layers in (["c"], ["b"], ["c"], ["c"]):
            torch.testing.assert_close(prefix.run(batch, layers), expected)


# ---------------------------------------------------------------------- goals
def test_steps_end_where_groups_may():
    assert [next_count([8, 7, 6, 5, 4, 3, 2, 1, 0], kept, 3) for kept in (8, 5, 3, 2, 1, 0)] == [5, 2, 1, 1, 0, None]
    assert next_count([16, 8], 16, 0.125) == 8
    assert next_count([16, *range(15, 0, -1)], 16, 0.125) == 14
    assert next_count([4, 3, 2, 1], 1, 0.5) is None


@pytest.mark.parametrize(("round_to", "least", "branches"), [(1, 0, True), (4, 0, True), (3, 0.4, True), (1, 0, False)])
def test_counts_are_those_of_the_other_channel_methods(round_to, least, branches):
    counted = count_network(open_network(network()), SIZE, None)
    grouping = counted.groups()
    fields = {"round_to": round_to, "least": least, "branches": branches}
    floor = make_config("hbgs", fields).floor
    assert floor == Floor(**fields) == make_config("l1", fields).floor
    fewest = smallest(grouping, channel_cost(counted), floor)
    for name, group in grouping.groups.items():
        assert floor.counts(group)[-1] == fewest[name]


def test_goals():
    counted = count_network(open_network(network("tiny")), SIZE, None)
    cost = channel_cost(counted)
    goals = Goals(parse_budgets(["params<=50%", "macs<=100%"]), cost, counted.dense)
    whole = cost.channels
    assert goals.gone(whole) == 0
    assert not goals.met(whole)
    less = whole // 2
    assert goals.met(less)
    assert goals.gone(less) == 1
    # What goes below the limit is worth nothing.
    assert goals.saved(whole, less) == pytest.approx(1)
    assert goals.saved(less, less // 2) == 0
    one = whole.copy()
    one[1] -= 1
    assert 0 < goals.saved(whole, one) < 1
    assert goals.gone(one) == pytest.approx(goals.saved(whole, one))


def test_registry():
    assert set(GREEDY_PLANS) <= set(CHANNEL_METHODS)
    for name in GREEDY_PLANS:
        assert make_config(name, {}).name == name
        assert METHODS[name].config.model_fields["name"].default == name
    with pytest.raises(Exception, match="whole number"):
        make_config("hbgs", {"step": 1.5})
    with pytest.raises(UsageError, match="selector must be backward"):
        make_config("hbgts", {"selector": "omp", "score": "activations"})


def test_current_comes_back_from_its_state():
    module = network()
    current, found, _ = proposed(module)
    for name in list(found)[:3]:
        current.remove(name, found[name].kept, found[name].maps)
    dead = list(current.kept)[3]
    current.remove(dead, np.zeros(0, dtype=np.int64), ())
    other, _ = begin(module)
    other.restore({name: kept.tolist() for name, kept in current.kept.items()}, current.tensors())
    batch = images(3)
    with torch.no_grad():
        assert torch.equal(other.module(batch), current.module(batch))
        small = current.small()
        torch.testing.assert_close(small(batch), current.module(batch), atol=1e-5, rtol=1e-5)
        next(iter(small.parameters())).mul_(1.5)
        current.take_back(small)
        torch.testing.assert_close(current.module(batch), small(batch), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(current.module(batch), other.module(batch), atol=1e-3)


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self, classes=4):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.nb = nn.Conv2d(16, 24, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(24)
        self.c, self.nc = nn.Conv2d(24, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        x = self.na(self.a(x)).relu()
        x = self.nb(self.b(x)).relu()
        return self.fc(self.nc(self.c(x)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("score", ["filters", "activations"])
def test_groups_of_a_convolution_keep_equally_many(score, monkeypatch):
    monkeypatch.setitem(NETWORKS, "grouped", lambda classes: Grouped(classes))
    module = network("grouped")
    current, candidates = begin(module, score=score)
    batch = images(4)
    sections = {name: group.sections for name, group in current.grouping.groups.items()}
    assert max(sections.values()) == 4
    for name in list(sections) * 2:
        count = len(current.kept[name]) - 2 * sections[name] // min(2, sections[name])
        candidate = candidates.propose({name: count})[name]
        assert len(candidate.kept) == count
        change = changes(current.module, current.grouping.groups[name], candidate)
        with torch.no_grad(), applied(current.module, change):
            looked = current.module(batch)
        candidates.changed(current.remove(name, candidate.kept, candidate.maps), own=name)
        with torch.no_grad():
            torch.testing.assert_close(current.small()(batch), looked, atol=1e-4, rtol=1e-4)
