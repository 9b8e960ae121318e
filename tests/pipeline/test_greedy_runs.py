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
from .test_pointwise import same_search
from .test_resume import at_step

__all__ = ["at_step"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("hbgts", {"step": 0.25, "finetune_every": 2, "selection": 16, "calibration": 16, "stale": 2}),
        ("fp-backward", {"finetune_every": 2, "calibration": 16}),
    ],
)
def test_interrupted_it_ends_the_same(
    weights: Path, tmp_path: Path, at_step: Callable[..., None], method: str, settings: dict[str, object]
) -> None:
    more = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    asked = (method, "params<=50%", *more, "--quiet")
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
