"""What readers take in, the maps fitted to it, and networks whose readers make removed channels up."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from billhook.compensation import (
    Moments,
    absorb,
    absorbed,
    collect_moments,
    fit_reader,
    fp_backward,
    group_filters,
    select_by_activations,
)
from billhook.compensation.next_layer import RIDGES
from billhook.errors import InputError, UsageError
from billhook.models import open_network
from billhook.surgery import ChannelGroup, Grouping, Member, channel_groups, plan_channels, remove_channels


def upto(count: int, width: int = 1) -> np.ndarray:
    return np.arange(count * width, dtype=np.int64).reshape(count, width)


def one_group(*members: Member, channels: int, sections: int = 1) -> Grouping:
    return Grouping({"g": ChannelGroup("g", channels, members, sections)})


def signal(*shape: int, seed: int = 0) -> Tensor:
    """Activations as behind a rectifier, mixed with each other."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=rng, dtype=torch.float64)
    return (x + 0.6 * x.roll(1, 1) + 0.4).relu()


def moments_of(layer: nn.Module, x: Tensor, channels: int, width: int = 1, folds: int = 4) -> Moments:
    net = nn.Sequential(layer).double()
    found = one_group(Member("0", "in", upto(channels, width)), channels=channels)
    return collect_moments(net, found, [x], folds=folds)["g"]["0"]


def patches(conv: nn.Conv2d, x: Tensor) -> np.ndarray:
    """``[samples, channels]``: what every tap reads at every output position, zeros of the padding too."""
    if conv.padding_mode != "zeros":
        x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    padding = conv.padding if conv.padding_mode == "zeros" else 0
    taps = functional.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)
    return taps.unflatten(1, (x.shape[1], -1)).permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


def least_squares(inputs: np.ndarray, outputs: np.ndarray, constant: bool) -> tuple[np.ndarray, np.ndarray]:
    ones = np.ones((len(inputs), 1)) if constant else np.zeros((len(inputs), 0))
    found = np.linalg.lstsq(np.hstack([inputs, ones]), outputs, rcond=None)[0]
    matrix, rest = found[: inputs.shape[1]].T, found[inputs.shape[1] :]
    return matrix, rest[0] if constant else np.zeros(outputs.shape[1])


# What is added up


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
)
@settings(max_examples=40)
def test_samples_are_what_the_taps_read(kernel, stride, padding, dilation, mode):
    conv = nn.Conv2d(3, 2, kernel, stride, padding, dilation, padding_mode=mode)
    x = signal(5, 3, 6, 7)
    rows = patches(conv, x)
    moments = moments_of(conv, x, 3)
    assert moments.second.sum(0)[0].numpy() == pytest.approx(rows.T @ rows, rel=1e-10)
    assert moments.first.sum(0)[0].numpy() == pytest.approx(rows.sum(axis=0), rel=1e-10)
    assert float(moments.count.sum()) == len(rows)
    assert moments.shift == "0"


def test_same_padding_and_folds_and_batches():
    conv = nn.Conv2d(3, 2, 3, padding="same", dilation=2).double()
    x = signal(7, 3, 5, 5)
    found = one_group(Member("0", "in", upto(3)), channels=3)
    at_once = collect_moments(nn.Sequential(conv), found, [x], folds=3)["g"]["0"]
    in_parts = collect_moments(nn.Sequential(conv), found, x.split(2), folds=3)["g"]["0"]
    for name in ("second", "first", "count", "vectors"):
        assert torch.allclose(getattr(at_once, name), getattr(in_parts, name), rtol=1e-12)
    for fold in range(3):
        conv.padding = (2, 2)
        rows = patches(conv, x[fold::3])
        assert at_once.second[fold, 0].numpy() == pytest.approx(rows.T @ rows)
    assert at_once.vectors.tolist() == [3 * 25, 2 * 25, 2 * 25]
    doubled = copy.deepcopy(at_once)
    doubled.sum_over(lambda tensor: 2 * tensor)
    assert torch.equal(doubled.second, 2 * at_once.second)


