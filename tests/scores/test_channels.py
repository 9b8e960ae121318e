"""Channel scores: worked out by hand, by brute force and by gates that really are there."""

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from billhook.data import Batch
from billhook.errors import InputError, UsageError
from billhook.scores import channel_scores, gated_members, normalised, without_batchnorm
from billhook.surgery.groups import ChannelGroup, Grouping, Member
from billhook.training.precision import Room
from training.small import data, preprocess, room, same_state, seeded

WEIGHTS_ONLY = ["random", "l1", "l2", "fpgm", "slimming"]
KINDS = [*WEIGHTS_ONLY, "taylor", "activation"]


def run(*rows: list[int] | int) -> np.ndarray:
    """``[channels, r]`` from one row per channel."""
    return np.array([row if isinstance(row, list) else [row] for row in rows], dtype=np.int64)


def upto(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)[:, None]


def grouping(*groups: tuple[str, int, list[Member]], sections: int = 1) -> Grouping:
    return Grouping({name: ChannelGroup(name, count, tuple(members), sections) for name, count, members in groups})


def scores(kind: str, net: nn.Module, found: Grouping, images=None, **options):
    return channel_scores(kind, net, found, images, preprocess(), room(), **options)


def settle(net: nn.Module, seed: int = 5) -> nn.Module:
    """Normalisations that do something, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.copy_(torch.rand(layer.num_features, generator=generator) - 0.5)
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            if layer.affine:
                nn.init.uniform_(layer.weight, -1.5, 1.5, generator=generator)
                nn.init.uniform_(layer.bias, -0.5, 0.5, generator=generator)
    return net


class Chain(nn.Module):
    """Convolution, depthwise convolution, strided convolution without normalisation, a head behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.depthwise, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 6, 3, stride=4, padding=1)
        self.fc = nn.Linear(24, 4)

    def forward(self, x):
        x = functional.silu(self.bn(self.conv(x)))
        x = functional.silu(self.bn2(self.depthwise(x)))
        return self.fc(functional.silu(self.down(x)).flatten(1))


CHAIN = grouping(
    (
        "conv",
        4,
        [
            Member("conv", "out", upto(4)),
            Member("bn", "through", upto(4), None, "conv"),
            Member("depthwise", "through", upto(4), None, "bn"),
            Member("bn2", "through", upto(4), None, "depthwise"),
            Member("down", "in", upto(4), None, "bn2"),
        ],
    ),
    ("down", 6, [Member("down", "out", upto(6)), Member("fc", "in", np.arange(24).reshape(6, 4), None, "down")]),
)


class Residual(nn.Module):
    """A stream with two writers, one without normalisation or both with, whose map is concatenated with itself."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4) if both else nn.Identity()
        self.mix = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.bn(self.stem(x))
        x = x + self.bn2(self.conv(functional.silu(x)))
        return self.mix(torch.cat([x, -2 * x], dim=1)).mean(dim=(2, 3))


def stream(both: bool) -> Grouping:
    members = [
        Member("stem", "out", upto(4)),
        Member("bn", "through", upto(4), None, "stem"),
        Member("conv", "in", upto(4)),
        Member("conv", "out", upto(4)),
        Member("mix", "in", run([0, 4], [1, 5], [2, 6], [3, 7])),
    ]
    if both:
        members.append(Member("bn2", "through", upto(4), None, "conv"))
    return grouping(("stem", 4, members))


class Upward(nn.Module):
    """Transposed convolutions with and without groups, a grouped convolution, a linear layer with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.cut = nn.Conv2d(6, 4, 3, stride=4, groups=2)
        self.hidden, self.bn = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = functional.silu(self.wide(x))
        x = functional.silu(self.grouped(x))
        x = functional.silu(self.cut(x)).mean(dim=(2, 3))
        return self.fc(functional.silu(self.bn(self.hidden(x))))


