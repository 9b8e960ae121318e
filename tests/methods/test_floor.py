"""What groups never go below, by hand; and that every family of methods holds on to it."""

import numpy as np
import pytest
from torch import nn

from billhook.cost import count
from billhook.errors import InfeasibleError, InputError, UsageError
from billhook.methods.channel_choice import smallest
from billhook.methods.floor import LOWEST, Floor
from billhook.methods.kept import how_many
from billhook.surgery.groups import Branch, ChannelGroup, Grouping, Member

from .problems import NETWORKS, carry_out, ready

FEW = {
    "chipnet": {"batch_size": 12},
    "fp-backward": {},
    "hbgs": {"selection": 8, "calibration": 8, "step": 0.5, "stale": 50},
    "l1": {},
    "taylor": {"rounds": 2, "epochs": 4.0},
}


def group(channels, writers=1, *, sections=1, branch=False):
    members = [Member(f"w{n}", "out", np.arange(channels)[:, None]) for n in range(writers)]
    members.append(Member("r", "in", np.arange(channels)[:, None]))
    return ChannelGroup("g", channels, tuple(members), sections, Branch((), (), ()) if branch else None)


@pytest.mark.parametrize(
    ("floor", "of", "counts"),
    [
        (LOWEST, group(4), [4, 3, 2, 1]),
        (LOWEST, group(4, 2), [4, 3, 2, 1]),
        (LOWEST, group(4, branch=True), [4, 3, 2, 1, 0]),
        (LOWEST, group(6, sections=2), [6, 4, 2]),
        (Floor(3), group(6, sections=2), [6]),
        (Floor(3), group(7), [7, 6, 3]),
        (Floor(3), group(2), [2]),
        (Floor(3), group(2, branch=True), [2, 0]),
        (Floor(2, 0.5), group(8, branch=True), [8, 6, 4]),
        (Floor(2, 0.5, originally={"g": 12}), group(8, branch=True), [8, 6]),
        (Floor(1, 0.5, originally={"g": 16}), group(8), [8]),
        (Floor(1, 0.5, originally={"another": 16}), group(4), [4, 3, 2]),
        (Floor(branches=False), group(3, branch=True), [3, 2, 1]),
        (Floor(streams=1.0), group(4, 2), [4]),
        (Floor(streams=1.0), group(4, 3, branch=True), [4]),
        (Floor(streams=1.0), group(4), [4, 3, 2, 1]),
        (Floor(2, streams=1.0), group(4, branch=True), [4, 2, 0]),
        (Floor(streams=0.5), group(4, 2), [4, 3, 2]),
        (Floor(streams=0.5), group(5, 2), [5, 4, 3]),
        (Floor(2, streams=0.25), group(12, 2), [12, 10, 8, 6, 4]),
        (Floor(least=0.5, streams=0.25), group(4, 2), [4, 3, 2]),
        (Floor(streams=0.5, originally={"g": 6}), group(4, 2), [4, 3]),
        (Floor(streams=0.5), group(3, branch=True), [3, 2, 1, 0]),
    ],
)
def test_counts_by_hand(floor, of, counts):
    assert floor.counts(of) == counts


def test_values_out_of_range():
    with pytest.raises(UsageError, match="round_to = 0"):
        Floor(0)
    with pytest.raises(UsageError, match=r"least = -0\.1"):
        Floor(least=-0.1)
    with pytest.raises(UsageError, match=r"streams = 1\.5"):
        Floor(streams=1.5)
    with pytest.raises(ValueError, match="do not fall into 2 sections"):
        LOWEST.counts(group(5, sections=2))


def test_words():
    both = Grouping({"a": group(4, 2), "b": group(4, branch=True)})
    assert LOWEST.words(both) == "one channel of every group outside the branches that can go"
    found = Floor(4, streams=1.0).words(both)
    assert found == "one channel of every group outside the branches that can go, and whole streams, in multiples of 4,"
    found = Floor(streams=0.125).words(both)
    assert found == "one channel of every group outside the branches that can go, and 12.5 % of every stream,"
    assert Floor(least=0.25, streams=0.125).words(both) == "25 % of every group"
    assert Floor(least=0.25, streams=1.0).words(Grouping({"b": group(4)})) == "25 % of every group"
    assert [floor.raised for floor in (LOWEST, Floor(branches=False), Floor(streams=0.1))] == [False, False, True]


# ---------------------------------------------------------------------- runs
@pytest.mark.parametrize("method", sorted(FEW))
def test_streams_keep_their_width(method):
    free, held = (
        carry_out(ready("resnet20", method, "macs<=50%", streams=streams, **FEW[method])) for streams in (True, False)
    )
    dense = NETWORKS["resnet20"](4)
    groups = held.prepared.setting.groups().groups
    assert sum(len(group.writers) > 1 for group in groups.values()) == 3
    kept = []
    for done in (free, held):
        parts = dict(done.small.named_modules())
        # A convolution whose branch is gone is none any more.
        kept.append(
            [
                getattr(parts.get(member.layer), "out_channels", group.channels) == group.channels
                for group in groups.values()
                for member in group.writers
                if len(group.writers) > 1
            ]
        )
        assert done.cost.macs <= 0.5 * count(dense, 8).macs
    assert not all(kept[0])
    assert all(kept[1])


