"""Milliseconds of hybrid-sparse networks against clocks that are known: the table, the masks that it leads to."""

import dataclasses
import json
import re

import numpy as np
import pytest

import billhook as bh
from billhook import artifact, latency
from billhook.cli import run
from billhook.errors import InfeasibleError, InputError, RunError, UsageError
from billhook.latency.packed import LayerTimes, line
from billhook.methods import hybrid_latency, weight_sparsity
from billhook.methods.hybrid_latency import LatencyTable, levels_of, tabulate
from billhook.patterns import NM, HybridPattern
from billhook.runtime import native

from .problems import NETWORKS, carry_out, ready

TABLE = LatencyTable(
    {"a": (1, 2, 8), "b": (3,)}, {"a": (1.0, 2.0, 5.0), "b": (4.0,)}, {"a": 9.0, "b": 8.0},
    0.5, 2.0, 0.25, 35.25, 11.25, {"layers": {"a": [1], "b": [2]}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "milliseconds"),
    [
        ({"a": 1, "b": 3}, 2 * (0.5 + 1.0 + 4.0) + 0.25),
        ({"a": 2, "b": 3}, 2 * (0.5 + 2.0 + 4.0) + 0.25),
        ({"a": 4, "b": 3}, 2 * (0.5 + 3.0 + 4.0) + 0.25),
        ({"a": 8, "b": 1}, 2 * (0.5 + 5.0 + 4.0) + 0.25),
    ],
)
def test_predictions_by_hand(kept, milliseconds):
    assert TABLE.predict(kept) == milliseconds


def test_a_table_comes_back_from_its_file():
    values = json.loads(json.dumps(TABLE.as_dict()))
    assert LatencyTable.from_dict(values, TABLE.about) == TABLE
    with pytest.raises(ValueError, match="something else"):
        LatencyTable.from_dict(values, TABLE.about | {"threads": 2})


@pytest.mark.parametrize(
    "change",
    [
        {"columns": None},
        {"columns": {"a": [1, 2]}},
        {"milliseconds": {"a": [1.0], "b": [4.0]}},
        {"dense": {"a": 9.0}},
        {"scale": 0.0},
        {"scale": None},
        {"rest_ms": float("nan")},
        {"dense_ms": "fast"},
    ],
)
def test_a_damaged_table_is_none(change):
    values = TABLE.as_dict() | change
    with pytest.raises(ValueError, match=r"."):
        LatencyTable.from_dict(values, TABLE.about)


def test_the_table_of_what_was_measured():
    levels = {"all": {"a": 8, "b": 2}, "half": {"a": 4, "b": 1}, "one": {"a": 1, "b": 1}}
    times = {
        "dense": LayerTimes({"a.weight": 9.0, "b.weight": 3.0}, 1.0, 27.0),
        "all": LayerTimes({"a.weight": 5.0, "b.weight": 2.0}, 1.0, 17.0),
        "half": LayerTimes({"a.weight": 2.0, "b.weight": 1.5}, 1.5, 11.0),
        # A disturbed layer is not faster with more columns than with fewer.
        "one": LayerTimes({"a.weight": 2.5, "b.weight": 1.0}, 1.0, 10.0),
    }
    table = tabulate(levels, times, {"cpu": "x"})
    assert table.columns == {"a": (1, 4, 8), "b": (1, 2)}
    assert table.milliseconds == {"a": (2.5, 2.5, 5.0), "b": (1.0, 2.0)}
    assert table.dense == {"a": 9.0, "b": 3.0}
    # Medians are twice the steps and one millisecond more.
    assert (table.rest_ms, table.scale, table.call_ms) == (1.0, 2.0, 1.0)
    assert (table.dense_ms, table.smallest_ms) == (27.0, 10.0)
    assert table.slowest == "a"


@pytest.mark.parametrize("disturbed", ["dense", "all", "half", "one"])
def test_one_disturbed_version_does_not_turn_the_line(disturbed):
    levels = {"all": {"a": 8}, "half": {"a": 4}, "fourth": {"a": 2}, "one": {"a": 1}}
    steps = {"dense": 16.0, "all": 8.0, "half": 4.0, "fourth": 2.0, "one": 1.0}
    times = {
        name: LayerTimes({"a.weight": time}, 0.0, 3 * (1.1 * time + 0.1) if name == disturbed else 1.1 * time + 0.1)
        for name, time in steps.items()
    }
    table = tabulate(levels, times, {})
    assert table.dense_ms == pytest.approx(1.1 * 16 + 0.1, rel=0.1)
    assert table.predict({"a": 3}) == pytest.approx(1.1 * 3 + 0.1, rel=0.15)


