"""Rough weights: quickly made, and still random numbers of the right size in every place; and none at all."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from billhook.models import open_network
from billhook.models.rough import NoWeights, RoughWeights


def made(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("spec", ["resnet18,width=0.5", "vgg16,width=0.25", "mobilenet_v2"])
def test_weights_have_the_mean_and_the_spread_of_an_initialisation(spec):
    module = open_network(spec).module
    rough = dict(open_network(spec, draw="rough").module.named_parameters())
    assert list(rough) == [name for name, _ in module.named_parameters()]
    large = [(name, old) for name, old in module.named_parameters() if old.numel() >= 1 << 14]
    assert large
    for name, old in large:
        new, old = rough[name].detach(), old.detach()
        assert new.shape == old.shape
        assert new.std() == pytest.approx(float(old.std()), rel=0.05), name
        assert abs(float(new.mean())) < 0.05 * float(old.std()), name


def test_no_two_filters_and_no_two_layers_are_alike():
    with RoughWeights():
        layers = [nn.Conv2d(256, 256, 3), nn.Conv2d(256, 256, 3)]
    rows = torch.cat([layer.weight.detach().flatten(1) for layer in layers])
    assert len(rows.unique(dim=0)) == 512
    columns = torch.cat([layer.weight.detach().transpose(0, 1).flatten(1) for layer in layers])
    assert len(columns.unique(dim=0)) == 512


@pytest.mark.parametrize(
    ("fill", "low", "high", "mean"),
    [
        (lambda t: t.uniform_(2, 6), 2, 6, 4),
        (lambda t: nn.init.uniform_(t, -1, 0), -1, 0, -0.5),
        (lambda t: nn.init.trunc_normal_(t, mean=1, a=0, b=2), 0, 2, 1),
        (lambda t: nn.init.xavier_uniform_(t), -0.06, 0.06, 0),
        (lambda t: t.normal_(3, 0.1), 2, 4, 3),
        (lambda t: nn.init.normal_(t, mean=-3, std=0.1), -4, -2, -3),
    ],
)
def test_numbers_are_those_asked_for(fill, low, high, mean):
    tensor = torch.full((1000, 1000), torch.nan)
    with RoughWeights():
        fill(tensor)
    assert low <= float(tensor.min()) < mean < float(tensor.max()) <= high
    assert float(tensor.mean()) == pytest.approx(mean, abs=0.02)
    assert not torch.equal(tensor[0], tensor[1])


def test_what_is_small_is_initialised_as_always():
    plain = made(lambda: nn.Linear(20, 10))
    with RoughWeights():
        rough = made(lambda: nn.Linear(20, 10))
    assert torch.equal(plain.weight, rough.weight)
    assert torch.equal(plain.bias, rough.bias)


def test_it_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    open_network("tinycnn", draw="rough")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made(lambda: nn.Linear(400, 400).weight), made(lambda: nn.Linear(400, 400).weight))
    assert open_network("tinycnn", draw="rough").weights_hash is None


@pytest.mark.parametrize(
    "fill",
    [
        lambda t: t.normal_(),
        lambda t: nn.init.kaiming_normal_(t, mode="fan_out"),
        lambda t: nn.init.xavier_uniform_(tensor=t),
        lambda t: nn.init.normal_(tensor=t, std=0.01),
    ],
)
def test_nothing_is_drawn(fill):
    tensor = torch.full((4, 3, 3, 3), torch.nan)
    before = torch.get_rng_state()
    with NoWeights():
        fill(tensor)
    assert torch.isnan(tensor).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_random_number_is_there():
    """Counters and fixed values are in no file, or in none of an older version."""
    module = open_network("resnet20", draw="none").module
    assert all(norm.num_batches_tracked == 0 for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))
    assert torch.equal(module.bn1.running_var, torch.ones(16))


def test_shapes_alone_are_quick():
    """PyTorch's initialisations of meta tensors import its decompositions, and SymPy with them: seconds for nothing."""
    code = (
        "import sys, torch\n"
        "from billhook.models import REGISTRY, open_network\n"
        "with torch.device('meta'):\n"
        "    made = [open_network(spec, 10, draw='none') for spec in sorted(REGISTRY)]\n"
        "assert all(p.is_meta for network in made for p in network.module.parameters())\n"
        "print('sympy' in sys.modules, len(made) > 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
