"""Gates on every architecture: they leave it as it was, count as what surgery leaves, close what it removes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from billhook.cost import count
from billhook.methods.chipnet import Gates, SoftCost, lay_out
from billhook.methods.chipnet.threshold import choice_of
from billhook.models import REGISTRY, build
from billhook.surgery import channel_groups, plan_channels, remove_channels
from billhook.surgery.channel_cost import QUANTITIES, ChannelCost
from models.test_libraries import installed

from .networks import random_mask

COUPLINGS = ["group", "independent"]
SIZE = 32
# Whole shapes with few channels: no index depends on how many there are.
OPTIONS = {
    "resnet18": "stem=cifar,width=0.125",
    "resnet34": "stem=cifar,width=0.125",
    "resnet50": "stem=cifar,width=0.125",
    "resnet101": "stem=cifar,width=0.125",
    "resnext50_32x4d": "stem=cifar,width=0.5",
    "resnext101_32x8d": "stem=cifar,width=0.25",
    "resnext101_32x16d": "stem=cifar,width=0.25",
    "vgg16": "stem=cifar,width=0.125",
    "vgg16_bn": "stem=cifar,width=0.125",
    "wrn26_12": "width=0.125",
    "mobilenet_v2": "width=0.25",
}
LONG = {
    "resnet32",
    "resnet44",
    "resnet110",
    "resnet34",
    "preresnet56",
    "resnext50_32x4d",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_32x16d",
    "preresnet110",
    "preresnet164",
}
# Squeeze and excitation, concatenations, sections, layers without normalisation.
LIBRARY = ["mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1", "regnet_y_400mf", "googlenet"]
CASES = [
    *(pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in REGISTRY),
    "resnet20,shortcut=conv",
    *(pytest.param(f"torchvision:{name}", marks=[pytest.mark.slow, installed("torchvision")]) for name in LIBRARY),
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A network in float64, its groups, its cost."""
    spec = request.param
    options = OPTIONS.get(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(spec if options is None else f"{spec},{options}", 4).eval()
        if spec == "torchvision:googlenet":  # its own initialisation lets nothing of an image through
            for part in module.modules():
                if isinstance(part, nn.Conv2d):
                    nn.init.kaiming_normal_(part.weight)
    grouping, counted = channel_groups(module, SIZE), count(module, SIZE)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    cost = ChannelCost(counted, grouping, counted.bytes, shapes=shapes)
    return module.double(), grouping, cost


def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()


@torch.no_grad()
def outputs(module):
    return module(images())


def close(found, expected):
    return float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_counts_of_gates_are_those_of_surgery(case, coupling):
    module, grouping, cost = case
    layout = lay_out(module, grouping, coupling)
    soft = SoftCost(cost, layout)
    whole = soft.totals(torch.ones(layout.total), branches=False)
    assert dict(zip(QUANTITIES, whole.tolist(), strict=True)) == cost.totals({})
    # Once with branches that go, once without: then the polynomial that is learnt on says the same.
    for seed, empty in ((0, 0.3), (1, 0.0)):
        mask = random_mask(layout, seed, empty=empty)
        choice = choice_of(mask, np.zeros(len(mask)), layout)
        found = count(remove_channels(module, plan_channels(module, grouping, choice.kept, choice.own)), SIZE)
        hard = soft.hard(mask)
        if not soft.dead(mask):
            assert soft.totals(torch.from_numpy(mask), branches=False).tolist() == hard.tolist()
        else:
            assert empty
        said = dict(zip(QUANTITIES, hard.tolist(), strict=True))
        expected = {name: getattr(found, name) for name in ("channels", "volume", "params", "macs")}
        assert {name: said[name] for name in expected} == expected


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_gates_leave_the_network_what_it_was_and_close_what_surgery_removes(case, coupling):
    module, grouping, _ = case
    layout = lay_out(module, grouping, coupling)
    gates, gated = Gates(layout).double(), copy.deepcopy(module)
    gates.compensate(gated)
    gates.attach(gated)
    assert close(outputs(gated), outputs(module))
    gates, gated = Gates(layout).double(), copy.deepcopy(module)
    mask = random_mask(layout, 2)
    gates.attach(gated)
    gates.harden(mask)
    choice = choice_of(mask, np.zeros(len(mask)), layout)
    small = remove_channels(module, plan_channels(module, grouping, choice.kept, choice.own))
    assert close(outputs(gated), outputs(small))
    assert not close(outputs(gated), outputs(module))
