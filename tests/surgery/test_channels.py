"""Plans carried out, against an oracle that knows no plan: the dense network with its gates multiplied in by hooks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from billhook.errors import InputError
from billhook.models import ChannelMap, PadShortcut, build
from billhook.surgery import (
    cut_optimizer,
    cut_state,
    expand_channels,
    mask_channels,
    plan_channels,
    remove_channels,
    trace_groups,
)
from billhook.surgery.channels import Constant, Silent, Wired, tensor_cuts
from billhook.surgery.plan import ChannelPlan, LayerCut

SIZE = 16
IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).double()


def ready(module):
    """In float64, with statistics and scales that nobody could take for zeros or ones."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if not isinstance(part, _NormBase):
                continue
            tensors = dict(part.named_parameters()) | dict(part.named_buffers())
            for name, tensor in tensors.items():
                if name in ("weight", "running_var"):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                elif tensor.ndim:
                    tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module


def opened(module):
    module = ready(module)
    return module, trace_groups(module, SIZE)


@torch.no_grad()
def gated(module, gates):
    """What the network puts out when the layers' outputs are multiplied by zeros and ones."""
    handles = []
    for name, kept in gates.items():
        layer = module.get_submodule(name)

        def hook(part, inputs, output, kept=tuple(kept)):
            gate = torch.zeros(output.shape[1], dtype=output.dtype)
            gate[list(kept)] = 1
            return output * gate[:, None, None]

        handles.append(layer.register_forward_hook(hook))
    try:
        return module(IMAGES)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def assert_equals_gates(module, grouping, gates):
    """Smaller, masked and expanded networks put out what the gated one does; returns the smaller and its plan."""
    expected = gated(module, gates)
    plan = plan_channels(module, grouping, {}, own=gates)
    small = remove_channels(module, plan)
    masked = mask_channels(module, plan)
    expanded = expand_channels(small, module, plan)
    assert expected.abs().max() > 1e-6
    for network in (small, masked, expanded):
        torch.testing.assert_close(network(IMAGES), expected, rtol=1e-9, atol=1e-10)
    assert parameters(small) <= parameters(module)
    for one, other in zip(masked.state_dict().values(), expanded.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return small, plan


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------- small networks whose gates are told by hand
class Plain(nn.Module):
    """A stream that convolutions read and write directly: ``x + conv(x)``."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.a(x)
        x = x + self.b(x)
        return self.fc(x.mean((2, 3)))


class Pre(nn.Module):
    """Pre-activation, the last normalisation before pooling; its convolutions have gates as well."""

    def __init__(self, width=6, affine=True):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.c1 = nn.Conv2d(width, 5, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(5)
        self.act = nn.PReLU(5)
        self.c2 = nn.Conv2d(5, width, 3, padding=1, bias=affine)
        self.bn = nn.BatchNorm2d(width, affine=affine)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(4 * width, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.c2(self.act(self.bn2(self.c1(torch.relu(self.bn1(x))))))
        return self.fc(self.pool(torch.relu(self.bn(x))).flatten(1))


class Ends(nn.Module):
    """Branches whose last layers are constants of every kind."""

    def __init__(self, end, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, 5, 3, padding=1)
        self.b = nn.Conv2d(5, width, 1, bias=end in ("bias", "bias and shift"))
        shift = end in ("shift", "bias and shift", "no averages")
        averages = end != "no averages"
        has = end not in ("bias", "nothing")
        self.end = nn.BatchNorm2d(width, affine=shift, track_running_stats=averages) if has else None
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(torch.relu(self.a(x)))
        x = x + (y if self.end is None else self.end(y))
        return self.fc(torch.relu(x).mean((2, 3)))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(10)
        self.c = nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        y = torch.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        return self.fc(self.c(y).mean((2, 3)))


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.other = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.a = nn.Conv2d(6, 4, 1)
        self.b = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        y = torch.relu(self.bn(self.stem(x) + self.other(x)))
        return self.fc((self.a(y) + self.b(y)).mean((2, 3)))


class Twice(nn.Module):
    """One normalisation behind a depthwise convolution behind another: a chain of four."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.Conv2d(4, 8, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn2 = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(torch.relu(self.bn2(self.deep(torch.relu(self.bn1(self.up(x)))))))
        return self.fc(x.mean((2, 3)))


def test_a_stream_keeps_the_union_and_its_writers_scatter():
    module, grouping = opened(Plain())
    small, plan = assert_equals_gates(module, grouping, {"stem": [0, 1], "a": [1, 3], "b": [0, 1, 3]})
    assert plan.as_dict() == {
        "stem": {"out": [0, 1], "scatter": [0, 1, -1]},
        "a": {"out": [1, 3], "inside": [0, 1, 3], "scatter": [-1, 0, 1]},
        "b": {"out": [0, 1, 3], "inside": [0, 1, 3]},
        "fc": {"inside": [0, 1, 3]},
    }
    assert isinstance(small.a, Wired)
    assert small.a.layer.weight.shape == (2, 3, 3, 3)


def test_readers_gather_and_a_channel_that_nobody_lets_in_goes_though_it_is_written():
    module, grouping = opened(Pre())
    gates = {"bn1": [0, 2, 3], "bn": [2, 5]}
    small, plan = assert_equals_gates(module, grouping, gates)
    assert plan.layers["stem"].out == plan.layers["c2"].out == (0, 2, 3, 5)
    assert plan.as_dict()["bn1"] == {"out": [0, 2, 3], "gather": [0, 1, 2]}
    assert plan.as_dict()["c1"] == {"inside": [0, 2, 3]}
    assert plan.as_dict()["bn"] == {"out": [2, 5], "gather": [1, 3]}
    assert plan.as_dict()["fc"] == {"inside": [8, 9, 10, 11, 20, 21, 22, 23]}
    assert isinstance(small.bn1.gather, ChannelMap)


def test_what_nobody_writes_is_still_a_constant_behind_a_normalisation():
    module, grouping = opened(Pre())
    _, plan = assert_equals_gates(module, grouping, {"stem": [0, 1], "c2": [1, 2]})
    assert "bn" not in plan.layers  # the stream stays as wide as it was
    assert plan.layers["stem"].scatter == (0, 1, -1, -1, -1, -1)
    _, plan = assert_equals_gates(module, grouping, {"stem": [0, 1], "c2": [1, 2], "bn1": [1, 4], "bn": [4]})
    assert plan.layers["stem"].scatter == (0, -1)
    _, plan = assert_equals_gates(ready(Concat()), trace_groups(Concat(), SIZE), {"a": [1], "b": [0, 5]})
    assert plan.layers["a"].scatter == (-1, 0, -1, -1)


def test_a_normalisation_behind_a_concatenation_closes_both():
    module, grouping = opened(Concat())
    _, plan = assert_equals_gates(module, grouping, {"bn": [0, 3, 4, 9]})
    assert plan.as_dict() == {
        "a": {"out": [0, 3]},
        "b": {"out": [0, 5]},
        "bn": {"out": [0, 3, 4, 9]},
        "c": {"inside": [0, 3, 4, 9]},
    }


def test_the_end_of_a_chain_of_four_closes_it():
    module, grouping = opened(Twice())
    _, plan = assert_equals_gates(module, grouping, {"bn2": [1, 6, 7]})
    assert plan.layers["up"].out == plan.layers["bn1"].out == plan.layers["deep"].out == (1, 6, 7)
    small, _ = assert_equals_gates(module, grouping, {"bn2": []})
    assert isinstance(small.up, Silent)
    assert isinstance(small.deep, nn.Identity)
    assert isinstance(small.down, Constant)


@pytest.mark.parametrize("end", ["nothing", "bias", "shift", "no shift", "no averages"])
def test_a_branch_without_channels_is_its_constant(end):
    module, grouping = opened(Ends(end))
    assert grouping.groups["a"].branch is not None
    small, _ = assert_equals_gates(module, grouping, {"a": []})
    last = small.b if small.end is None else small.end
    assert isinstance(last, Constant)
    assert (last.value is None) == (end == "nothing")


@pytest.mark.parametrize("end", ["nothing", "bias", "shift", "no shift", "no averages"])
def test_a_writer_without_channels_is_zero(end):
    module, grouping = opened(Ends(end))
    last = "b" if module.end is None else "end"
    small, _ = assert_equals_gates(module, grouping, {last: [], "stem": [0, 2, 5]})
    constant = small.get_submodule(last)
    assert isinstance(constant, Constant)
    assert constant(IMAGES).abs().max() == 0
    assert constant.channels == 3


def test_a_constant_that_other_layers_would_change_is_none():
    module, grouping = opened(Ends("bias and shift"))
    assert grouping.groups["a"].branch is None
    with pytest.raises(InputError, match="no channel of 'a' would be left"):
        plan_channels(module, grouping, {"a": []})


def test_a_constant_that_a_gate_lets_through_in_part():
    module, grouping = opened(Ends("shift"))
    small, plan = assert_equals_gates(module, grouping, {"a": [], "end": [1, 4], "stem": [0, 1]})
    assert plan.as_dict()["end"] == {"out": [1, 4], "role": "constant", "scatter": [-1, 0, 1]}
    assert small.end.layer.value.shape == (2,)
    assert tuple(dict(small.named_parameters())) == (
        "stem.layer.weight",
        "stem.layer.bias",
        "end.layer.value",
        "fc.weight",
        "fc.bias",
    )


def test_a_normalisation_that_two_layers_read_cannot_have_channels_of_its_own():
    module, grouping = opened(SharedNorm())
    with pytest.raises(InputError, match="'bn' cannot keep channels of its own"):
        plan_channels(module, grouping, {}, own={"bn": [0, 1]})


def test_a_dead_stem_or_downsample_is_refused():
    module, grouping = opened(build("resnet20,shortcut=conv"))
    for layer, named in (("bn1", "conv1"), ("layer2.0.downsample.1", "layer2.0.downsample.0")):
        with pytest.raises(InputError, match=f"no channel of '{named}' would be left"):
            plan_channels(module, grouping, {}, own={layer: []})
    everything = {layer: [] for layer in ("bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2")}
    with pytest.raises(InputError, match="no channel of 'conv1' would be left"):
        plan_channels(module, grouping, {}, own=everything)
    with pytest.raises(InputError, match="nothing would be left for 'c1' to read"):
        plan_channels(*opened(Pre()), {}, own={"bn1": []})


def test_a_channel_that_a_padding_shortcut_does_not_bring_goes():
    module, grouping = opened(build("resnet20"))
    # Stage two: eight zero channels, the sixteen of stage one, eight zero channels.
    gates = {f"layer2.{block}.bn2": [0, 12, 20] for block in range(3)}
    gates |= {f"layer1.{block}.bn2": [1, 2] for block in range(3)} | {"bn1": [2, 4]}
    small, plan = assert_equals_gates(module, grouping, gates)
    assert plan.layers["bn1"].out == (2, 4)
    assert plan.layers["layer1.0.bn2"].scatter == (0, 1, -1)
    assert plan.as_dict()["layer2.0.downsample"] == {"out": [0, 9, 10, 12, 20], "inside": [1, 2, 4]}
    assert small.layer2[0].downsample.source() == [-1, 0, 1, 2, -1]


# ---------------------------------------------------------------------- whole networks
def writer_ends(module, grouping):
    """The last layer of every writer, and whether it ends a residual branch that may go."""
    ends = {}
    for group in grouping.groups.values():
        carried = {m.after: m.layer for m in group.members if m.side == "through" and m.after is not None}
        for writer in group.writers:
            last = writer.layer
            while last in carried:
                last = carried[last]
            if isinstance(module.get_submodule(last), PadShortcut):
                continue
            may_go = any(
                g.branch is not None and [m.layer for m in g.readers] == [writer.layer]
                for g in grouping.groups.values()
            )
            ends[last] = may_go or group.branch is not None
    return ends


def reader_norms(grouping):
    """Normalisations in front of one reader that see a stream."""
    return {
        m.after
        for group in grouping.groups.values()
        for m in group.readers
        for before in group.members
        if before.layer == m.after and before.side == "through" and before.after is None
    }


NETWORKS = {
    "resnet20": lambda: build("resnet20"),
    "resnet20,shortcut=conv": lambda: build("resnet20,shortcut=conv"),
    "resnet18": lambda: build("resnet18,width=0.125,stem=cifar"),
    "preresnet20": lambda: build("preresnet20"),
    "mobilenet_v2": lambda: build("mobilenet_v2,width=0.1"),
}


@pytest.fixture(scope="module")
def networks():
    return {name: opened(make()) for name, make in NETWORKS.items()}


def random_gates(module, grouping, seed, closed):
    """Gates on a random part of the places, each letting a random share in; ``closed`` of what may go lets none."""
    generator = np.random.default_rng(seed)
    gates = {}
    places = writer_ends(module, grouping) | dict.fromkeys(reader_norms(grouping), False)
    for place, may_go in places.items():
        part = module.get_submodule(place)
        total = part.num_features if isinstance(part, _NormBase) else part.out_channels
        if may_go and generator.random() < closed:
            gates[place] = []
        elif generator.random() < 0.7:
            gates[place] = sorted(generator.permutation(total)[: int(generator.integers(1, total + 1))].tolist())
    return gates


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 10_000), closed=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=5)
def test_independent_gates_are_kept_exactly(networks, name, seed, closed):
    module, grouping = networks[name]
    assert_equals_gates(module, grouping, random_gates(module, grouping, seed, closed))