def test_a_grouped_reader_has_blocks_and_a_flattened_map_places():
    grouped = moments_of(nn.Conv2d(6, 4, 1, groups=2), x := signal(5, 6, 3, 3), 6)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    assert grouped.second.shape == (4, 2, 3, 3)
    assert grouped.second.sum(0)[1].numpy() == pytest.approx(rows[:, 3:].T @ rows[:, 3:])
    net = nn.Sequential(nn.Flatten(), nn.Linear(54, 2)).double()
    found = one_group(Member("1", "in", upto(6, 9)), channels=6)
    flat = collect_moments(net, found, [x])["g"]["1"]
    assert flat.second.sum(0)[0].numpy() == pytest.approx(rows.T @ rows)
    assert float(flat.count.sum()) == len(rows)
    # Two groups side by side, in one reader; and one that reads rows of a sequence.
    half = one_group(Member("0", "in", upto(6)[3:]), channels=3)
    beside = collect_moments(nn.Sequential(nn.Conv2d(6, 2, 1)).double(), half, [x])["g"]["0"]
    assert beside.second.sum(0)[0].numpy() == pytest.approx(rows[:, 3:].T @ rows[:, 3:])
    sequence = moments_of(nn.Linear(6, 2), x.permute(0, 2, 3, 1), 6)
    assert sequence.second.sum(0)[0].numpy() == pytest.approx(rows.T @ rows)


