"""A trained network that the pipeline's tests prune."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from billhook import Result, prune
from billhook.cli import run

from .small import EFFORT


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a network that knows the digits."""
    out = tmp_path_factory.mktemp("weights") / "dense"
    train = ["train", "tinycnn", "--data", "digits", "--epochs", "2", "--batch-size", "64", "--quiet"]
    assert run([*train, "--out", str(out)]) == 0
    return out / "model.safetensors"


@pytest.fixture(scope="session")
def result(weights: Path) -> Result:
    """A pruned network in memory; three classes, 80 %."""
    given = {"weights": weights, "classes": ["3", "5", "8"], "budget": "sparsity>=80%"}
    return prune("tinycnn", "digits", **given, **EFFORT)


@pytest.fixture(scope="session")
def on_disk(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That result as a run directory, which no test may change."""
    return result.save(tmp_path_factory.mktemp("on_disk") / "saved")


@pytest.fixture
def saved(on_disk: Path, tmp_path: Path) -> Path:
    """A copy of it of the test's own."""
    return Path(shutil.copytree(on_disk, tmp_path / "saved"))
