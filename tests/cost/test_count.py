"""Counting: golden figures, an independent counter, hand-made networks, and leaving the network as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from billhook.cost import count
from billhook.errors import InputError
from billhook.models import REGISTRY, build, open_network


@pytest.mark.parametrize(
    ("spec", "size", "classes", "params", "macs"),
    [
        ("resnet32", 32, 10, 464_154, 68_862_592),
        ("resnet32", 32, 100, 470_004, 68_868_352),
        ("resnet56", 32, 10, 853_018, 125_485_696),
        ("resnet56", 32, 100, 858_868, 125_491_456),
        ("resnet18", 224, 1000, 11_689_512, 1_814_073_344),
        ("resnet50", 224, 1000, 25_557_032, 4_089_184_256),
        ("resnext101_32x8d", 224, 1000, 88_791_336, 16_414_015_488),
        ("vgg16", 224, 1000, 138_357_544, 15_470_264_320),
        ("vgg16_bn,stem=cifar", 32, 10, 14_728_266, 313_201_664),
        ("wrn26_12", 32, 10, 52_520_538, 7_543_905_792),
        ("preresnet164", 32, 10, 1_703_258, 247_646_720),
        ("mobilenet_v2", 224, 1000, 3_504_872, 300_774_272),
        ("mobilenet_v2,padding=tf", 224, 1000, 3_504_872, 300_774_272),
        ("tinycnn", 8, 10, 131_754, 3_005_696),
    ],
)
def test_golden_figures(spec, size, classes, params, macs):
    module = open_network(spec, classes, draw="rough").module
    # Both count the same pass: each sees operations of its own accord.
    with FlopCounterMode(display=False) as flops:
        cost = count(module, size)
    assert (cost.params, cost.macs, cost.bytes, cost.input_size) == (params, macs, 4 * params, (size, size))
    assert sum(layer.params for layer in cost.layers) == params
    assert 2 * cost.macs == flops.get_total_flops()


# The shape of every architecture, with channels that cost little; the figures above are those of the full ones.
LIGHT = {
    "resnet18": ",width=0.25",
    "resnet34": ",width=0.25",
    "resnet50": ",width=0.25",
    "resnet101": ",width=0.25",
    "resnext50_32x4d": ",width=0.25",
    "resnext101_32x8d": ",width=0.125",
    "resnext101_32x16d": ",width=0.125",
    "vgg16": ",width=0.125",
    "vgg16_bn": ",width=0.125",
    "wrn26_12": ",width=1",
    "mobilenet_v2": ",width=0.5",
}
STEMS = [name for name, architecture in REGISTRY.items() if "stem" in architecture.options]


@pytest.mark.parametrize(
    "spec",
    [
        *(name + LIGHT.get(name, "") for name in REGISTRY),
        *(f"{name}{LIGHT[name]},stem=cifar" for name in STEMS),
        "resnet20,shortcut=conv",
        "mobilenet_v2,width=0.5,padding=tf",
    ],
)
def test_every_architecture_counts_as_the_operations_do(spec):
    module = open_network(spec, draw="rough").module
    # Neither square nor a multiple of the strides.
    size = (37, 50)
    with FlopCounterMode(display=False) as flops:
        cost = count(module, size)
    assert 2 * cost.macs == flops.get_total_flops() > 0
    assert cost.params == sum(parameter.numel() for parameter in module.parameters())
    assert cost.input_size == size


def test_resnet56_channels_and_volume():
    cost = count(build("resnet56"), 32)
    assert (cost.channels, cost.volume) == (2032, 532_480)
    assert cost.totals() == {
        "params": 853_018,
        "nonzero": cost.nonzero,
        "macs": 125_485_696,
        "effective_macs": 125_485_696,
        "channels": 2032,
        "volume": 532_480,
        "bytes": 3_412_072,
    }


def test_layers_of_a_small_network():
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1, groups=2, bias=False),
        nn.ConvTranspose2d(6, 5, 2, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    cost = count(net, (8, 12), channels=4)
    rows = [
        (layer.name, layer.kind, layer.params, layer.macs, layer.channels, layer.volume, layer.groups, layer.first)
        for layer in cost.layers
    ]
    assert rows == [
        ("0", "conv", 288, 288 * 24, 8, 8 * 24, 1, True),
        ("1", "batchnorm", 16, 0, 0, 0, 1, False),
        ("2", "depthwise", 80, 72 * 24, 8, 8 * 24, 8, False),
        ("3", "grouped", 24, 24 * 24, 6, 6 * 24, 2, False),
        ("4", "transposed", 120, 120 * 24, 5, 5 * 96, 1, False),
        ("7", "linear", 18, 15, 0, 0, 1, False),
    ]
    assert [layer.output_shape for layer in cost.layers] == [
        (8, 4, 6),
        (8, 4, 6),
        (8, 4, 6),
        (6, 4, 6),
        (5, 8, 12),
        (3, 1, 1),
    ]
    assert cost.layers[3].weight_shape == (6, 4, 1, 1)
    assert cost.layers[0].bytes == 4 * 288
    maps = [4 * 96 + 8 * 24, 16 * 24, 16 * 24, 14 * 24, 6 * 24 + 5 * 96, 5 + 3]
    assert [layer.activation_bytes for layer in cost.layers] == [4 * values for values in maps]
    assert cost.input_size == (8, 12)
    assert cost.peak_activation_bytes == 4 * (6 * 24 + 5 * 96)  # the transposed convolution
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        net.eval()(torch.zeros(1, 4, 8, 12))
    assert 2 * cost.macs == flops.get_total_flops()


def test_effective_macs_leave_out_zero_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(64, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[2].weight.fill_(1)
        net[0].weight[:2] = 0
        net[2].weight[0, :16] = 0
    cost = count(net, 4)
    assert (cost.params, cost.nonzero) == (108 + 128, 54 + 112)
    assert (cost.macs, cost.effective_macs) == (108 * 16 + 128, 54 * 16 + 112)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.unused = nn.Linear(7, 7)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return self.conv(self.pool(self.conv(x))) * self.scale


def test_shared_unused_and_bare_parameters():
    cost = count(Twice(), 8)
    conv = next(layer for layer in cost.layers if layer.name == "conv")
    assert (conv.params, conv.macs, conv.channels) == (84, 81 * (64 + 16), 3)
    assert conv.volume == 3 * (64 + 16)
    assert conv.output_shape == (3, 4, 4)
    assert cost.params == 84 + 56 + 3
    assert "unused" not in [layer.name for layer in cost.layers]


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    net[1].weight = net[0].weight
    cost = count(nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), net), 2)
    assert cost.params == 12 * 8 + 64
    assert cost.macs == 12 * 8 + 2 * 64


def test_linear_on_tokens_counts_every_position():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(3, 5)

        def forward(self, x):
            return self.proj(x.flatten(2).transpose(1, 2))

    cost = count(Tokens(), 4)
    assert cost.macs == 15 * 16
    assert cost.layers[0].output_shape == (5, 16, 1)


def test_parametrised_weights_count_as_they_would_be_delivered():
    class HalfZero(nn.Module):
        def forward(self, weight):
            return weight * (torch.arange(weight.shape[0]) % 2).view(-1, 1, 1, 1)

    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    parametrize.register_parametrization(net[0], "weight", HalfZero())
    cost = count(net, 2)
    assert (cost.params, cost.nonzero, cost.macs, cost.effective_macs) == (12, 6, 48, 24)
    assert len(cost.layers) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "hook",
    [
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 6),
    ],
)
def test_weights_that_older_hooks_compute(hook):
    net = nn.Sequential(hook(nn.Conv2d(3, 4, 1)), nn.Flatten(), hook(nn.Linear(16, 5)))
    with torch.no_grad():
        net(torch.zeros(1, 3, 2, 2))
    cost = count(net, 2)
    assert (cost.params, cost.macs) == (12 + 4 + 80 + 5, 48 + 80)
    assert [layer.weight_shape for layer in cost.layers] == [(4, 3, 1, 1), (5, 16)]
    assert cost.nonzero == sum(int(torch.count_nonzero(part)) for i in (0, 2) for part in (net[i].weight, net[i].bias))


def test_the_network_is_left_as_it_was():
    net = build("tinycnn").train()
    net.get_submodule("bn2").eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [part.training for part in net.modules()]
    count(net, 8)
    with pytest.raises(InputError):
        count(net, 8, channels=5)
    assert [part.training for part in net.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_failure_names_the_layer():
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    net.add_module("fc", nn.Linear(4 * 36, 2))
    assert count(net, 8).macs > 0
    with pytest.raises(InputError, match="3x9x9 image in layer 'fc'"):
        count(net, 9)
    with pytest.raises(InputError, match=r"layer 'body\.0'"):
        count(net, 8, channels=1)


def test_failure_in_the_networks_own_forward():
    class Own(nn.Module):
        def forward(self, x):
            return x.view(7)

    with pytest.raises(InputError, match="image in Own"):
        count(Own(), 8)


def test_half_precision_and_no_parameters():
    assert count(nn.Sequential(nn.Conv2d(3, 2, 1)).bfloat16(), 4).macs == 96
    assert count(nn.ReLU(), 4).params == 0


def test_tuple_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.conv(x), x

    assert count(Two(), 4).macs == 96