class Norms(nn.Module):
    """Convolutions with something, or nothing, between them and a BatchNorm."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self.first(x)))


def test_where_a_constant_goes():
    members = Member("first", "in", upto(3)), Member("norm", "through", upto(4), after="first")
    found = Grouping({
        "g": ChannelGroup("g", 3, members[:1]),
        "h": ChannelGroup("h", 4, (Member("first", "out", upto(4)), members[1])),
    })  # fmt: skip

    def shift(between: Callable[[Tensor], Tensor]) -> str | None:
        net = Norms(between).train()
        shifted = collect_moments(net, found, [torch.ones(1, 3, 2, 2)], ["g"])["g"]["first"].shift
        assert net.norm.training
        assert net.norm.num_batches_tracked == 0
        return shifted

    assert shift(lambda x: x) == "norm"
    assert shift(torch.relu) is None
    assert shift(torch.relu_) is None  # the same tensor, and yet another
    assert moments_of(nn.ConvTranspose2d(3, 2, 2), signal(2, 3, 4, 4), 3).shift is None
    assert moments_of(nn.Conv2d(3, 2, 1, bias=False), signal(2, 3, 4, 4), 3).shift is None


# The fit


@given(st.integers(2, 6), st.data())
@settings(max_examples=30)
def test_the_map_is_that_of_least_squares(channels, data):
    kept = sorted(data.draw(st.sets(st.integers(0, channels - 1), min_size=1)))
    gone = [channel for channel in range(channels) if channel not in kept]
    bias = data.draw(st.booleans())
    conv = nn.Conv2d(channels, 2, 3, stride=2, padding=1, bias=bias)
    x = signal(6, channels, 5, 5, seed=data.draw(st.integers(0, 99)))
    rows = patches(conv, x)
    fitted = fit_reader(moments_of(conv, x, channels), kept, ridge=0.0)
    matrix, constant = least_squares(rows[:, kept], rows[:, gone], bias)
    assert fitted.matrix == pytest.approx(matrix, rel=1e-8, abs=1e-9)
    assert (fitted.constant is not None) == bias
    if bias:
        assert fitted.constant == pytest.approx(constant, rel=1e-8, abs=1e-9)
    error = ((rows[:, gone] - rows[:, kept] @ matrix.T - constant) ** 2).sum()
    assert fitted.error == pytest.approx(error / (rows[:, gone] ** 2).sum() if gone else 0.0, abs=1e-10)
    assert (fitted.unseen_error, fitted.short) == (None, False)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_is_that_of_cross_validation(bias):
    """Few places and many channels: some shrinking pays."""
    conv = nn.Conv2d(12, 2, 1, bias=bias)
    x = signal(30, 12, 1, 1, seed=5)
    rows, kept, gone = x.flatten(1).numpy(), list(range(8)), list(range(8, 12))

    def shrunk(inputs: np.ndarray, outputs: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        middle, aim = (inputs.mean(axis=0), outputs.mean(axis=0)) if bias else (0.0, 0.0)
        a, b = inputs - middle, outputs - aim
        matrix = np.linalg.solve(a.T @ a + ridge * np.diag((a**2).sum(axis=0)), a.T @ b).T
        return matrix, aim - matrix @ (middle * np.ones(8)) if bias else np.zeros(4)

    errors = []
    for ridge in RIDGES:
        error = 0.0
        for fold in range(4):
            test = np.arange(30) % 4 == fold
            matrix, constant = shrunk(rows[~test][:, kept], rows[~test][:, gone], ridge)
            error += ((rows[test][:, gone] - rows[test][:, kept] @ matrix.T - constant) ** 2).sum()
        errors.append(error / (rows[:, gone] ** 2).sum())
    best = int(np.argmin(errors))
    assert best > 0
    moments = moments_of(conv, x, 12)
    fitted = fit_reader(moments, kept)
    assert (fitted.ridge, fitted.unseen_error) == (RIDGES[best], pytest.approx(errors[best]))
    assert fitted.unseen_error > fitted.error
    matrix, constant = shrunk(rows[:, kept], rows[:, gone], fitted.ridge)
    assert fitted.matrix == pytest.approx(matrix)
    assert fit_reader(moments, kept, ridge=fitted.ridge).matrix == pytest.approx(matrix)
    if bias:
        assert fitted.constant == pytest.approx(constant)


def test_a_constant_helps_where_channels_are_not_zero_in_the_mean():
    x = signal(40, 5, 4, 4)
    x[:, 4] += 3
    errors = [fit_reader(moments_of(nn.Conv2d(5, 2, 1, bias=bias), x, 5), [0, 1, 2, 3]).error for bias in (True, False)]
    assert errors[0] < 0.2 * errors[1]


def test_too_few_places_are_said():
    x = signal(4, 12, 1, 1)
    fitted = fit_reader(moments_of(nn.Conv2d(12, 2, 1), x, 12), range(8))
    assert fitted.short
    assert fitted.ridge > 0
    one = fit_reader(moments_of(nn.Conv2d(12, 2, 1), x[:1], 12), range(8))
    assert one.short
    assert one.ridge > 0
    assert one.unseen_error is None


def test_blocks_never_meet():
    conv, x = nn.Conv2d(6, 4, 1, groups=2), signal(20, 6, 3, 3)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    fitted = fit_reader(moments_of(conv, x, 6), [5, 0, 1, 3], ridge=0.0)
    assert fitted.removed.tolist() == [2, 4]
    first, shift = least_squares(rows[:, [0, 1]], rows[:, [2]], True)
    second, other = least_squares(rows[:, [3, 5]], rows[:, [4]], True)
    expected = np.zeros((2, 4))
    expected[0, :2], expected[1, 2:] = first, second
    assert fitted.matrix == pytest.approx(expected)
    assert fitted.constant == pytest.approx(np.concatenate([shift, other]))


# The readers


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(6, 4, 3, padding=1, bias=False),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 3),
    ],
)
def test_a_reader_puts_out_what_the_made_up_channels_would_give(layer):
    net = nn.Sequential(copy.deepcopy(layer)).double()
    found = one_group(Member("0", "in", upto(6)), channels=6, sections=2)
    x = signal(9, 6, 6, 6)
    fitted = fit_reader(collect_moments(net, found, [x])["g"]["0"], [0, 1, 4, 5])
    imagined = x.clone()
    matrix = torch.from_numpy(fitted.matrix)
    imagined[:, fitted.removed] = torch.einsum("jl,nlhw->njhw", matrix, x[:, fitted.kept])
    if fitted.constant is not None:
        imagined[:, fitted.removed] += torch.from_numpy(fitted.constant)[:, None, None]
    expected = net(imagined)
    before = copy.deepcopy(net.state_dict())
    weight, _ = absorbed(net[0], found.groups["g"].members[0].index, fitted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    absorb(net, found.groups["g"], [fitted])
    assert torch.equal(net[0].weight, weight)
    x[:, fitted.removed] = torch.randn(9, 2, 6, 6, dtype=torch.float64)  # nobody reads them any more
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)


def test_a_head_behind_a_flattened_map():
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double()
    found = one_group(Member("1", "in", upto(6, 4)), channels=6)
    x = signal(9, 6, 2, 2)
    fitted = fit_reader(collect_moments(net, found, [x])["g"]["1"], [1, 2, 5])
    imagined = x.clone()
    made = torch.einsum("jl,nlhw->njhw", torch.from_numpy(fitted.matrix), x[:, fitted.kept])
    imagined[:, fitted.removed] = made + torch.from_numpy(fitted.constant)[:, None, None]
    expected = net(imagined)
    absorb(net, found.groups["g"], [fitted])
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)


class Chain(nn.Module):
    """A depthwise convolution between writer and reader, a grouped reader, a residual branch, a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn3 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn4 = nn.Conv2d(12, 12, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(12)
        self.conv4, self.bn5 = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn3(self.conv2(self.bn2(self.deep(x)).relu())).relu()
        x = x + self.bn5(self.conv4(self.bn4(self.conv3(x)).relu()))
        return self.head(functional.max_pool2d(x.relu(), 2).flatten(1))


def lively(net: nn.Module) -> nn.Module:
    """Statistics, scales and shifts that do something, in double precision."""
    rng = torch.Generator().manual_seed(2)
    for part in net.double().modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=rng))
            for tensor in (part.running_var, part.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
    return net.eval()


def copy_channels(net: nn.Module, group: ChannelGroup, pairs: list[tuple[int, int]]) -> None:
    """Make channels duplicates of others wherever they are written or carried."""
    with torch.no_grad():
        for member in group.members:
            if member.side == "in" or member.dim is not None:
                continue
            part = net.get_submodule(member.layer)
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(part, name, None)
                for source, target in pairs if tensor is not None else []:
                    tensor[member.index[target]] = tensor[member.index[source]].clone()


@pytest.mark.parametrize("ridge", [None, 0.0])
@pytest.mark.parametrize("spec", ["chain", "resnet20", "resnet20,shortcut=conv"])
def test_duplicates_go_and_the_network_computes_what_it_did(spec, ridge):
    """Every group that may: within blocks, of residual streams, before depthwise and grouped layers and a head."""
    chain = spec == "chain"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # other tests must not decide which weights these are
        net = lively(Chain() if chain else open_network(spec, 5).module)
    size = 8
    grouping = channel_groups(net, size)
    kept = {}
    for group in grouping.groups.values():
        if spec == "resnet20" and len(group.writers) > 1:
            continue  # its padded shortcuts hand channels on to the next stream
        run = group.channels // group.sections
        starts = [section * run for section in range(group.sections)]
        copy_channels(net, group, [(start, start + run - 1) for start in starts])
        kept[group.name] = np.setdiff1d(np.arange(group.channels), [start + run - 1 for start in starts])
    assert len(kept) == (3 if chain else 9 if spec == "resnet20" else 12), sorted(grouping.groups)
    # A head sees one place per image: fewer images than it has inputs would leave the map open.
    images = torch.randn(100, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = net(images)
    moments = collect_moments(net, grouping, images.split(30))
    small = copy.deepcopy(net)
    for name, stay in kept.items():
        maps = [fit_reader(reader, stay, ridge=ridge) for reader in moments[name].values()]
        assert max(one.error for one in maps) < 1e-12
        absorb(small, grouping.groups[name], maps)
    small = remove_channels(small, plan_channels(small, grouping, kept))
    other = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for x, wanted in ((images, expected), (other, net(other))):
        assert torch.allclose(small(x), wanted, rtol=0, atol=1e-7 * float(wanted.detach().abs().max()))
    without = remove_channels(net, plan_channels(net, grouping, kept))
    assert not torch.allclose(without(images), expected, rtol=0, atol=1e-2 * float(expected.detach().abs().max()))


def test_constants_in_a_running_mean():
    """A channel that is constant goes without a trace where the reader reads no padding."""
    net = nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)).double()
    net = lively(net)
    found = Grouping({
        "g": ChannelGroup("g", 4, (Member("0", "in", upto(4)),)),
        "0": ChannelGroup("0", 3, (Member("0", "out", upto(3)), Member("1", "through", upto(3), after="0"))),
    })  # fmt: skip
    x = signal(8, 4, 3, 3)
    x[:, 2] = 1.7
    expected = net(x)
    fitted = fit_reader(collect_moments(net, found, [x], ["g"])["g"]["0"], [0, 1, 3])
    assert fitted.constant == pytest.approx([1.7])
    assert fitted.shift == "1"
    absorb(net, found.groups["g"], [fitted])
    x[:, 2] = 0
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)


