"""A network under one set of masks after the other in our runtime: what it computes, and whose times are whose."""

import numpy as np
import pytest
import torch
from torch import nn

from billhook.formats import PatternInfo
from billhook.latency import packed, turns
from billhook.latency.packed import Packable
from billhook.runtime import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not there")


class Twice(nn.Module):
    """A layer that runs twice, one under BatchNorm, a stem and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.again = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.last, self.norm = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 20)

    def forward(self, x):
        x = self.again(self.again(self.stem(x).relu()).relu()).relu()
        return self.fc(self.norm(self.last(x)).relu().mean(dim=(2, 3)))


def half(weight):
    """2:4 along the inputs: the first two of four."""
    mask = np.zeros(tuple(weight.shape), bool)
    for offset in (0, 1):
        mask[:, offset::4] = True
    return PatternInfo("hybrid", 2, 4, 16, mask)


@pytest.fixture
def module():
    return Twice().eval()


def test_masks_decide_what_is_computed(module):
    packable = Packable(module, (3, 8, 8))
    patterns = {name: half(module.get_parameter(name)) for name in ("again.weight", "last.weight")}
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = module(x).numpy()
        for name, info in patterns.items():
            module.get_parameter(name).mul_(torch.from_numpy(info.mask))
        masked = module(x).numpy()
    assert np.abs(dense - masked).max() > 1e-3
    np.testing.assert_allclose(packable.load({}, 1)(x.numpy()), dense, atol=1e-5)
    network = packable.load(patterns, 1)
    np.testing.assert_allclose(network(x.numpy()), masked, atol=1e-5)
    assert {step["name"]: step["density"] for step in network.plan}["last"] == 0.5
    assert (network.precision, network.threads) == ("f32", 1)


def test_times_go_to_the_weights_that_are_read(module, monkeypatch):
    packable = Packable(module, (3, 8, 8))
    monkeypatch.setattr(packed, "PROFILE_SECONDS", 0.0)
    calls = []

    class Fake:
        """Steps of 1, 2, 4, ... milliseconds; in the first turn the machine is busy."""

        def __init__(self, number):
            self.number, self.turn = number, 0
            self.plan = packable_plan

        def profile(self, repeats):
            calls.append((self.number, repeats))
            self.turn += 1
            busy = 5.0 if self.turn <= 2 else 1.0
            return [step | {"seconds": busy * self.number * 2**at / 1e3} for at, step in enumerate(self.plan)]

        def __call__(self, image):
            assert image.shape == (1, 3, 8, 8)

    packable_plan = list(packable.load({}, 1).plan)
    made = iter([1, 10])
    monkeypatch.setattr(packable, "load", lambda patterns, threads: Fake(next(made)))
    monkeypatch.setattr(turns, "in_turns", lambda runs, **more: {name: [[7.0, 9.0, 8.0]] for name in runs})
    times = packable.time({"a": {}, "b": {}}, 1)
    names = [step["name"] for step in packable_plan]
    of = {name: 2.0**at for at, name in enumerate(names)}
    again = [name for name in names if name.startswith("again")]
    assert len(again) == 2
    assert times["a"].layers == {
        "stem.weight": of["stem"],
        "again.weight": sum(of[name] for name in again),
        "last.weight": of["last"],
        "fc.weight": of["fc"],
    }
    assert times["a"].rest_ms == sum(of.values()) - sum(times["a"].layers.values())
    assert times["b"].layers["fc.weight"] == 10 * of["fc"]
    assert times["a"].p50_ms == 8.0
    # In turns, and as often as fits.
    assert calls == packed.PROFILES * [(1, 1), (1, packed.FEWEST), (10, 1), (10, packed.FEWEST)]


def test_real_times_are_there(module, monkeypatch):
    monkeypatch.setattr(packed, "PROFILE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "BLOCK_SECONDS", 0.0)
    times = Packable(module, (3, 8, 8)).time({"dense": {}}, 1)["dense"]
    assert times.layers.keys() == {"stem.weight", "again.weight", "last.weight", "fc.weight"}
    assert min(times.layers.values()) > 0
    assert times.rest_ms > 0
    assert times.p50_ms > 0
