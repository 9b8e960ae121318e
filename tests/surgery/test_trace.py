"""Channel groups as the dependency graph tells them: literal groups, refusals, and nothing left behind."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from billhook.errors import InputError
from billhook.models import build
from billhook.surgery import trace_groups
from billhook.surgery.groups import Branch
from billhook.surgery.watch import reshaping_layer

SIZE = 16
OUTPUT = "its channels are the network's output"


def told(group):
    """A group as short text: side, layer, and its first positions where they are not one, two, three..."""
    lines = []
    for member in group.members:
        plain = np.array_equal(member.index[:, 0], np.arange(group.channels)) and member.index.shape[1] == 1
        at = "" if plain else f" {member.index[:2].tolist()}"
        dim = "" if member.dim is None else f" dim {member.dim}"
        after = "" if member.after is None else f" < {member.after}"
        lines.append(f"{member.side} {member.layer}{at}{dim}{after}")
    return lines


def groups_of(module, size=SIZE):
    grouping = trace_groups(module, size)
    return {name: (group.channels, told(group)) for name, group in grouping.groups.items()}


def body(*layers, outputs):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 3))


class Lambda(nn.Module):
    """A network of named layers and a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def head(net, y):
    return net.fc(torch.relu(y).mean((2, 3)))


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


# ---------------------------------------------------------------------- literal groups
def test_resnet20_with_padding_shortcuts():
    """Stages are streams of their own; what pads channels ends one and begins the next."""
    module = build("resnet20")
    grouping = trace_groups(module, 32)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    streams = ["conv1", "layer2.0.downsample", "layer3.0.downsample"]
    assert set(grouping.groups) == {*streams, *(f"{block}.conv1" for block in blocks)}
    assert grouping.refused == {"linear": OUTPUT}
    assert told(grouping.groups["conv1"]) == [
        "out conv1",
        "through bn1 < conv1",
        *(
            line
            for block in ("layer1.0", "layer1.1", "layer1.2")
            for line in (f"in {block}.conv1", f"out {block}.conv2", f"through {block}.bn2 < {block}.conv2")
        ),
        "in layer2.0.downsample",
        "in layer2.0.conv1",
    ]
    assert told(grouping.groups["layer3.0.downsample"]) == [
        "out layer3.0.downsample",
        "out layer3.0.conv2",
        "through layer3.0.bn2 < layer3.0.conv2",
        *(
            line
            for block in ("layer3.1", "layer3.2")
            for line in (f"in {block}.conv1", f"out {block}.conv2", f"through {block}.bn2 < {block}.conv2")
        ),
        "in linear",
    ]
    inner = grouping.groups["layer2.0.conv1"]
    assert told(inner) == [
        "out layer2.0.conv1",
        "through layer2.0.bn1 < layer2.0.conv1",
        "in layer2.0.conv2 < layer2.0.bn1",
    ]
    assert inner.branch == Branch(("layer2.0.conv1",), ("layer2.0.bn1", "layer2.0.conv2"), ("layer2.0.bn2",))
    assert {group.channels for group in grouping.groups.values()} == {16, 32, 64}
    assert all(grouping.groups[name].branch is None for name in streams)
    assert grouping.of_writer("layer1.1.conv2").name == "conv1"
    assert grouping.of_writer("linear") is None


def test_preresnet20():
    """Normalisations read the stream, each in front of one convolution."""
    grouping = trace_groups(build("preresnet20"), 32)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(2)]
    streams = ["conv1", *(f"layer{stage}.0.downsample.0" for stage in (1, 2, 3))]
    assert set(grouping.groups) == {*streams, *(f"{block}.conv{number}" for block in blocks for number in (1, 2))}
    assert told(grouping.groups["layer3.0.downsample.0"]) == [
        "out layer3.0.downsample.0",
        "out layer3.0.conv3",
        "through layer3.1.bn1",
        "in layer3.1.conv1 < layer3.1.bn1",
        "out layer3.1.conv3",
        "through bn",
        "in fc < bn",
    ]
    assert grouping.groups["layer1.1.conv2"].branch == Branch(
        ("layer1.1.conv2",), ("layer1.1.bn3",), ("layer1.1.conv3",)
    )
    assert grouping.groups["layer1.1.conv1"].branch is None
    assert grouping.refused == {"fc": OUTPUT}


