"""Channel methods end to end: budgets, artifacts, resuming, a run pruned further."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import billhook as bh
from billhook import artifact
from billhook.cli import run
from billhook.cost import count
from billhook.scores import ChannelScore

from .test_resume import at_step, lines, same_run

__all__ = ["at_step"]

FAST: dict[str, Any] = {"epochs": 1, "images_per_class": 20, "control": "none"}


def command_line(weights: Path, out: Path, method: str, budget: str, *more: str) -> list[str]:
    given = ["prune", "tinycnn", "--weights", str(weights), "--data", "digits", "--classes", "3,5,8"]
    given += ["--images-per-class", "40", "--method", method, "--budget", budget, "--epochs", "3"]
    return [*given, "--batch-size", "16", "--control", "none", "--out", str(out), *more]


@pytest.mark.parametrize("method", get_args(ChannelScore))
def test_every_baseline_delivers_a_smaller_network(weights: Path, tmp_path: Path, method: str) -> None:
    result = bh.prune("tinycnn", "digits", weights=weights, classes=["3", "5", "8"], method=method,
                      budget="macs<=50%", **FAST)  # fmt: skip
    pruned, dense = result.summary["pruned"], result.summary["dense"]
    assert 0.45 * dense["macs"] <= pruned["macs"] <= 0.5 * dense["macs"]
    assert pruned["params"] == sum(p.numel() for p in result.model.parameters()) < dense["params"]
    assert pruned["macs"] == count(result.model, 8).macs
    assert result.met
    equivalence = result.summary["equivalence"]
    assert equivalence["max_abs_difference"] <= 1e-4 * equivalence["scale"]
    place = result.save(tmp_path / "run")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(bh.load(place)(images), result.model(images))


@pytest.mark.parametrize(
    "budget",
    ["params<=30%", "macs<=1M", "channels<=60%", "volume<=55%", "bytes<=40%", "bytes<=150kB", "sparsity>=70%",
     "effective_macs<=40%"],
)  # fmt: skip
def test_every_quantity_is_met_and_hardly_exceeded(weights: Path, tmp_path: Path, budget: str) -> None:
    method = {"name": "l1", "scope": "uniform" if "<=1M" in budget else "global"}
    result = bh.prune("tinycnn", "digits", weights=weights, classes=["3", "5", "8"], method=method, budget=budget,
                      **FAST)  # fmt: skip
    entry = result.summary["budget"][0]
    assert entry["met"]
    if entry["quantity"] == "bytes":
        size = (result.save(tmp_path / "run") / "model.safetensors").stat().st_size
        assert entry["value_absolute"] == size
    # One channel of the widest layer of this small network is worth a few percent.
    assert abs(entry["value"] - entry["bound"]) <= 0.06 * entry["bound"]


def test_several_budgets_hold_at_once(weights: Path) -> None:
    asked = ["macs<=60%", "params<=40%", "channels<=70%"]
    result = bh.prune("tinycnn", "digits", weights=weights, method="l2", budget=asked, **FAST)
    assert [entry["met"] for entry in result.summary["budget"]] == [True] * 3


def test_channels_come_in_multiples(weights: Path) -> None:
    method = {"name": "l1", "round_to": 8}
    result = bh.prune("tinycnn", "digits", weights=weights, method=method, budget="macs<=50%", **FAST)
    widths = [part.out_channels for part in result.model.modules() if isinstance(part, nn.Conv2d)]
    assert widths
    assert all(width % 8 == 0 for width in widths)


def test_the_artifact_says_what_stayed(weights: Path, tmp_path: Path) -> None:
    method = {"name": "taylor", "rounds": 3}
    result = bh.prune("tinycnn", "digits", weights=weights, method=method, budget="macs<=40%", **FAST)
    place = result.save(tmp_path / "run")
    described = json.loads((place / artifact.ARCHITECTURE).read_text())
    assert len(described["channels"]) == 3
    removed = [line for line in lines(place) if line["event"] == "channels"]
    assert [line["round"] for line in removed] == [1, 2, 3]
    macs = [line["macs"] for line in removed]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] == result.summary["pruned"]["macs"]


IN_PHASES = ("slimming", "macs<=50%", "--set", "rounds=3", "--set", "share=0.6", "--quiet")


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all phases that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(command_line(weights, out, *IN_PHASES)) == 0
    return out


@pytest.mark.parametrize(("phase", "step"), [("penalty", 3), ("round-1", 2), ("round-2", 1), ("prune", 2)])
def test_interrupted_in_any_phase_it_ends_the_same(
    weights: Path, whole: Path, tmp_path: Path, at_step: Callable[..., None], phase: str, step: int
) -> None:
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT), phase)
    assert run(command_line(weights, tmp_path / "broken", *IN_PHASES)) == 130
    at_step(-1, list)
    assert run(command_line(weights, tmp_path / "broken", *IN_PHASES, "--resume")) == 0
    same_run(tmp_path / "broken", whole)


def test_channels_first_then_crisp(weights: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "channels", tmp_path / "both"
    assert run(command_line(weights, first, "l1", "macs<=60%", "--set", "round_to=8", "--quiet")) == 0
    given = ["prune", str(first), "--data", "digits", "--classes", "3,5,8", "--images-per-class", "40", "--quiet"]
    given += ["--method", "crisp", "--set", "block=8", "--budget", "sparsity>=70%", "--epochs", "2"]
    assert run([*given, "--control", "none", "--out", str(second)]) == 0
    described = json.loads((second / artifact.ARCHITECTURE).read_text())
    assert len(described["channels"]) == 1
    assert described["patterns"]
    small, both = bh.load(first), bh.load(second)
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in both.named_parameters()}
    summary = json.loads((second / "summary.json").read_text())
    assert summary["pruned"]["sparsity"] >= 0.7
    assert summary["dense"]["params"] == sum(p.numel() for p in small.parameters())
    third = tmp_path / "third"
    given = ["prune", str(second), "--data", "digits", "--classes", "3,5,8", "--images-per-class", "40", "--quiet"]
    given += ["--method", "l1", "--budget", "macs<=80%", "--epochs", "1", "--control", "none", "--out", str(third)]
    assert run(given) == 0
    assert len(json.loads((third / artifact.ARCHITECTURE).read_text())["channels"]) == 2
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert bh.load(third)(images).shape == (2, 3)


def test_a_run_of_ones_own_network_is_rebuilt_from_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10),
    )  # fmt: skip
    result = bh.prune(own, "digits", method="l2", budget="params<=50%", epochs=1, images_per_class=10, control="none",
                      input_size=16)  # fmt: skip
    assert own[0].out_channels == 12
    place = result.save(tmp_path / "run")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(bh.load(place, own)(images), result.model(images))


@pytest.mark.parametrize(
    ("method", "budget", "code", "message"),
    [
        ("l1", "macs<=0.01%", 3, "cannot be reached"),
        ("l1", "latency<=0.0001ms", 3, "the smallest network takes"),
        ("taylor", "sparsity>=99.99%", 3, "cannot be reached"),
    ],
)
def test_budgets_out_of_reach(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, budget: str, code: int, message: str
) -> None:
    assert run(command_line(weights, tmp_path / "run", method, budget)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def smaller(weights: Path) -> bh.Result:
    """A network with half its channels."""
    return bh.prune("tinycnn", "digits", weights=weights, method="random", budget="macs<=50%", **FAST)


@pytest.mark.parametrize(
    "damage",
    [[{"conv1": {"out": [0, 99]}}], [{"nowhere": {"out": [0]}}], [{"conv1": {"out": "all"}}], [3], {"conv1": {}}, "x"],
)
def test_a_damaged_plan_is_refused_in_one_line(smaller: bh.Result, tmp_path: Path, damage: Any) -> None:
    place = smaller.save(tmp_path / "run")
    path = place / artifact.ARCHITECTURE
    described = json.loads(path.read_text())
    described["channels"] = damage
    path.write_text(json.dumps(described))
    with pytest.raises(bh.errors.BillhookError):
        bh.load(place)
