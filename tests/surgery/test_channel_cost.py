"""The cost of fewer channels, without surgery, against smaller networks that are really made and counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from billhook import artifact
from billhook.cost import count
from billhook.surgery.channel_cost import QUANTITIES, ChannelCost
from billhook.surgery.groups import Branch, ChannelGroup, Grouping, Member

SIZE = 8


def at(*columns):
    """An index of some positions per channel, each given for all channels."""
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


def plain(layer, side, channels, start=0, dim=None):
    return Member(layer, side, at(start + np.arange(channels)), dim)


def group(name, channels, *members, **fields):
    return ChannelGroup(name, channels, members, **fields)


def grouping_of(*groups):
    return Grouping({one.name: one for one in groups})


def file_bytes(module):
    return artifact.file_bytes(artifact.state_arrays(module), {})


def stored_values(module):
    return sum(array.size for array in artifact.state_arrays(module).values())


def cost_of(module, grouping, **fields):
    return ChannelCost(count(module, SIZE), grouping, file_bytes(module), **fields)


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def assert_same(cost, kept, dense, small):
    """Everything as counted in a network that was made smaller."""
    totals, counted = cost.totals(kept), count(small, SIZE)
    assert list(totals) == list(QUANTITIES)
    assert totals["params"] == totals["nonzero"] == counted.params
    assert totals["macs"] == totals["effective_macs"] == counted.macs
    assert (totals["channels"], totals["volume"]) == (counted.channels, counted.volume)
    assert totals["bytes"] == file_bytes(dense) - 4 * (stored_values(dense) - stored_values(small))
    assert file_bytes(small) <= totals["bytes"]  # its header is shorter


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.gamma


FULL = {"a": 6, "b": 4, "c": 3, "up": 8, "grouped": 12, "line": 7}
SECTIONS = {"up": 4, "grouped": 4}


class Mixed(nn.Module):
    """A layer of every kind, and a concatenation that takes one tensor twice."""

    def __init__(self, a=6, b=4, c=3, up=8, grouped=12, line=7):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3, padding=1)
        self.bn = nn.BatchNorm2d(a)
        self.act = nn.PReLU(a)
        self.one = nn.PReLU()
        self.dw = nn.Conv2d(a, 2 * a, 3, stride=2, padding=1, groups=a)
        self.dwbn = nn.BatchNorm2d(2 * a)
        self.b = nn.Conv2d(2 * a, b, 1, bias=False)
        self.c = nn.Conv2d(2 * a, c, (3, 1), padding=(1, 0))
        self.catbn = nn.BatchNorm2d(2 * b + c)
        self.up = nn.ConvTranspose2d(2 * b + c, up, 2, stride=2)
        self.grouped = nn.Conv2d(up, grouped, 3, padding=1, groups=4, bias=False)
        self.scale = Scale(grouped)
        self.line = nn.Linear(4 * grouped, line)
        self.head = nn.Linear(line, 5, bias=False)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.one(self.act(self.bn(self.a(x))))
        x = self.dwbn(self.dw(x))
        b, c = self.b(x), self.c(x)
        x = self.up(self.catbn(torch.cat([b, c, b], dim=1)).relu())
        x = self.scale(self.grouped(x))
        return self.head(self.line(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)).relu())


def mixed_grouping():
    a, b, e = np.arange(6), np.arange(4), np.arange(12)
    twice, both, four = at(2 * a, 2 * a + 1), at(b, b + 7), at(*(4 * e + i for i in range(4)))
    return grouping_of(
        group(
            "a",
            6,
            plain("a", "out", 6),
            plain("bn", "through", 6),
            plain("act", "through", 6),
            plain("one", "through", 6),
            Member("dw", "through", twice),
            Member("dwbn", "through", twice),
            Member("b", "in", twice),
            Member("c", "in", twice),
        ),
        group("b", 4, plain("b", "out", 4), Member("catbn", "through", both), Member("up", "in", both)),
        group("c", 3, plain("c", "out", 3), plain("catbn", "through", 3, 4), plain("up", "in", 3, 4)),
        group("up", 8, plain("up", "out", 8), plain("grouped", "in", 8), sections=4),
        group(
            "grouped",
            12,
            plain("grouped", "out", 12),
            plain("scale.gamma", "through", 12, dim=0),
            Member("line", "in", four),
            sections=4,
        ),
        group("line", 7, plain("line", "out", 7), plain("head", "in", 7)),
    )


MIXED = Mixed()
MIXED_COST = cost_of(MIXED, mixed_grouping())


@st.composite
def kept_counts(draw, lowest=1):
    kept = {}
    for name, channels in FULL.items():
        sections = SECTIONS.get(name, 1)
        kept[name] = sections * draw(st.integers(lowest, channels // sections))
    return kept


def test_all_channels_kept_is_the_dense_network():
    assert_same(MIXED_COST, {}, MIXED, MIXED)
    assert MIXED_COST.totals({}) == MIXED_COST.totals(FULL)


@pytest.mark.parametrize("name", list(FULL))
def test_each_group_alone(name):
    kept = {name: SECTIONS.get(name, 1)}
    assert_same(MIXED_COST, kept, MIXED, Mixed(**{**FULL, **kept}))


@given(kept_counts())
def test_any_counts(kept):
    assert_same(MIXED_COST, kept, MIXED, Mixed(**kept))


@given(kept_counts(), kept_counts())
def test_never_more_with_fewer_channels(one, two):
    fewer = {name: min(one[name], two[name]) for name in FULL}
    assert all(MIXED_COST.totals(fewer)[quantity] <= MIXED_COST.totals(one)[quantity] for quantity in QUANTITIES)


@given(kept_counts(), st.data())
def test_a_saving_is_the_difference(kept, data):
    name = data.draw(st.sampled_from(list(FULL)))
    sections = SECTIONS.get(name, 1)
    removed = sections * data.draw(st.integers(0, kept[name] // sections - 1))
    before, after = count(Mixed(**kept), SIZE), count(Mixed(**{**kept, name: kept[name] - removed}), SIZE)
    saving = MIXED_COST.saving(name, removed, kept)
    for quantity in ("params", "macs", "channels", "volume"):
        assert saving[quantity] == getattr(before, quantity) - getattr(after, quantity)
    assert saving["bytes"] >= 4 * saving["params"]


def test_many_at_once_are_as_one_by_one():
    generator = np.random.default_rng(0)
    kept = generator.integers(0, np.array(list(FULL.values())) + 1, size=(3, 5, 6))
    many = MIXED_COST.many(kept)
    assert many.shape == (3, 5, len(QUANTITIES))
    for place in np.ndindex(3, 5):
        one = dict(zip(FULL, kept[place].tolist(), strict=True))
        assert many[place].tolist() == list(MIXED_COST.totals(one).values())


def test_a_table_by_hand():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    one = group("0", 4, plain("0", "out", 4), plain("1", "through", 4), plain("2", "in", 4))
    cost = ChannelCost(count(module, SIZE), grouping_of(one), 10_000)
    # 27 + 2 + 2 parameters of a channel, 2 statistics; 36 positions; the biases of layer 2 stay.
    totals = [cost.totals({"0": kept}) for kept in (4, 1)]
    assert [t["params"] for t in totals] == [4 * 31 + 2, 31 + 2]
    assert [t["macs"] for t in totals] == [4 * 36 * 29, 36 * 29]
    assert [t["channels"] for t in totals] == [6, 3]
    assert [t["volume"] for t in totals] == [6 * 36, 3 * 36]
    assert [t["bytes"] for t in totals] == [10_000, 10_000 - 4 * 3 * 33]
    assert cost.saving("0", 2, {"0": 3}) == {
        "params": 62,
        "nonzero": 62,
        "macs": 72 * 29,
        "effective_macs": 72 * 29,
        "channels": 2,
        "volume": 72,
        "bytes": 4 * 66,
    }
    assert cost.largest({}, "params") == "0"
    assert cost.largest({"0": 1}, "volume") == "2"


# ---------------------------------------------------------------------- branches
class Put(nn.Module):
    """Where a branch was: its constant."""

    def __init__(self, channels):
        super().__init__()
        self.value = nn.Parameter(torch.ones(channels)) if channels else None

    def forward(self, x):
        return 0 if self.value is None else self.value.view(1, -1, 1, 1)


class Residual(nn.Module):
    """Three convolutions in a branch, of widths one and two, on a stream; an end of some kind."""

    def __init__(self, stem=8, one=6, two=5, end="bn"):
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        if not one or not two:
            self.branch = Put(0 if end == "nothing" else stem)
        else:
            self.branch = nn.Sequential(
                nn.Conv2d(stem, one, 1, bias=False),
                nn.BatchNorm2d(one),
                nn.ReLU(),
                nn.Conv2d(one, two, 3, padding=1, bias=False),
                nn.BatchNorm2d(two),
                nn.PReLU(),
                nn.Conv2d(two, stem, 1, bias=end == "bias"),
                *([nn.BatchNorm2d(stem, affine=end == "bn")] if end in ("bn", "plain") else []),
            )
        self.head = nn.Conv2d(stem, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x)).mean((2, 3))


def residual_grouping(end, stem=8):
    normed = end in ("bn", "plain")
    ends = ("branch.7",) if normed else ("branch.6",)
    inside = ("branch.4", "branch.5", "branch.6") if normed else ("branch.4", "branch.5")
    last = [plain("branch.7", "through", stem)] if normed else []
    return grouping_of(
        group(
            "stem",
            stem,
            plain("stem", "out", stem),
            plain("branch.0", "in", stem),
            plain("branch.6", "out", stem),
            *last,
            plain("head", "in", stem),
        ),
        group("branch.0", 6, plain("branch.0", "out", 6), plain("branch.1", "through", 6), plain("branch.3", "in", 6)),
        group(
            "branch.3",
            5,
            plain("branch.3", "out", 5),
            plain("branch.4", "through", 5),
            plain("branch.5", "through", 5),
            plain("branch.6", "in", 5),
            branch=Branch(("branch.3",), inside, ends),
        ),
    )


@pytest.mark.parametrize("end", ["bn", "plain", "bias", "nothing"])
@pytest.mark.parametrize("stem", [8, 3])
@pytest.mark.parametrize("two", [5, 2, 0])
def test_a_branch_down_to_nothing(end, stem, two):
    """What nobody reads any more goes along; of the end a constant is left, if it has one."""
    dense = Residual(end=end)
    cost = cost_of(dense, residual_grouping(end), shapes=shapes_of(dense))
    kept = {"stem": stem, "branch.0": 2, "branch.3": two}
    assert_same(cost, kept, dense, Residual(stem, 2, two, end))
    if end != "plain":  # the statistics of a BatchNorm without parameters are known from the shapes only
        assert cost_of(dense, residual_grouping(end)).totals(kept) == cost.totals(kept)
    assert cost.saving("branch.0", 1, kept)["params"] == (0 if two == 0 else stem + 2 + 9 * two)


@given(*[st.tuples(st.integers(1, 8), st.integers(0, 5)) for _ in range(2)])
def test_with_branches_never_more_with_fewer_channels(one, two):
    cost = BRANCHED
    first = {"stem": one[0], "branch.3": one[1]}
    fewer = {"stem": min(one[0], two[0]), "branch.3": min(one[1], two[1])}
    assert all(cost.totals(fewer)[quantity] <= cost.totals(first)[quantity] for quantity in QUANTITIES)
    kept = np.stack([cost.vector(first), cost.vector(fewer)])
    assert cost.many(kept).tolist() == [list(cost.totals(each).values()) for each in (first, fewer)]


BRANCHED = cost_of(Residual(), residual_grouping("bn"))


def test_the_largest_layer_is_not_in_a_branch_that_is_gone():
    assert BRANCHED.largest({}, "params") == "branch.3"
    assert BRANCHED.largest({"branch.3": 0}, "params") == "stem"


# ---------------------------------------------------------------------- what a count does not say
class Odd(nn.Module):
    """Normalisations that store less, and two parameters on their own in one module."""

    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.plain = nn.BatchNorm2d(width, affine=False)
        self.forgetful = nn.BatchNorm2d(width, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(width, affine=True)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.shift = nn.Parameter(torch.ones(width, 2))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        x = self.instance(self.forgetful(self.plain(self.conv(x)))) * self.gain
        return self.head(x + self.shift.sum(1).view(1, -1, 1, 1))


def odd_grouping():
    through = [plain(name, "through", 6) for name in ("plain", "forgetful", "instance")]
    bare = [plain("gain", "through", 6, dim=1), plain("shift", "through", 6, dim=0)]
    return grouping_of(group("conv", 6, plain("conv", "out", 6), *through, *bare, plain("head", "in", 6)))


@pytest.mark.parametrize("kept", [6, 4, 1])
def test_shapes_say_what_a_count_does_not(kept):
    dense = Odd()
    assert_same(cost_of(dense, odd_grouping(), shapes=shapes_of(dense)), {"conv": kept}, dense, Odd(kept))


def test_without_shapes_never_fewer_parameters_than_there_are():
    dense = Odd()
    totals = cost_of(dense, odd_grouping()).totals({"conv": 2})
    assert totals["params"] == count(Odd(2), SIZE).params + 4 * 3  # gain and shift stay
    assert totals["macs"] == count(Odd(2), SIZE).macs


class Tied(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.one, self.two = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(self.stem(x)))


def test_a_shared_weight_counts_once_and_works_twice():
    grouping = grouping_of(group("stem", 6, plain("stem", "out", 6), *[
        plain(name, side, 6) for name in ("one", "two") for side in ("in", "out")
    ]))  # fmt: skip
    totals, small = cost_of(Tied(), grouping).totals({"stem": 4}), count(Tied(4), SIZE)
    assert (totals["params"], totals["macs"]) == (small.params, small.macs)


def test_one_dimension_and_several_calls():
    class Twice(nn.Module):
        def __init__(self, width=6):
            super().__init__()
            self.stem, self.line = nn.Conv2d(3, width, 1), nn.Conv1d(width, width, 3, padding=1)

        def forward(self, x):
            return self.line(self.line(self.stem(x).flatten(2)))

    members = [plain("stem", "out", 6), plain("line", "in", 6), plain("line", "out", 6)]
    dense = Twice()
    assert_same(cost_of(dense, grouping_of(group("stem", 6, *members))), {"stem": 5}, dense, Twice(5))


@pytest.mark.parametrize(
    ("kept", "message"),
    [({"x": 1}, "no channel group 'x'"), ({"a": 7}, "has 6 channels"), ({"a": -1}, "cannot keep -1")],
)
def test_counts_that_cannot_be(kept, message):
    with pytest.raises(ValueError, match=message):
        MIXED_COST.totals(kept)


def test_more_cannot_go_than_there_are():
    with pytest.raises(ValueError, match="cannot keep -1"):
        MIXED_COST.saving("a", 3, {"a": 2})
    with pytest.raises(ValueError, match="no channel group 'x'"):
        MIXED_COST.saving("x", 0, {})


def test_members_that_cannot_be():
    with pytest.raises(ValueError, match="do not go through 'b'"):
        cost_of(MIXED, grouping_of(group("b", 4, plain("b", "through", 4))))
    lost = group("b", 4, plain("b", "out", 4), branch=Branch(("b",), (), ("nowhere",)))
    with pytest.raises(ValueError, match="end 'nowhere' of a branch was not counted"):
        cost_of(MIXED, grouping_of(lost))
