"""Trial cuts: what a dependency graph cannot see is refused with what happened, and the rest still holds."""

import numpy as np
import pytest
import torch
from torch import nn

from billhook.errors import InputError
from billhook.surgery import channel_groups, mask_channels, plan_channels, remove_channels, trace_groups
from billhook.surgery.groups import ChannelGroup, Member
from billhook.surgery.verify import TRIAL_SIZE, _some

from .test_trace import OUTPUT, SIZE, Lambda, Shuffle, body, conv, head


def assert_tried(net, layer, reason, others, size=SIZE):
    """The graph takes the layer for free, the trial does not; the other groups are as they were."""
    assert trace_groups(net, size).of_writer(layer) is not None, "the graph refuses it already: nothing is tried"
    grouping = channel_groups(net, size)
    assert reason in grouping.refused[layer]
    assert set(grouping.groups) == others
    return grouping


def test_a_shuffle_mixes_channels():
    for shuffle in (Shuffle(), nn.ChannelShuffle(2)):
        net = body(conv(3, 8), shuffle, conv(8, 6, groups=2), conv(6, 4), outputs=4)
        assert_tried(net, "0", "other channels change with them: they are mixed further on", {"2", "3"})


def test_a_shuffle_among_many_channels():
    net = body(conv(3, 256), Shuffle(), conv(256, 200), conv(200, 4), outputs=4)
    assert_tried(net, "0", "other channels change with them: they are mixed further on", {"2", "3"})


