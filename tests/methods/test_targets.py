"""Which layers take a pattern, and what is said of the others."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from billhook.cost import count
from billhook.methods.targets import find_targets
from billhook.models import build
from billhook.patterns import NM, HybridPattern
from training.small import seeded

from .problems import carry_out, ready


class Everything(nn.Module):
    """One layer of every kind."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.plain = nn.Conv2d(24, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.grouped = nn.Conv2d(24, 24, 1, groups=2)
        self.transposed = nn.ConvTranspose2d(24, 22, 2, stride=2)
        self.odd = nn.Conv2d(22, 16, 1)
        self.line = nn.Conv1d(16, 16, 1)
        self.wide = nn.Linear(16, 16)
        self.narrow = nn.Linear(16, 12)
        self.fc = nn.Linear(12, classes)
        self.unused = nn.Conv2d(24, 24, 1)

    def forward(self, x):
        x = self.grouped(self.depthwise(self.plain(self.first(x).relu()).relu())).relu()
        x = self.odd(self.transposed(x)).relu()
        x = self.line(x.flatten(2)).mean(dim=2)
        return self.fc(self.narrow(self.wide(x).relu()).relu())


def sorted_out(module, head, kept=None, nm="2:4", block=16, size=4):
    pattern = HybridPattern(NM.parse(nm), block) if nm else None
    targets, left = find_targets(count(module, size), head, kept, pattern)
    return {t.name: t for t in targets}, {entry["name"]: entry["reason"] for entry in left}


def test_every_kind_of_layer():
    targets, left = sorted_out(seeded(Everything), "fc")
    assert list(targets) == ["plain", "wide"]
    assert left == {
        "first": "first convolution",
        "depthwise": "depthwise convolution",
        "grouped": "grouped convolution (2 groups)",
        "transposed": "transposed convolution",
        "odd": "M = 4 does not divide its 22 input channels",
        "line": "convolution over 1 dimensions",
        "narrow": "linear layer with 12 outputs (fewer than 16)",
        "fc": "head with 4 outputs (fewer than 16)",
    }


def test_unstructured_asks_for_no_divisibility():
    targets, left = sorted_out(seeded(Everything), "fc", nm=None)
    assert list(targets) == ["plain", "odd", "wide"]
    assert "odd" not in left


@pytest.mark.parametrize(("nm", "odd"), [("1:2", True), ("2:11", True), ("1:3", False)])
def test_divisibility_is_by_m(nm, odd):
    targets, _ = sorted_out(seeded(Everything), "fc", nm=nm, block=0)
    assert ("odd" in targets) == odd


def test_what_a_target_says_of_itself():
    target = sorted_out(build("tinycnn"), "fc", size=8)[0]["conv3"]
    # 4 x 4 positions after the pooling
    assert (target.outputs, target.taps, target.inputs, target.positions) == (64, 9, 64, 16)
    assert (target.weights, target.parameter) == (64 * 64 * 9, "conv3.weight")


@pytest.mark.parametrize(
    ("classes", "kept", "taken"),
    [
        (40, None, 40),
        (40, range(0, 40, 2), 20),
        (40, range(16), 16),
        (40, range(15), None),
        (15, None, None),
        (16, None, 16),
    ],
)
@pytest.mark.parametrize("conv_head", [False, True])
def test_the_head_is_judged_by_the_rows_it_is_delivered_with(classes, kept, taken, conv_head):
    layers = [nn.Conv2d(3, 16, 1), nn.ReLU()]
    if conv_head:
        layers += [nn.Conv2d(16, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    else:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)]
    head = "2" if conv_head else "4"
    targets, left = sorted_out(nn.Sequential(*layers), head, kept and tuple(kept))
    if taken is None:
        assert "head with" in left[head]
    else:
        assert targets[head].outputs == taken
        assert targets[head].weights == taken * 16


def test_rows_of_a_sliced_head():
    kept = (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
    target = sorted_out(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(32, 40)), "2", kept, size=2)[0]["2"]
    weight = torch.arange(40 * 32.0).reshape(40, 32)
    assert torch.equal(target.matrix(weight)[:, 0], weight[list(kept)])
    mask = torch.rand(16, 1, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    full = target.full_mask(mask)
    assert full.shape == (40, 32)
    assert torch.equal(full[list(kept)], mask[:, 0])
    assert full[[0, 2, 33]].all()  # rows that are sliced off stay open


def test_full_masks_of_convolutions_go_round():
    target = sorted_out(build("tinycnn"), "fc", size=8)[0]["conv2"]
    mask = torch.rand(64, 9, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    assert target.full_mask(mask).shape == (64, 32, 3, 3)
    assert torch.equal(target.matrix(target.full_mask(mask)), mask)


def test_a_layer_that_runs_twice_is_one_target_with_all_its_positions():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

        def forward(self, x):
            return self.fc(self.body(self.body(self.first(x)).relu()).mean(dim=(2, 3)))

    targets, _ = sorted_out(seeded(Twice), "fc")
    assert list(targets) == ["body"]
    assert targets["body"].positions == 2 * 16


class Tied(nn.Module):
    """Two modules, one weight; the one that is registered later runs first where ``swapped``."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)
        self.b.weight = self.a.weight
        self.order = (self.b, self.a) if swapped else (self.a, self.b)

    def forward(self, x):
        x = self.first(x).relu()
        for layer in self.order:
            x = layer(x).relu()
        return self.fc(self.c(x).mean(dim=(2, 3)))


class Computed(nn.Module):
    """A weight that a parametrization computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3)
        self.normed = parametrizations.weight_norm(nn.Conv2d(16, 16, 3))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.normed(self.plain(self.first(x)).relu()).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("make", "dense"),
    [(lambda: Tied(False), {"b"}), (lambda: Tied(True), {"a", "b"}), (Computed, {"normed"})],
)
@pytest.mark.parametrize("method", ["crisp", "magnitude"])
def test_shared_and_computed_weights_stay_dense_and_are_named(make, dense, method):
    prepared = ready(seeded(make), method, "sparsity>=25%")
    left = {entry["name"]: entry["reason"] for entry in prepared.plan.left_dense}
    assert dense <= left.keys()
    assert all("shared" in left[name] for name in dense)
    done = carry_out(prepared)
    assert done.sparsity >= 0.25
    assert not {f"{name}.weight" for name in dense} & done.patterns.keys()
