"""``inspect`` from Python: counts, reasons and floors, against a pruning plan for the same problem."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from billhook import artifact
from billhook.api import look
from billhook.cost import count
from billhook.errors import InfeasibleError, InputError, UsageError
from billhook.inspection import inspect_network, make_inspection
from billhook.methods import CHANNEL_METHODS, METHODS, WEIGHT_METHODS, count_network
from billhook.methods import counted as counting
from billhook.models import open_network
from billhook.recipe import make_recipe

BUDGETS = ["sparsity>=80%", "effective_macs<=40%", "bytes<=45%"]
CHANNEL_BUDGETS = ["params<=20%", "macs<=40%", "channels<=45%"]
OUTPUT = "its channels are the network's output"


def inspected(model="tinycnn", module=None, **content):
    return inspect_network(make_inspection({"model": model} | content), module)


def layer(document, name):
    (found,) = [entry for entry in document["layers"] if entry["name"] == name]
    return found


def test_totals_are_those_of_counting_and_of_the_file(tmp_path):
    document = inspected("resnet20")
    network = open_network("resnet20")
    cost = count(network.module, network.input_size)
    size = artifact.write_model(tmp_path, network.module, {}, {"hashes": {}})
    assert document["totals"] == cost.totals() | {"bytes": size}
    assert document["totals"]["params"] == 269_722  # He et al. 2016: 0.27 M
    assert document["totals"]["macs"] == 40_551_040  # 41 M
    assert document["input_size"] == [32, 32]
    assert document["peak_activation_bytes"] == cost.peak_activation_bytes > 0
    assert document["delivered"] is None
    assert document["feasible"] == []
    for key in ("params", "nonzero", "macs", "effective_macs", "channels", "volume"):
        assert sum(entry[key] for entry in document["layers"]) == document["totals"][key]
    assert layer(document, "conv1")["shape"] == [16, 3, 3, 3]
    assert layer(document, "conv1")["output_shape"] == [16, 32, 32]


# Two residual stages and a head: (name, channels, writers, readers, may vanish).
CHAIN = [
    ("conv1", 16, ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"]),
    ("layer1.0.conv1", 16, ["layer1.0.conv1"]),
    ("layer1.1.conv1", 16, ["layer1.1.conv1"]),
]


def test_groups_of_a_residual_network():
    document = inspected("resnet20")
    groups = {group["name"]: group for group in document["groups"]}
    assert len(groups) == 12  # three streams, nine insides of residual branches
    keys = ["name", "channels", "sections", "layers", "readers", "may_vanish"]
    assert all(list(group) == keys for group in groups.values())
    for name, channels, writers in CHAIN:
        assert groups[name]["layers"] == writers
        assert groups[name]["channels"] == channels
        assert groups[name]["sections"] == 1
        assert groups[name]["may_vanish"] is (name != "conv1")
    assert groups["layer1.0.conv1"]["readers"] == ["layer1.0.conv2"]
    assert {"layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"} <= set(groups["conv1"]["readers"])
    assert sum(group["may_vanish"] for group in groups.values()) == 9
    # Every layer that writes is in its own group; what carries channels is in the group that it carries.
    of = {entry["name"]: entry["group"] for entry in document["layers"]}
    assert all(of[name] == group["name"] for group in groups.values() for name in group["layers"] if name in of)
    assert of["layer1.2.conv2"] == of["bn1"] == of["conv1"] == "conv1"
    assert of["linear"] is None
    assert layer(document, "linear")["prunable"]["l1"] == OUTPUT


def test_sections_of_grouped_convolutions():
    groups = {group["name"]: group for group in inspected("resnext50_32x4d", data={"input_size": 32})["groups"]}
    assert groups["layer1.0.conv1"]["sections"] == 32
    assert groups["layer1.0.conv2"]["sections"] == 32
    assert groups["conv1"]["sections"] == 1


def test_it_counts_in_one_forward_pass():
    calls = []

    class Watched(nn.Sequential):
        def forward(self, x):
            calls.append(tuple(x.shape))
            return super().forward(x)

    module = Watched(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    count_network(open_network(module), 12, None)
    assert calls == [(1, 3, 12, 12)]


class Shuffled(nn.Module):
    """Two convolutions with a channel shuffle between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(32, 4)

    def forward(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.b(x).mean(dim=(2, 3)))


@pytest.mark.parametrize("traceable", [True, False])
def test_channels_are_traced_once_for_all_methods(monkeypatch, traceable):
    calls, found = [], counting.channel_groups

    def noted(module, size):
        calls.append(size)
        if not traceable:
            raise InputError("the channels of Net cannot be traced: it is a riddle", "prune its weights instead")
        return found(module, size)

    monkeypatch.setattr(counting, "channel_groups", noted)
    document = inspected("tinycnn")
    assert len(calls) == 1
    assert bool(document["groups"]) is traceable
    states = {state for entry in document["layers"] if entry["macs"] for state in entry["prunable"].values()}
    assert ("the channels of Net cannot be traced: it is a riddle" in states) is not traceable


