"""The resume journal: the state of the phase under way, one safetensors file, replaced in one rename.

No pickle: tensors are safetensors, everything else is JSON in the file's metadata. Because randomness is a function of
(seed, epoch, step), tensors and counters are all that a resumed run needs to see what an unbroken one saw.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from billhook.errors import InputError, RunError

_T = TypeVar("_T")  # a tensor, or an array


class Journal:
    """One file per phase in a directory; without a directory nothing is kept.

    Args:
        directory: Where the files lie; made when first needed.
        writes: False on all processes but the first.
    """

    def __init__(self, directory: Path | None, writes: bool = True) -> None:
        self.directory = directory
        self.writes = writes

    def _path(self, phase: str) -> Path | None:
        return None if self.directory is None else self.directory / f"{phase}.safetensors"

    def save(self, phase: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the state of ``phase``.

        Raises:
            RunError: The disk is full or not writable; the previous state is still there.
        """
        path = self._path(phase)
        if path is None or not self.writes:
            return
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
                temporary,
                metadata={"state": json.dumps(meta)},
            )
            with open(temporary, "r+b") as handle:  # Windows flushes only what is open for writing
                os.fsync(handle.fileno())
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RunError(
                f"cannot save the run's state in {path.parent}: {error}", "free space, then --resume"
            ) from error

    def load(self, phase: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved state of ``phase``, or None.

        Raises:
            InputError: The file is damaged.
        """
        path = self._path(phase)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                meta = json.loads(handle.metadata()["state"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"the saved state {path} is damaged: {error}", "start again with --overwrite") from error
        return tensors, meta


def split_prefix(tensors: Mapping[str, _T], prefix: str) -> dict[str, _T]:
    """The tensors, or arrays, under ``prefix/``, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + "/")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimiser's state: ``index/key`` -> tensor."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = tensor
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
