"""A smaller network still has a path from the image to its outputs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from billhook.cost.budget import parse_budgets
from billhook.methods import count_network
from billhook.methods.channel_choice import choose_channels, smallest
from billhook.methods.channel_limits import channel_cost
from billhook.methods.channel_paths import Passage, has_path, with_paths
from billhook.models import build, open_network
from billhook.surgery import plan_channels, remove_channels

from .problems import carry_out, ready


@pytest.fixture(scope="module")
def counted():
    return count_network(open_network(build("resnet20", 4)), 8, None)


def tells_images_apart(module, size=8):
    """With positive weights alone, nothing cancels: what differs at the input differs at every output."""
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    module = copy.deepcopy(module).double()  # what is left of the difference after many layers is small
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()  # constants of branches that are gone
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
            elif getattr(part, "weight", None) is not None:
                # Means: sums would end at the bound of a ReLU6, and a bias would outgrow what is left of a difference.
                nn.init.constant_(part.weight, part.weight.shape[0] / part.weight.numel())
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        return bool((module.eval()(images).std(dim=0) > 0).all())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_scores_and_however_small(counted, seed):
    rng = np.random.default_rng(seed)
    grouping, cost = counted.groups(), channel_cost(counted)
    scores = {name: rng.random(group.channels) for name, group in grouping.groups.items()}
    budget = parse_budgets([("channels<=5%", "macs<=2%", "params<=3%")[seed % 3]])
    kept = choose_channels(scores, grouping, cost, budget, counted.dense)
    assert tells_images_apart(
        remove_channels(counted.network.module, plan_channels(counted.network.module, grouping, kept))
    )


def test_the_worst_gives_its_place_to_the_best_that_is_brought(counted):
    grouping = counted.groups()
    fewest = smallest(grouping, channel_cost(counted))
    streams = [name for name, group in grouping.groups.items() if group.branch is None]
    first, second = "conv1", "layer2.0.downsample"
    assert streams[:2] == [first, second]
    kept = {name: np.arange(number, dtype=np.int64) for name, number in fewest.items()}
    # The shortcut puts the 16 channels of the first stage into the middle of 32, 8 on.
    kept[first], kept[second] = np.array([3, 9]), np.array([0, 4])
    scores = {name: np.arange(group.channels, dtype=np.float64) for name, group in grouping.groups.items()}
    found = with_paths(grouping, kept, scores)
    assert found[second].tolist() == [4, 17]
    assert found[first].tolist() == [3, 9]
    assert has_path(grouping, found)
    assert not has_path(grouping, kept)
    assert kept[second].tolist() == [0, 4]  # the choice itself is left alone
    # A branch that reads the first stage writes everything; one that reads the second has nothing to read.
    branches = [name for name, group in grouping.groups.items() if group.branch is not None]
    for inner, expected in (("layer2.0.conv1", [0, 4]), ("layer2.1.conv1", [4, 17])):
        assert inner in branches
        assert with_paths(grouping, kept | {inner: np.array([0])}, scores)[second].tolist() == expected


@pytest.mark.parametrize("method", ["l1", "chipnet", "fp-backward", "hbgs"])
@pytest.mark.parametrize("quantity", ["channels", "params"])
def test_every_family_of_methods_leaves_a_path(method, quantity):
    brief = {"selection": 8, "calibration": 8, "step": 0.5, "stale": 8, "finetune_every": 0}
    fields = {"chipnet": {"batch_size": 12}, "hbgs": brief}.get(method, {})
    done = carry_out(ready("resnet20", method, f"{quantity}<=4%", **fields))
    assert done.cost.totals()[quantity] <= 0.04 * done.prepared.setting.dense[quantity]
    assert tells_images_apart(done.small)


def test_groups_that_go_one_after_the_other_leave_a_path(counted):
    """From the last stream to the first, with nothing left in between: each depends on what the next one keeps."""
    grouping = counted.groups()
    wanted = {name: int(group.branch is None) for name, group in grouping.groups.items()}
    kept = {name: np.arange(group.channels) for name, group in grouping.groups.items()}
    streams = [name for name in reversed(grouping.groups) if wanted[name]]
    assert [len(kept[name]) for name in streams] == [64, 32, 16]
    orders = {name: kept[name][None] for name in streams}  # the first channel matters most
    # Shortcuts put 32 channels in the middle of 64, and 16 in the middle of 32: 24 to 39 of the last come all the way.
    for name, number in zip(streams, (24, 8, 0), strict=True):
        passage = Passage(grouping, kept, wanted)
        kept[name] = passage.settle(name, orders[name], 1)
        assert kept[name].tolist() == [number]
    assert has_path(grouping, {name: kept[name][: wanted[name]] for name in kept})
    # What leads by itself is left alone, and so is what nothing leads to.
    passage = Passage(grouping, kept, wanted)
    assert passage.settle(streams[2], np.array([[0, 1]]), 1).tolist() == [0]
    dark = Passage(grouping, kept | {streams[1]: np.array([0])}, wanted)
    assert not dark.leads
    assert dark.settle(streams[2], np.array([[3, 1]]), 1).tolist() == [3]


@pytest.mark.parametrize(
    ("method", "every", "number"), [("fp-backward", 0, 5), ("fp-omp", 5, 5), ("lrf", 0, 7), ("lrf", 3, 5)]
)
def test_the_same_share_of_all_groups_leaves_a_path(method, every, number):
    """So few that whole stages are nothing but their shortcuts."""
    fields = {"calibration": 8, "epochs": 2.0, "finetune_every": every}
    done = carry_out(ready("resnet20", method, f"channels<={number}", **fields))
    assert done.cost.channels == number
    assert tells_images_apart(done.small)