def test_a_layer_in_front_of_a_shuffle_says_so():
    document = inspected("passed", Shuffled(), data={"input_size": 12})
    assert [group["name"] for group in document["groups"]] == ["b"]
    states = layer(document, "a")["prunable"]
    assert {states[name] for name in WEIGHT_METHODS} == {"first convolution"}
    (reason,) = {states[name] for name in CHANNEL_METHODS}
    assert "mixe" in reason
    assert layer(document, "a")["group"] is None


def test_a_shuffle_of_a_library_network():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    document = inspected("torchvision:shufflenet_v2_x0_5", data={"input_size": 64})
    assert document["groups"] == []
    assert {entry["group"] for entry in document["layers"]} == {None}
    states = layer(document, "stage2.0.branch1.2")["prunable"]
    assert {states[name] for name in WEIGHT_METHODS} == {True}
    (reason,) = {states[name] for name in CHANNEL_METHODS}
    assert reason.startswith("the channels of ShuffleNetV2 cannot be traced")
    assert "prune its weights instead" not in reason  # a hint for those who asked for it
    with pytest.raises(InputError, match="cannot be traced"):
        inspected("torchvision:shufflenet_v2_x0_5", method={"name": "l1"}, budget=["macs<=50%"])


def test_every_method_says_what_it_can_prune_and_why_not():
    document = inspected("mobilenet_v2", data={"input_size": 32})

    def states(name, methods):
        return {layer(document, name)["prunable"][method] for method in methods}

    for entry in document["layers"]:
        assert list(entry["prunable"]) == list(METHODS) == [*WEIGHT_METHODS, *CHANNEL_METHODS]
        assert all(state is True or (isinstance(state, str) and state) for state in entry["prunable"].values())
    assert states("features.0.0", WEIGHT_METHODS) == {"first convolution"}
    assert states("features.1.conv.0.0", WEIGHT_METHODS) == {"depthwise convolution"}
    assert states("features.0.0", CHANNEL_METHODS) == states("features.1.conv.0.0", CHANNEL_METHODS) == {True}
    assert states("features.0.1", METHODS) == {"batchnorm has no weight matrix"}
    assert states("classifier.1", WEIGHT_METHODS) == {True}
    assert states("classifier.1", CHANNEL_METHODS) == {OUTPUT}


def test_a_pattern_that_does_not_divide_stops_only_the_methods_that_need_it():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 20, 3)
            self.fc = nn.Linear(20, 4)

        def forward(self, x):
            return self.fc(self.b(self.a(x)).mean(dim=(2, 3)))

    states = layer(inspected("passed", Odd(), data={"input_size": 8}), "b")["prunable"]
    reason = "M = 4 does not divide its 6 input channels"
    able = dict.fromkeys(METHODS, True)  # block-only, unstructured, and all that remove channels
    assert states == able | {"crisp": reason, "nm-only": reason}
    fields = {"name": "crisp", "nm": "1:2"}
    one = inspected("passed", Odd(), data={"input_size": 8}, method=fields)
    assert layer(one, "b")["prunable"] == {"crisp": True}
    # Nothing takes 2:4 here: an error where a budget is to be met, as when pruning, and no hindrance to looking.
    with pytest.raises(InputError, match="no layer of module:Odd takes the pattern"):
        inspected("passed", Odd(), data={"input_size": 8}, method={"name": "crisp"}, budget=["sparsity>=10%"])


def test_a_computed_weight_is_counted_and_left_dense():
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    )
    parametrize.register_parametrization(module[1], "weight", Halved())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    document = inspected("passed", module, data={"input_size": 8})
    states = layer(document, "1")["prunable"]
    assert {states[name] for name in WEIGHT_METHODS} == {"its weight is no parameter of its own (shared, or computed)"}
    assert all("computed" in states[name] for name in CHANNEL_METHODS)
    assert layer(document, "1")["params"] == 16 * 32 * 9 + 32
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("classes", [None, ["3", "5", "8"]])
def test_the_floor_is_that_of_the_plan(method, classes):
    """The same rows as a pruning run sees before it starts, images or none; the head as it will be delivered."""
    budgets = BUDGETS if method != "nm-only" else ["sparsity>=20%", "effective_macs<=80%", "bytes<=80%"]
    if method in CHANNEL_METHODS:
        budgets = CHANNEL_BUDGETS
    plain = {"model": "tinycnn", "method": {"name": method}, "budget": budgets}
    recipe = make_recipe(plain | {"data": {"source": "digits", "classes": classes}})
    wanted, _ = look(recipe, timed=False)
    document = inspected(**plain, data={"source": "digits", "classes": classes})
    assert document["feasible"] == wanted.plan.feasible
    states = {entry["name"]: entry["prunable"][method] for entry in document["layers"]}
    for entry in wanted.plan.left_dense:
        assert states[entry["name"]] == entry["reason"]
    if method in WEIGHT_METHODS:
        assert {name for name, state in states.items() if state is True} == {t.name for t in wanted.plan.targets}
    else:
        assert {name for name, state in states.items() if state is True} == {"conv1", "conv2", "conv3", "conv4"}
    # By index, without images; digits are 8 pixels wide and the network is made for others.
    side = document["input_size"][0]
    alone = inspected(**plain, data={"classes": classes, "input_size": side})
    assert alone["feasible"] == document["feasible"]
    assert alone["delivered"] == document["delivered"]
    if classes:
        delivered = wanted.setting.delivered
        assert document["delivered"]["params"] == delivered.params < document["totals"]["params"]
        assert document["delivered"]["bytes"] == wanted.setting.file_bytes({})


