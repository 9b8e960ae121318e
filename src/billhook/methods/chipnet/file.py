"""The gates of a run as a file, for other runs to take (mask transfer, 2102.07156 section 4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.artifact import GATES
from billhook.errors import InputError
from billhook.formats import read_safetensors
from billhook.training.checkpoint import split_prefix


@dataclass(frozen=True)
class SavedGates:
    """What gradient descent learnt of the channels.

    Attributes:
        psi: By the names of the vectors, float32.
        open: Likewise: whether a gate stayed open.
        coupling: ``group`` or ``independent``.
        beta: Of the logistic function, at the end.
        gamma: Of the Heaviside, at the end.
        threshold: The highest psi that was shut.
    """

    psi: dict[str, NDArray[np.float32]]
    open: dict[str, NDArray[np.bool_]]
    coupling: str
    beta: float
    gamma: float
    threshold: float

    def content(self) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        """Tensors and metadata of the file."""
        tensors: dict[str, NDArray[Any]] = {f"psi/{name}": values for name, values in self.psi.items()}
        tensors |= {f"open/{name}": values.astype(np.uint8) for name, values in self.open.items()}
        words = {"coupling": self.coupling, "beta": self.beta, "gamma": self.gamma, "threshold": repr(self.threshold)}
        return tensors, {"gates": json.dumps(words)}


def read_gates(directory: str | Path) -> SavedGates:
    """The gates that a run learnt.

    Raises:
        InputError: No run, one without gates, or a damaged file.
    """
    path = Path(directory) / GATES
    if not path.is_file():
        raise InputError(f"{directory} holds no gates: {GATES} is missing", "name the directory of a chipnet run")
    tensors, metadata = read_safetensors(path)
    try:
        words = json.loads(metadata["gates"])
        parts = {kind: split_prefix(tensors, kind) for kind in ("psi", "open")}
        psi = {name: np.asarray(array, dtype=np.float32) for name, array in parts["psi"].items()}
        if not all(array.ndim == 1 and np.isfinite(array).all() for array in psi.values()):
            raise ValueError("a gate is not finite")
        return SavedGates(
            psi,
            {name: np.asarray(array) != 0 for name, array in parts["open"].items()},
            str(words["coupling"]),
            float(words["beta"]),
            float(words["gamma"]),
            float(words["threshold"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}", "copy the run directory again") from error
