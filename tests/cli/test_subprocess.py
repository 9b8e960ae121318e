"""The same program as a process: ``python -m billhook``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import billhook

from .commands import small_prune


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m billhook``."""
    command = [sys.executable, "-m", "billhook", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=120)


def test_a_run_in_a_process_equals_one_in_this_process(dense: Path, pruned: Path, tmp_path: Path) -> None:
    done = process(*small_prune(dense), "--classes", "3,5,8", "--out", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()


def test_errors_of_a_process(tmp_path: Path) -> None:
    done = process("prune", "tinycnn", "--data", "digits", "--method", "crips", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "usage"
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == ""


def test_the_version_of_a_process(tmp_path: Path) -> None:
    done = process("--version", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["billhook"] == billhook.__version__
