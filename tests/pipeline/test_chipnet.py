"""ChipNet from the command line: gates on disk, taken to another run, interrupted and resumed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import billhook as bh
from billhook.cli import run
from billhook.methods.chipnet import read_gates
from billhook.recipe import make_recipe

from .test_channel_runs import command_line
from .test_resume import at_step, same_run

__all__ = ["at_step"]

GATES = ("chipnet", "macs<=50%", "--set", "batch_size=8", "--quiet")


@pytest.fixture(scope="module")
def host(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt gates."""
    out = tmp_path_factory.mktemp("host") / "run"
    assert run(command_line(weights, out, *GATES)) == 0
    return out


def test_a_run_leaves_its_gates(host: Path) -> None:
    gates, summary = read_gates(host), json.loads((host / "summary.json").read_text())
    assert summary["budget"][0]["met"]
    assert 0.45 <= summary["pruned"]["macs"] / summary["dense"]["macs"] <= 0.5
    assert summary["equivalence"]["max_abs_difference"] <= 1e-4 * summary["equivalence"]["scale"]
    small = bh.load(host)
    widths = {name: int(opened.sum()) for name, opened in gates.open.items()}
    assert widths == {name: dict(small.named_modules())[name].out_channels for name in widths}
    for name, psi in gates.psi.items():
        assert psi[gates.open[name]].min() >= psi[~gates.open[name]].max(initial=float("-inf"))
    assert any(line["event"] == "gates" for line in map(json.loads, (host / "history.jsonl").read_text().splitlines()))


def test_gates_are_taken_to_other_classes(host: Path, weights: Path, tmp_path: Path) -> None:
    given = command_line(weights, tmp_path / "target", "chipnet", "macs<=50%", "--transfer-from", str(host), "--quiet")
    given[given.index("3,5,8")] = "0,1"
    assert run(given) == 0
    assert all((read_gates(tmp_path / "target").open[n] == o).all() for n, o in read_gates(host).open.items())
    with torch.no_grad():
        assert bh.load(tmp_path / "target")(torch.rand(2, 3, 32, 32)).shape == (2, 2)


def test_a_run_without_gates_has_none_to_give(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command_line(weights, tmp_path / "target", "chipnet", "macs<=50%", "--transfer-from", str(tmp_path))
    assert run(given) == 2
    assert "holds no gates" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(("phase", "step"), [("gates", 5), ("prune", 2)])
def test_interrupted_it_ends_the_same(
    weights: Path, host: Path, tmp_path: Path, at_step: Callable[..., None], phase: str, step: int
) -> None:
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT), phase)
    assert run(command_line(weights, tmp_path / "broken", *GATES)) == 130
    at_step(-1, list)
    assert run(command_line(weights, tmp_path / "broken", *GATES, "--resume")) == 0
    same_run(tmp_path / "broken", host)


def test_the_recipe_of_a_method_a_preset_and_what_was_said() -> None:
    def train(method: str, **said: object) -> object:
        content = {"model": "tinycnn", "data": "digits", "method": method, "budget": "macs<=50%", "train": said}
        if method == "crisp":
            content["budget"] = "sparsity>=80%"
        return make_recipe(content).train

    assert train("chipnet").lr == train("l1").lr == 0.01  # type: ignore[attr-defined]
    assert train("crisp").lr == 0.05  # type: ignore[attr-defined]
    assert train("l1", lr=0.2).lr == 0.2  # type: ignore[attr-defined]
    published = train("chipnet", preset="chipnet", epochs=3)
    assert (published.lr, published.batch_size, published.epochs) == (0.05, 128, 3)  # type: ignore[attr-defined]
    with pytest.raises(bh.errors.UsageError, match="unknown preset 'chipnets'"):
        train("chipnet", preset="chipnets")
