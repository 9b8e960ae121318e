"""Which channels stay: by hand, by brute force, and what holds for every choice."""

import itertools
from math import lcm

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from billhook.cost import count
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, RunError, UsageError
from billhook.methods.ceilings import Ceilings
from billhook.methods.channel_choice import _last_ones, check, choose_channels, feasibility, overheads, smallest
from billhook.methods.floor import Floor
from billhook.surgery.channel_cost import QUANTITIES, ChannelCost
from billhook.surgery.groups import Branch, ChannelGroup, Grouping, Member


def member(layer, side, channels):
    return Member(layer, side, np.arange(channels, dtype=np.int64)[:, None])


class Chain(nn.Module):
    """Three 1x1 convolutions; the third reads in groups; a head on one pixel."""

    def __init__(self, widths=(4, 6, 8), groups=2, size=2):
        super().__init__()
        a, b, c = widths
        self.a = nn.Conv2d(3, a, 1, bias=False)
        self.b = nn.Conv2d(a, b, 3, padding=1, stride=2, bias=False)
        self.c = nn.Conv2d(b, c, 1, groups=groups, bias=False)
        self.head = nn.Conv2d(c, 5, 1, bias=False)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x))))


def chain(widths=(4, 6, 8), groups=2, size=4):
    """The cost and the groups of a chain."""
    a, b, c = widths
    grouping = Grouping(
        {
            "a": ChannelGroup("a", a, (member("a", "out", a), member("b", "in", a))),
            "b": ChannelGroup("b", b, (member("b", "out", b), member("c", "in", b)), sections=groups),
            "c": ChannelGroup("c", c, (member("c", "out", c), member("head", "in", c)), sections=groups),
        }
    )
    dense = count(Chain(widths, groups), size)
    return grouping, ChannelCost(dense, grouping, dense.bytes + 500)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.two = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.two(self.one(x)))


def block():
    """The cost and the groups of a network with one branch that can go."""
    stream = (member("stem", "out", 4), member("one", "in", 4), member("two", "out", 4), member("head", "in", 4))
    branch = Branch(("one",), (), ("two",))
    grouping = Grouping(
        {
            "stem": ChannelGroup("stem", 4, stream),
            "one": ChannelGroup("one", 6, (member("one", "out", 6), member("two", "in", 6)), branch=branch),
        }
    )
    dense = count(Block(), 4)
    return grouping, ChannelCost(dense, grouping, dense.bytes)


GROUPING, COST = chain()
DENSE = COST.totals({})
BLOCK, BLOCK_COST = block()
BLOCK_DENSE = BLOCK_COST.totals({})
SCORES = {
    "a": np.array([0.4, 0.1, 0.3, 0.2]),
    "b": np.array([0.9, 0.5, 0.7, 0.2, 0.1, 0.3]),  # sections of three
    "c": np.array([8.0, 7, 6, 5, 1, 2, 3, 4]),  # sections of four
}


def budgets_of(*texts):
    return tuple(Budget.parse(text) for text in texts)


def chosen(*texts, scores=SCORES, grouping=GROUPING, cost=COST, dense=None, scope="global", fraction=1.0, **floor):
    dense = cost.totals({}) if dense is None else dense
    budgets = budgets_of(*texts)
    return choose_channels(scores, grouping, cost, budgets, dense, floor=Floor(**floor), scope=scope, fraction=fraction)


def as_lists(choice):
    return {name: channels.tolist() for name, channels in choice.items()}


def counts_of(choice):
    return {name: len(channels) for name, channels in choice.items()}


# ---------------------------------------------------------------------- by hand
def test_dense_totals_of_the_chain():
    # a: 3x4, b: 4x6x9, c: 8x3, head: 8x5; 16 positions for a, 4 for the others.
    assert {
        **dict.fromkeys(("params", "nonzero"), 12 + 216 + 24 + 40),
        **dict.fromkeys(("macs", "effective_macs"), 12 * 16 + 4 * (216 + 24 + 40)),
        "channels": 23,
        "volume": 64 + 4 * 19,
        "bytes": 4 * 292 + 500,
    } == DENSE