def test_a_line_that_cannot_be_is_a_share():
    assert line([(1.0, 2.0), (2.0, 1.0)]) == (1.25, 0.0)
    assert line([(1.0, 1.0), (2.0, 4.0)]) == (1.5, 0.0)
    assert line([(2.0, 4.0)]) == (2.0, 0.0)


def test_levels():
    columns = {"a": 36, "b": 4, "c": 1}
    found = levels_of(columns, HybridPattern(NM(2, 4), 16))
    assert list(found.values()) == [
        {"a": 36, "b": 4, "c": 1},
        {"a": 18, "b": 2, "c": 1},
        {"a": 9, "b": 1, "c": 1},
        {"a": 4, "b": 1, "c": 1},
        {"a": 1, "b": 1, "c": 1},
    ]
    assert [kept["a"] for kept in levels_of(columns, HybridPattern(NM(1, 1), 16)).values()] == [36, 27, 18, 9, 4, 1]
    assert list(levels_of(columns, HybridPattern(NM(2, 4), 0)).values()) == [columns]
    assert list(levels_of({"a": 1}, HybridPattern(NM(2, 4), 16)).values()) == [{"a": 1}]


# ---------------------------------------------------------------------- with a clock that is known


class World:
    """A machine where a weight takes ``power`` of a share of its layer's time, and each call 10 us more."""

    def __init__(self, power=1.0, drift=1.0):
        self.power, self.drift, self.tables, self.chosen = power, drift, 0, []

    def milliseconds(self, module, patterns):
        layers = {}
        for name, parameter in module.named_parameters():
            if parameter.ndim in (2, 4):
                mask = patterns[name].mask if name in patterns else np.ones(1, bool)
                assert mask.ndim == 1 or mask.shape == tuple(parameter.shape)
                layers[name] = parameter.numel() / 1e4 * float(mask.mean()) ** self.power
        return LayerTimes(layers, 0.02, sum(layers.values()) + 0.03)

    def packable(self, module, shape):
        assert shape == (3, 8, 8)
        return Machine(self, module)

    def measure(self, networks, size, *, patterns=None, engine=None):
        found = {}
        for name, module in networks.items():
            time = self.milliseconds(module, (patterns or {}).get(name, {})).p50_ms
            found[name] = latency.Latency(time, time, "billhook", 1)
        return found


@dataclasses.dataclass
class Machine:
    world: World
    module: object

    def time(self, versions, threads):
        assert threads >= 1
        found = {name: self.world.milliseconds(self.module, patterns) for name, patterns in versions.items()}
        if "dense" in versions:
            self.world.tables += 1
            assert versions["dense"] == {}
            assert len(versions) <= 7
            return found
        (time,) = found.values()
        self.world.chosen.append(time.p50_ms)
        drift = self.world.drift
        return {"chosen": LayerTimes({name: drift * t for name, t in time.layers.items()}, time.rest_ms, 0.0)}


@pytest.fixture
def world(monkeypatch):
    return put(monkeypatch, World())


def put(monkeypatch, world):
    monkeypatch.setattr(hybrid_latency, "Packable", world.packable)
    monkeypatch.setattr(latency, "measure", world.measure)
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "best", lambda: 0)
    return world


def delivered(world, done):
    """Milliseconds of what a run delivers."""
    return world.milliseconds(done.small, done.patterns).p50_ms


@pytest.mark.parametrize(
    ("method", "fields", "budget"),
    [
        ("crisp", {"block": 8}, "latency<=40%"),
        ("crisp", {"block": 8}, "latency<=1.2ms"),
        ("crisp", {"nm": "1:4", "block": 4, "schedule": "linear"}, "latency<=22%"),
        ("crisp", {"block": 8, "score": "saliency"}, "latency<=40%"),
        ("block-only", {"block": 8}, "latency<=70%"),
    ],
)
def test_the_masks_are_as_fast_as_asked_and_hardly_faster(world, method, fields, budget):
    prepared = ready("ragged", method, budget, **fields)
    done = carry_out(prepared)
    goal = prepared.setting.problem.budgets[0]
    dense = world.milliseconds(prepared.setting.network.module, {}).p50_ms
    assert prepared.setting.dense["latency_ms"] == pytest.approx(dense)
    bound = goal.bound * dense if goal.unit == "ratio" else goal.bound
    assert 0.94 * bound <= delivered(world, done) <= bound
    assert world.tables == 1
    (row,) = prepared.plan.feasible
    assert row["quantity"] == "latency"
    assert row["feasible"] is True
    assert (row["dense"], row["asked"]) == pytest.approx((dense, bound))
    assert 0 < row["smallest"] < bound
    assert row["binding_layer"] in {target.name for target in prepared.plan.targets}


