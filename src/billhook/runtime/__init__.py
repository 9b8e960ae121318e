"""Runs a packed network on a device: numpy only, native kernels where they were compiled.

``load(path)`` opens a packed file. :mod:`billhook.runtime.reference` runs one in plain numpy.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {"load": "billhook.runtime.network"}

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'billhook.runtime' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
