"""billhook: cut a trained CNN down to the classes and the budget you need, and prove the result.

The public names are loaded on first use, so that a device which only runs a packed network never imports PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "BillhookError": "billhook.errors",
    "BlockOnly": "billhook.methods",
    "CRISP": "billhook.methods",
    "Magnitude": "billhook.methods",
    "NMOnly": "billhook.methods",
    "Result": "billhook.pipeline",
    "Saliency": "billhook.methods",
    "load": "billhook.api",
    "prune": "billhook.api",
}
_ROOMS = (
    "accelerator",
    "bench",
    "cost",
    "data",
    "export",
    "formats",
    "methods",
    "models",
    "patterns",
    "report",
    "runtime",
    "scores",
    "surgery",
    "training",
)

if TYPE_CHECKING:
    from billhook.api import load, prune
    from billhook.errors import BillhookError
    from billhook.methods import CRISP, BlockOnly, Magnitude, NMOnly, Saliency
    from billhook.pipeline import Result

__all__ = [
    "CRISP",
    "BillhookError",
    "BlockOnly",
    "Magnitude",
    "NMOnly",
    "Result",
    "Saliency",
    "__version__",
    "load",
    "prune",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        try:
            module = importlib.import_module(_PUBLIC[name])
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "billhook":
                raise
            raise ModuleNotFoundError(
                f"billhook.{name} needs {error.name}: pip install 'billhook[prune]'", name=error.name
            ) from error
        value = getattr(module, name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"billhook.{name}")
    raise AttributeError(f"module 'billhook' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC) | set(_ROOMS))