@pytest.mark.parametrize("power", [0.6, 1.5])
def test_what_interpolation_misses_is_corrected(monkeypatch, power):
    """Layers are not linear in their columns: the choice is timed before it is final, and made again if it is off."""
    world = put(monkeypatch, World(power))
    prepared = ready("resnet20", "crisp", "latency<=30%")
    done = carry_out(prepared)
    bound = 0.3 * prepared.setting.dense["latency_ms"]
    assert 1 <= len(world.chosen) <= 2
    assert 0.93 * bound <= delivered(world, done) <= 1.02 * bound


def test_a_choice_that_turns_out_slow_is_made_again(monkeypatch):
    world = put(monkeypatch, World(drift=1.25))
    prepared = ready("resnet20", "crisp", "latency<=30%")
    done = carry_out(prepared)
    bound = 0.3 * prepared.setting.dense["latency_ms"]
    assert len(world.chosen) == 2
    assert world.chosen[1] < 0.9 * world.chosen[0]
    assert 0.7 * bound <= delivered(world, done) <= 0.85 * bound
    assert prepared.plan.clock.error == pytest.approx(1.25, rel=0.05)


def test_with_other_budgets_all_are_met(world):
    prepared = ready("ragged", "crisp", ["latency<=45%", "sparsity>=85%"], block=8)
    assert [row["quantity"] for row in prepared.plan.feasible] == ["sparsity", "latency"]
    done = carry_out(prepared)
    assert done.sparsity >= 0.85
    assert delivered(world, done) < 0.3 * prepared.setting.dense["latency_ms"]  # what the sparsity brings
    done = carry_out(ready("ragged", "crisp", ["latency<=25%", "sparsity>=55%"], block=8))
    assert done.sparsity > 0.7  # what the latency needs
    assert delivered(world, done) <= 0.25 * prepared.setting.dense["latency_ms"]


def test_rounds_go_part_of_the_way_each(world):
    done = carry_out(ready("ragged", "crisp", "latency<=25%", block=8, epochs=4, rounds=5))
    found = [line["sparsity"] for line in done.outcome.history if line.get("event") == "mask"]
    assert len(found) == 5
    assert found == sorted(found)
    assert found[0] < found[-1] - 0.1
    assert len(world.chosen) <= 2  # in the last one alone


def test_nm_alone(world):
    prepared = ready("ragged", "nm-only", "latency<=70%")
    assert len({row["smallest"] for row in prepared.plan.feasible}) == 1
    done = carry_out(prepared)
    assert delivered(world, done) == pytest.approx(prepared.plan.feasible[0]["smallest"])
    assert world.chosen == []
    with pytest.raises(InfeasibleError, match=r"latency<=40% cannot be reached: 2:4 without blocks takes \d+\.?\d* ms"):
        ready("ragged", "nm-only", "latency<=40%")


def test_what_nm_gives_is_enough(world):
    prepared = ready("ragged", "crisp", "latency<=90%")
    assert prepared.plan.notes[0] == "2:4 alone is as fast as asked: no block is pruned"
    done = carry_out(prepared)
    assert all(info.mask.mean() == 0.5 for info in done.patterns.values())
    notes = ready("ragged", "crisp", ["latency<=90%", "sparsity>=80%"], block=8).plan.notes
    assert not any("no block is pruned" in note for note in notes)


def test_the_head_is_timed_as_delivered(world):
    keep = list(range(16))
    prepared = ready(NETWORKS["ragged"](20), "crisp", "latency<=40%", classes=20, keep=keep, block=8)
    done = carry_out(prepared)
    assert done.patterns["fc.weight"].mask.shape == (16, 20)
    assert delivered(world, done) <= 0.4 * prepared.setting.dense["latency_ms"]


def test_out_of_reach(world, tmp_path):
    message = r"latency<=0.05ms cannot be reached: one rank column of 16x16 blocks per layer takes 0\.\d+ ms here"
    with pytest.raises(InfeasibleError, match=message) as caught:
        bh.prune("tinycnn", "digits", method="crisp", budget="latency<=0.05ms", control="none", out=tmp_path / "run")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()
    smallest = float(caught.value.message.split(" takes ")[1].split()[0])
    ready("tinycnn", "crisp", f"latency<={1.01 * smallest:.6f}ms", classes=10)


