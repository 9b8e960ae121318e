"""Patterns on their way into a packed file: masks bit for bit, whatever is folded into the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.export import export_packed
from billhook.formats import PatternInfo, read_network, read_safetensors, unpack_patterns
from billhook.formats.graph import Preprocess
from billhook.runtime.reference import run

from .networks import Gate, settle


class Net(nn.Module):
    """Every kind of layer that can be pruned, and every way in which its weight changes its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body, self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.grouped, self.third = nn.Conv2d(16, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.gate = Gate(spread=False)
        self.whole = nn.Linear(8 * 4 * 4, 8)
        self.neck, self.head = nn.Conv2d(8, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x)))
        x = F.relu(self.second(self.body(x)))
        x = self.gate(F.relu(self.third(self.grouped(x))))
        x = x * torch.sigmoid(self.whole(x.flatten(1)))[:, :, None, None]
        return self.head(F.relu(self.neck(F.adaptive_avg_pool2d(x, 1)).flatten(1)))


def two_of_four(shape: tuple[int, ...], rng: np.random.Generator, block: int = 0) -> NDArray[np.bool_]:
    """Two of four inputs of every tap; with ``block``, in half of the blocks of every row of blocks."""
    rows, inputs, *kernel = shape
    order = rng.permuted(np.broadcast_to(np.arange(4), (rows, *kernel, inputs // 4, 4)), axis=-1)
    mask = (order < 2).reshape(rows, *kernel, inputs)
    if block:
        taps = int(np.prod(kernel))
        columns = taps * inputs // block
        kept = rng.permuted(np.broadcast_to(np.arange(columns), (rows // block, columns)), axis=-1) < columns // 2
        whole = kept.repeat(block, 0).repeat(block, 1)  # of W2: taps, and inputs within them
        mask = mask & whole.reshape(rows, *kernel, inputs)
    return np.ascontiguousarray(np.moveaxis(mask, -1, 1))


def pruned(module: Net) -> dict[str, PatternInfo]:
    """Patterns of all kinds on the weights of the network, which is masked by them."""
    rng = np.random.default_rng(0)
    state = module.state_dict()

    def hybrid(name: str, block: int = 0) -> PatternInfo:
        return PatternInfo("hybrid", 2, 4, block, two_of_four(tuple(state[name].shape), rng, block))

    patterns = {
        "body.weight": hybrid("body.weight", 4),
        "grouped.weight": hybrid("grouped.weight"),
        "gate.down.weight": hybrid("gate.down.weight"),
        "whole.weight": hybrid("whole.weight", 8),
        "neck.weight": hybrid("neck.weight"),
        "head.weight": PatternInfo("unstructured", 1, 1, 0, rng.random((5, 12)) < 0.3),
    }
    for name, pattern in patterns.items():
        state[name].mul_(torch.from_numpy(pattern.mask))
        kept = np.argwhere(pattern.mask)[0]
        state[name][tuple(kept)] = 0  # kept, and zero all the same
    return patterns


@pytest.fixture
def net() -> tuple[Net, dict[str, PatternInfo]]:
    torch.manual_seed(0)
    module = settle(Net())
    assert isinstance(module, Net)
    with torch.no_grad():
        patterns = pruned(module)
        module.second.weight[3] = 0  # a channel that BatchNorm switches off: its whole row becomes zero
    return module, patterns


def test_masks_survive_bit_for_bit(net: tuple[Net, dict[str, PatternInfo]], tmp_path: Path) -> None:
    module, patterns = net
    path = tmp_path / "packed.safetensors"
    preprocess = Preprocess(8, 9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    labels = ("a", "b", "c", "d", "e")
    size = export_packed(module, path, input_shape=(3, 8, 8), patterns=patterns, labels=labels, preprocess=preprocess)
    assert size == path.stat().st_size
    network = read_network(path)
    assert (network.graph.labels, network.graph.preprocess) == (labels, preprocess)
    # Names are those of the modules, and so are the tensors'.
    assert set(network.packed) == set(patterns)
    found = unpack_patterns(*read_safetensors(path))
    for name, pattern in patterns.items():
        assert np.array_equal(found[name].mask.reshape(pattern.mask.shape), pattern.mask), name
        if name != "whole.weight":
            before, after = ((p.kind, p.n, p.m, p.block) for p in (pattern, found[name]))
            assert after == before
    # A linear layer over a whole map is a convolution here, in whose columns there are no such groups.
    assert found["whole.weight"].kind == "unstructured"
    assert found["gate.down.weight"].mask.ndim == 4
    assert found["neck.weight"].mask.ndim == 2

    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.abs(run(network, x.numpy()) - expected).max() < 1e-4 * np.abs(expected).max()


def test_rows_are_scaled_and_nothing_else(net: tuple[Net, dict[str, PatternInfo]], tmp_path: Path) -> None:
    module, patterns = net
    export_packed(module, tmp_path / "p.safetensors", input_shape=(3, 8, 8), patterns=patterns)
    weight = read_network(tmp_path / "p.safetensors").weight("body.weight")
    norm = module.second
    scale = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach()[:, None, None, None]
    expected = (module.body.weight.detach().double() * scale).float().numpy()
    assert np.array_equal(weight, expected)
    assert not weight[3].any()


def test_a_packed_network_is_smaller(net: tuple[Net, dict[str, PatternInfo]], tmp_path: Path) -> None:
    module, patterns = net
    dense = export_packed(module, tmp_path / "dense.safetensors", input_shape=(3, 8, 8))
    assert not read_network(tmp_path / "dense.safetensors").packed
    assert export_packed(module, tmp_path / "p.safetensors", input_shape=(3, 8, 8), patterns=patterns) < dense


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(12, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


def test_a_weight_that_nothing_reads_is_left_out(tmp_path: Path) -> None:
    pattern = PatternInfo("unstructured", 1, 1, 0, np.ones((4, 4), bool))
    export_packed(Spare(), tmp_path / "p.safetensors", input_shape=(3, 2, 2), patterns={"spare.weight": pattern})
    assert set(read_network(tmp_path / "p.safetensors").tensors) == {"used.weight", "used.bias"}
