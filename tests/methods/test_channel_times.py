"""Milliseconds by the widths of layers: what is fitted, what a network is told to take, and where channels then go."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import billhook as bh
from billhook import latency
from billhook.errors import Interrupted
from billhook.latency.packed import LayerTimes
from billhook.methods import channel_times, count_network
from billhook.methods.channel_limits import channel_cost
from billhook.methods.channel_times import SHARES, ChannelTimes, fit
from billhook.methods.chipnet import SoftCost, lay_out
from billhook.models import open_network
from billhook.surgery import plan_channels, remove_channels
from billhook.surgery.channel_cost import Times

PARTS = st.tuples(*(st.sampled_from([0.0, 1e-5, 3e-4, 0.02, 1.0]) for _ in range(3))).filter(any)
WIDTHS = ((64, 32), (45, 22), (29, 14), (16, 8), (8, 4))


@given(PARTS)
def test_what_was_put_in_comes_out(parts):
    a, b, c = parts
    times = [a * o * i + b * o + c for o, i in WIDTHS]
    found = fit(WIDTHS, times)
    told = [found[0] * o * i + found[1] * o + found[2] for o, i in WIDTHS]
    assert told == pytest.approx(times, rel=1e-6)


@given(st.lists(st.floats(1e-3, 10), min_size=5, max_size=5))
def test_no_part_is_ever_negative_and_no_other_choice_of_parts_fits_better(times):
    found = np.array(fit(WIDTHS, times))
    assert (found >= 0).all()
    terms = np.array([(o * i, o, 1) for o, i in WIDTHS]) / np.array(times)[:, None]
    error = np.square(terms @ found - 1).sum()
    # The problem is convex: nothing nearby that is not negative may be better.
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-1):
        near = np.maximum(0, found + scale * rng.standard_normal((50, 3)) * np.array([1e-3, 1e-1, 1.0]))
        assert (np.square(near @ terms.T - 1).sum(axis=1) >= error - 1e-9).all()


# ---------------------------------------------------------------------- costs
SLOW = "layer3.1.conv1"


def taken(module, slow=SLOW):
    """What a machine takes for a network's layers: arithmetic, maps, and a little for each; one is slow."""
    layers = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            o, i = layer.weight.shape[:2]
            layers[name] = (50 if name == slow else 1) * (1e-4 * o * i + 2e-3 * o + 0.01)
    return layers


def counted(spec="resnet20"):
    return count_network(open_network(spec, 10), 32, None)


def times_of(module):
    """The same as coefficients."""
    scales = {name: 50 if name == SLOW else 1 for name in taken(module)}
    return Times({name: (1e-4 * scale, 2e-3 * scale, 0.01 * scale) for name, scale in scales.items()}, 0.5)


@pytest.mark.parametrize("spec", ["resnet20", "mobilenet_v2", "vgg16_bn,width=0.25"])
def test_a_cost_with_times_tells_what_the_smaller_network_takes(spec):
    found = counted(spec)
    cost = channel_cost(found, times_of(found.network.module))
    assert cost.quantities[-1] == "latency"
    grouping, rng = found.groups(), np.random.default_rng(1)
    for _ in range(3):
        kept = {}
        for name, group in grouping.groups.items():
            size = group.channels // group.sections
            number = int(rng.integers(1, size + 1))
            kept[name] = (np.arange(group.sections)[:, None] * size + np.arange(number)).ravel()
        small = remove_channels(found.network.module, plan_channels(found.network.module, grouping, kept))
        told = cost.totals({name: len(channels) for name, channels in kept.items()})
        assert told["latency"] == pytest.approx(0.5 + sum(taken(small).values()), rel=1e-9)
        plain = channel_cost(found).totals({name: len(channels) for name, channels in kept.items()})
        assert plain == {key: value for key, value in told.items() if key != "latency"}


def test_gates_feel_milliseconds():
    """The soft cost of gates of 0 and 1 is that of the hard choice, milliseconds included."""
    found = counted()
    cost = channel_cost(found, times_of(found.network.module))
    layout = lay_out(found.network.module, found.groups(), "group")
    soft = SoftCost(cost, layout)
    gates = torch.ones(sum(layout.sizes), dtype=torch.float64, requires_grad=True)
    total = soft.totals(gates)
    assert total[-1].item() == pytest.approx(cost.totals({})["latency"])
    total[-1].backward()
    assert (gates.grad > 0).all()