@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        (23, {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3, 4, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),
        (22, {"a": [0, 2, 3], "b": [0, 1, 2, 3, 4, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),
        (21, {"a": [0, 2], "b": [0, 1, 2, 3, 4, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),
        # Means of b: 0.3 (channels 1 and 4), equal to channel 2 of a, which comes first.
        (20, {"a": [0], "b": [0, 1, 2, 3, 4, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),
        (18, {"a": [0], "b": [0, 2, 3, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),
        (17, {"a": [0, 2], "b": [0, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),  # 16 but for one that fits again
        (16, {"a": [0], "b": [0, 5], "c": [0, 1, 2, 3, 4, 5, 6, 7]}),
        (14, {"a": [0], "b": [0, 5], "c": [0, 1, 2, 5, 6, 7]}),
        (13, {"a": [0, 2], "b": [0, 5], "c": [0, 1, 6, 7]}),
        (10, {"a": [0], "b": [0, 5], "c": [0, 7]}),  # with the five of the head: the floor
    ],
)
def test_global_by_hand(bound, kept):
    assert as_lists(chosen(f"channels<={bound}")) == kept


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        # Shares at which units go: a at 1/4, 2/4, 3/4; b at 1/3, 2/3; c at 1/4, 2/4, 3/4.
        (22, {"a": 3, "b": 6, "c": 8}),
        (20, {"a": 3, "b": 6, "c": 6}),
        (18, {"a": 3, "b": 4, "c": 6}),
        (17, {"a": 2, "b": 4, "c": 6}),
        (15, {"a": 2, "b": 4, "c": 4}),
        (13, {"a": 2, "b": 2, "c": 4}),
        (10, {"a": 1, "b": 2, "c": 2}),
    ],
)
def test_uniform_by_hand(share, kept):
    assert counts_of(chosen(f"channels<={share}", scope="uniform")) == kept


def test_uniform_takes_the_lower_scores_of_one_share_first():
    loud = {**SCORES, "a": SCORES["a"] * 100}
    # One unit of the share of one quarter is enough: that of c, whose scores are lower now.
    assert counts_of(chosen("channels<=21", scores=loud, scope="uniform")) == {"a": 4, "b": 6, "c": 6}


def test_a_group_with_a_low_score_on_top_goes_in_its_own_order():
    """Means over blocks of channels rise within a group; equal scores go by group, then by index."""
    flat = {name: np.zeros(len(score)) for name, score in SCORES.items()}
    assert as_lists(chosen("channels<=20", scores=flat)) == {"a": [3], "b": list(range(6)), "c": list(range(8))}
    assert as_lists(chosen("channels<=18", scores=flat))["b"] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("round_to", "least", "floors"),
    [
        (1, 0.0, {"a": 1, "b": 2, "c": 2}),
        (2, 0.0, {"a": 2, "b": 2, "c": 2}),
        (3, 0.0, {"a": 3, "b": 6, "c": 6}),
        (4, 0.0, {"a": 4, "b": 4, "c": 4}),
        (5, 0.0, {"a": 4, "b": 6, "c": 8}),  # multiples of 5; of 10 where there are two sections
        (1, 0.5, {"a": 2, "b": 4, "c": 4}),
        (1, 0.75, {"a": 3, "b": 6, "c": 6}),
        (3, 0.8, {"a": 4, "b": 6, "c": 8}),
        (1, 1.0, {"a": 4, "b": 6, "c": 8}),
    ],
)
def test_floors(round_to, least, floors):
    assert smallest(GROUPING, COST, Floor(round_to, least)) == floors
    bound = COST.totals(floors)["params"]
    assert counts_of(chosen(f"params<={bound:.0f}", round_to=round_to, least=least)) == floors


@pytest.mark.parametrize(("least", "branches", "floor"), [(0.0, True, 0), (0.0, False, 1), (0.1, True, 1)])
def test_a_branch_may_go(least, branches, floor):
    assert smallest(BLOCK, BLOCK_COST, Floor(1, least, branches)) == {"stem": 1, "one": floor}
    assert smallest(BLOCK, BLOCK_COST, Floor(8, least, branches)) == {"stem": 4, "one": floor and 6}


def test_the_whole_branch_goes_when_its_scores_are_low():
    scores = {"stem": np.ones(4), "one": np.zeros(6)}
    dense = BLOCK_COST.totals({})
    # stem 16, one 6 x 37, two 28, head 15 parameters.
    assert dense["params"] == 16 + 222 + 28 + 15
    kept = as_lists(chosen("params<=76", scores=scores, grouping=BLOCK, cost=BLOCK_COST))  # 16 + 37 + 8 + 15
    assert kept == {"stem": [0, 1, 2, 3], "one": [5]}
    for bound in (75, 35):  # 16 + 4 + 15
        kept = as_lists(chosen(f"params<={bound}", scores=scores, grouping=BLOCK, cost=BLOCK_COST))
        assert kept == {"stem": [0, 1, 2, 3], "one": []}
    kept = as_lists(chosen("params<=35", scores=scores, grouping=BLOCK, cost=BLOCK_COST, branches=False))
    assert kept == {"stem": [3], "one": [4, 5]}  # 4 + 2 x 10 + 3 + 6


def test_sparsity_is_of_the_delivered_network():
    choice = chosen("sparsity>=50%", dense={"params": 10_000.0})
    left = COST.totals(counts_of(choice))["params"]
    assert 0.5 <= 1 - left / 292 < 0.75


@pytest.mark.parametrize(("zeros", "kept"), [(57, 3), (57.5, 2), (58, 2)])
def test_sparsity_is_never_below_its_bound(zeros, kept):
    """A channel of a is 3 + 54 parameters."""
    choice = choose_channels(SCORES, GROUPING, COST, [Budget("sparsity", zeros / 292, "ratio")], DENSE)
    assert counts_of(choice) == {"a": kept, "b": 6, "c": 8}


def test_units_of_one_group_go_in_their_order_whatever_the_rounding():
    """The mean of three times 0.1 is more than 0.1: still the first unit of the group, which is smaller, goes first."""
    grouping, cost = chain((11, 6, 8))
    scores = {**{name: score + 10 for name, score in SCORES.items()}, "a": np.full(11, 0.1)}
    assert np.mean(scores["a"][:3]) > np.mean(scores["a"][3:7])
    choice = chosen("channels<=27", scores=scores, grouping=grouping, cost=cost, round_to=4)
    assert as_lists(choice) == {"a": list(range(3, 11)), "b": list(range(6)), "c": list(range(8))}


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.two, self.three = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.three(self.two(self.one(x))))


def test_nothing_is_given_back_to_what_nobody_reads():
    stream = (member("stem", "out", 4), member("one", "in", 4), member("three", "out", 4), member("head", "in", 4))
    branch = Branch(("two",), (), ("three",))
    groups = (
        ChannelGroup("stem", 4, stream),
        ChannelGroup("one", 6, (member("one", "out", 6), member("two", "in", 6))),
        ChannelGroup("two", 6, (member("two", "out", 6), member("three", "in", 6)), branch=branch),
    )
    grouping = Grouping({group.name: group for group in groups})
    cost = ChannelCost(count(Bottleneck(), 4), grouping, 10_000)
    assert cost.totals({"two": 0})["params"] == 16 + 4 + 15
    scores = {"stem": np.full(4, 9.0), "one": np.array([0, 0, 0, 0, 9.0, 9.0]), "two": np.ones(6)}
    choice = chosen("params<=40", scores=scores, grouping=grouping, cost=cost)
    assert as_lists(choice) == {"stem": [0, 1, 2, 3], "one": [4, 5], "two": []}


def test_percentages_are_of_the_dense_network():
    twice = {name: 2 * value for name, value in DENSE.items()}
    assert as_lists(chosen("macs<=25%", dense=twice)) == as_lists(chosen("macs<=50%"))


def test_nothing_goes_when_the_budget_is_met():
    assert counts_of(chosen("macs<=100%", "params<=1M")) == {"a": 4, "b": 6, "c": 8}
    assert counts_of(chosen("params<=20%", fraction=0.0)) == {"a": 4, "b": 6, "c": 8}


# ---------------------------------------------------------------------- branches as a whole
class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        for n in range(3):
            self.add_module(f"in{n}", nn.Conv2d(4, 6, 3, padding=1, bias=False))
            self.add_module(f"out{n}", nn.Conv2d(6, 4, 1, bias=False))
        self.head = nn.Conv2d(4, 3, 1, bias=False)

    def forward(self, x):
        x = self.stem(x)
        for n in range(3):
            x = x + self.get_submodule(f"out{n}")(self.get_submodule(f"in{n}")(x))
        return self.head(x)


def blocks():
    """The cost and the groups of three branches on a stream of four channels, six inside each."""
    sides = [
        ("stem", "out"),
        ("head", "in"),
        *((f"in{n}", "in") for n in range(3)),
        *((f"out{n}", "out") for n in range(3)),
    ]
    groups = {"stem": ChannelGroup("stem", 4, tuple(member(layer, side, 4) for layer, side in sides))}
    for n in range(3):
        inside = (member(f"in{n}", "out", 6), member(f"out{n}", "in", 6))
        groups[f"in{n}"] = ChannelGroup(f"in{n}", 6, inside, branch=Branch((f"in{n}",), (), (f"out{n}",)))
    dense = count(Blocks(), 4)
    grouping = Grouping(groups)
    return grouping, ChannelCost(dense, grouping, dense.bytes)


BLOCKS, BLOCKS_COST = blocks()


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        # 4 + 3 x (6 + 4) + 3 channels. One by one, both cheaper branches would be left with a channel or two, whose
        # ends cost as much as all. What stays together: in0 (4 of 6 channels) 16 / 8, in1 18 / 10, in2 30 / 9.
        ("channels<=37", {"stem": 4, "in0": 6, "in1": 6, "in2": 6}),
        ("channels<=35", {"stem": 4, "in0": 4, "in1": 6, "in2": 6}),
        ("channels<=27", {"stem": 4, "in0": 6, "in1": 0, "in2": 6}),
        ("channels<=25", {"stem": 4, "in0": 4, "in1": 0, "in2": 6}),
        ("channels<=17", {"stem": 4, "in0": 0, "in1": 0, "in2": 6}),
        ("channels<=16", {"stem": 4, "in0": 0, "in1": 0, "in2": 5}),
        ("channels<=7", {"stem": 4, "in0": 0, "in1": 0, "in2": 0}),
        # Nothing hangs on a branch's last channel but what hangs on every one: they go one by one.
        ("macs<=50%", {"stem": 4, "in0": 1, "in1": 2, "in2": 5}),
    ],
)
def test_a_branch_competes_as_a_whole(budget, kept):
    scores = {
        "stem": np.full(4, 9.0),
        "in0": np.array([1, 1, 4, 4, 4, 4.0]),
        "in1": np.array([2, 2, 2, 2, 5, 5.0]),
        "in2": np.array([2.5, 6, 6, 6, 6, 6]),
    }
    assert counts_of(chosen(budget, scores=scores, grouping=BLOCKS, cost=BLOCKS_COST)) == kept


@pytest.mark.parametrize(
    ("stem", "kept"),
    [(0.9, {"stem": 1, "in0": 6, "in1": 6, "in2": 6}), (1.1, {"stem": 4, "in0": 0, "in1": 6, "in2": 6})],
)
def test_branches_and_streams_of_one_worth_are_balanced(stem, kept):
    """What a branch writes is worth as much as what is inside: neither streams nor branches go before all others."""
    scores = {"stem": np.full(4, stem)} | {f"in{n}": np.ones(6) for n in range(3)}
    assert counts_of(chosen("channels<=27", scores=scores, grouping=BLOCKS, cost=BLOCKS_COST)) == kept


@given(
    st.lists(st.floats(0, 8, width=16), min_size=1, max_size=6), st.sampled_from([1, 2]), st.floats(0.01, 50), st.data()
)
def test_what_stays_together_by_brute_force(values, sections, overhead, data):
    score = np.sort(np.array([values] * sections), axis=1)
    counts = [len(values) * sections, *sorted(data.draw(st.sets(st.integers(1, 6))), reverse=True)]
    counts = [k for k in dict.fromkeys(counts) if k % sections == 0 and k <= counts[0]] + [0]
    best = max(score[:, len(values) - k // sections :].sum() / (k + overhead) for k in counts[:-1])
    found = _last_ones(score, counts, overhead)
    assert found in counts[:-1]
    assert score[:, len(values) - found // sections :].sum() / (found + overhead) == pytest.approx(best)


def test_what_hangs_on_a_branch():
    kept = BLOCKS_COST.channels.copy()
    counts = [Floor().counts(group) for group in BLOCKS.groups.values()]
    for text, wanted in (("channels<=20", [0, 4, 4, 4]), ("macs<=50%", [0, 0, 0, 0])):
        ceilings = Ceilings.of(budgets_of(text), BLOCKS_COST, BLOCKS_COST.totals({}))
        assert overheads(counts, BLOCKS_COST, ceilings, kept).tolist() == pytest.approx(wanted)
    kept[0] = 1  # a narrower stream makes ends cheaper
    ceilings = Ceilings.of(budgets_of("channels<=20"), BLOCKS_COST, BLOCKS_COST.totals({}))
    assert overheads(counts, BLOCKS_COST, ceilings, kept).tolist() == pytest.approx([0, 1, 1, 1])


# ---------------------------------------------------------------------- what holds for every choice
finite = st.floats(-10, 10, allow_nan=False, width=16)


@st.composite
def problems(draw, rounding=True):
    """Scores, budgets that can be met, and settings, on a chain."""
    groups = draw(st.sampled_from([1, 2]))
    widths = (draw(st.integers(1, 6)), groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 5)))
    with_branch = draw(st.booleans())
    grouping, cost = (BLOCK, BLOCK_COST) if with_branch else chain(widths, groups)
    values = draw(st.sampled_from([finite, st.floats(0, 10, width=16)]))
    scores = {
        name: np.array(draw(st.lists(values, min_size=group.channels, max_size=group.channels)))
        for name, group in grouping.groups.items()
    }
    floor = Floor(
        draw(st.sampled_from([1, 1, 2, 3])) if rounding else 1,
        draw(st.sampled_from([0.0, 0.0, 0.3])),
        draw(st.booleans()),
    )
    fewest = cost.totals(smallest(grouping, cost, floor))
    dense = cost.totals({})
    budgets = []
    for quantity in draw(st.sets(st.sampled_from([*QUANTITIES[2:], "params", "sparsity"]), min_size=1, max_size=3)):
        share = draw(st.floats(0.02, 1))
        if quantity == "sparsity":
            bound = (1 - share) * (1 - fewest["params"] / dense["params"])
            budgets.append(Budget(quantity, max(bound - 1e-9, 1e-12), "ratio"))
        else:
            bound = fewest[quantity] + share * (dense[quantity] - fewest[quantity])
            budgets.append(Budget(quantity, bound / dense[quantity] + 1e-9, "ratio"))
    fields = {"floor": floor, "scope": draw(st.sampled_from(["global", "uniform"]))}
    return scores, grouping, cost, tuple(budgets), dense, fields


def met(budgets, totals, dense, params):
    return all(
        budget.report(dense, {**totals, "zeros": params - totals["params"], "sparsity": 1 - totals["params"] / params})[
            "met"
        ]
        for budget in budgets
    )


def near(budgets, totals, dense, params):
    """One of the quantities is within its tolerance of the bound."""
    for budget in budgets:
        if budget.quantity == "sparsity":
            spare, tolerance = 1 - totals["params"] / params - budget.bound, 0.001 + 1 / params
        else:
            bound = budget.absolute(dense)
            spare, tolerance = bound - totals[budget.quantity], max(0.01 * bound, 1)
        if spare <= tolerance:
            return True
    return False


def allowed(group, floor):
    """All counts that a group may keep, by trying each."""
    step = lcm(floor.round_to, group.sections)
    counts = [k for k in range(step, group.channels, step) if k >= floor.least * group.channels] + [group.channels]
    return ([0] if floor.branches and floor.least == 0 and group.branch is not None else []) + counts


@given(problems())
def test_every_budget_is_held_and_no_unit_could_stay(problem):
    scores, grouping, cost, budgets, dense, fields = problem
    choice = choose_channels(scores, grouping, cost, budgets, dense, **fields)
    kept, params = counts_of(choice), cost.cost.params
    totals = cost.totals(kept)
    assert met(budgets, totals, dense, params)
    if near(budgets, totals, dense, params):
        return
    for name, group in grouping.groups.items():
        more = [k for k in allowed(group, fields["floor"]) if k > kept[name]]
        if more:
            larger = cost.totals({**kept, name: more[0]})
            assert larger == totals or not met(budgets, larger, dense, params)


@given(problems())
def test_counts_sections_and_order(problem):
    scores, grouping, cost, budgets, dense, fields = problem
    choice = choose_channels(scores, grouping, cost, budgets, dense, **fields)
    assert list(choice) == list(grouping.groups)
    for name, group in grouping.groups.items():
        channels = choice[name]
        assert channels.dtype == np.int64
        assert (np.diff(channels) > 0).all()
        assert len(channels) in allowed(group, fields["floor"])
        width = group.channels // group.sections
        per_section = np.bincount(channels // width, minlength=group.sections)
        assert (per_section == per_section[0]).all()
        for section in range(group.sections):
            inside = range(section * width, (section + 1) * width)
            stays = [c for c in inside if c in channels]
            goes = [c for c in inside if c not in channels]
            keys = [[(scores[name][c], c) for c in side] for side in (stays, goes)]
            assert not stays or not goes or min(keys[0]) > max(keys[1])
    again = choose_channels(scores, grouping, cost, budgets, dense, **fields)
    assert as_lists(again) == as_lists(choice)
    fewest = smallest(grouping, cost, fields["floor"])
    assert all(fewest[name] <= len(choice[name]) for name in choice)
    assert fewest == {name: min(allowed(group, fields["floor"])) for name, group in grouping.groups.items()}


@given(problems(), st.floats(0, 1), st.floats(0, 1))
def test_further_on_the_way_less_is_left(problem, one, two):
    scores, grouping, cost, budgets, dense, fields = problem
    budget = budgets[:1]
    column = "params" if budget[0].quantity == "sparsity" else budget[0].quantity
    left = [
        cost.totals(counts_of(choose_channels(scores, grouping, cost, budget, dense, **fields, fraction=f)))[column]
        for f in (min(one, two), max(one, two), 1.0)
    ]
    # The walk back ends within a tolerance of the limit: so much may the order be off.
    assert left[0] >= 0.98 * left[1]
    assert left[1] >= 0.98 * left[2]
    full = cost.totals(counts_of(choose_channels(scores, grouping, cost, budget, dense, **fields)))[column]
    assert full == left[2]


@given(problems(), st.floats(0, 1))
def test_a_share_of_the_way_is_held(problem, fraction):
    scores, grouping, cost, budgets, dense, fields = problem
    totals = cost.totals(
        counts_of(choose_channels(scores, grouping, cost, budgets, dense, **fields, fraction=fraction))
    )
    start = cost.totals({})
    for budget in budgets:
        if budget.quantity == "sparsity":
            assert 1 - totals["params"] / start["params"] >= fraction * budget.bound - 1e-9
        else:
            bound = budget.absolute(dense)
            limit = start[budget.quantity] + fraction * (min(bound, start[budget.quantity]) - start[budget.quantity])
            assert totals[budget.quantity] <= limit + 1e-6


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.lists(st.integers(0, 5), min_size=9, max_size=9),
    st.floats(0.05, 1),
    st.sampled_from(["params", "macs", "volume", "bytes"]),
)
def test_the_shortest_prefix_by_brute_force(widths, values, share, quantity):
    """Removing one channel after another in the order of their scores, until it is enough; then one by one back."""
    grouping, cost = chain(widths, 1)
    fewest, dense = cost.totals(smallest(grouping, cost)), cost.totals({})
    bound = np.floor(fewest[quantity] + share * (dense[quantity] - fewest[quantity]))
    parts = np.split(np.array(values, dtype=np.float64), [3, 6])
    scores = {name: part[:width] for name, part, width in zip("abc", parts, widths, strict=True)}
    kept = dict(zip("abc", widths, strict=True))
    removed = []
    for _, name, _ in sorted((s, one, i) for one in "abc" for i, s in enumerate(scores[one])):
        if cost.totals(kept)[quantity] <= bound:
            break
        if kept[name] > 1:
            kept[name] -= 1
            removed.append(name)
    for name in reversed(removed):
        spare = bound - cost.totals(kept)[quantity]
        if spare > 0.01 * bound and cost.totals({**kept, name: kept[name] + 1})[quantity] <= bound:
            kept[name] += 1
    budget = Budget(quantity, float(bound), "bytes" if quantity == "bytes" else "count")
    assert counts_of(choose_channels(scores, grouping, cost, [budget], dense)) == kept


def test_no_choice_of_fewer_channels_is_missed():
    """What is refused cannot be met by any choice at all."""
    best = min(
        COST.totals(dict(zip("abc", kept, strict=True)))["macs"]
        for kept in itertools.product(range(1, 5), (2, 4, 6), (2, 4, 6, 8))
    )
    assert COST.totals(counts_of(chosen(f"macs<={best:.0f}")))["macs"] == best
    with pytest.raises(InfeasibleError):
        chosen(f"macs<={best - 1:.0f}")


# ---------------------------------------------------------------------- refusals
def test_feasibility_rows():
    # Floors 1, 2, 2: a 3, b 18, c 2, head 10 parameters; 48 + 4 x 30 MACs.
    rows = feasibility(GROUPING, COST, budgets_of("params<=50%", "macs<=100", "sparsity>=90%"), DENSE)
    assert rows == [
        {
            "quantity": "params",
            "dense": 292.0,
            "smallest": 33.0,
            "asked": 146.0,
            "binding_layer": "b",
            "feasible": True,
        },
        {
            "quantity": "macs",
            "dense": 1312.0,
            "smallest": 168.0,
            "asked": 100.0,
            "binding_layer": "b",
            "feasible": False,
        },
        {
            "quantity": "sparsity",
            "dense": 0.0,
            "smallest": 1 - 33 / 292,
            "asked": 0.9,
            "binding_layer": "b",
            "feasible": False,
        },
    ]


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("macs<=100", {}, "macs<=100 cannot be reached: keeping one channel of every group leaves 168 macs"),
        ("macs<=1%", {}, "macs<=1% cannot be reached: keeping one channel of every group leaves 12.80 % of dense"),
        (
            "sparsity>=90%",
            {},
            "sparsity>=90% cannot be reached: keeping one channel of every group leaves 88.70 %",
        ),
        ("bytes<=600B", {}, "bytes<=600B cannot be reached: keeping one channel of every group leaves 632 bytes"),
        ("params<=40%", {"least": 0.75}, "keeping 75 % of every group leaves"),
        ("params<=30%", {"round_to": 4}, "keeping one channel of every group, in multiples of 4, leaves"),
    ],
)
def test_what_cannot_be_reached(text, fields, message):
    with pytest.raises(InfeasibleError) as error:
        check(GROUPING, COST, budgets_of(text), DENSE, Floor(**fields))
    assert message in error.value.message
    assert error.value.hint.startswith("ask for less")
    with pytest.raises(InfeasibleError):
        chosen(text, **fields, fraction=0.1)


def test_branches_are_named_when_even_without_them_it_is_too_much():
    with pytest.raises(InfeasibleError, match="one channel of every group outside the branches that can go leaves 11"):
        check(BLOCK, BLOCK_COST, budgets_of("params<=10"), BLOCK_DENSE)


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("latency<=5ms", {}, "latency<=5ms cannot be counted"),
        ("params<=50%", {"round_to": 0}, "round_to = 0 is less than 1"),
        ("params<=50%", {"least": 1.5}, "least = 1.5 is not between 0 and 1"),
        ("params<=50%", {"fraction": -0.1}, "fraction = -0.1 is not between"),
        ("params<=50%", {"scope": "local"}, "unknown scope 'local'"),
    ],
)
def test_wrong_settings(text, fields, message):
    with pytest.raises(UsageError) as error:
        chosen(text, **fields)
    assert message in error.value.message


def test_scores_that_do_not_fit():
    with pytest.raises(ValueError, match="group 'b' has 6 channels, and needs a score for each"):
        chosen("params<=50%", scores={**SCORES, "b": np.ones(5)})
    with pytest.raises(ValueError, match="group 'c' has 8 channels"):
        chosen("params<=50%", scores={"a": SCORES["a"], "b": SCORES["b"]})
    with pytest.raises(RunError, match="group 'b' has a score that is not finite"):
        chosen("params<=50%", scores={**SCORES, "b": np.full(6, np.nan)})
    with pytest.raises(ValueError, match="the cost is that of other channel groups"):
        chosen("params<=50%", cost=BLOCK_COST)
