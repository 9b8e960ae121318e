"""Greedy methods end to end: interrupted in the middle, warned about, shown on the page."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from billhook.cli import run

from .test_channel_runs import command_line
from .test_resume import at_step, lines

__all__ = ["at_step"]


def same_search(a: Path, b: Path) -> None:
    """Weights are the same bytes, and so is the history but for the seconds of its rounds."""
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    timed = ("round_seconds", "search_seconds", "peak_rss_bytes", "peak_rss_bytes_before")
    found = [[{k: v for k, v in line.items() if k not in timed} for line in lines(place)] for place in (a, b)]
    assert found[0] == found[1]
    assert {"round-1", "prune"} <= {line["phase"] for line in found[0]}


POINTWISE = {"compensation": "pointwise", "step": 0.125, "selection": 16, "finetune_every": 4, "finetune_share": 0.6}


@pytest.mark.parametrize(
    ("method", "budget", "settings"),
    [
        ("hbgts", "params<=50%", {"step": 0.25, "finetune_every": 2, "selection": 16, "calibration": 16, "stale": 2}),
        ("hbgs", "params<=70%", POINTWISE),
        ("fp-backward", "params<=50%", {"finetune_every": 2, "calibration": 16}),
    ],
)
def test_interrupted_it_ends_the_same(
    weights: Path, tmp_path: Path, at_step: Callable[..., None], method: str, budget: str, settings: dict[str, object]
) -> None:
    more = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    asked = (method, budget, *more, "--quiet")
    at_step(-1, list)
    assert run(command_line(weights, tmp_path / "whole", *asked)) == 0
    for number, (phase, step) in enumerate((("prune", 2), ("round-1", 1))):
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT), phase)
        assert run(command_line(weights, tmp_path / f"broken{number}", *asked)) == 130
        at_step(-1, list)
        assert run(command_line(weights, tmp_path / f"broken{number}", *asked, "--resume")) == 0
        same_search(tmp_path / f"broken{number}", tmp_path / "whole")


@pytest.mark.parametrize("method", ["fp-backward", "hbgs"])
def test_what_only_the_work_shows_is_said(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Fewer calibration images than a layer has inputs: a ridge, and a warning on the screen."""
    more = ("--set", "calibration=2", "--set", "finetune_every=0")
    monkeypatch.setattr("billhook.methods.greedy.search.FEWEST", 2)
    assert run(command_line(weights, tmp_path / "run", method, "params<=50%", *more)) == 0
    said = capsys.readouterr().err
    assert len(re.findall(r"fewer calibration samples than channels \(2 images\)", said)) == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="maps"' in page
    assert ('id="rounds"' in page) == (method == "hbgs")