def test_gates_of_streams_are_none():
    prepared = ready("resnet20", "chipnet", "macs<=50%", streams=False, batch_size=12)
    plan, groups = prepared.plan, prepared.setting.groups().groups
    assert {vector.group for vector in plan.layout.vectors} == {n for n, g in groups.items() if len(g.writers) == 1}
    choice = plan._choose(plan._level, prepared.setting.problem.budgets)
    assert choice.kept.keys() == {vector.group for vector in plan.layout.vectors}
    done = carry_out(prepared)
    line = next(line for line in done.outcome.history if line["event"] == "channels")
    assert line["params"] == done.cost.params
    assert line["macs"] == done.cost.macs
    psi = {name for name in done.outcome.files["gates.safetensors"][0] if name.startswith("psi/")}
    assert psi == {f"psi/{vector.name}" for vector in plan.layout.vectors}


def test_what_whole_streams_leave_is_said_beforehand():
    for method in ("l1", "chipnet", "hbgs"):
        with pytest.raises(InfeasibleError, match="and whole streams, leaves") as error:
            ready("resnet20", method, "channels<=30%", streams=False, branches=False)
        assert "fewer channels" in error.value.hint
    prepared = ready("resnet20", "l1", "params<=50%", streams=False)
    limits = prepared.plan.limits
    for name, number in how_many(limits.same_share()).items():
        group = limits.grouping.groups[name]
        assert number == group.channels or len(group.writers) == 1


@pytest.mark.parametrize("method", ["l1", "chipnet", "hbgs", "fp-backward"])
@pytest.mark.parametrize("quantity", ["macs", "channels"])
def test_streams_keep_what_there_is_room_for(method, quantity):
    """Unless somebody says otherwise. Room enough: half as much again as without branches, or, where the method does
    not weigh these as a whole, with one channel in each.
    """
    plan = ready("resnet20", method, f"{quantity}<=100%").plan
    limits = plan.limits

    def least(streams):
        fewest = smallest(limits.grouping, limits.cost, Floor(streams=streams, branches=method != "fp-backward"))
        return limits.cost.totals(fewest)[quantity]

    lowest = plan.feasible[0]["smallest"]
    for bound in [*(near * least(steps / 16) for steps in (16, 12, 8, 2) for near in (1.51, 1.49)), 1.2 * lowest]:
        plan = ready("resnet20", method, f"{quantity}<={bound:.0f}").plan
        asked = plan.limits.budgets[0].bound
        share = max(steps / 16 for steps in range(17) if not steps or 1.5 * least(steps / 16) <= asked)
        assert plan.limits.floor == Floor(streams=share)
        assert [note for note in plan.notes if "residual streams lose channels" in note] == plan.limits.notes
        assert bool(plan.limits.notes) is (share < 1)
        assert (f"to no less than {100 * share:g} % of them" in "".join(plan.limits.notes)) is (0 < share < 1)
        # What is within reach is what is with narrower streams, whether or not this budget asks for that.
        assert plan.feasible[0]["smallest"] == pytest.approx(lowest)


def test_what_is_said_of_streams_is_done():
    def limits(**fields):
        return ready("resnet20", "l1", "channels<=20%", scope="uniform", **fields).plan.limits

    assert limits().floor.streams not in (0, 1)
    said = limits(streams=True)
    assert (said.notes, said.floor) == ([], LOWEST)
    for fields in ({"streams": True, "streams_least": 0.25}, {"streams_least": 0.25}):
        said = limits(**fields)
        assert (said.notes, said.floor) == ([], Floor(streams=0.25))
    # Every budget has a say.
    both = ready("resnet20", "fp-backward", ["macs<=50%", "channels<=20%"]).plan.limits
    assert both.floor.streams < 1
    # Branches that compete as a whole make room, unless they have to stay.
    assert ready("resnet20", "l1", "channels<=20%").plan.limits.floor.streams == 1
    assert ready("resnet20", "l1", "channels<=20%", branches=False).plan.limits.floor.streams < 1


@pytest.mark.parametrize("method", sorted(FEW))
def test_streams_keep_their_share(method):
    done = carry_out(ready("resnet20", method, "channels<=25%", streams=True, streams_least=0.5, **FEW[method]))
    groups = done.prepared.setting.groups().groups
    parts = dict(done.small.named_modules())
    widths = {
        (group.channels, parts[member.layer].out_channels)
        for group in groups.values()
        for member in group.writers
        if group.stream and isinstance(parts.get(member.layer), nn.Conv2d)
    }
    assert len(widths) >= 2
    assert all(width >= channels / 2 for channels, width in widths)


def test_networks_without_streams_have_no_whole_ones():
    plan = ready("tinycnn", "l1", "macs<=50%").plan
    assert plan.limits.floor == LOWEST
    assert plan.limits.notes == []


def test_gates_of_their_own_decide_about_streams():
    assert ready("resnet20", "chipnet", "macs<=50%", coupling="independent").plan.limits.floor == LOWEST


def test_independent_gates_have_no_floor():
    with pytest.raises(UsageError, match="streams_least are for coupled gates"):
        ready("resnet20", "chipnet", "macs<=50%", streams=False, coupling="independent")


def test_a_network_of_streams_alone_has_no_gates(monkeypatch):
    monkeypatch.setattr(Floor, "whole", lambda self, group: True)
    with pytest.raises(InputError, match="residual stream"):
        ready("tiny", "chipnet", "macs<=100%")


@pytest.mark.parametrize("fields", [{}, {"scope": "uniform"}, {"round_to": 8}])
def test_the_share_that_stays_is_of_the_dense_network_in_every_round(fields):
    done = carry_out(ready("tinycnn", "l1", "params<=40%", rounds=4, least=0.5, epochs=4.0, **fields))
    assert len(done.outcome.channels) == 4
    small = dict(done.small.named_modules())
    for name, part in NETWORKS["tinycnn"](4).named_modules():
        if isinstance(part, nn.Conv2d):
            assert small[name].out_channels >= part.out_channels / 2, name
    assert done.cost.params <= 0.4 * done.prepared.setting.dense["params"]
