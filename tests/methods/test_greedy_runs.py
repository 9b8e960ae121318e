"""Whole runs of the greedy methods on tiny networks: budgets, images paid for, kept classes, resuming."""

from typing import Any

import numpy as np
import pytest

from billhook.errors import InfeasibleError, Interrupted, UsageError
from billhook.methods.greedy import GREEDY_PLANS
from billhook.methods.greedy.candidates import Candidates
from billhook.methods.greedy.search import _Search

from .killed import check_killed_runs
from .problems import NETWORKS, carry_out, check_conformance, counted_and_bound, ready

SEARCHES = ("hbgs", "hbgts", "fp-omp-search")


@pytest.mark.parametrize(
    ("method", "network"),
    [
        *((method, network) for method in ("fp-backward", "hbgts") for network in sorted(NETWORKS)),
        *((method, network) for method in ("fp-omp", "lrf", "hbgs") for network in ("ragged", "resnet20")),
    ],
)
def test_conformance(method, network):
    size = 32 if network == "mobilenet_v2" else 8
    fields: dict[str, Any] = {"step": 0.5, "selection": 8, "stale": 50} if method in SEARCHES else {}
    fields |= {"calibration": 8, "finetune_every": 0, "streams": True}
    done = carry_out(ready(network, method, "params<=50%", size=size, keep=[0, 2], **fields))
    check_conformance(done)
    assert len(done.outcome.channels) == 1


@pytest.mark.parametrize(
    "budget",
    ["params<=40%", "macs<=40%", "channels<=50%", "volume<=50%", "bytes<=45%", "sparsity>=60%", "effective_macs<=40%"],
)
@pytest.mark.parametrize("method", ["fp-backward", "hbgs", "hbgts"])
def test_every_quantity_ends_at_its_bound(method, budget):
    """At or below, and within 1 % or one channel of one group."""
    fields = {"step": 3, "selection": 8} if method in SEARCHES else {}
    other = "macs<=90%" if "params" in budget else "params<=90%"
    done = carry_out(ready("tiny", method, [budget, other], calibration=8, **fields))
    plan = done.prepared.plan
    quantity, found, bound = counted_and_bound(done, budget)
    assert found <= bound
    cost, kept = plan.cost, dict.fromkeys(plan.cost.names, 0)
    for name, group in plan.limits.grouping.groups.items():
        layer = next(member for member in group.members if member.side == "out").layer
        kept[name] = done.full.get_submodule(layer).weight.shape[0]
    totals = cost.totals(kept)
    larger = max(cost.totals(kept | {name: min(kept[name] + 1, int(cost.channels[i]))})[quantity]
                 for i, name in enumerate(cost.names))  # fmt: skip
    assert bound - found <= max(0.011 * bound, larger - totals[quantity])


def test_a_search_chooses_and_fine_tunes_in_rounds():
    done = carry_out(
        ready("tiny", "hbgs", "params<=40%", epochs=20.0, finetune_every=3, calibration=8, selection=8, step=2)
    )
    rounds = [line for line in done.outcome.history if line["event"] == "round"]
    assert [line["round"] for line in rounds] == list(range(1, len(rounds) + 1))
    assert all(line["error"] == line["errors"][line["group"]] for line in rounds)
    assert [line["params"] for line in rounds] == sorted((line["params"] for line in rounds), reverse=True)
    phases = [line["phase"] for line in done.outcome.history if line["event"] == "epoch"]
    assert {"round-1", "prune"} <= set(phases)
    seconds = [line["seconds"] for line in done.outcome.history]
    assert seconds == sorted(seconds)
    assert 0 < done.prepared.plan.share < 1


@pytest.mark.parametrize("method", ["hbgs", "hbgts"])
def test_whole_branches_are_candidates_where_more_hangs_on_them(method):
    fields: dict[str, Any] = {"step": 1, "selection": 8, "calibration": 8, "finetune_every": 0, "stale": 4}

    def strokes(budget, **more):
        """Groups that lost their last channels, more than one, in one round; and how many did one by one."""
        done = carry_out(ready("resnet20", method, budget, **fields | more))
        before = {name: group.channels for name, group in done.prepared.setting.groups().groups.items()}
        at_once = 0
        for line in (line for line in done.outcome.history if line["event"] == "round"):
            at_once += line["kept"] == 0 and before[line["group"]] > 1
            before[line["group"]] = line["kept"]
        return at_once, done

    at_once, done = strokes("channels<=40%")
    assert at_once >= 2
    assert done.cost.channels <= 0.4 * done.prepared.setting.dense["channels"]
    assert done.prepared.plan.limits.floor.streams == 1
    assert strokes("channels<=70%", weigh="error", streams=True)[0] == 0
    assert strokes("macs<=60%")[0] == 0


