"""Plans: made from groups, written and read as plain data, and refused when they do not fit."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from billhook.errors import InputError
from billhook.models import build
from billhook.surgery import ChannelPlan, LayerCut, mask_channels, plan_channels, remove_channels, trace_groups
from billhook.surgery.plan import LONGEST

LAST = {"fc": LayerCut(inside=(0, 1, 2))}


class Every(nn.Module):
    """One layer of every kind that a plan may speak of."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.act = nn.PReLU(6)
        self.ln = nn.LayerNorm(6)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 1))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.depthwise(self.grouped(self.gamma * self.norm(self.conv(x))))
        return self.fc(self.ln(self.body(self.act(self.up(x))).mean((2, 3))))


@pytest.fixture(scope="module")
def resnet():
    module = build("resnet20")
    return module, trace_groups(module, 32)


# ---------------------------------------------------------------------- plain data
@st.composite
def plans(draw):
    positions = st.one_of(st.none(), st.lists(st.integers(-1, 40), max_size=5).map(tuple))
    cut = st.builds(
        LayerCut,
        out=positions,
        inside=positions,
        dim=st.one_of(st.none(), st.integers(0, 3)),
        gather=positions,
        scatter=positions,
        role=st.sampled_from([None, "silent", "idle", "constant"]),
    )
    return ChannelPlan(draw(st.dictionaries(st.text(max_size=8), cut, max_size=4)))


@given(plans())
@settings(max_examples=40)
def test_a_plan_survives_json(plan):
    again = ChannelPlan.from_dict(json.loads(json.dumps(plan.as_dict())))
    assert again == plan


def test_only_what_is_said_is_written():
    plan = ChannelPlan({"a": LayerCut(out=(0, 2)), "b": LayerCut(role="idle"), "c": LayerCut(inside=())})
    assert plan.as_dict() == {"a": {"out": [0, 2]}, "b": {"role": "idle"}, "c": {"inside": []}}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "conv",
        {1: {"out": [0]}},
        {"conv": None},
        {"conv": [0, 1]},
        {"conv": {"out": None}},
        {"conv": {"out": 3}},
        {"conv": {"out": "01"}},
        {"conv": {"out": {"0": 1}}},
        {"conv": {"out": [0, 1.0]}},
        {"conv": {"out": [0, "1"]}},
        {"conv": {"out": [True, False]}},
        {"conv": {"out": [[0]]}},
        {"conv": {"dim": True}},
        {"conv": {"dim": 1.0}},
        {"conv": {"dim": [0]}},
        {"conv": {"role": "gone"}},
        {"conv": {"role": ["idle"]}},
        {"conv": {"role": {}}},
        {"conv": {"outputs": [0]}},
        {"conv": {"__class__": [0]}},
        {"conv": {"scatter": [0] * (LONGEST + 1)}},
    ],
)
def test_other_content_is_no_plan(content):
    with pytest.raises(ValueError, match="not understood"):
        ChannelPlan.from_dict(content)


# ---------------------------------------------------------------------- does it fit
FITTING = {
    "conv": {"out": [0, 7]},
    "norm": {"out": [0, 7]},
    "gamma": {"out": [1, 2], "dim": 0},
    "grouped": {"inside": [0, 3, 4, 7], "out": [1, 3]},
    "depthwise": {"out": [0, 1, 3]},
    "act": {"out": [5]},
    "fc": {"inside": [0, 2]},
    "body.0": {"out": [0, 1], "inside": [0, 3], "gather": [1, 2], "scatter": [-1, 0, -1, 1]},
}


@pytest.mark.parametrize("name", FITTING)
def test_what_fits_is_carried_out(name):
    small = remove_channels(Every(), ChannelPlan.from_dict({name: FITTING[name]}))
    dense, cut = sum(p.numel() for p in Every().parameters()), sum(p.numel() for p in small.parameters())
    assert cut < dense


