"""One small finished run for the tests of the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from billhook import CRISP, prune
from billhook.models import build


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid-sparse network of three digits, in a run directory that no test may change."""
    torch.manual_seed(0)
    result = prune(
        build("tinycnn", 10),
        "digits",
        method=CRISP(rounds=2),
        budget="sparsity>=80%",
        classes=["3", "5", "8"],
        epochs=1,
        images_per_class=20,
        control="none",
    )
    return result.save(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it of the test's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
