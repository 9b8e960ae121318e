"""Networks as operators against the networks themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from billhook.compensation import PointwiseShape, shape_pointwise
from billhook.export import lower, lower_network
from billhook.formats import read_network, write_network
from billhook.models import REGISTRY, build
from billhook.runtime.reference import run
from billhook.surgery import channel_groups, plan_channels, remove_channels, slice_head

from .interpreter import interpret
from .networks import NETWORKS, Written, conv, settle

DEEP = {"resnet44", "resnet56", "resnet110", "resnet101", "resnext101_32x8d", "resnext101_32x16d", "preresnet56"}
DEEP |= {"preresnet110", "preresnet164", "resnet32", "resnet34"}
OPTIONS = {
    "resnet18": ["width=0.125", "width=0.125,stem=cifar"],
    "resnet50": ["width=0.125"],
    "resnet20": ["", "shortcut=conv"],
    "vgg16": ["width=0.125"],
    "vgg16_bn": ["width=0.125", "width=0.125,stem=cifar"],
    "wrn26_12": ["width=1"],
    "mobilenet_v2": ["width=0.25", "width=0.25,padding=tf"],
}


def specs() -> list[object]:
    every = [",".join(filter(None, (name, option))) for name in REGISTRY for option in OPTIONS.get(name, [""])]
    return [pytest.param(spec, marks=pytest.mark.slow if spec in DEEP else ()) for spec in every]


def check(module: nn.Module, size: int, tmp_path: Path, within: float = 1e-10) -> Counter[str]:
    """Compare in double precision, where an error cannot pass for rounding, and as a file run by numpy.

    Returns:
        How many operators of each kind there are.
    """
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    lowered = lower_network(module, (3, size, size), np.float64)
    with torch.no_grad():
        expected = module(x)
        exact = module.double()(x.double())
        found = interpret(lowered.graph, lowered.tensors, x.double())
    largest = float(exact.abs().max())
    assert float((found - exact).abs().max()) < within * largest
    stored = {n: t.astype(np.float32) if t.dtype.kind == "f" else t for n, t in lowered.tensors.items()}
    write_network(tmp_path / "packed.safetensors", lowered.graph, stored, {})
    again = run(read_network(tmp_path / "packed.safetensors"), x.numpy())
    assert np.abs(again - expected.numpy()).max() < 1e-4 * largest
    return Counter(operator.kind for operator in lowered.graph.operators)


@pytest.mark.parametrize("spec", specs())
def test_built_in_architectures(spec: str, tmp_path: Path) -> None:
    module = settle(build(spec, 7))
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    kinds = check(module, 64 if spec.startswith(("mobilenet", "vgg16,width=0.125")) else 32, tmp_path)
    # BatchNorm is gone, but where it stands before its convolution: one per block, and the last.
    if spec.startswith("preresnet"):
        assert 0 < kinds["scale"] < norms
    else:
        assert kinds["scale"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_users(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Weights that are computed from others are so in single precision.
    check(settle(NETWORKS[name]()), 16, tmp_path, 1e-6 if name == "weight norm" else 1e-10)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gate", {"globalavgpool": 2, "conv": 3, "relu": 2, "sigmoid": 1, "multiply": 1, "flatten": 1, "linear": 1}),
        ("shuffle", {"conv": 1, "relu": 1, "gather": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("doubled", {"conv": 1, "relu": 1, "gather": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("zeros behind", {"conv": 1, "relu": 1, "gather": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("shortcut", {"conv": 2, "relu": 1, "gather": 1, "add": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("padded convolution", {"conv": 2, "relu": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("padded maximum", {"conv": 1, "relu": 1, "maxpool": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("mean by its size", {"conv": 1, "relu": 1, "globalavgpool": 2, "flatten": 1, "linear": 1}),
        ("two readers", {"conv": 2, "scale": 1, "relu": 2, "add": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
        ("vectors", {"conv": 1, "flatten": 1, "linear": 2, "relu": 1, "scale": 1, "softmax": 1}),
        ("head of convolutions", {"conv": 1, "globalavgpool": 1, "flatten": 1, "linear": 2, "hardswish": 1}),
        ("hard-swish, written out", {"conv": 1, "relu": 1, "scale": 1, "hardswish": 1, "globalavgpool": 1, "flatten": 1,
                                     "linear": 1}),
        ("hard sigmoid, written out", {"conv": 1, "relu": 1, "scale": 1, "hardsigmoid": 1, "globalavgpool": 1,
                                       "flatten": 1, "linear": 1}),
        ("silu, written out", {"conv": 1, "relu": 1, "scale": 1, "silu": 1, "globalavgpool": 1, "flatten": 1,
                               "linear": 1}),
        ("nearly hard-swish", {"conv": 1, "relu": 1, "scale": 3, "relu6": 1, "multiply": 1, "globalavgpool": 1,
                               "flatten": 1, "linear": 1}),
        ("dropouts", {"conv": 1, "relu": 1, "scale": 1, "globalavgpool": 1, "flatten": 1, "linear": 1}),
    ],
)  # fmt: skip
def test_operators_that_are_left(name: str, kinds: dict[str, int]) -> None:
    graph, _ = lower(settle(NETWORKS[name]()), (3, 16, 16))
    assert Counter(operator.kind for operator in graph.operators) == kinds


def test_names_are_those_of_the_modules() -> None:
    graph, tensors = lower(settle(build("tinycnn", 5)), (3, 8, 8))
    assert [operator.name for operator in graph.operators] == [
        *("conv1", "relu1", "conv2", "relu2", "maxpool", "conv3", "relu3", "conv4", "relu4", "avgpool"),
        *("flatten", "fc"),
    ]
    layers = ("conv1", "conv2", "conv3", "conv4", "fc")
    assert sorted(tensors) == sorted(f"{name}.{role}" for name in layers for role in ("weight", "bias"))
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    assert (graph.input, graph.shape, graph.output) == ("input", (3, 8, 8), "fc")


def test_a_network_is_left_as_it_was() -> None:
    module = settle(build("tinycnn", 5)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    lower(module, (3, 8, 8))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_normalisation_is_folded_as_it_evaluates() -> None:
    torch.manual_seed(0)
    module = settle(nn.Sequential(conv(3, 6, 3, bias=True), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 36, 2)))
    norm, first = module[1], module[0]
    _, tensors = lower(module, (3, 8, 8))
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = first.weight * scale[:, None, None, None]
    bias = (first.bias - norm.running_mean) * scale + norm.bias
    assert np.allclose(tensors["0.weight"], weight.detach(), rtol=1e-6, atol=0)
    assert np.allclose(tensors["0.bias"], bias.detach(), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- pruned networks
@pytest.mark.parametrize("spec", ["resnet20", "preresnet20", "mobilenet_v2,width=0.25,padding=tf"])
def test_networks_that_lost_channels(spec: str, tmp_path: Path) -> None:
    module = settle(build(spec, 7))
    size = 32
    grouping = channel_groups(module, size)
    rng, kept = np.random.default_rng(0), {}
    for number, group in enumerate(grouping.groups.values()):
        run_length = group.channels // group.sections
        # A third of the branches goes altogether.
        left = 0 if group.branch is not None and number % 3 == 0 else max(1, run_length // 2)
        choices = [s * run_length + rng.choice(run_length, left, replace=False) for s in range(group.sections)]
        kept[group.name] = np.concatenate(choices)
    small = remove_channels(module, plan_channels(module, grouping, kept))
    head = {"resnet20": "linear", "preresnet20": "fc"}.get(spec, "classifier.1")
    check(slice_head(small, head, [5, 0]).eval(), size, tmp_path)


@pytest.mark.parametrize("branches", [True, False])
def test_what_is_left_of_shortcuts_may_be_zeros(branches: bool, tmp_path: Path) -> None:
    """The first channel alone of every group: the shortcuts fill it with zeros. Added to a bias, they are a map."""
    module = settle(build("resnet20", 7))
    grouping = channel_groups(module, 32)
    gone = [name for name, group in grouping.groups.items() if branches and group.branch is not None]
    kept = {name: np.arange(0 if name in gone else 1) for name in grouping.groups}
    kinds = check(remove_channels(module, plan_channels(module, grouping, kept)).eval(), 32, tmp_path)
    assert kinds["add"] == (0 if branches else 7)  # of nine


def test_convolutions_between_convolutions(tmp_path: Path) -> None:
    module = build("tinycnn", 5)
    shapes = {"conv2": PointwiseShape(8, 20), "conv3": PointwiseShape(None, 11), "conv4": PointwiseShape(30, None)}
    shape_pointwise(module, shapes)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):  # those between which they stand have no values yet
            nn.init.kaiming_normal_(part.weight)
    kinds = check(settle(module), 8, tmp_path)
    assert (kinds["conv"], kinds["scale"]) == (8, 0)


def test_a_network_without_layers_before_its_head(tmp_path: Path) -> None:
    kinds = check(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval(), 16, tmp_path)
    assert kinds == {"flatten": 1, "linear": 1}


def test_written_networks_fail_where_they_should() -> None:
    """The comparison above sees a wrong operator: a network is not what another one computes."""
    one, other = settle(Written(lambda x: x.flip(1))), settle(Written(lambda x: x))
    other.load_state_dict(one.state_dict())
    lowered = lower_network(one, (3, 16, 16), np.float64)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(interpret(lowered.graph, lowered.tensors, x), other.double()(x), rtol=1e-3)
