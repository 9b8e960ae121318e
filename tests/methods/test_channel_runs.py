"""Whole plans of the channel methods on tiny networks: the budget is met, and the smaller network computes the same."""

import pytest
import torch

from billhook.cost import count
from billhook.methods import CHANNEL_CONFIGS, METHODS, make_config
from billhook.methods.slimming import REACH, L1Scales, strength

from .problems import NETWORKS, carry_out, check_conformance, ready

SIZES = {"mobilenet_v2": 32}


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("method", sorted(CHANNEL_CONFIGS))
def test_conformance(network, method):
    size = SIZES.get(network, 8)
    keep = [0, 2] if method in ("taylor", "l1") else None
    done = carry_out(ready(network, method, "params<=50%", size=size, keep=keep, streams=True))
    masked = check_conformance(done)
    # The masked network is the dense one in shape, and has no more weights that are not zero.
    assert count(masked, size).params == done.prepared.setting.cost.params
    assert sum(int((p != 0).sum()) for p in masked.parameters()) <= sum(p.numel() for p in done.full.parameters())


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_go_part_of_the_way_each(rounds):
    done = carry_out(ready("tiny", "l1", "macs<=40%", rounds=rounds, epochs=4.0))
    events = [line for line in done.outcome.history if line["event"] == "channels"]
    assert len(events) == rounds == len(done.outcome.channels)
    dense = done.prepared.setting.dense["macs"]
    for number, line in enumerate(events, 1):
        assert line["macs"] <= dense * (1 - 0.6 * number / rounds) * 1.001
    seconds = [line["seconds"] for line in done.outcome.history]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("method", ["random", "l1", "fpgm"])
def test_rounds_on_padded_shortcuts(method):
    """Once cut, such a shortcut may take channels that it hands on to nobody, the last one among them."""
    check_conformance(carry_out(ready("resnet20", method, "params<=40%", rounds=3, epochs=3.0, streams=True)))


def test_steps_before_the_last_removal_are_a_share_of_all():
    plan = ready("tiny", "l1", "macs<=40%", rounds=4, share=0.5, epochs=10.0).plan
    assert plan.share == pytest.approx(0.5, abs=3 / plan.steps)
    assert ready("tiny", "l1", "macs<=40%", epochs=10.0).plan.share == 0
    assert ready("tiny", "slimming", "macs<=40%", epochs=10.0).plan.share > 0
    assert ready("tiny", "slimming", "macs<=40%", epochs=10.0, penalty=False).plan.share == 0


@pytest.mark.parametrize("method", ["taylor", "activation"])
def test_images_for_scores_are_paid_for(method):
    prepared = ready("tiny", method, "macs<=40%", images=24, rounds=2, epochs=10.0)
    problem = prepared.setting.problem
    trained = prepared.plan.steps / problem.steps * problem.images
    assert trained + 2 * 24 == pytest.approx(problem.images, rel=1 / problem.steps)


@pytest.mark.parametrize("method", ["l1", "taylor"])
@pytest.mark.parametrize("network", ["mobilenet_v2", "tiny"])
def test_readers_make_up_for_what_goes(network, method):
    """The same budget and the same proofs with compensation, in one removal and in two."""
    size = SIZES.get(network, 8)
    for rounds in (1, 2):
        asked = {"size": size, "compensation": "next-layer", "calibration": 16, "rounds": rounds}
        done = carry_out(ready(network, method, "params<=50%", **asked))
        check_conformance(done)


def test_images_for_compensation_are_paid_for():
    """A forward pass is a third of a training step."""
    prepared = ready("tiny", "l1", "macs<=40%", compensation="next-layer", calibration=30, rounds=2, epochs=10.0)
    problem = prepared.setting.problem
    trained = prepared.plan.steps / problem.steps * problem.images
    assert trained + 2 * 30 / 3 == pytest.approx(problem.images, rel=1 / problem.steps)


def test_a_sparse_network_is_told_that_its_zeros_grow_back():
    module = NETWORKS["tiny"](4)
    assert not any("grow back" in note for note in ready(module, "l1", "macs<=40%").plan.notes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.5)
    assert any("grow back" in note for note in ready(module, "l1", "macs<=40%").plan.notes)


def test_layers_that_keep_their_channels_say_why():
    left = ready("tiny", "l1", "macs<=40%").plan.left_dense
    assert any("output" in entry["reason"] for entry in left)


def test_the_penalty_pushes_the_scales_down():
    def total(l1):
        done = carry_out(ready("tiny", "slimming", "macs<=95%", l1=l1, share=0.8, epochs=6.0))
        norms = [m for m in done.outcome.masked.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        return sum(float(m.weight.detach().abs().sum()) for m in norms)

    assert total(0.5) < 0.9 * total(0.0)


def test_the_penalty_is_the_subgradient():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    before = net[1].weight.grad.clone()
    L1Scales(net, 0.3).after_backward(0)
    torch.testing.assert_close(net[1].weight.grad - before, torch.tensor([0.3, -0.3, 0.0, 0.3]))


def test_the_default_strength_brings_a_small_scale_to_zero():
    assert strength(None, 0.05, 100) * 0.05 * 100 == pytest.approx(REACH)
    assert strength(0.25, 0.05, 100) == 0.25


def test_each_baseline_has_its_own_config():
    for name in CHANNEL_CONFIGS:
        config = make_config(name, {"rounds": 2})
        assert (config.name, config.rounds) == (name, 2)
        assert METHODS[name].config is type(config)
