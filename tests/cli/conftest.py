"""One trained network and one pruned run for all command line tests; every command runs in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .commands import Cli, command, digit_image, small_prune


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``billhook train`` on digits: a run directory."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    train = ["train", "tinycnn", "--data", "digits", "--epochs", "2", "--batch-size", "64", "--quiet"]
    assert command(*train, "--out", str(out)) == 0
    return out


@pytest.fixture(scope="session")
def pruned(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``billhook prune`` of that network to three classes and 80 %: a run directory."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    assert command(*small_prune(dense), "--classes", "3,5,8", "--quiet", "--out", str(out)) == 0
    return out


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command inside an empty folder and hands back its code and what it printed."""
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[int], Path]:
    """Saves one of the digits' test images as a PNG file."""

    def save(index: int) -> Path:
        path = tmp_path / f"digit{index}.png"
        digit_image(index).save(path)
        return path

    return save
