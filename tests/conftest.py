"""What every test runs under: one thread, no deadline, its own cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Before torch is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# The first example of a property that uses torch is slow, and a busy machine is slower: time is not what they test.
# The same examples on every run: a change is judged by itself, not by the draw of the day.
settings.register_profile(
    "billhook", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("billhook")

_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """A cache of the session's own: tests neither see nor fill the user's."""
    config.stash[_CACHE] = tempfile.mkdtemp(prefix="billhook-cache-")
    os.environ["BILLHOOK_CACHE"] = config.stash[_CACHE]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets and weights that BILLHOOK_DATA names; the test skips where there are none."""
    folder = os.environ.get("BILLHOOK_DATA")
    if not folder:
        pytest.skip("BILLHOOK_DATA is not set: it names the folder with the real data sets and weights")
    if not Path(folder, "cifar10").is_dir():
        pytest.skip(f"BILLHOOK_DATA={folder} holds no cifar10/")
    return Path(folder)