@pytest.mark.parametrize("epochs", [1, 0.5])
@pytest.mark.parametrize("method", ["hbgs", "fp-backward"])
def test_fine_tuning_within_the_search_takes_the_epochs_that_were_asked(method, epochs):
    fields = {"finetune_every": 1, "finetune_epochs": epochs, "calibration": 8}
    fields |= {"finetune_every": 3, "selection": 8, "step": 2} if method == "hbgs" else {}
    prepared = ready("tiny", method, "params<=40%", epochs=20.0, **fields)
    problem = prepared.setting.problem
    steps = round(epochs * problem.steps / problem.epochs)
    done = carry_out(prepared)
    last = {line["phase"]: line["step"] for line in done.outcome.history if line["event"] == "epoch"}
    rounds = [phase for phase in last if phase.startswith("round-")]
    assert len(rounds) >= 2
    assert {last[phase] for phase in rounds} == {steps}
    assert last["prune"] <= problem.steps - steps * len(rounds)
    with pytest.raises(UsageError, match=r"more than the run's 20 epochs.*finetune_every"):
        ready("tiny", method, "params<=40%", epochs=20.0, **fields | {"finetune_epochs": 15})


@pytest.mark.parametrize("method", SEARCHES)
def test_measuring_is_paid_for(method):
    prepared = ready("tiny", method, "params<=40%", epochs=60.0, calibration=16, selection=12, finetune_share=0.2)
    problem, plan = prepared.setting.problem, prepared.plan
    planned = plan.steps
    done = carry_out(prepared)
    used = [line["images"] for line in done.outcome.history if line["event"] == "round"][-1]
    assert used > 0
    assert plan.steps == pytest.approx((1 - used / problem.images) * problem.steps, abs=2)
    assert abs(plan.steps - planned) <= 0.25 * problem.steps


def test_calibration_shrinks_to_what_the_run_allows():
    little = ready("tiny", "hbgs", "params<=40%", epochs=8.0).plan
    plenty = ready("tiny", "hbgs", "params<=40%", epochs=2000.0).plan
    assert little.calibration < plenty.calibration == 43
    assert any("allow" in note for note in little.notes)
    assert not plenty.notes


@pytest.mark.parametrize("method", ["fp-backward", "hbgs", "hbgts"])
def test_only_kept_classes_are_looked_at(method):
    plan = ready("tiny", method, "params<=60%", keep=[1, 3], epochs=100.0).plan
    for draw in (1, 2):
        assert set(plan.images(20, draw).labels.tolist()) == {1, 3}


def test_too_few_images_are_said():
    done = carry_out(ready("tiny", "fp-backward", "params<=60%", epochs=1.0, calibration=2, score="activations"))
    assert all("samples" not in note for note in done.prepared.plan.notes)  # 2 images of 64 places are plenty
    done = carry_out(ready("tinycnn", "fp-backward", "params<=30%", epochs=1.0, calibration=2))
    assert any("samples" in note for note in done.prepared.plan.notes)


@pytest.mark.parametrize("method", sorted(GREEDY_PLANS))
def test_out_of_reach(method):
    with pytest.raises(InfeasibleError, match="cannot be reached"):
        ready("tiny", method, "params<=1%")
    with pytest.raises(InfeasibleError):
        ready("tiny", method, "params<=40%", least=0.9)


def test_a_candidate_waits_no_longer_than_it_may(monkeypatch):
    proposed = []
    real = Candidates.propose

    def counting(self, wanted):
        proposed.append(set(wanted))
        return real(self, wanted)

    monkeypatch.setattr(Candidates, "propose", counting)

    def run(stale):
        proposed.clear()
        fields = {"calibration": 8, "selection": 8, "step": 2, "finetune_every": 0, "stale": stale}
        carry_out(ready("ragged", "hbgs", "params<=75%", epochs=4.0, **fields))
        return list(proposed)

    groups = {"first", "a", "b", "c"}
    assert all(wanted == groups for wanted in run(1) if len(wanted) > 1)
    seldom = run(100)
    assert seldom[0] == groups
    # Its neighbours share a layer with the one that was chosen, and nobody else.
    assert sum(wanted == groups for wanted in seldom) == 1
    assert all(len(wanted) < 4 for wanted in seldom[1:])
    some = [wanted == groups for wanted in run(3)]
    assert some[0]
    assert sum(some) > 1
    assert not all(some)