UPWARD = grouping(
    ("wide", 4, [Member("wide", "out", upto(4)), Member("grouped", "in", upto(4))]),
    ("grouped", 6, [Member("grouped", "out", upto(6)), Member("cut", "in", upto(6))]),
    ("cut", 4, [Member("cut", "out", upto(4)), Member("hidden", "in", upto(4))]),
    (
        "hidden",
        5,
        [
            Member("hidden", "out", upto(5)),
            Member("bn", "through", upto(5), None, "hidden"),
            Member("fc", "in", upto(5), None, "bn"),
        ],
    ),
    sections=2,
)

CASES = {
    "chain": (Chain, CHAIN),
    "mixed stream": (lambda: Residual(False), stream(False)),
    "stream": (lambda: Residual(True), stream(True)),
    "upward": (Upward, UPWARD),
}


def case(name: str) -> tuple[nn.Module, Grouping]:
    make, found = CASES[name]
    return settle(seeded(make)), found


every_case = pytest.mark.parametrize("name", list(CASES))


# From the weights


def fixed(values: list[list[float]]) -> nn.Conv2d:
    layer = nn.Conv2d(len(values[0]), len(values), 1, bias=False)
    layer.weight.data = torch.tensor(values)[:, :, None, None]
    return layer


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Norms 7, 1, 1 and mean 3; then 0, 2, 4 and mean 2: the second layer's tenfold size does not tell.
        ("l1", [(7 / 3 + 0) / 2, (1 / 3 + 1) / 2, (1 / 3 + 2) / 2]),
        ("l2", [(15 / 7 + 0) / 2, (3 / 7 + 1) / 2, (3 / 7 + 2) / 2]),
        # Distances 4, 3 and 1 times the root of 2: sums 7, 5, 4, mean 16/3; on the line 60, 40, 60, mean 160/3.
        ("fpgm", [(21 / 16 + 9 / 8) / 2, (15 / 16 + 3 / 4) / 2, (12 / 16 + 9 / 8) / 2]),
    ],
)
def test_two_writers_by_hand(kind, expected):
    net = nn.ModuleDict({"a": fixed([[3.0, -4.0], [-1.0, 0.0], [0.0, -1.0]]), "b": fixed([[0.0], [20.0], [40.0]])})
    net["map"] = nn.Identity()  # writes, but has no weights
    found = grouping(("a", 3, [Member(name, "out", upto(3)) for name in ("a", "b", "map")]))
    value = scores(kind, net, found)["a"]
    assert value.dtype == np.float64
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["l1", "l2", "fpgm"])
def test_channels_lie_where_the_index_says(kind):
    net = nn.ModuleDict({"a": fixed([[8.0], [1.0], [4.0], [2.0]])})
    whole = scores(kind, net, grouping(("a", 4, [Member("a", "out", upto(4))])))["a"]
    turned = scores(kind, net, grouping(("a", 4, [Member("a", "out", run(2, 0, 3, 1))])))["a"]
    assert turned == pytest.approx(whole[[2, 0, 3, 1]])
    pairs = scores(kind, net, grouping(("a", 2, [Member("a", "out", run([0, 3], [2, 1]))])))["a"]
    assert pairs == pytest.approx([(whole[0] + whole[3]) / 2, (whole[2] + whole[1]) / 2])


