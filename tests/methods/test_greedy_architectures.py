"""Greedy methods on every kind of registered network, narrow: pruned, and the same in its old shape."""

import pytest
import torch

from billhook import artifact
from billhook.models import REGISTRY, build

from .problems import carry_out, ready

NARROW = {
    "resnet20": ("resnet20,shortcut=conv", 16),
    "resnet18": ("resnet18,stem=cifar,width=0.125", 16),
    "resnet50": ("resnet50,stem=cifar,width=0.125", 16),
    "resnext50_32x4d": ("resnext50_32x4d,stem=cifar,width=0.25", 16),
    "vgg16": ("vgg16,stem=cifar,width=0.125", 32),
    "vgg16_bn": ("vgg16_bn,stem=cifar,width=0.125", 32),
    "wrn26_12": ("wrn26_12,width=0.1", 16),
    "preresnet20": ("preresnet20", 16),
    "mobilenet_v2": ("mobilenet_v2,width=0.25", 32),
    "tinycnn": ("tinycnn", 8),
}
DEEPER = {"resnet32", "resnet44", "resnet56", "resnet110", "resnet34", "resnet101", "resnext101_32x8d",
          "resnext101_32x16d", "preresnet56", "preresnet110", "preresnet164"}  # fmt: skip
SEARCH = {"step": 0.5, "selection": 4, "stale": 50, "finetune_every": 0}


def test_every_registered_network_has_its_like_here():
    assert set(NARROW) | DEEPER == set(REGISTRY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("fp-backward", {}),
        ("hbgs", SEARCH),
        ("hbgts", SEARCH | {"tap": "last-block"}),
        ("hbgs", SEARCH | {"compensation": "pointwise", "stale": 1}),
    ],
    ids=["fp-backward", "hbgs", "hbgts", "pointwise"],
)
@pytest.mark.parametrize("name", sorted(NARROW))
def test_conformance(name, method, fields):
    spec, size = NARROW[name]
    pointwise = "compensation" in fields
    if pointwise and name == "mobilenet_v2":
        pytest.skip("nothing but depthwise convolutions is wider than one pixel")
    share = 60 if not pointwise else 95 if name.startswith("resnext") else 80
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(spec, 4)
    prepared = ready(module, method, f"params<={share}%", size=size, calibration=4, epochs=0.25, **fields)
    done = carry_out(prepared)
    assert done.cost.params <= share / 100 * prepared.setting.dense["params"]
    masked = artifact.deliverable(done.outcome.masked)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = masked(images), done.full(images)
    assert torch.isfinite(found).all()
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()
