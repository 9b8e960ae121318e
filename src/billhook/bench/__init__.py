"""Milliseconds, memory and bytes of a run's networks in our runtime and in other engines, side by side.

The processes that time engines import this package too: what it needs for a whole run is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from billhook.bench.jobs import Subject, Timed, time_together
    from billhook.bench.story import bench

_PUBLIC = {
    "Subject": "billhook.bench.jobs",
    "Timed": "billhook.bench.jobs",
    "bench": "billhook.bench.story",
    "time_together": "billhook.bench.jobs",
}

__all__ = ["Subject", "Timed", "bench", "time_together"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'billhook.bench' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