def test_gates_stand_where_the_papers_put_them(networks):
    """The places are found from the groups: these they must be, or the property above tests nothing."""
    module, grouping = networks["resnet20"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert writer_ends(module, grouping) == {"bn1": False} | {
        f"{b}.{bn}": True for b in blocks for bn in ("bn1", "bn2")
    }
    assert not reader_norms(grouping)
    module, grouping = networks["preresnet20"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(2)]
    assert reader_norms(grouping) == {"bn"} | {f"{block}.bn1" for block in blocks}
    assert {f"{block}.bn3" for block in blocks} < set(writer_ends(module, grouping))


def test_upstream_orphans_go_too(networks):
    module, grouping = networks["preresnet20"]
    small, plan = assert_equals_gates(module, grouping, {"layer2.1.bn3": []})
    block = small.layer2[1]
    assert isinstance(block.conv1, Silent)
    assert isinstance(block.bn2, nn.Identity)
    assert isinstance(block.conv2, Silent)
    assert isinstance(block.conv3, Constant)
    assert plan.as_dict()["layer2.1.conv3"] == {"role": "constant"}


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_that_lose_channels_together(networks, name):
    """Without gates of their own: masked, smaller and expanded networks agree, and nobody is changed."""
    module, grouping = networks[name]
    before = copy.deepcopy(module.state_dict())
    generator = np.random.default_rng(7)
    kept = {
        key: np.sort(generator.permutation(group.channels)[: max(1, group.channels // 2)])
        for key, group in grouping.groups.items()
    }
    dead = [key for key, group in grouping.groups.items() if group.branch is not None]
    kept[dead[0]] = np.zeros(0, dtype=np.int64)
    plan = plan_channels(module, grouping, kept)
    small, masked = remove_channels(module, plan), mask_channels(module, plan)
    expanded = expand_channels(small, module, plan)
    with torch.no_grad():
        expected = masked(IMAGES)
        torch.testing.assert_close(small(IMAGES), expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(expanded(IMAGES), expected, rtol=1e-9, atol=1e-10)
        assert (module(IMAGES) - expected).abs().max() > 1e-3
    assert parameters(small) < 0.5 * parameters(module)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_what_trained_further_is_expanded():
    module, grouping = opened(Ends("shift"))
    plan = plan_channels(module, grouping, {"a": [], "stem": [0, 3, 4]})
    small = remove_channels(module, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double())
        expected = small(IMAGES)
        torch.testing.assert_close(expand_channels(small, module, plan)(IMAGES), expected)


def test_a_channel_whose_variance_is_zero_keeps_it():
    module, grouping = opened(Twice())
    module.bn1.running_var[2] = 0
    module.bn1.running_var[3] = 0
    plan = plan_channels(module, grouping, {"up": [0, 2, 5]})
    masked = mask_channels(module, plan)
    assert masked.bn1.running_var[2] == 0
    assert masked.bn1.running_var[3] == 1
    assert expand_channels(remove_channels(module, plan), module, plan).bn1.running_var[2] == 0


def test_flags_and_modes_stay():
    module, grouping = opened(Plain())
    module.a.weight.requires_grad_(False)
    module.a.train()
    small = remove_channels(module, plan_channels(module, grouping, {"stem": [0, 1]}, own={"a": [0]}))
    assert not small.a.layer.weight.requires_grad
    assert small.a.layer.bias.requires_grad
    assert not small.training


# ---------------------------------------------------------------------- optimisers and averages
OPTIMISERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
}
GATES = {"bn1": [0, 2, 3], "c2": [1, 2, 4], "act": [1, 3]}


def param_groups(module):
    """Weight decay on weights alone, as everyone has it."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0, "lr": 0.02}]


def steps(module, optimizer, count):
    # In evaluation mode: batch statistics would leave the biases in front of them without a gradient.
    for _ in range(count):
        optimizer.zero_grad()
        module(IMAGES).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_an_optimiser_goes_on_with_the_smaller_network(kind):
    module, grouping = opened(Pre())
    optimizer = OPTIMISERS[kind](param_groups(module))
    steps(module, optimizer, 3)
    names = {id(p): name for name, p in module.named_parameters()}
    states = {names[id(p)]: copy.deepcopy(state) for p, state in optimizer.state.items()}
    plan = plan_channels(module, grouping, {}, own=GATES)
    small = remove_channels(module, plan)
    cut_optimizer(optimizer, module, small, plan)

    cuts = tensor_cuts(module, plan)
    now = dict(small.named_parameters())
    assert {"bn1.layer.weight", "c2.layer.weight", "act.weight"} < set(now)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert [group["lr"] for group in optimizer.param_groups][1] == 0.02
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in now.values()}
    assert set(map(id, optimizer.state)) == held
    compared = 0
    for name, state in states.items():
        parameter = now.get(name, now.get(".layer.".join(name.rsplit(".", 1))))
        for key, value in state.items():
            found = optimizer.state[parameter][key]
            if isinstance(value, torch.Tensor) and value.ndim:
                assert found.shape == parameter.shape
                torch.testing.assert_close(found, cuts[name].take(value), rtol=0, atol=0)
                compared += 1
            else:
                assert found == value
    assert compared >= len(states)

    # A fresh optimiser with the same state moves a copy to the same place.
    twin = copy.deepcopy(small)
    matching = dict(zip(now.values(), twin.parameters(), strict=True))
    fresh = OPTIMISERS[kind](
        [{**group, "params": [matching[p] for p in group["params"]]} for group in optimizer.param_groups]
    )
    for parameter, state in optimizer.state.items():
        fresh.state[matching[parameter]] = copy.deepcopy(state)
    start = {name: p.detach().clone() for name, p in small.named_parameters()}
    steps(small, optimizer, 2)
    steps(twin, fresh, 2)
    for name, parameter in small.named_parameters():
        assert not torch.equal(parameter, start[name]), name
        torch.testing.assert_close(parameter, dict(twin.named_parameters())[name], rtol=0, atol=0)


def test_masked_and_smaller_networks_train_alike():
    """Momentum of what is gone must not come back, and what stays must not notice: plain SGD over both."""
    module, grouping = opened(Pre())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    steps(module, optimizer, 2)
    plan = plan_channels(module, grouping, {"stem": [0, 1, 4], "c1": [0, 3]})
    small, masked = remove_channels(module, plan), mask_channels(module, plan)
    cuts = tensor_cuts(module, plan)
    large = torch.optim.SGD(masked.parameters(), lr=0.05, momentum=0.9)
    for (name, parameter), old in zip(masked.named_parameters(), module.parameters(), strict=True):
        momentum = optimizer.state[old]["momentum_buffer"]
        large.state[parameter]["momentum_buffer"] = cuts[name].put(cuts[name].take(momentum), momentum).clone()
    cut_optimizer(optimizer, module, small, plan)
    for _ in range(3):
        for network, own in ((small, optimizer), (masked, large)):
            own.zero_grad()
            network(IMAGES).square().mean().backward()
            if network is masked:
                for name, parameter in masked.named_parameters():
                    parameter.grad = cuts[name].put(cuts[name].take(parameter.grad), parameter.grad)
            own.step()
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(cuts[name].take(parameter.detach()), dict(small.named_parameters())[name].detach())


def test_constants_are_trained_and_parameters_of_others_stay():
    module, grouping = opened(Ends("shift"))
    stranger = nn.Parameter(torch.ones(2).double())
    optimizer = torch.optim.SGD([*module.parameters(), stranger], lr=0.1, momentum=0.9)
    plan = plan_channels(module, grouping, {"a": []}, own={"end": [0, 1], "stem": [1, 2]})
    small = remove_channels(module, plan)
    cut_optimizer(optimizer, module, small, plan)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in [*small.parameters(), stranger]}
    before = small.end.layer.value.detach().clone()
    steps(small, optimizer, 1)
    assert not torch.equal(small.end.layer.value, before)


def test_a_moving_average_is_cut_alike():
    module, grouping = opened(Pre())
    average = {name: torch.randn(t.shape).to(t.dtype) for name, t in module.state_dict().items()}
    plan = plan_channels(module, grouping, {}, own=GATES)
    small = remove_channels(module, plan)
    state = cut_state(average, module, plan)
    small.load_state_dict(state)  # nothing missing, nothing left over, every shape right
    assert torch.equal(state["c2.layer.weight"], average["c2.weight"][[1, 2, 4]][:, [1, 3]])
    assert torch.equal(state["bn1.layer.running_mean"], average["bn1.running_mean"][[0, 2, 3]])


def test_an_average_of_a_network_with_a_dead_branch_leaves_its_constant_out():
    module, grouping = opened(Ends("shift"))
    plan = plan_channels(module, grouping, {"a": []})
    small = remove_channels(module, plan)
    state = cut_state(module.state_dict(), module, plan)
    assert set(small.state_dict()) - set(state) == {"end.value"}
    assert set(state) <= set(small.state_dict())


def test_the_smaller_network_shares_no_memory_with_the_larger():
    module = build("resnet20")
    groups = trace_groups(module, 32)
    plan = plan_channels(module, groups, {"layer2.0.conv1": range(5)})
    small = remove_channels(module, plan)
    theirs = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    assert not theirs & {t.untyped_storage().data_ptr() for t in (*small.parameters(), *small.buffers())}
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_tied_parameters_stay_tied():
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    module[3].weight = module[2].weight
    small = remove_channels(module, ChannelPlan({"0": LayerCut(out=(0, 2)), "1": LayerCut(inside=(0, 2))}))
    assert small[3].weight is small[2].weight
    assert small[3].weight is not module[2].weight