# Which channels go


@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_selection_is_the_greedy_removal_on_the_samples(outputs, bias):
    conv = nn.Conv2d(6, 4, 3, padding=1, bias=bias).double()
    conv.weight.data *= torch.tensor([1, 0.1, 3, 1, 0.3, 1]).double()[:, None, None]
    x = signal(8, 6, 4, 4) * torch.tensor([1, 9, 0.2, 1, 3, 2]).double()[:, None, None]
    net, found = nn.Sequential(conv), one_group(Member("0", "in", upto(6)), channels=6)
    readers = collect_moments(net, found, [x])["g"]
    selection = select_by_activations(net, found.groups["g"], readers, outputs=outputs)
    rows, weight = patches(conv, x), conv.weight.detach().flatten(2).permute(2, 0, 1).numpy()

    def error(kept: list[int]) -> float:
        gone = [channel for channel in range(6) if channel not in kept]
        rest = np.zeros_like(rows)
        matrix, constant = least_squares(rows[:, kept], rows[:, gone], bias)
        rest[:, gone] = rows[:, gone] - rows[:, kept] @ matrix.T - constant
        return float(((rest @ weight.transpose(0, 2, 1)) ** 2).sum() if outputs else (rest**2).sum())

    left, order = list(range(6)), []
    while left:
        costs = [error([other for other in left if other != one]) for one in left]
        order.append(left.pop(int(np.argmin(costs))))
        assert selection.relative_errors[len(left)] == pytest.approx(min(costs) / error([]), rel=1e-6)
    assert selection.order[0, ::-1].tolist() == order
    for count in (0, 3):
        assert selection.kept(count).tolist() == sorted(order[6 - count :])