# ---------------------------------------------------------------------- whole runs
class World:
    """A machine that takes :func:`taken` in every layer, and half a millisecond for the rest."""

    def __init__(self, monkeypatch):
        self.tables, self.clocked = 0, 0
        self.wrong = 1.0
        monkeypatch.setattr(channel_times, "_at", self.at)
        monkeypatch.setattr(latency, "measure", self.measure)

    def at(self, counted, share, threads):
        self.tables += share == SHARES[0]
        module = counted.network.module
        grouping = counted.groups()
        some = channel_times.narrowed(grouping, share)
        small = remove_channels(module, plan_channels(module, grouping, some))
        layers = taken(small)
        widths = {name: tuple(small.get_submodule(name).weight.shape[:2]) for name in layers}
        return widths, LayerTimes({f"{name}.weight": time for name, time in layers.items()}, 0.5,
                                  0.5 + sum(layers.values()))  # fmt: skip

    def measure(self, networks, size, **more):
        self.clocked += 1
        found = {name: self.wrong * (0.5 + sum(taken(module).values())) for name, module in networks.items()}
        return {name: latency.Latency(time, time, "billhook", 1) for name, time in found.items()}


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def pruning(method="l1", budget="latency<=50%", out=None, resume=False, **more):
    return bh.prune("resnet20", "digits", method=method, budget=budget, epochs=1, images_per_class=10, out=out,
                    control="none", input_size=8, resume=resume, **more)  # fmt: skip


@pytest.mark.parametrize("method", ["l1", {"name": "l1", "rounds": 2}, "chipnet", "fp-backward", "hbgs"])
def test_the_bound_is_met_and_channels_go_where_the_milliseconds_are(world, method):
    result = pruning(method)
    assert result.met
    entry = result.summary["budget"][0]
    assert 0.9 * entry["bound"] <= entry["value"] <= entry["bound"]
    assert world.tables == 1
    slow, usual = (result.model.get_submodule(name).weight.shape[0] for name in (SLOW, "layer3.2.conv1"))
    if method in ("chipnet", "hbgs"):  # the others go by scores, or take the same share everywhere
        assert slow < usual


def test_few_networks_are_timed_for_a_choice(world):
    pruning()
    few = world.clocked
    assert few <= 8  # dense, smallest, all, smallest again, the guess, and the proof at the end


def test_a_table_that_is_wrong_is_set_right(world):
    world.wrong = 1.6
    result = pruning(budget="latency<=60%")
    entry = result.summary["budget"][0]
    assert 0.9 * entry["bound"] <= entry["value"] <= entry["bound"]


@pytest.mark.parametrize("method", [{"name": "l1", "rounds": 2}, "chipnet", "hbgs"])
def test_an_interrupted_run_makes_the_same_choices_from_the_same_table(world, monkeypatch, tmp_path, method):
    from billhook.training import loop

    place = tmp_path / "run"
    real, stopped = loop._Fit._finish_epoch, []

    def stop(self, lr):
        real(self, lr)
        if self.task.phase == "prune" and not stopped:
            stopped.append(True)
            raise Interrupted("stopped", "continue with --resume", signal_number=2)

    monkeypatch.setattr(loop._Fit, "_finish_epoch", stop)
    with pytest.raises(Interrupted):
        pruning(method, out=place)
    table = json.loads((place / "latency.json").read_text())
    assert tuple(table["shares"]) == SHARES
    assert table["milliseconds"].keys() == taken(open_network("resnet20", 10).module).keys()
    world.wrong = 1.1  # the machine is slower now: a choice that is made again would be another one
    monkeypatch.setattr(loop._Fit, "_finish_epoch", real)
    result = pruning(method, out=place, resume=True)
    assert world.tables == 1
    assert result.model is not None


def test_a_table_comes_back_from_its_file_or_not_at_all(world):
    table = channel_times.measured(counted(), None)
    assert table is not None
    values = json.loads(json.dumps(table.as_dict()))
    back = ChannelTimes.from_dict(values, table.about)
    assert back.times() == table.times()
    for damage in ({"about": {}}, {"scale": 0}, {"scale": None}, {"rest_ms": -1}, {"widths": {}}, {"shares": 3}):
        with pytest.raises(ValueError, match=r"table|else"):
            ChannelTimes.from_dict(values | damage, table.about)


def test_a_network_that_our_runtime_does_not_take_has_no_table(monkeypatch):
    """Then MACs stand in for milliseconds, as the clock of another engine tells them."""

    def other(networks, size, **more):
        found = {name: 0.5 + sum(taken(module).values()) for name, module in networks.items()}
        return {name: latency.Latency(time, time, "onnxruntime", 1) for name, time in found.items()}

    monkeypatch.setattr(latency, "measure", other)
    monkeypatch.setattr(channel_times, "_at", lambda *args: pytest.fail("nothing to time"))
    assert pruning().met
