"""Every built-in network: shapes, names, parameter counts, determinism, export."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from billhook.models import REGISTRY, build, find_head, open_network, parse_spec
from billhook.models.blocks import PadShortcut
from billhook.models.mobilenet_v2 import pad_same

SPECS = [
    ("resnet20", 32, 10),
    ("resnet32", 32, 10),
    ("resnet44", 32, 10),
    ("resnet56,shortcut=conv", 32, 10),
    ("resnet110", 32, 10),
    ("resnet18", 224, 1000),
    ("resnet18,stem=cifar,width=0.5", 32, 10),
    ("resnet34", 224, 1000),
    ("resnet50,width=0.25", 224, 1000),
    ("resnet101,stem=cifar,width=0.125", 32, 10),
    ("resnext50_32x4d,width=0.25", 224, 1000),
    ("resnext50_32x4d,stem=cifar,width=0.25", 32, 10),
    ("resnext101_32x8d,width=0.125", 224, 1000),
    ("resnext101_32x16d,stem=cifar,width=0.125", 32, 10),
    ("vgg16,width=0.125", 224, 1000),
    ("vgg16,stem=cifar,width=0.25", 32, 10),
    ("vgg16_bn,width=0.125", 224, 1000),
    ("vgg16_bn,stem=cifar", 32, 10),
    ("wrn26_12,width=1", 32, 10),
    ("preresnet20", 32, 10),
    ("preresnet56", 32, 10),
    ("preresnet110", 32, 10),
    ("preresnet164", 32, 10),
    ("mobilenet_v2", 224, 1000),
    ("mobilenet_v2,padding=tf,width=0.5", 224, 1000),
    ("tinycnn", 8, 10),
]


def params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("spec", "size", "classes"), SPECS)
def test_opened_network_is_what_it_says(spec, size, classes):
    network = open_network(spec)
    assert (network.spec, network.input_size, network.classes) == (spec, size, classes)
    assert network.builtin
    assert not network.initialised
    assert network.weights_hash is None
    assert not network.module.training
    small = 32 if "vgg" in spec else max(size // 4, 8)
    with torch.no_grad():
        assert network.module(torch.zeros(2, 3, small, small)).shape == (2, classes)


def test_every_registered_name_is_tried():
    assert {spec.partition(",")[0] for spec, _, _ in SPECS} == set(REGISTRY)


@pytest.mark.parametrize(
    ("spec", "classes", "count"),
    [
        ("resnet20", 10, 269_722),  # He et al. 2016, table 6: 0.27 M
        ("resnet32", 10, 464_154),
        ("resnet32", 100, 470_004),
        ("resnet56", 10, 853_018),
        ("resnet56", 100, 858_868),
        ("resnet110", 10, 1_727_962),
        ("resnet56,shortcut=conv", 100, 861_620),
        ("resnet18", 1000, 11_689_512),  # these and below: torchvision's table
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("mobilenet_v2", 1000, 3_504_872),
        ("mobilenet_v2,padding=tf", 1000, 3_504_872),
        ("tinycnn", 10, 131_754),
    ],
)
def test_parameter_counts(spec, classes, count):
    assert params(build(spec, classes)) == count


@pytest.mark.parametrize(
    ("spec", "classes", "count"),
    [
        ("resnet101", 1000, 44_549_160),  # these and below to VGG-16-BN: torchvision's table
        ("resnext50_32x4d", 1000, 25_028_904),
        ("resnext101_32x8d", 1000, 88_791_336),
        ("resnext101_32x16d", 1000, 194_026_792),
        ("resnext101_32x16d,stem=cifar", 10, 191_990_602),  # CIFAR-10: "193 M" in the HBGS paper
        ("vgg16", 1000, 138_357_544),
        ("vgg16_bn", 1000, 138_365_992),
        ("vgg16_bn,stem=cifar", 10, 14_728_266),
        ("wrn26_12", 10, 52_520_538),
        ("preresnet164", 10, 1_703_258),  # He et al. 2016b: 1.7 M
        ("preresnet164", 100, 1_726_388),
    ],
)
def test_parameter_counts_of_large_networks(spec, classes, count):
    name, options = parse_spec(spec)
    with torch.device("meta"):  # shapes only
        assert params(REGISTRY[name].build(classes, REGISTRY[name].complete(options))) == count


def test_torchvision_names():
    resnet = build("resnet50").state_dict()
    assert resnet["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert resnet["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert resnet["fc.weight"].shape == (1000, 2048)
    mobile = build("mobilenet_v2").state_dict()
    assert mobile["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert mobile["features.2.conv.1.0.weight"].shape == (96, 1, 3, 3)
    assert mobile["features.18.0.weight"].shape == (1280, 320, 1, 1)
    assert mobile["classifier.1.weight"].shape == (1000, 1280)
    grouped = build("resnext50_32x4d").state_dict()
    assert grouped["layer1.0.conv2.weight"].shape == (128, 4, 3, 3)
    assert grouped["layer4.2.conv3.weight"].shape == (2048, 1024, 1, 1)
    vgg = build("vgg16_bn,width=0.125").state_dict()
    assert vgg["features.40.weight"].shape == (64, 64, 3, 3)
    assert vgg["features.40.bias"].shape == vgg["features.41.running_var"].shape == (64,)
    assert vgg["classifier.0.weight"].shape == (512, 64 * 49)
    assert vgg["classifier.6.weight"].shape == (1000, 512)


def test_names_of_the_cifar_networks():
    vgg = build("vgg16,stem=cifar,width=0.25").state_dict()
    assert vgg["features.28.weight"].shape == (128, 128, 3, 3)
    assert vgg["classifier.weight"].shape == (10, 128)
    wide = build("wrn26_12,width=2").state_dict()
    assert wide["conv1.weight"].shape == (16, 3, 3, 3)
    assert wide["layer1.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert wide["layer3.3.conv2.weight"].shape == (128, 128, 3, 3)
    assert len({name.split(".")[1] for name in wide if name.startswith("layer2")}) == 4
    pre = build("preresnet164").state_dict()
    assert pre["layer1.0.bn1.weight"].shape == (16,)
    assert pre["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert pre["layer3.17.conv3.weight"].shape == (256, 64, 1, 1)
    assert pre["bn.weight"].shape == (256,)
    assert "layer2.0.downsample.1.weight" not in pre


def test_a_pre_activation_block_adds_to_its_input_as_it_is():
    block = build("preresnet20").get_submodule("layer1.1")
    with torch.no_grad():
        block.get_parameter("conv3.weight").zero_()
        x = torch.randn(2, 64, 4, 4)
        assert torch.equal(block(x), x)


def test_groups_do_not_mix():
    conv = build("resnext50_32x4d,width=0.25").get_submodule("layer1.0.conv2")
    x = torch.randn(1, 32, 4, 4)
    other = x.clone()
    other[:, 0] += 1
    with torch.no_grad():
        changed = (conv(x) - conv(other)).abs().amax(dim=(0, 2, 3)) > 0
    assert changed.nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize(
    "spec", ["resnet18", "resnet20", "resnext50_32x4d,width=0.125", "vgg16_bn,width=0.125", "preresnet20", "wrn26_12"]
)
def test_activations_are_modules_of_their_own_and_overwrite_nothing(spec):
    name, options = parse_spec(spec)
    with torch.device("meta"):
        module = REGISTRY[name].build(10, REGISTRY[name].complete(options))
    calls: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            assert not part.inplace
            part.register_forward_hook(lambda part, args, output: calls.append(part))
    module(torch.zeros(2, 3, 32, 32, device="meta"))
    assert len(calls) == len(set(calls)) > 8


@pytest.mark.parametrize(
    "spec",
    [
        "resnet20",
        "resnet18,stem=cifar,width=0.25",
        "resnext50_32x4d,width=0.125",
        "vgg16,stem=cifar,width=0.25",
        "wrn26_12,width=1",
        "preresnet20",
        "mobilenet_v2,width=0.25",
        "tinycnn",
    ],
)
def test_random_weights_are_a_function_of_the_seed(spec):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (open_network(spec, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "the global random state was disturbed"
    assert all(torch.equal(one[key], same[key]) for key in one)
    head = next(key for key in reversed(one) if key.endswith("weight"))
    assert not torch.equal(one[head], other[head])


def test_kaiming_scale():
    weight = build("resnet56").get_parameter("layer3.5.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    "spec",
    [
        "resnet20",
        "resnet20,shortcut=conv",
        "resnext50_32x4d,stem=cifar,width=0.125",
        "vgg16,width=0.0625",
        "vgg16_bn,stem=cifar,width=0.125",
        "wrn26_12,width=1",
        "preresnet20",
        "mobilenet_v2,padding=tf,width=0.25",
        "tinycnn",
    ],
)
def test_torch_export_traces_it(spec):
    network = open_network(spec)
    size = min(network.input_size, 64)
    image = torch.randn(1, 3, size, size)
    exported = torch.export.export(network.module, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network.module(image))


def test_pad_shortcut_puts_channels_on_both_sides():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    out = PadShortcut(x.shape[1], 1, 1, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert out[:, 0].abs().sum() == out[:, 3].abs().sum() == 0


def test_option_a_pads_a_quarter_of_the_planes_on_each_side():
    module = build("resnet20")
    assert vars(module.get_submodule("layer2.0.downsample"))["before"] == 8
    assert vars(module.get_submodule("layer3.0.downsample"))["after"] == 16


@pytest.mark.parametrize(
    ("size", "stride", "pads"),
    [(8, 2, (0, 1)), (7, 2, (1, 1)), (8, 1, (1, 1)), (9, 3, (0, 0)), (10, 3, (1, 1)), (1, 2, (1, 1))],
)
def test_same_padding_is_heavier_at_the_end(size, stride, pads):
    out = pad_same(torch.ones(1, 1, size, size), 3, stride)
    assert torch.equal(out, F.pad(torch.ones(1, 1, size, size), (*pads, *pads)))
    assert (out.shape[-1] - 3) // stride + 1 == -(-size // stride)


def test_find_head_of_ours():
    expected = {
        "resnet20": "linear",
        "resnet20,shortcut=conv": "fc",
        "resnet18": "fc",
        "resnext50_32x4d,width=0.125": "fc",
        "vgg16,width=0.125": "classifier.6",
        "vgg16,stem=cifar": "classifier",
        "wrn26_12,width=1": "fc",
        "preresnet20": "fc",
        "mobilenet_v2": "classifier.1",
    }
    assert {spec: find_head(build(spec)) for spec in expected} == expected