def test_selection_in_a_network_with_sections():
    net = lively(Chain())
    grouping = channel_groups(net, 8)
    moments = collect_moments(net, grouping, [torch.randn(5, 3, 8, 8, dtype=torch.float64)])
    seen = set()
    for name, group in grouping.groups.items():
        for selection in (
            select_by_activations(net, group, moments[name]),
            fp_backward(group_filters(net, group)),
        ):
            assert (selection.sections, selection.size) == (group.sections, group.channels // group.sections)
            plan_channels(net, grouping, {name: selection.kept(2)})
        seen.add(group.sections)
    assert seen == {1, 2}
    # Depthwise convolutions and normalisations follow the filters that are written.
    assert group_filters(net, grouping.groups["conv1"]).shape == (1, 8, 27)
    stream = grouping.groups["conv2"]
    assert group_filters(net, stream).shape == (2, 6, 8 * 9 + 12)


# Bad input


def test_what_is_refused():
    net, found = nn.Sequential(nn.Conv2d(3, 2, 1)), one_group(Member("0", "in", upto(3)), channels=3)
    image = torch.ones(1, 3, 2, 2)
    with pytest.raises(UsageError, match="two folds"):
        collect_moments(net, found, [image], folds=1)
    with pytest.raises(UsageError, match="no channel group 'h'"):
        collect_moments(net, found, [image], ["h"])
    with pytest.raises(InputError, match="need images"):
        collect_moments(net, found, [])
    with pytest.raises(InputError, match="what '0' takes in is not finite"):
        collect_moments(net, found, [image / 0])
    moments = collect_moments(net, found, [image])["g"]["0"]
    for kept in ([], [3], [-1]):
        with pytest.raises(UsageError, match="some of them must stay"):
            fit_reader(moments, kept)
    with pytest.raises(UsageError, match="negative"):
        fit_reader(moments, [0], ridge=-1.0)
    with pytest.raises(UsageError, match="cannot make up"):
        absorb(net, ChannelGroup("h", 3, ()), [fit_reader(moments, [0])])
    with pytest.raises(UsageError, match="no layer with weights"):
        select_by_activations(net, found.groups["g"], {})
    with pytest.raises(UsageError, match="no convolution or linear layer writes"):
        group_filters(net, found.groups["g"])