@pytest.mark.parametrize(
    ("channels", "sections", "left"),
    [(1, 1, 1), (2, 1, 1), (8, 1, 6), (64, 1, 48), (128, 1, 48), (256, 1, 64), (2048, 1, 512), (64, 4, 48), (8, 8, 8)],
)
def test_what_a_trial_leaves(channels, sections, left):
    index = np.arange(channels)[:, None]
    kept = _some(ChannelGroup("a", channels, (Member("a", "out", index),), sections))
    assert len(kept) == left
    assert np.array_equal(kept, np.unique(kept))
    assert kept[0] >= 0
    assert kept[-1] < channels
    assert set(np.bincount(kept // (channels // sections), minlength=sections)) == {left // sections}


def test_a_scale_of_zero_hides_nothing():
    """Branches end in zeros when a network is new; what is wrong inside must still show."""
    layers = {
        "stem": conv(3, 8),
        "a": conv(8, 8),
        "mix": Shuffle(),
        "b": conv(8, 8, groups=2),
        "bn": nn.BatchNorm2d(8),
        "fc": nn.Linear(8, 3),
    }
    net = Lambda(lambda n, x: head(n, (y := n.stem(x)) + n.bn(n.b(torch.relu(n.mix(n.a(y)))))), **layers)
    nn.init.zeros_(net.bn.weight)
    assert_tried(net, "a", "mixed further on", {"stem"})
    nn.init.constant_(net.bn.weight, 1e-6)
    assert_tried(net, "a", "mixed further on", {"stem"})


def test_a_network_that_takes_no_float64():
    layers = {"a": conv(3, 8), "mix": Shuffle(), "b": conv(8, 6), "fc": nn.Linear(6, 3)}
    net = Lambda(lambda n, x: head(n, n.b(n.mix(n.a(x.float())))), **layers)
    assert_tried(net, "a", "mixed further on", {"b"})


@pytest.mark.parametrize(
    ("mixing", "reason"),
    [
        (lambda y: y * y.mean(1, keepdim=True), "mixed further on"),
        (lambda y: y / y.norm(dim=1, keepdim=True), None),  # zeros add nothing to a norm
        (lambda y: y.softmax(1), "mixed further on"),
        (lambda y: y.flip(1), "mixed further on"),
        (lambda y: y.roll(1, 1), "mixed further on"),
        (lambda y: y.view(len(y), 8, SIZE, SIZE), "the network fails without some of its channels"),
        (lambda y: y * torch.linspace(0.5, 1, 8).view(1, 8, 1, 1), "the network fails without some of its channels"),
    ],
)
def test_what_a_forward_does_between_layers(mixing, reason):
    layers = {"a": conv(3, 8), "b": conv(8, 6), "c": conv(6, 4, 1), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: head(n, n.c(n.b(mixing(n.a(x))))), **layers)
    if reason is None:
        assert channel_groups(net, SIZE).refused == {"fc": OUTPUT}
    else:
        assert_tried(net, "a", reason, {"b", "c"})


def test_sizes_written_down_as_numbers():
    layers = {"a": conv(3, 8), "b": conv(8, 4, 1), "fc": nn.Linear(4 * 16, 3)}
    net = Lambda(lambda n, x: n.fc(nn.functional.adaptive_avg_pool2d(n.b(n.a(x)), 4).view(-1, 64)), **layers)
    grouping = assert_tried(net, "b", "the network fails without some of its channels", {"a"})
    assert grouping.refused["fc"] == OUTPUT


def test_a_second_output():
    layers = {"a": conv(3, 8), "b": conv(8, 4, 1), "fc": nn.Linear(4, 3)}
    net = Lambda(lambda n, x: (head(n, n.b(y := n.a(x))), y), **layers)
    grouping = channel_groups(net, SIZE)
    assert set(grouping.groups) == {"b"}
    assert grouping.refused["a"] in (OUTPUT, "the output changes its shape with its channels")


def test_chunks_by_numbers():
    layers = {"a": conv(3, 8), "b": conv(4, 6, 1), "c": conv(4, 6, 1), "d": conv(6, 5, 1), "fc": nn.Linear(5, 3)}
    for split in (lambda y: y.chunk(2, 1), lambda y: (y[:, :4], y[:, 4:]), lambda y: y.tensor_split(2, 1)):
        net = Lambda(lambda n, x, s=split: head(n, n.d(n.b((p := s(n.a(x)))[0]) + n.c(p[1]))), **layers)
        grouping = channel_groups(net, SIZE)
        assert "a" in grouping.refused
        assert set(grouping.groups) == {"b", "d"}


def test_many_groups_fail_each_by_itself():
    """Halves are searched: one bad group costs the others nothing."""
    layers = [conv(3, 8)]
    for _ in range(3):
        layers += [conv(8, 8), nn.ReLU(), Shuffle()]
    net = body(*layers, conv(8, 5), outputs=5)
    grouping = channel_groups(net, SIZE)
    assert set(grouping.groups) == {"0", "10"}
    assert {"1", "4", "7"} <= set(grouping.refused)


def test_branches_that_cannot_go_keep_a_channel():
    def net(add):
        layers = {"stem": conv(3, 6), "a": conv(6, 5), "b": conv(5, 6, bias=False), "bn": nn.BatchNorm2d(6)}
        layers["fc"] = nn.Linear(6, 3)
        return Lambda(lambda n, x: head(n, add(n.bn(n.b(torch.relu(n.a(y := n.stem(x))))), y)), **layers)

    assert channel_groups(net(lambda out, x: out + x), SIZE).groups["a"].branch is not None
    # In place: one value per channel cannot hold the sum.
    inplace = net(lambda out, x: out.add_(x))
    assert trace_groups(inplace, SIZE).groups["a"].branch is not None
    grouping = channel_groups(inplace, SIZE)
    assert grouping.groups["a"].branch is None
    with pytest.raises(InputError, match="no channel of 'a' would be left"):
        plan_channels(inplace, grouping, {"a": []})
    plan = plan_channels(inplace, grouping, {"a": [2]})
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            remove_channels(inplace.eval(), plan)(image), mask_channels(inplace, plan)(image), rtol=1e-4, atol=1e-5
        )


def test_it_tries_on_an_image_that_the_network_takes():
    """Small where it can, as large as it must where not, and not square where it is not."""
    sizes = []

    def forward(net, x):
        sizes.append(tuple(x.shape[2:]))
        return net.fc(net.a(x).flatten(1))

    fixed = Lambda(forward, a=nn.Conv2d(3, 4, 3, stride=8, padding=1), fc=nn.Linear(4 * 12 * 9, 2))
    assert set(channel_groups(fixed, (96, 72)).groups) == {"a"}
    assert sizes[-1] == (96, 72)
    free = Lambda(
        lambda n, x: (sizes.append(tuple(x.shape[2:])), n.fc(n.a(x).mean((2, 3))))[1], a=conv(3, 4), fc=nn.Linear(4, 2)
    )
    channel_groups(free, 96)
    assert sizes[-1] == (TRIAL_SIZE, TRIAL_SIZE)


def test_the_module_is_left_as_it_was():
    net = body(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(0.5), conv(8, 4), outputs=4).train()
    net[1].eval()
    net[3].weight.requires_grad_(False)
    calls = []
    net[0].register_forward_hook(lambda part, inputs, output: calls.append(part is net[0]))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert set(channel_groups(net, SIZE).groups) == {"0", "3"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [part.training for part in net.modules()] == [True, True, False, True, True, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False] + [True] * 3
    assert all(p.grad is None for p in net.parameters())
    assert [len(part._forward_hooks) for part in net] == [1, 0, 0, 0, 0, 0, 0]
    assert not any(calls)  # the module itself never ran
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]  # noqa: NPY002


def test_the_same_groups_each_time():
    net = body(conv(3, 8), nn.BatchNorm2d(8), conv(8, 6, groups=2), outputs=6)
    one, other = channel_groups(net, SIZE), channel_groups(net, SIZE)
    assert list(one.groups) == list(other.groups)
    assert one.refused == other.refused