@pytest.mark.parametrize("method", ["crisp", "nm-only", "block-only"])
def test_without_the_library_it_is_refused(monkeypatch, method):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "reason", lambda: "it was not built")
    fields = {"block": 8} if method != "nm-only" else {}
    line = r"latency<=5ms needs billhook's native library, which cannot be used \(it was not built\): other engines"
    with pytest.raises(UsageError, match=line):
        ready("ragged", method, "latency<=5ms", **fields)


def test_a_network_that_the_runtime_cannot_run_is_refused(monkeypatch):
    def refuse(module, shape):
        raise InputError("aten.sort at net.py:7: no operator of a packed file does that", "replace it")

    put(monkeypatch, World())
    monkeypatch.setattr(hybrid_latency, "Packable", refuse)
    with pytest.raises(InputError, match=r"latency<=5ms is measured in billhook's runtime, which cannot .* aten.sort"):
        ready("ragged", "crisp", "latency<=5ms")


def test_a_dry_run_shows_milliseconds(world, capsys):
    words = [
        "prune",
        "tinycnn",
        "--data",
        "digits",
        "--method",
        "crisp",
        "--budget",
        "latency<=5ms",
        "--control",
        "none",
    ]
    assert run([*words, "--control", "none", "--images-per-class", "10", "--dry-run"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("latency"))
    assert re.fullmatch(r"latency +1[0-9]\.\d ms +[01]\.\d+ ms +5 ms +yes", row)


def pruning(out, **more):
    given = {"method": "crisp", "budget": "latency<=40%", "epochs": 1, "images_per_class": 10, "control": "none"}
    return bh.prune("tinycnn", "digits", out=out, **(given | more))


def test_the_table_is_kept_from_the_start_and_read_again(world, monkeypatch, tmp_path):
    place = tmp_path / "run"

    def fail(task, room):
        raise RunError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(weight_sparsity, "fit", fail)
        with pytest.raises(RunError, match="lights"):
            pruning(place)
    kept = json.loads((place / artifact.LATENCY).read_text())
    assert world.tables == 1
    kept["dense_ms"] *= 0.9  # so that it is seen to be this one
    (place / artifact.LATENCY).write_text(json.dumps(kept))
    result = pruning(place, resume=True)
    assert world.tables == 1
    assert result.met
    assert json.loads((place / artifact.LATENCY).read_text()) == kept
    assert 0.94 * 0.4 * kept["dense_ms"] <= result.summary["pruned"]["latency_ms"] <= 0.4 * kept["dense_ms"]


@pytest.mark.parametrize("damage", ["[", "{}", '{"about": {}}'])
def test_a_table_that_does_not_fit_is_measured_again(world, monkeypatch, tmp_path, damage):
    place = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(weight_sparsity, "fit", lambda task, room: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pruning(place)
    (place / artifact.LATENCY).write_text(damage)
    assert pruning(place, resume=True).met
    assert world.tables == 2
    found = json.loads((place / artifact.LATENCY).read_text())
    assert LatencyTable.from_dict(found, found["about"]).dense_ms > 0


def test_a_run_in_memory_keeps_it_when_it_is_saved(world, tmp_path):
    result = pruning(None)
    place = result.save(tmp_path / "saved")
    table = json.loads((place / artifact.LATENCY).read_text())
    assert table["dense_ms"] == pytest.approx(result.summary["dense"]["latency_ms"])
    assert table["about"]["layers"].keys() == table["columns"].keys()
    assert not (pruning(None, budget="sparsity>=60%").save(tmp_path / "other") / artifact.LATENCY).exists()


# ---------------------------------------------------------------------- for once with the real one


@pytest.mark.skipif(not native.available(), reason="the native library is not there")
def test_a_real_run(tmp_path):
    result = pruning(tmp_path / "run", budget="latency<=99s", classes=["3", "5"])
    (entry,) = result.summary["budget"]
    assert entry["met"]
    assert entry["unit"] == "ms"
    assert entry["value"] == result.summary["pruned"]["latency_ms"] > 0
    timed = result.summary["pruned"]["latency"]
    assert {(time["engine"], time["precision"]) for time in timed.values()} == {("billhook", "f32")}
    assert result.summary["dense"]["latency_ms"] == timed["dense"]["p50_ms"]
    table = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert all(min(times) > 0 for times in table["milliseconds"].values())
    assert table["about"]["precision"] == "f32"
