"""Built-in networks, pruned and dense, from PyTorch to a packed file and through the runtime: the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from billhook.export import export_packed
from billhook.formats import PatternInfo, read_network
from billhook.formats.graph import Preprocess
from billhook.models import open_network
from billhook.runtime import native, reference
from billhook.runtime.network import load

from .networks import hybrid_mask

FAST = [
    ("tinycnn", 8),
    ("resnet20", 32),
    ("resnext50_32x4d,stem=cifar,width=0.125", 32),
    ("mobilenet_v2,padding=tf,width=0.5", 64),
]
SLOW = [
    ("preresnet20", 32),
    ("vgg16_bn,stem=cifar,width=0.25", 32),
    ("resnet20,shortcut=conv", 32),
    ("resnet56", 32),
    ("resnet110", 32),
    ("resnet18", 64),
    ("resnet18", 61),
    ("resnet34", 64),
    ("resnet50,width=0.5", 96),
    ("resnet101,stem=cifar,width=0.25", 32),
    ("resnext50_32x4d,width=0.5", 64),
    ("resnext101_32x8d,width=0.25", 64),
    ("resnext101_32x16d,stem=cifar,width=0.125", 32),
    ("vgg16,width=0.25", 96),
    ("vgg16,stem=cifar,width=0.25", 32),
    ("wrn26_12,width=2", 32),
    ("preresnet56", 32),
    ("preresnet110", 32),
    ("preresnet164", 32),
    ("mobilenet_v2", 224),
]
SPECS = [*FAST, *(pytest.param(spec, marks=pytest.mark.slow) for spec in SLOW)]
ISAS = [native.ISAS[isa] for isa in native.usable()] if native.available() else []


def settled(spec: str, size: int) -> nn.Module:
    """With BatchNorm statistics of random images, so that numbers stay of one size."""
    module = open_network(spec).module
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.bias, -0.3, 0.3, generator=generator)
    with torch.no_grad():
        module.train()(torch.randn(8, 3, size, size, generator=generator))
    return module.eval()


def prune(module: nn.Module) -> dict[str, PatternInfo]:
    """2:4 in a part of the blocks where that is possible, single weights elsewhere; the first layer stays dense."""
    rng = np.random.default_rng(0)
    patterns: dict[str, PatternInfo] = {}
    weights = [(name, p) for name, p in module.named_parameters() if name.endswith("weight") and p.ndim in (2, 4)]
    for name, parameter in weights[1:]:
        shape = tuple(parameter.shape)
        if shape[1] == 1:
            continue
        if shape[1] % 4 == 0 and shape[0] >= 16:
            patterns[name] = PatternInfo("hybrid", 2, 4, 16, hybrid_mask(rng, shape, 2, 4, 16, 0.5))
        else:
            patterns[name] = PatternInfo("unstructured", 1, 1, 0, rng.random(shape) < 0.4)
        with torch.no_grad():
            parameter *= torch.from_numpy(patterns[name].mask)
    return patterns


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: f"{spec[0]} {spec[1]}")
def case(request, tmp_path_factory):
    spec, size = request.param
    module = settled(spec, size)
    patterns = prune(module)
    file = tmp_path_factory.mktemp("zoo") / "packed.safetensors"
    outputs = open_network(spec).classes
    labels = [f"class {number}" for number in range(outputs)]
    preprocess = Preprocess(size, size, (0.5,) * 3, (0.25,) * 3)
    export_packed(module, file, input_shape=(3, size, size), patterns=patterns, labels=labels, preprocess=preprocess)
    images = np.random.default_rng(1).standard_normal((8, 3, size, size), np.float32)
    with torch.no_grad():
        return file, images, module(torch.from_numpy(images)).numpy(), patterns


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_numpy_equals_pytorch(case):
    file, images, expected, patterns = case
    network = read_network(file)
    assert len(network.packed) == len(patterns)
    assert off(reference.run(network, images[:3]), expected[:3]) < 1e-4


@pytest.mark.skipif(not ISAS, reason="no library")
def test_f32_equals_pytorch(case):
    file, images, expected, _ = case
    for isa in ISAS:
        for threads in (1, 2):
            net = load(file, threads=threads, plan="default", isa=isa)
            for batch in (1, 3, 8):
                assert off(net(images[:batch]), expected[:batch]) < 1e-4, (isa, threads, batch)


@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="no instructions for bf16")
def test_bf16_is_close(case):
    file, images, expected, _ = case
    net = load(file, threads=2, plan="default", precision="bf16")
    for batch in (1, 3, 8):
        assert off(net(images[:batch]), expected[:batch]) < 2e-2


@pytest.mark.slow
@pytest.mark.skipif(not ISAS, reason="no library")
@pytest.mark.parametrize("precision", ["f32", "bf16"] if "avx512_bf16" in ISAS else ["f32"])
def test_planned_equals_guessed(case, precision, tmp_path):
    file, images, expected, _ = case
    copy = Path(tmp_path / "packed.safetensors")
    copy.write_bytes(file.read_bytes())
    net = load(copy, threads=2, precision=precision)
    assert off(net(images), expected) < (1e-4 if precision == "f32" else 2e-2)
