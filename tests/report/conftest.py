"""The run directories that the tests report on."""

from __future__ import annotations

from pathlib import Path

import pytest

from .runs import write_channel_run, write_minimal, write_run


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def channel_directory(tmp_path: Path) -> Path:
    return write_channel_run(tmp_path / "channels")


@pytest.fixture
def minimal_directory(tmp_path: Path) -> Path:
    return write_minimal(tmp_path / "minimal")
