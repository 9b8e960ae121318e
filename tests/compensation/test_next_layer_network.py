"""Readers of many groups that make up for removed channels, fitted in one pass of the images."""

import copy

import numpy as np
import pytest
import torch

from billhook.compensation import absorb, collect_moments, fit_reader, make_up, next_layer_network
from billhook.models import open_network
from billhook.surgery import channel_groups, plan_channels, remove_channels


def opened(spec="resnet20", seed=0):
    """A network in float64 whose BatchNorms do something, its groups, and images."""
    torch.manual_seed(seed)
    network = open_network(spec)
    module = network.module.double().eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.2, 0.5)
    images = torch.randn(12, 3, 16, 16, dtype=torch.float64)
    return module, channel_groups(module, 16), images


def inner(grouping):
    """Groups that one layer writes: the insides of blocks."""
    return {name: group for name, group in grouping.groups.items() if len(group.writers) == 1}


def half(grouping, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: np.sort(rng.permutation(group.channels)[: group.channels // 2]) for name, group in inner(grouping).items()
    }


def test_it_is_what_the_groups_would_take_up_one_by_one():
    module, grouping, images = opened()
    kept = half(grouping)
    expected = copy.deepcopy(module)
    for name, channels in kept.items():
        # Fitted on the network as it came, whatever the others absorbed.
        moments = collect_moments(module, grouping, [images], [name])[name]
        absorb(expected, grouping.groups[name], [fit_reader(one, channels) for one in moments.values()])
    assert not make_up(module, grouping, kept, lambda: images.split(5))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, rtol=1e-7, atol=1e-9)


def test_groups_that_keep_all_are_left_alone():
    module, grouping, _ = opened()
    before = copy.deepcopy(module.state_dict())
    everything = {name: np.arange(group.channels) for name, group in grouping.groups.items()}
    assert not make_up(module, grouping, everything, lambda: pytest.fail("nobody needs images"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_the_network_comes_nearer_to_what_it_computed():
    module, grouping, images = opened()
    kept = half(grouping)
    with torch.no_grad():
        dense = module(images)
        bare = remove_channels(module, plan_channels(module, grouping, kept))(images)
        make_up(module, grouping, kept, lambda: [images])
        fitted = remove_channels(module, plan_channels(module, grouping, kept))(images)
    assert float((fitted - dense).norm()) < 0.5 * float((bare - dense).norm())


def test_moments_that_do_not_fit_together_are_taken_in_several_passes(monkeypatch):
    module, grouping, images = opened()
    other, kept = copy.deepcopy(module), half(grouping)
    passes = []

    def batches():
        passes.append(len(passes))
        return [images]

    make_up(module, grouping, kept, batches)
    assert len(passes) == 1
    monkeypatch.setattr(next_layer_network, "MOST", 8 * next_layer_network.FOLDS * 2 * 32**2)
    make_up(other, grouping, kept, batches)
    assert len(passes) > 3
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-7, atol=1e-9)


def test_too_few_images_are_said():
    module, grouping, images = opened("tinycnn")
    assert make_up(module, grouping, half(grouping), lambda: [images[:1, :, :8, :8] * 0 + 1])


def test_a_branch_that_goes_leaves_its_mean():
    module, grouping, images = opened()
    name = next(name for name, group in inner(grouping).items() if group.branch is not None)
    kept = {name: np.array([], dtype=np.int64)}
    with torch.no_grad():
        dense = module(images)
        bare = remove_channels(module, plan_channels(module, grouping, kept))(images)
        make_up(module, grouping, kept, lambda: [images])
        fitted = remove_channels(module, plan_channels(module, grouping, kept))(images)
    assert float((fitted - dense).norm()) < float((bare - dense).norm())
