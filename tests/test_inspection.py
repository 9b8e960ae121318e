"""``inspect`` from Python: counts, reasons and floors, against a pruning plan for the same problem."""

from __future__ import annotations

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
from billhook.methods import METHODS
from billhook.models import open_network
from billhook.recipe import make_recipe

BUDGETS = ["sparsity>=80%", "effective_macs<=40%", "bytes<=45%"]


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
    assert document["groups"] == document["feasible"] == []
    for key in ("params", "nonzero", "macs", "effective_macs", "channels", "volume"):
        assert sum(entry[key] for entry in document["layers"]) == document["totals"][key]
    assert {entry["group"] for entry in document["layers"]} == {None}
    assert layer(document, "conv1")["shape"] == [16, 3, 3, 3]
    assert layer(document, "conv1")["output_shape"] == [16, 32, 32]


def test_it_counts_in_one_forward_pass():
    calls = []

    class Watched(nn.Sequential):
        def forward(self, x):
            calls.append(tuple(x.shape))
            return super().forward(x)

    module = Watched(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert inspected("passed", module, data={"input_size": 12})["classes"] == 4
    assert calls == [(1, 3, 12, 12)]


def test_every_method_says_what_it_can_prune_and_why_not():
    document = inspected("mobilenet_v2", data={"input_size": 32})
    for entry in document["layers"]:
        assert list(entry["prunable"]) == list(METHODS)
        assert all(state is True or (isinstance(state, str) and state) for state in entry["prunable"].values())
    assert set(layer(document, "features.0.0")["prunable"].values()) == {"first convolution"}
    assert set(layer(document, "features.1.conv.0.0")["prunable"].values()) == {"depthwise convolution"}
    assert set(layer(document, "features.0.1")["prunable"].values()) == {"batchnorm has no weight matrix"}
    assert set(layer(document, "classifier.1")["prunable"].values()) == {True}


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
    assert states == {"crisp": reason, "nm-only": reason, "block-only": True, "magnitude": True, "saliency": True}
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
    assert set(layer(document, "1")["prunable"].values()) == {
        "its weight is no parameter of its own (shared, or computed)"
    }
    assert layer(document, "1")["params"] == 16 * 32 * 9 + 32
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("classes", [None, ["3", "5", "8"]])
def test_the_floor_is_that_of_the_plan(method, classes):
    """The same rows as a pruning run sees before it starts, images or none; the head as it will be delivered."""
    budgets = BUDGETS if method != "nm-only" else ["sparsity>=20%", "effective_macs<=80%", "bytes<=80%"]
    plain = {"model": "tinycnn", "method": {"name": method}, "budget": budgets}
    recipe = make_recipe(plain | {"data": {"source": "digits", "classes": classes}})
    wanted, _ = look(recipe, timed=False)
    document = inspected(**plain, data={"source": "digits", "classes": classes})
    assert document["feasible"] == wanted.plan.feasible
    states = {entry["name"]: entry["prunable"][method] for entry in document["layers"]}
    for entry in wanted.plan.left_dense:
        assert states[entry["name"]] == entry["reason"]
    assert {name for name, state in states.items() if state is True} == {t.name for t in wanted.plan.targets}
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
    content = {"model": "tinycnn", "method": {"name": method}, "budget": ["bytes<=90%", "sparsity>=99.9%"]}
    rows = inspected(**content)["feasible"]
    assert [row["feasible"] for row in rows] == [True, False]
    assert rows[1]["asked"] == pytest.approx(0.999)
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
        ({"method": {"name": "magnitude"}, "budget": ["latency<=5ms"]}, "needs a runtime"),
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
