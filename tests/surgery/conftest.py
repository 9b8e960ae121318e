"""Networks of these tests are the same on every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random weights each time, and no trace of them afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
