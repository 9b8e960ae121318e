"""One small pruned run for the tests of this room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from billhook.cli import run


@pytest.fixture(scope="session")
def pruned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``billhook prune`` of a tiny network on digits, 2:4 in blocks of 8."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    effort = ["--epochs", "1", "--images-per-class", "20", "--set", "rounds=2", "--control", "none", "--quiet"]
    goal = ["--method", "crisp", "--set", "block=8", "--budget", "sparsity>=70%"]
    assert run(["prune", "tinycnn", "--data", "digits", *goal, *effort, "--out", str(out)]) == 0
    return out


@pytest.fixture
def pruned(pruned_once: Path, tmp_path: Path) -> Path:
    """A copy of that run, to write into."""
    return Path(shutil.copytree(pruned_once, tmp_path / "run"))