def test_mobilenet_v2():
    """Depthwise convolutions carry channels through; projections of one size are one stream."""
    grouping = trace_groups(build("mobilenet_v2"), 32)
    assert told(grouping.groups["features.0.0"]) == [
        "out features.0.0",
        "through features.0.1 < features.0.0",
        "through features.1.conv.0.0 < features.0.1",
        "through features.1.conv.0.1 < features.1.conv.0.0",
        "in features.1.conv.1 < features.1.conv.0.1",
    ]
    assert told(grouping.groups["features.2.conv.2"]) == [
        "out features.2.conv.2",
        "through features.2.conv.3 < features.2.conv.2",
        "in features.3.conv.0.0",
        "out features.3.conv.2",
        "through features.3.conv.3 < features.3.conv.2",
        "in features.4.conv.0.0",
    ]
    assert grouping.groups["features.3.conv.0.0"].branch.ends == ("features.3.conv.3",)
    assert grouping.groups["features.4.conv.0.0"].branch is None
    assert len(grouping.groups) == 7 + 17 + 1  # streams or projections, expansions and the stem, the last
    assert grouping.refused == {"classifier.1": OUTPUT}


def test_concatenation():
    layers = {"a": conv(3, 4), "b": conv(3, 6), "bn": nn.BatchNorm2d(10), "c": conv(10, 5, 1), "fc": nn.Linear(5, 3)}
    net = Lambda(lambda n, x: head(n, n.c(n.bn(torch.cat([n.a(x), n.b(x)], 1)))), **layers)
    assert groups_of(net) == {
        "a": (4, ["out a", "through bn", "in c < bn"]),
        "b": (6, ["out b", "through bn [[4], [5]]", "in c [[4], [5]] < bn"]),
        "c": (5, ["out c", "in fc < c"]),
    }


def test_one_tensor_concatenated_twice_owns_several_places():
    layers = {"a": conv(3, 4), "c": conv(8, 5, 1), "fc": nn.Linear(5, 3)}
    net = Lambda(lambda n, x: head(n, n.c(torch.cat([y := n.a(x), y], 1))), **layers)
    assert groups_of(net)["a"] == (4, ["out a", "in c [[0, 4], [1, 5]]"])


def test_sections_of_grouped_convolutions():
    net = body(conv(3, 8), nn.BatchNorm2d(8), conv(8, 12, groups=4), nn.PReLU(12), conv(12, 6, groups=2), outputs=6)
    grouping = trace_groups(net, SIZE)
    assert {name: group.sections for name, group in grouping.groups.items()} == {"0": 4, "2": 4, "4": 2}
    assert told(grouping.groups["2"]) == ["out 2", "through 3 < 2", "in 4 < 3"]


def test_sections_that_do_not_divide_each_other_meet_in_their_least_multiple():
    net = body(conv(3, 12), conv(12, 12, groups=4), conv(12, 12, groups=6), outputs=12)
    assert trace_groups(net, SIZE).groups["1"].sections == 12


def test_flatten_gives_a_channel_several_inputs():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3))
    assert groups_of(net) == {
        "0": (4, ["out 0", "in 4 [[0, 1, 2, 3], [4, 5, 6, 7]] < 0"]),
        "4": (5, ["out 4", "in 5 < 4"]),
    }


def test_a_parameter_that_stands_on_its_own():
    layers = {"a": conv(3, 8), "b": conv(8, 6, 1), "fc": nn.Linear(6, 3)}
    net = Lambda(lambda n, x: head(n, n.b(n.a(x) * n.gamma)), **layers)
    net.gamma = nn.Parameter(torch.rand(1, 8, 1, 1))
    grouping = trace_groups(net, SIZE)
    assert set(told(grouping.groups["a"])) == {"out a", "through gamma dim 1", "in b"}
    assert grouping.groups["a"].branch is None


@pytest.mark.parametrize("up", [nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)])
def test_transposed_convolutions(up):
    outputs = up.out_channels
    net = body(conv(3, 8), up, nn.BatchNorm2d(outputs), conv(outputs, 4, 1), outputs=4)
    groups = groups_of(net)
    if up.groups > 1:
        assert groups["0"] == (8, ["out 0", "through 1 < 0", "through 2 < 1", "in 3 < 2"])
        assert "1" not in groups
    else:
        assert groups["0"] == (8, ["out 0", "in 1 < 0"])
        assert groups["1"] == (6, ["out 1", "through 2 < 1", "in 3 < 2"])


def test_prelu_with_one_slope_is_an_activation():
    net = body(conv(3, 4), nn.PReLU(), conv(4, 5), nn.PReLU(5), conv(5, 2), outputs=2)
    assert groups_of(net)["0"] == (4, ["out 0", "in 2 < 0"])
    assert groups_of(net)["2"] == (5, ["out 2", "through 3 < 2", "in 4 < 3"])


