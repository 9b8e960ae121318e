"""One small run that the tests bench, and copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import billhook as bh
from billhook.bench import jobs, worker


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid-sparse network for three digits."""
    out = tmp_path_factory.mktemp("runs") / "made"
    bh.prune("tinycnn", "digits", method=bh.CRISP(rounds=2), budget="sparsity>=80%", classes=["3", "5", "8"],
             epochs=0.5, images_per_class=10, control="none", out=out)  # fmt: skip
    return out


@pytest.fixture
def run_directory(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write into."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that exactly these packages are there."""

    def pretend(*names: str) -> None:
        monkeypatch.setattr("billhook.bench.story.installed", lambda name: name in names)

    return pretend


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does in this process what others would do, JSON both ways: PyTorch is imported here already."""

    def answer(job: object, setup: object) -> object:
        sent = json.loads(json.dumps(job))
        return json.loads(json.dumps(worker.TASKS[sent["task"]](sent)))

    monkeypatch.setattr(jobs, "_answer", answer)