@pytest.mark.parametrize(
    ("name", "entry", "problem"),
    [
        ("nowhere", {"out": [0]}, "no such layer"),
        ("", {"out": [0]}, "no such layer"),
        ("conv.nowhere", {"out": [0], "dim": 0}, "no such layer"),
        ("norm.running_mean", {"out": [0], "dim": 0}, "no such layer"),
        ("__init__", {"out": [0]}, "no such layer"),
        ("body", {"role": "idle"}, "Sequential has no channels"),
        ("ln", {"out": [0]}, "LayerNorm has no channels"),
        ("conv", {"out": []}, "none is left"),
        ("conv", {"out": [-1, 0]}, "has 8"),
        ("conv", {"out": [0, 8]}, "has 8"),
        ("conv", {"out": [0, 1 << 60]}, "has 8"),
        ("conv", {"out": [1, 0]}, "not in order"),
        ("conv", {"out": [1, 1]}, "not in order"),
        ("conv", {"out": [0, 9, 1]}, "not in order"),
        ("conv", {"inside": []}, "none is left"),
        ("conv", {"inside": [3]}, "has 3"),
        ("conv", {"out": [0], "dim": 0}, "no dimension"),
        ("fc", {"out": [0, 3]}, "has 3"),
        ("norm", {"inside": [0]}, "its inputs are its outputs"),
        ("depthwise", {"inside": [0]}, "its inputs are its outputs"),
        ("grouped", {"out": [0, 1]}, "equally many"),
        ("grouped", {"inside": [0, 1, 4]}, "equally many"),
        ("up", {"out": [0, 3]}, "grouped transposed"),
        ("gamma", {"out": [0]}, "one dimension"),
        ("gamma", {"dim": 0}, "one dimension"),
        ("gamma", {"out": [0], "dim": 3}, "3 dimensions"),
        ("gamma", {"out": [0], "dim": -1}, "3 dimensions"),
        ("gamma", {"out": [8], "dim": 0}, "has 8"),
        ("gamma", {"out": [0], "dim": 0, "scatter": [0]}, "one dimension"),
        ("gamma", {"role": "silent"}, "one dimension"),
        ("conv.weight", {"out": [0], "dim": 0}, "part of a Conv2d"),
        ("norm.bias", {"out": [0], "dim": 0}, "part of a BatchNorm2d"),
        ("conv", {"gather": [0, 1]}, "reads 3"),
        ("conv", {"gather": [0, 1, 3]}, "has 3"),
        ("conv", {"gather": [0, 0, 1]}, "not in order"),
        ("conv", {"gather": [-1, 0, 1]}, "has 3"),
        ("norm", {"out": [0, 1], "gather": [0, 1, 2]}, "reads 2"),
        ("fc", {"inside": [0], "gather": [0]}, "reads 1"),
        ("conv", {"out": [0, 1], "scatter": [0, 1, 2]}, "one place"),
        ("conv", {"out": [0, 1], "scatter": [0, -1]}, "one place"),
        ("conv", {"out": [0, 1], "scatter": [1, 0]}, "one place"),
        ("conv", {"out": [0, 1], "scatter": [0, 1, 1]}, "one place"),
        ("conv", {"out": [0, 1], "scatter": [0, 1, -2]}, "one place"),
        ("conv", {"out": [0], "scatter": [0] + [-1] * 8}, "cannot be put there"),
        ("fc", {"out": [0], "scatter": [0]}, "cannot be put there"),
        ("conv", {"out": [0], "role": "silent"}, "gone"),
        ("norm", {"scatter": [0], "role": "idle"}, "gone"),
        ("conv", {"inside": [0], "role": "constant"}, "constant"),
        ("fc", {"role": "constant"}, "constant"),
        ("norm", {"out": [], "role": "constant"}, "none is left"),
        ("norm", {"out": [9], "role": "constant"}, "has 8"),
        ("norm", {"out": [0], "scatter": [1], "role": "constant"}, "one place"),
    ],
)
@pytest.mark.parametrize("carry_out", [remove_channels, mask_channels])
def test_what_does_not_fit_is_refused_with_the_layers_name(name, entry, problem, carry_out):
    with pytest.raises(InputError) as caught:
        carry_out(Every(), ChannelPlan.from_dict({name: entry}))
    assert f"'{name}'" in caught.value.message
    assert problem in caught.value.message


@st.composite
def wild_entries(draw):
    positions = st.lists(st.one_of(st.integers(-2, 9), st.just(1 << 62)), max_size=9)
    tidy = st.sets(st.integers(0, 8), max_size=9).map(sorted)
    entry = {key: draw(st.one_of(tidy, positions)) for key in draw(st.sets(st.sampled_from(KEYS)))}
    if draw(st.booleans()):
        entry["role"] = draw(st.sampled_from(["silent", "idle", "constant"]))
    if draw(st.integers(0, 4)) == 0:
        entry["dim"] = draw(st.integers(-2, 5))
    return entry


KEYS = ["out", "inside", "gather", "scatter"]
NAMES = ["", "conv", "norm", "gamma", "grouped", "depthwise", "up", "act", "ln", "body", "body.0", "fc", "conv.weight"]


@given(st.dictionaries(st.sampled_from([*NAMES, "x"]), wild_entries(), max_size=4))
@settings(max_examples=60)
def test_no_plan_crashes_or_makes_a_network_larger(content):
    module = Every()
    try:
        small = remove_channels(module, ChannelPlan.from_dict(content))
        mask_channels(module, ChannelPlan.from_dict(content))
    except InputError:
        return
    # Constants are the only new parameters: one value per channel where there was a layer with more.
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------- made from groups
def test_the_plan_of_one_group_literally(resnet):
    module, grouping = resnet
    plan = plan_channels(module, grouping, {"layer1.0.conv1": [3, 1, 3]})
    assert plan.as_dict() == {
        "layer1.0.conv1": {"out": [1, 3]},
        "layer1.0.bn1": {"out": [1, 3]},
        "layer1.0.conv2": {"inside": [1, 3]},
    }


