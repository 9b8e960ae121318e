"""Milliseconds: taken in turns, by the engine that is there; and a budget in them, against a clock that is known."""

import pytest
import torch
from torch import nn

import billhook as bh
from billhook import latency
from billhook.cost import count
from billhook.errors import InfeasibleError, InputError, RunError
from billhook.latency import networks, turns
from billhook.methods import channel_latency
from billhook.methods.channel_latency import within


def network(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(turns, "BLOCK_SECONDS", 0.001)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("engine", ["billhook", "onnxruntime", "torch"])
def test_both_networks_are_timed_by_the_same_engine(monkeypatch, engine):
    if engine not in networks.engines():
        pytest.skip(f"{engine} is not there")
    monkeypatch.setattr(networks, "engines", lambda: [engine, "torch"])
    before = torch.get_num_threads()
    times = latency.measure({"small": network(4), "large": network(96)}, 32, threads=1)
    assert {time.engine for time in times.values()} == {engine}
    assert all(0 < time.p50_ms <= time.p90_ms and time.threads == 1 for time in times.values())
    assert {(time.precision, time.note) for time in times.values()} == {("f32", "")}
    assert torch.get_num_threads() == before
    assert times["small"].as_dict().keys() == {"p50_ms", "p90_ms", "engine", "threads", "precision"}


@pytest.mark.parametrize(
    ("native", "onnx", "found"),
    [
        (True, True, ["billhook", "onnxruntime", "torch"]),
        (True, False, ["billhook", "torch"]),
        (False, True, ["onnxruntime", "torch"]),
        (False, False, ["torch"]),
    ],
)
def test_the_order_of_engines(monkeypatch, native, onnx, found):
    monkeypatch.setattr(networks.native, "available", lambda: native)
    monkeypatch.setattr(networks, "installed", lambda name: onnx)
    assert networks.engines() == found


class Sorted(nn.Module):
    """Does what no packed file can."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3)).sort(dim=1).values)


@pytest.mark.usefixtures("quick")
def test_a_network_that_cannot_be_lowered_falls_back_with_a_note(monkeypatch):
    monkeypatch.setattr(networks, "engines", lambda: ["billhook", "torch"])
    time = latency.measure({"a": network(4), "b": Sorted()}, 8, threads=1)["b"]
    assert time.engine == "torch"
    assert time.note.startswith("milliseconds are those of PyTorch: billhook's runtime cannot run it: aten.sort")
    assert time.as_dict()["note"] == time.note


@pytest.mark.usefixtures("quick")
def test_an_engine_that_was_chosen_is_not_left(monkeypatch):
    with pytest.raises(InputError, match="sort"):
        latency.measure({"a": Sorted()}, 8, threads=1, engine="billhook")
    monkeypatch.setattr(networks, "engines", lambda: ["billhook"])
    assert latency.measure({"a": network(4)}, 8, threads=1, engine="torch")["a"].engine == "torch"


@pytest.mark.usefixtures("quick")
def test_without_the_library_the_note_says_so(monkeypatch):
    monkeypatch.setattr(networks.native, "available", lambda: False)
    monkeypatch.setattr(networks.native, "reason", lambda: "it was not built")
    monkeypatch.setattr(networks, "installed", lambda name: False)
    time = latency.measure({"a": network(4)}, 8, threads=1)["a"]
    assert (time.engine, time.note) == (
        "torch", "milliseconds are those of PyTorch: the native library cannot be used (it was not built)",
    )  # fmt: skip


def test_failures_of_ours_that_are_no_refusals_are_not_hidden(monkeypatch):
    def broken(*arguments):
        raise RunError("a bug")

    monkeypatch.setattr(networks, "_runs", broken)
    monkeypatch.setattr(networks, "engines", lambda: ["billhook", "torch"])
    with pytest.raises(RunError, match="a bug"):
        latency.measure({"a": network(4)}, 8, threads=1)


@pytest.mark.parametrize("bound", [12.0, 40.0, 77.0, 200.0])
def test_the_search_ends_just_within_the_bound(bound):
    """A network of m MACs takes m / 10 ms; choices come in steps of 7 MACs."""

    def choose(budgets):
        limit = min([1000.0] + [budget.bound for budget in budgets])
        return int(limit // 7 * 7)

    kept = within(choose, lambda macs: macs / 10, bound, ("macs", 105, 1000))
    assert kept / 10 <= bound
    if bound < 95:
        assert kept / 10 >= 0.98 * bound - 0.01 * 100 - 0.7


def test_a_bound_below_the_smallest_is_infeasible():
    with pytest.raises(InfeasibleError, match="within 5 ms"):
        within(lambda budgets: 100, lambda macs: macs, 5.0, ("macs", 100, 1000))


@pytest.mark.parametrize("wrong", [0.6, 1.0, 1.7])
def test_a_table_is_followed_and_set_right(wrong):
    """A table that is off by a factor: each measurement corrects the next guess."""
    measured = []

    def milliseconds(kept):
        measured.append(kept)
        return wrong * kept

    kept = within(lambda budgets: min([100.0] + [budget.bound for budget in budgets]), milliseconds, 40.0,
                  ("latency", 5.0, 100.0))  # fmt: skip
    assert 0.95 * 40 <= wrong * kept <= 40
    assert len(measured) <= 5  # all, the smallest, the guess, and at most two more


def fake(networks, input_size, **more):
    """A microsecond per thousand MACs."""
    found = {}
    for name, module in networks.items():
        milliseconds = count(module, input_size).macs / 1e6
        found[name] = latency.Latency(milliseconds, milliseconds, "fake", 1)
    return found


@pytest.mark.parametrize(("budget", "rounds"), [("latency<=50%", 1), ("latency<=1.2ms", 1), ("latency<=40%", 3)])
def test_a_latency_budget_is_met_and_measured_at_the_end(monkeypatch, budget, rounds):
    monkeypatch.setattr(latency, "measure", fake)
    method = {"name": "l1", "rounds": rounds}
    result = bh.prune("tinycnn", "digits", method=method, budget=[budget, "params<=90%"], epochs=1, images_per_class=10,
                      classes=["3", "5"], control="none")  # fmt: skip
    entry = result.summary["budget"][0]
    assert entry["met"]
    pruned = result.summary["pruned"]
    assert pruned["latency_ms"] == count(result.model, 8).macs / 1e6
    assert pruned["latency"]["dense"]["engine"] == "fake"
    dense = pruned["latency"]["dense"]["p50_ms"]
    bound = entry["bound"] if entry["unit"] == "ms" else entry["bound"] * dense
    assert 0.9 * bound <= pruned["latency_ms"] <= bound


def test_an_infeasible_latency_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "measure", fake)
    with pytest.raises(InfeasibleError, match="the smallest network takes"):
        bh.prune("tinycnn", "digits", method="l1", budget="latency<=0.0001ms", control="none", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_clock_stays_with_the_engine_of_the_dense_network(monkeypatch):
    asked = []

    def noting(networks, size, *, engine=None, patterns=None):
        asked.append(engine)
        milliseconds = count(networks[next(iter(networks))], size).macs / 1e6
        return {name: latency.Latency(milliseconds, 9.0, "onnxruntime", 1, note="no library") for name in networks}

    monkeypatch.setattr(latency, "measure", noting)
    result = bh.prune("tinycnn", "digits", method="l1", budget="latency<=60%", epochs=1, images_per_class=10,
                      control="none")  # fmt: skip
    assert asked[0] is None
    assert len(asked) > 3
    assert set(asked[1:-1]) == {"onnxruntime"}
    assert result.summary["notes"][0] == "no library"


def test_the_clock_times_the_head_as_delivered(monkeypatch):
    seen = []
    monkeypatch.setattr(
        latency, "measure", lambda networks, size, **more: seen.append(networks) or fake(networks, size)
    )
    bh.prune("tinycnn", "digits", method="l1", budget="latency<=60%", epochs=1, images_per_class=10,
             classes=["3", "5"], control="none")  # fmt: skip
    assert channel_latency.latency is latency
    for timed in seen:
        for module in timed.values():
            assert module(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