@pytest.mark.parametrize("method", list(METHODS))
def test_an_infeasible_budget_is_a_row(method):
    # One channel of each convolution is less than a thousandth of the network.
    share = 0.999 if method in WEIGHT_METHODS else 0.9999
    content = {"model": "tinycnn", "method": {"name": method}, "budget": ["bytes<=90%", f"sparsity>={100 * share:g}%"]}
    rows = inspected(**content)["feasible"]
    assert [row["feasible"] for row in rows] == [True, False]
    assert rows[1]["asked"] == pytest.approx(share)
    assert rows[1]["binding_layer"]
    with pytest.raises(InfeasibleError, match=f"leaves {100 * rows[1]['smallest']:.2f} % sparsity"):
        look(make_recipe(content | {"data": "digits"}), timed=False)


def test_classes_by_the_names_of_a_label_file(tmp_path):
    names = ["cat", "dog", ["n03", "horse"], "ship"]
    (tmp_path / "names.json").write_text(json.dumps(names))
    data = {"labels": str(tmp_path / "names.json")}
    document = inspected(data=data | {"classes": ["horse", "cat"]})
    assert document["classes"] == 4
    head = document["layers"][-1]
    assert document["totals"]["params"] - document["delivered"]["params"] == 2 * (head["shape"][1] + 1)
    assert inspected(data=data | {"classes": ["n03", "dog", "0", "3"]})["delivered"] is None  # all of them
    with pytest.raises(UsageError, match="did you mean 'horse'"):
        inspected(data=data | {"classes": ["hors"]})


def test_names_that_nothing_explains():
    with pytest.raises(UsageError, match=r"nothing says which output of tinycnn is the class 'cat'.*--labels"):
        inspected(data={"classes": ["cat"]})
    with pytest.raises(UsageError, match="class index 10 is out of range"):
        inspected(data={"classes": ["10"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"budget": ["sparsity>=80%"]}, "no method that is to meet it"),
        ({"method": {"nm": "2:4"}}, "settings are given, but no method"),
        ({"method": {"name": "crips"}}, "did you mean 'crisp'"),
        ({"method": {"name": "crisp", "blok": 8}}, "did you mean 'block'"),
        ({"method": {"name": "crisp"}, "budget": ["sparsty>=80%"]}, "did you mean 'sparsity'"),
        ({"method": {"name": "crisp"}, "budget": ["macs<=50%"]}, "the method 'crisp' cannot move macs"),
        ({"method": {"name": "magnitude"}, "budget": ["latency<=5ms"]}, "cannot move latency"),
        ({"data": {"clases": "3"}}, "did you mean 'classes'"),
        ({"data": {"input_size": 0}}, "input_size = 0"),
        ({"data": {"input_size": 5000}}, "at most 4096"),
        ({"train": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"model": "tinycn"}, "did you mean 'tinycnn'"),
    ],
)
def test_wrong_words(content, message):
    with pytest.raises(UsageError, match=message):
        inspected(**({"model": "tinycnn"} | content))


def test_a_size_that_the_network_cannot_take():
    module = nn.Sequential(nn.Conv2d(3, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"fails on a 3x4x4 image in layer '0'.*input size"):
        inspected("passed", module, data={"input_size": 4})


@pytest.mark.parametrize("method", ["l1", "hbgs", "crisp", "magnitude"])
def test_what_one_method_could_leave_of_each_quantity(method):
    """The same as asking for each, and nothing that it does not move."""
    rows = inspected(model="tinycnn", method={"name": method})["reachable"]
    found = {row["quantity"]: row for row in rows}
    channels = method in ("l1", "hbgs")
    moved = {"sparsity", "effective_macs", "bytes"} | ({"params", "macs", "channels", "volume"} if channels else set())
    assert found.keys() == moved
    for quantity, row in found.items():
        budget = "sparsity>=50%" if quantity == "sparsity" else f"{quantity}<=50%"
        (asked,) = inspected(model="tinycnn", method={"name": method}, budget=[budget])["feasible"]
        # A packed file's header has a few digits more or less.
        assert (row["smallest"], row["dense"]) == pytest.approx((asked["smallest"], asked["dense"]), rel=1e-3)
    assert inspected(model="tinycnn")["reachable"] == []