def test_a_stream_ends_at_a_padding_shortcut(resnet):
    module, grouping = resnet
    plan = plan_channels(module, grouping, {"conv1": list(range(8))})
    eight = {"out": list(range(8))}
    blocks = [f"layer1.{block}" for block in range(3)]
    assert plan.as_dict() == {
        "conv1": eight,
        "bn1": eight,
        **{f"{block}.conv1": {"inside": list(range(8))} for block in blocks},
        **{f"{block}.{layer}": eight for block in blocks for layer in ("conv2", "bn2")},
        "layer2.0.conv1": {"inside": list(range(8))},
        "layer2.0.downsample": {"inside": list(range(8))},
    }


def test_all_channels_are_no_cut(resnet):
    module, grouping = resnet
    assert plan_channels(module, grouping, {"conv1": np.arange(16)}) == ChannelPlan({})
    assert plan_channels(module, grouping, {}) == ChannelPlan({})


def test_a_branch_without_channels_is_a_constant(resnet):
    module, grouping = resnet
    plan = plan_channels(module, grouping, {"layer2.1.conv1": [], "layer2.0.downsample": range(4)})
    cuts = plan.as_dict()
    assert cuts["layer2.1.conv1"] == {"role": "silent"}
    assert cuts["layer2.1.bn1"] == cuts["layer2.1.conv2"] == {"role": "idle"}
    assert cuts["layer2.1.bn2"] == {"role": "constant", "out": [0, 1, 2, 3]}
    assert cuts["layer2.2.conv1"] == {"inside": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("resnet20", "conv1"),
        ("resnet20", "layer2.0.downsample"),
        ("resnet20,shortcut=conv", "layer3.0.downsample.0"),
        ("preresnet20", "layer2.0.downsample.0"),
        ("preresnet20", "layer2.0.conv1"),
        ("mobilenet_v2", "features.0.0"),
        ("mobilenet_v2", "features.2.conv.0.0"),
        ("tinycnn", ""),
    ],
)
def test_a_group_that_the_network_needs_keeps_a_channel(spec, name):
    module = build(spec)
    grouping = trace_groups(module, 32)
    name = next(group for group in grouping.groups if group.startswith(name))
    with pytest.raises(InputError, match=f"no channel of '{name}' would be left"):
        plan_channels(module, grouping, {name: []})


def test_sections_keep_equally_many():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 5, 3), nn.Conv2d(5, 2, 1))
    grouping = trace_groups(module, 16)
    assert (grouping.groups["0"].sections, grouping.groups["1"].sections, grouping.groups["2"].sections) == (4, 4, 1)
    for kept in ([0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3]):
        with pytest.raises(InputError, match="each of the 4 groups of '0' must keep equally many"):
            plan_channels(module, grouping, {"0": kept})
    plan = plan_channels(module, grouping, {"0": [0, 3, 5, 6], "1": [1, 3, 5, 7]})
    assert plan.layers["1"] == LayerCut(out=(1, 3, 5, 7), inside=(0, 3, 5, 6))
    assert remove_channels(module, plan)[1].weight.shape == (4, 1, 3, 3)


def test_channels_that_are_not_there(resnet):
    module, grouping = resnet
    with pytest.raises(InputError, match="no channel group 'conv9'"):
        plan_channels(module, grouping, {"conv9": [0]})
    for channels in ([0, 16], [-1, 0], [*range(15), 99]):
        with pytest.raises(InputError, match="'conv1' has 16 channels and no channel"):
            plan_channels(module, grouping, {"conv1": channels})
    with pytest.raises(InputError, match="'bn1' has 16 channels and no channel 16"):
        plan_channels(module, grouping, {}, own={"bn1": [16]})
    for mask in (np.ones(16, dtype=bool), [True] * 16, np.ones(16)):
        with pytest.raises(TypeError, match="'conv1'"):
            plan_channels(module, grouping, {"conv1": mask})


def test_layers_that_cannot_have_channels_of_their_own(resnet):
    module, grouping = resnet
    for layer in ("linear", "relu", "avgpool", "nowhere", ""):
        with pytest.raises(InputError, match=f"no channel group is put out by '{layer}'"):
            plan_channels(module, grouping, {}, own={layer: [0]})
    with pytest.raises(InputError, match=r"'layer2.0.downsample' cannot keep channels of its own"):
        plan_channels(module, grouping, {}, own={"layer2.0.downsample": [9]})