@pytest.mark.parametrize("method", ["hbgs", "hbgts"])
def test_a_killed_run_goes_on(method, tmp_path, monkeypatch):
    fields = {"epochs": 12.0, "calibration": 8, "selection": 8, "step": 2, "finetune_every": 3, "stale": 2}
    check_killed_runs(lambda: ready("tiny", method, "params<=40%", **fields), (2, 5, -1), tmp_path, monkeypatch)


def test_an_interruption_ends_after_a_round(monkeypatch):
    import signal

    real = _Search._round

    def interrupted(self):
        real(self)
        if self.state.round == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Search, "_round", interrupted)
    with pytest.raises(Interrupted, match="after round 2"):
        carry_out(ready("tiny", "hbgs", "params<=40%", calibration=8, selection=8))


@pytest.mark.parametrize("method", ["fp-backward", "hbgs"])
def test_a_search_goes_on_while_the_network_is_too_slow(method, monkeypatch):
    """A machine on which the last channels of a uniform network cost more than those of another one."""

    def start(self):
        self.dense_ms, self.engine, self.note = 10.0, "torch", ""

    def without(self, module, counted, kept):
        return sum(0.25 * len(channels) * (1 + number) / 3.0 for number, channels in enumerate(kept.values()))

    monkeypatch.setattr("billhook.methods.channel_latency.Clock.__post_init__", start)
    monkeypatch.setattr("billhook.methods.channel_latency.Clock.without", without)
    prepared = ready("tiny", method, "latency<=4ms", calibration=8, **({"selection": 8} if method == "hbgs" else {}))
    done = carry_out(prepared)
    kept = [done.full.get_submodule(name).weight.shape[0] for name in ("conv1", "conv2", "conv3")]
    assert without(None, None, None, dict(enumerate(map(range, kept)))) <= 4.0
    assert min(kept) >= 1


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("fp-backward", {}),
        ("hbgs", {"selection": 8, "step": 0.5}),
        ("hbgs", {"selection": 8, "step": 0.5, "compensation": "pointwise"}),
    ],
)
def test_maps_and_memory_are_kept_for_the_report(method, fields):
    """What layers put out before, and after in the old shape; a peak for every phase."""
    prepared = ready("ragged", method, "params<=50%", calibration=8, **fields)
    done = carry_out(prepared)
    pictures = done.outcome.pictures
    names = [name.removeprefix("maps/") for name in pictures if name.startswith("maps/")]
    assert 1 <= len(names) <= 3
    image = next(iter(prepared.plan.bare(prepared.plan.images(1, 1))()))
    dense = prepared.setting.network.module
    for name in names:
        maps, (channels, left) = pictures[f"maps/{name}"], pictures[f"maps_kept/{name}"]
        assert maps.shape[:2] == (2, len(channels))
        outputs = []
        for module in (dense, done.outcome.masked.eval()):
            seen = {}
            part = module.get_submodule(name)
            handle = part.register_forward_hook(lambda part, i, o, seen=seen: seen.update(out=o[0].detach().numpy()))
            module.eval()(image)
            handle.remove()
            outputs.append(seen["out"][channels])
        before, after = outputs
        assert maps.shape[2:] == before.shape[1:]
        for place, stays in enumerate(left):
            assert (after[place] == 0).all() or stays
            pair = np.stack([before[place], after[place] if stays else before[place]])
            scaled = np.round((pair - pair.min()) / (np.ptp(pair) or 1) * 255)
            assert np.abs(scaled[0] - maps[0, place]).max() <= 1
            assert np.abs((scaled[1] if stays else 0 * pair[1]) - maps[1, place]).max() <= 1
    gone = sum(int((pictures[f"maps_kept/{name}"][1] == 0).sum()) for name in names)
    assert (gone == 0) == (fields.get("compensation") == "pointwise")
    line = next(line for line in done.outcome.history if line["event"] == "channels")
    assert 0 < line["peak_rss_bytes_before"] <= line["peak_rss_bytes"] <= done.outcome.history[-1]["peak_rss_bytes"]