def test_instance_normalisation_works_on_each_channel():
    net = body(conv(3, 4), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), conv(4, 5), outputs=5)
    assert groups_of(net)["0"] == (4, ["out 0", "through 1 < 0", "in 3 < 1"])


def test_a_layer_called_twice_ties_what_it_reads():
    layers = {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 6, 1), "d": conv(6, 4, 1), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: head(n, n.d(n.c(n.a(x)) * n.c(n.b(x)))), **layers)
    assert groups_of(net)["a"] == (8, ["out a", "in c", "out b"])


def test_a_convolution_that_reads_and_writes_one_stream():
    layers = {"a": conv(3, 6), "b": conv(6, 6), "fc": nn.Linear(6, 3)}
    net = Lambda(lambda n, x: head(n, (y := n.a(x)) + n.b(y)), **layers)
    assert groups_of(net) == {"a": (6, ["out a", "in b", "out b", "in fc"])}


# ---------------------------------------------------------------------- refusals
def assert_refused(net, layer, reason, size=SIZE):
    grouping = trace_groups(net, size)
    assert layer in grouping.refused, grouping
    assert reason in grouping.refused[layer]
    assert grouping.of_writer(layer) is None
    return grouping


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.GroupNorm(2, 8), "a GroupNorm normalises over the channels: without some of them the others change ('1')"),
        (nn.LayerNorm([8, SIZE, SIZE]), "a LayerNorm normalises over the channels"),
    ],
)
def test_normalisation_over_channels(norm, reason):
    grouping = assert_refused(body(conv(3, 8), norm, conv(8, 4), outputs=4), "0", reason)
    assert set(grouping.groups) == {"2"}


def test_the_networks_output():
    assert_refused(nn.Sequential(conv(3, 8), conv(8, 4)), "1", OUTPUT)
    layers = {"a": conv(3, 8), "b": conv(8, 8), "fc": nn.Linear(8, 3)}
    net = Lambda(lambda n, x: (y := n.b(n.a(x))).mean((2, 3)) + 0 * n.fc(y.mean((2, 3))).sum(), **layers)
    assert_refused(net, "b", OUTPUT)


def test_a_parametrized_weight():
    net = body(conv(3, 8), nn.utils.parametrizations.weight_norm(conv(8, 6)), conv(6, 4), outputs=4)
    grouping = assert_refused(net, "0", "the weight of '1' is computed by a parametrization")
    assert grouping.refused["1"] == grouping.refused["0"]
    assert set(grouping.groups) == {"2"}


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_a_hook_computes():
    net = body(conv(3, 8), nn.utils.spectral_norm(conv(8, 6)), conv(6, 4), outputs=4)
    assert_refused(net, "1", "the weight of '1' is computed, it is no parameter")
    with pytest.raises(InputError, match="cannot be copied"):
        trace_groups(body(nn.utils.weight_norm(conv(3, 8)), conv(8, 4), outputs=4), SIZE)


def test_weights_that_two_layers_share():
    layers = {"stem": conv(3, 8), "a": conv(8, 6, 1), "b": conv(8, 6, 1), "c": conv(6, 4, 1), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: head(n, n.c(n.a(y := n.stem(x)) * n.b(y))), **layers)
    net.b.weight = net.a.weight
    grouping = assert_refused(net, "stem", "shares its weights with")
    assert grouping.refused["a"] == "'a' shares its weights with 'b'"
    assert set(grouping.groups) == {"c"}


def test_a_layer_under_two_names():
    layers = {"stem": conv(3, 8), "a": conv(8, 8), "c": conv(8, 4, 1), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: head(n, n.c(n.b(torch.relu(n.a(n.stem(x)))))), **layers)
    net.b = net.a
    assert_refused(net, "a", "'a' shares its weights with 'b'")


def test_grouped_transposed_convolutions():
    net = body(conv(3, 8), nn.ConvTranspose2d(8, 6, 2, groups=2), conv(6, 4), outputs=4)
    grouping = assert_refused(net, "0", "'1' is a grouped transposed convolution")
    assert "1" in grouping.refused


def test_channels_that_are_split_by_numbers():
    layers = {"a": conv(3, 8), "b": conv(4, 6, 1), "c": conv(4, 6, 1), "fc": nn.Linear(6, 3)}
    for split in (lambda y: y.chunk(2, 1), lambda y: y.split([4, 4], 1), lambda y: (y[:, :4], y[:, 4:])):
        net = Lambda(lambda n, x, s=split: head(n, n.b((parts := s(n.a(x)))[0]) + n.c(parts[1])), **layers)
        assert_refused(net, "a", "only some of its channels reach")


