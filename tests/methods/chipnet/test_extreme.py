"""ChipNet to the end at a sixteenth and at the smallest network there is, on every family of architectures."""

import pytest
import torch

from billhook.cost.budget import parse_budgets
from billhook.models import build

from ..problems import carry_out, ready
from ..test_channel_paths import tells_images_apart

NETWORKS = {
    "resnet56": ("resnet56", 8),
    "wrn26, narrow": ("wrn26_12,width=0.125", 8),
    "preresnet20": ("preresnet20", 8),
    "resnet50": ("resnet50,stem=cifar,width=0.25", 16),
    "vgg16_bn": ("vgg16_bn,stem=cifar,width=0.25", 32),
    "mobilenet_v2": ("mobilenet_v2,width=0.5", 32),
}
QUANTITIES = ("channels", "volume", "params", "macs")


def network(name):
    spec, size = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(spec, 4), size


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["group", "independent"])
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sixteenth(name, quantity, coupling):
    module, size = network(name)
    done = carry_out(
        ready(module, "chipnet", f"{quantity}<=6.25%", size=size, coupling=coupling, batch_size=12, epochs=0.5)
    )
    share = done.cost.totals()[quantity] / done.prepared.setting.dense[quantity]
    assert share <= 0.0625
    assert tells_images_apart(done.small, size)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["group", "independent"])
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_there_is(name, quantity, coupling):
    module, size = network(name)
    one = ready(module, "chipnet", f"{quantity}<=100%", size=size, batch_size=12)
    (row,) = one.plan.feasible
    fewest = int(row["smallest"])
    assert parse_budgets([f"{quantity}<={fewest}"])[0].absolute(one.setting.dense) == fewest
    done = carry_out(
        ready(module, "chipnet", f"{quantity}<={fewest}", size=size, coupling=coupling, batch_size=12, epochs=0.5)
    )
    assert done.cost.totals()[quantity] == fewest
    assert tells_images_apart(done.small, size)