def rows_by_hand(layer: nn.Module) -> list[np.ndarray]:
    """The weights behind each output channel, found by which of them move it."""
    weight = layer.weight.detach().double().numpy()
    if isinstance(layer, nn.ConvTranspose2d):
        into, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        return [
            np.concatenate([weight[i, o % out].ravel() for i in range(o // out * into, (o // out + 1) * into)])
            for o in range(layer.out_channels)
        ]
    return [row.ravel() for row in weight]


@every_case
@pytest.mark.parametrize("kind", ["l1", "l2", "fpgm"])
def test_filters_against_brute_force(name, kind):
    net, found = case(name)
    measured = scores(kind, net, found)
    assert list(measured) == list(found.groups)
    for group in found.groups.values():
        layers = []
        for member in group.members:
            layer = net.get_submodule(member.layer)
            if member.side == "in" or isinstance(layer, nn.modules.batchnorm._BatchNorm):
                continue
            rows = rows_by_hand(layer)
            if kind == "fpgm":
                values = [sum(np.sqrt(((a - b) ** 2).sum()) for b in rows) for a in rows]
            else:
                values = [np.linalg.norm(row, 1 if kind == "l1" else 2) for row in rows]
            values = np.array(values)[member.index[:, 0]]
            layers.append(values / values.mean())
        assert measured[group.name] == pytest.approx(np.mean(layers, axis=0), rel=1e-5)


def test_a_depthwise_convolution_is_a_writer():
    net = seeded(Chain)
    before = scores("l1", net, CHAIN)
    with torch.no_grad():
        net.depthwise.weight[2] *= 10
    after = scores("l1", net, CHAIN)
    assert after["conv"][2] > before["conv"][2]
    assert np.array_equal(after["down"], before["down"])


def test_the_rows_of_a_grouped_transposed_convolution_are_those_that_move_its_output():
    layer = seeded(Upward).grouped
    x = torch.rand(1, 4, 3, 3)
    for channel in range(6):
        changed = copy.deepcopy(layer)
        group, place = divmod(channel, 3)
        with torch.no_grad():
            changed.weight[group * 2 : group * 2 + 2, place] = 0
        moved = (changed(x) - layer(x)).abs().sum(dim=(0, 2, 3)) > 0
        assert moved.nonzero().ravel().tolist() == [channel]
        found = grouping(("grouped", 6, [Member("grouped", "out", upto(6))]))
        silent = scores("l1", nn.ModuleDict({"grouped": changed}), found)
        assert np.flatnonzero(silent["grouped"] == 0).tolist() == [channel]


@pytest.mark.parametrize("kind", ["l1", "l2", "fpgm"])
def test_a_layer_of_zeros_scores_zero(kind):
    net = nn.ModuleDict({"a": fixed([[0.0], [0.0]]), "b": fixed([[1.0], [3.0]])})
    found = grouping(("a", 2, [Member("a", "out", upto(2))]), ("b", 2, [Member("b", "out", upto(2))]))
    assert scores(kind, net, found)["a"].tolist() == [0, 0]


def test_slimming_is_the_mean_gamma():
    net = seeded(Chain)
    net.bn.weight.data = torch.tensor([1.0, -2.0, 0.0, 4.0])
    net.bn2.weight.data = torch.tensor([3.0, 0.0, 0.0, -2.0])
    assert scores("slimming", net, CHAIN)["conv"].tolist() == [2, 1, 0, 3]


def test_slimming_finds_a_group_inside_a_concatenation():
    net = nn.ModuleDict({"a": fixed([[1.0], [2.0]]), "bn": nn.BatchNorm2d(5)})
    net["bn"].weight.data = torch.tensor([9.0, 9.0, 9.0, 0.5, 0.25])
    found = grouping(("a", 2, [Member("a", "out", upto(2)), Member("bn", "through", run(3, 4))]))
    assert scores("slimming", net, found)["a"].tolist() == [0.5, 0.25]


def test_slimming_without_gamma_is_l1_and_says_where():
    net = seeded(Chain)
    assert without_batchnorm(net, CHAIN) == ("down",)
    assert np.array_equal(scores("slimming", net, CHAIN)["down"], scores("l1", net, CHAIN)["down"])
    net.bn, net.bn2 = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, affine=False)
    assert without_batchnorm(net, CHAIN) == ("conv", "down")
    assert np.array_equal(scores("slimming", net, CHAIN)["conv"], scores("l1", net, CHAIN)["conv"])


def test_random_is_a_function_of_seed_and_name():
    net = seeded(Chain)
    first = scores("random", net, CHAIN, seed=3)
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    alone = Grouping({"down": CHAIN.groups["down"]})
    assert np.array_equal(scores("random", net, alone, seed=3)["down"], first["down"])
    assert not np.array_equal(scores("random", net, CHAIN, seed=4)["down"], first["down"])
    assert not np.array_equal(first["conv"], first["down"][:4])
    assert all(((values >= 0) & (values < 1)).all() for values in first.values())


# From images


def slopes(
    net: nn.Module, member: Member, images: torch.Tensor, labels: torch.Tensor, step: float = 1e-5
) -> np.ndarray:
    """dL/dgate by central differences: a factor on what the layer puts out, one channel at a time."""
    step = 1e-5
    net = copy.deepcopy(net).double().eval()
    gate = torch.ones(net.get_submodule(member.layer).weight.shape[0] * 4, dtype=torch.float64)
    net.get_submodule(member.layer).register_forward_hook(
        lambda layer, inputs, out: out * gate[: out.shape[1]].view(1, -1, *[1] * (out.ndim - 2))
    )
    found = []
    for positions in member.index:
        losses = []
        for sign in (1, -1):
            gate.fill_(1)
            gate[torch.from_numpy(positions)] += sign * step
            with torch.no_grad():
                losses.append(functional.cross_entropy(net(images.double()), labels).item())
        found.append((losses[0] - losses[1]) / (2 * step))
    return np.array(found)


GATES = {
    "chain": {"conv": ["bn", "bn2"], "down": ["down"]},
    "mixed stream": {"stem": ["stem", "conv"]},
    "stream": {"stem": ["bn", "bn2"]},
    "upward": {"wide": ["wide"], "grouped": ["grouped"], "cut": ["cut"], "hidden": ["bn"]},
}


@every_case
def test_taylor_equals_real_gates(name):
    net, found = case(name)
    images = data(40).train
    gates = gated_members(net, found)
    assert {group: [member.layer for member in members] for group, members in gates.items()} == GATES[name]
    measured = scores("taylor", net, found, images, micro_batch=16)
    batches = list(images.batches(16, preprocess()))
    assert len({len(batch.labels) for batch in batches}) == 2
    for group, members in gates.items():
        expected = np.zeros(found.groups[group].channels)
        for batch, member in itertools.product(batches, members):
            expected += slopes(net, member, batch.images, batch.labels) ** 2
        assert measured[group] == pytest.approx(expected / len(batches), rel=1e-3, abs=1e-10)
        assert (measured[group] > 0).all()


def test_taylor_with_one_gate_for_two_positions():
    net, images = settle(seeded(Chain)), data(16).train
    pairs = Member("down", "out", run([0, 3], [5, 1], [2, 4]))
    found = grouping(("down", 3, [pairs]))
    batch = next(images.batches(16, preprocess()))
    expected = slopes(net, pairs, batch.images, batch.labels) ** 2
    assert scores("taylor", net, found, images)["down"] == pytest.approx(expected, rel=1e-3)


def test_taylor_of_a_channel_that_nobody_reads_is_zero():
    net = settle(seeded(Chain))
    with torch.no_grad():
        net.fc.weight[:, 8:12] = 0  # what channel 2 of `down` becomes
    value = scores("taylor", net, CHAIN, data().train)["down"]
    assert (value == 0).tolist() == [False, False, True, False, False, False]


def test_taylor_gates_the_norms_of_a_group_without_weighted_writers():
    net, images = settle(seeded(Chain)), data(16).train
    found = grouping(("bn", 4, [Member("bn", "through", upto(4))]))
    batch = next(images.batches(16, preprocess()))
    expected = slopes(net, Member("bn", "out", upto(4)), batch.images, batch.labels) ** 2
    assert scores("taylor", net, found, images)["bn"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kept", [[0, 1], [2, 3]])
def test_images_of_other_classes_give_other_scores(kept):
    net = settle(seeded(Chain))
    for kind in ("taylor", "activation"):
        some = scores(kind, net, CHAIN, data(keep=kept).train)
        assert not np.allclose(some["conv"], scores(kind, net, CHAIN, data().train)["conv"], rtol=1e-3)


@pytest.mark.parametrize("micro_batch", [5, 16, 1000])
def test_activation_against_a_plain_forward(micro_batch):
    net, images = settle(seeded(Chain)), data(40).train
    measured = scores("activation", net, CHAIN, images, micro_batch=micro_batch)
    x = next(images.batches(1000, preprocess())).images
    with torch.no_grad():
        net.eval()
        first = functional.silu(net.bn(net.conv(x)))
        second = functional.silu(net.bn2(net.depthwise(first))).abs().mean(dim=(0, 2, 3)).numpy()
        third = functional.silu(net.down(functional.silu(net.bn2(net.depthwise(first))))).abs()
    third = third.mean(dim=(0, 2, 3)).numpy()
    assert measured["conv"] == pytest.approx(second / second.mean(), rel=1e-5)
    assert measured["down"] == pytest.approx(third / third.mean(), rel=1e-5)


def test_activation_is_the_mean_over_readers_and_positions():
    net, images = settle(seeded(lambda: Residual(True))), data(16).train
    x = next(images.batches(16, preprocess())).images
    with torch.no_grad():
        net.eval()
        stem = net.bn(net.stem(x))
        first = functional.silu(stem).abs().mean(dim=(0, 2, 3)).numpy()
        end = (stem + net.bn2(net.conv(functional.silu(stem)))).abs().mean(dim=(0, 2, 3)).numpy()
    second = (end + 2 * end) / 2
    expected = (first / first.mean() + second / second.mean()) / 2
    assert scores("activation", net, stream(True), images)["stem"] == pytest.approx(expected, rel=1e-5)


def test_activation_where_a_reader_is_called_by_keyword_over_a_sequence_or_never():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.never = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(input=self.conv(x).flatten(2).transpose(1, 2)).mean(dim=1)

    net, images = seeded(Sequence), data(16).train
    readers = [Member("fc", "in", upto(4)), Member("never", "in", upto(4))]
    found = grouping(("conv", 4, [Member("conv", "out", upto(4)), *readers]))
    with torch.no_grad():
        seen = net.conv(next(images.batches(16, preprocess())).images).abs().mean(dim=(0, 2, 3)).numpy()
    assert scores("activation", net, found, images)["conv"] == pytest.approx(seen / seen.mean(), rel=1e-5)


class OneOfTwo(Room):
    """One of two processes; what it hears from the other is given."""

    def __init__(self, rank: int, heard: list[torch.Tensor] | None = None) -> None:
        super().__init__("cpu", "fp32")
        self.place, self.heard, self.said = rank, heard, []

    rank = property(lambda self: self.place)
    world = property(lambda self: 2)

    def sum(self, value):
        self.said.append(value.clone())
        return value if self.heard is None else value + self.heard[len(self.said) - 1]


@pytest.mark.parametrize("count", [40, 8])
@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_two_processes_share_the_micro_batches(kind, count):
    net, images = settle(seeded(Chain)), data(count).train
    expected = scores(kind, net, CHAIN, images, micro_batch=8)
    other = OneOfTwo(1)
    with contextlib.suppress(InputError):  # with one micro-batch it has none, and nothing to divide by
        channel_scores(kind, net, CHAIN, images, preprocess(), other, micro_batch=8)
    first = OneOfTwo(0, other.said)
    found = channel_scores(kind, net, CHAIN, images, preprocess(), first, micro_batch=8)
    assert [value.shape for value in first.said] == [value.shape for value in other.said]
    assert all(not torch.equal(mine, value) for mine, value in zip(first.said[1:], other.said[1:], strict=True))
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_micro_batches_of_broken_images_count_for_nothing(kind):
    class Gaps:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def batches(self, *arguments):
            for batch in self.images.batches(*arguments):
                yield Batch(batch.images[:0], batch.labels[:0], batch.indices[:0], 0)
                yield batch

    net, images = settle(seeded(Chain)), data(40).train
    expected = scores(kind, net, CHAIN, images)
    found = scores(kind, net, CHAIN, Gaps(images))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


# What holds for all


@every_case
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_left_as_it_was(name, kind):
    net, found = case(name)
    net.train()
    first = next(net.children())
    first.eval()
    first.weight.requires_grad_(False)
    first.weight.grad = torch.ones_like(first.weight)
    before, random_state = copy.deepcopy(net), torch.get_rng_state()
    result = scores(kind, net, found, data(24).train)
    assert same_state(net, before)
    assert [part.training for part in net.modules()] == [part.training for part in before.modules()]
    flags = [parameter.requires_grad for parameter in net.parameters()]
    assert flags == [parameter.requires_grad for parameter in before.parameters()]
    assert not any(flags[:1])
    assert torch.equal(first.weight.grad, torch.ones_like(first.weight))
    assert all(parameter.grad is None for parameter in list(net.parameters())[1:])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    again = scores(kind, net, found, data(24).train)
    for group, values in result.items():
        assert values.shape == (found.groups[group].channels,)
        assert values.dtype == np.float64
        assert (values >= 0).all()
        assert np.array_equal(values, again[group])


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_a_network_that_fails_is_put_back_too(kind):
    net = seeded(Chain).train()
    net.fc = nn.Linear(7, 4)
    with pytest.raises(RuntimeError):
        scores(kind, net, CHAIN, data(16).train)
    assert all(part.training for part in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_no_groups_no_scores(kind):
    assert scores(kind, seeded(Chain), Grouping({}), data(16).train) == {}


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_images_are_asked_for(kind):
    with pytest.raises(UsageError, match=f"{kind} score of channels needs images"):
        scores(kind, seeded(Chain), CHAIN)
    with pytest.raises(UsageError, match="needs images"):
        scores(kind, seeded(Chain), CHAIN, data(16).train.subset([]))


@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
def test_images_are_not_looked_at(kind):
    net = settle(seeded(Chain))
    with_images = scores(kind, net, CHAIN, data(16).train)
    without = channel_scores(kind, net, CHAIN, None, None, room())
    assert all(np.array_equal(with_images[name], without[name]) for name in CHAIN.groups)


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="did you mean 'taylor'"):
        scores("tailor", seeded(Chain), CHAIN)
    with pytest.raises(UsageError, match="did you mean 'max'"):
        normalised({}, "maxi")


@pytest.mark.parametrize("kind", ["l1", "l2", "fpgm", "slimming", "taylor", "activation"])
def test_a_group_that_cannot_be_judged_is_named(kind):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.scale = nn.Identity(), nn.Parameter(torch.ones(3))
            self.fc = nn.Linear(3, 4)

        def forward(self, x):
            return self.fc((self.odd(x) * self.scale.view(1, -1, 1, 1)).mean(dim=(2, 3)))

    members = [Member("odd", "out", upto(3)), Member("scale", "through", upto(3), 0)]
    with pytest.raises(UsageError, match="'odd'"):
        scores(kind, seeded(Bare), grouping(("odd", 3, members)), data(16).train)


@pytest.mark.parametrize("kind", ["l1", "l2", "fpgm", "slimming", "taylor", "activation"])
def test_scores_that_are_not_finite_are_an_error(kind):
    net = seeded(Chain)
    with torch.no_grad():
        net.conv.weight[1, 0, 0, 0] = float("nan")
        net.bn.weight[1] = float("nan")
    with pytest.raises(InputError, match="'conv' are not finite"):
        scores(kind, net, CHAIN, data(16).train)


# Normalisation


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [3.0, 4.0, 0.0, 5.0]),
        ("mean", [1.0, 4 / 3, 0.0, 5 / 3]),
        ("max", [0.6, 0.8, 0.0, 1.0]),
        ("sum", [0.25, 1 / 3, 0.0, 5 / 12]),
        ("l2", [3 / 50**0.5, 4 / 50**0.5, 0.0, 5 / 50**0.5]),
    ],
)
def test_normalisations_by_hand(how, expected):
    values = {"a": np.array([3.0, 4.0, 0.0, 5.0]), "b": np.zeros(2)}
    found = normalised(values, how)
    assert found["a"] == pytest.approx(expected)
    assert found["b"].tolist() == [0, 0]
    found["a"][:] = 7
    assert values["a"].tolist() == [3, 4, 0, 5]


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9),
    st.sampled_from(["mean", "max", "sum", "l2"]),
    st.floats(1e-3, 1e3),
)
def test_a_normalised_group_has_no_scale_and_keeps_its_order(values, how, scale):
    one = np.array(values)
    found = normalised({"a": one, "b": scale * one}, how)
    assert found["a"] == pytest.approx(found["b"])
    assert np.array_equal(np.argsort(found["a"], kind="stable"), np.argsort(one, kind="stable"))