def test_a_recurrent_or_attending_reader():
    layers = {"a": conv(3, 8), "mha": nn.MultiheadAttention(8, 2, batch_first=True), "fc": nn.Linear(8, 3)}

    def forward(net, x):
        y = net.a(x).flatten(2).transpose(1, 2)
        return net.fc(net.mha(y, y, y, need_weights=False)[0].mean(1))

    grouping = trace_groups(Lambda(forward, **layers), SIZE)
    assert "a" in grouping.refused
    assert not grouping.groups


class Shuffle(nn.Module):
    """ChannelShuffle, written down."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_a_shuffle_leaves_no_group_whole():
    layers = {"a": conv(3, 8), "mix": Shuffle(), "c": conv(4, 4), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: head(n, n.c((parts := n.mix(n.a(x)).chunk(2, 1))[0]) + parts[1]), **layers)
    assert not assert_refused(net, "a", "has other channels").groups


def test_the_innermost_layer_that_reshapes_channels_is_named():
    net = nn.Sequential(conv(3, 8), nn.Sequential(nn.ReLU(), Shuffle()), conv(8, 4))
    assert reshaping_layer(net, torch.rand(1, 3, SIZE, SIZE)) == "'1.1' reshapes its channels, which mixes them"
    assert reshaping_layer(net[:1], torch.rand(1, 3, SIZE, SIZE)) is None


def test_what_cannot_be_traced_is_refused_whole_and_names_the_layer():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    with pytest.raises(InputError, match=r"ShuffleNetV2 cannot be traced: 'stage2.0' reshapes its channels") as caught:
        trace_groups(build("torchvision:shufflenet_v2_x0_5"), 64)
    assert "prune its weights instead" in caught.value.hint


def test_a_network_that_cannot_take_the_image():
    net = nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
    with pytest.raises(InputError, match="fails on a 3x16x16 image"):
        trace_groups(net, 16)
    assert set(trace_groups(net, 8).groups) == {"0"}
    assert set(trace_groups(nn.Sequential(conv(1, 4), conv(4, 2)), (8, 12), channels=1).groups) == {"0"}


# ---------------------------------------------------------------------- nothing is left behind
def test_two_tracers_do_not_leak_into_each_other():
    def scaled():
        layers = {"a": conv(3, 8), "b": conv(8, 6, 1), "fc": nn.Linear(6, 3)}
        net = Lambda(lambda n, x: head(n, n.b(n.a(x) * n.gamma)), **layers)
        net.gamma = nn.Parameter(torch.rand(8, 1, 1))
        return net

    plain = body(conv(3, 8), nn.BatchNorm2d(8), conv(8, 4), outputs=4)
    alone = groups_of(plain), groups_of(build("resnet20"), 32)
    for _ in range(2):
        assert groups_of(scaled())["a"][0] == 8
        groups_of(body(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 4), outputs=4))
    assert (groups_of(plain), groups_of(build("resnet20"), 32)) == alone
    import torch_pruning

    assert torch_pruning.dependency.index_mapping.update_index_mapping.__module__.startswith("torch_pruning")


def test_the_module_is_left_as_it_was():
    net = body(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(0.5), conv(8, 4), outputs=4).train()
    net[1].eval()
    net[3].weight.requires_grad_(False)
    calls = []
    net[0].register_forward_hook(lambda part, inputs, output: calls.append(part is net[0]))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = {name: part.training for name, part in net.named_modules()}
    needs = {name: p.requires_grad for name, p in net.named_parameters()}
    hooks = {name: len(part._forward_hooks) + len(part._forward_pre_hooks) for name, part in net.named_modules()}
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    trace_groups(net, SIZE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert {name: part.training for name, part in net.named_modules()} == flags
    assert {name: p.requires_grad for name, p in net.named_parameters()} == needs
    assert {name: len(p._forward_hooks) + len(p._forward_pre_hooks) for name, p in net.named_modules()} == hooks
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]  # noqa: NPY002
    assert not any(calls)  # the module itself never ran


def test_the_library_is_imported_only_to_trace():
    # Nor does a command wait for what trains or for what writes reports before it needs them.
    code = (
        "import sys, billhook, billhook.cli, billhook.surgery; billhook.load; "
        "print(*(name in sys.modules for name in ('torch', 'torch_pruning', 'accelerate', 'jinja2')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "False"]


def test_a_function_with_a_parameter_of_the_networks_own():
    layers = {"a": conv(3, 8), "b": conv(8, 4, 1), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: head(n, n.b(F.conv2d(n.a(x), n.kernel, groups=8))), **layers)
    net.kernel = nn.Parameter(torch.rand(8, 1, 3, 3))
    assert_refused(net, "a", "'kernel' has other channels")
