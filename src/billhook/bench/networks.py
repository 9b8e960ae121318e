"""The two networks of a run: the dense one with the head as it was delivered, and the pruned one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from billhook import artifact
from billhook.models import open_network
from billhook.surgery import slice_head


@dataclass(frozen=True)
class Networks:
    """What a run directory holds, to be run.

    Attributes:
        modules: ``dense`` and ``pruned``, in evaluation mode on the CPU; a run of ``billhook train`` has no ``pruned``.
        shape: Of one image: (channels, height, width).
    """

    modules: dict[str, nn.Module]
    shape: tuple[int, int, int]

    @property
    def delivered(self) -> str:
        """The one whose weights are the run's own."""
        return "pruned" if "pruned" in self.modules else "dense"


def networks_of(directory: str | Path, model: str | None = None) -> Networks:
    """Rebuild both networks of a run.

    The dense one has random weights where the run does not hold its own: engines that multiply everything take the same
    time for any. It is the network that the spec names, whole, also where the run went on from another run's result.

    Args:
        directory: A finished run.
        model: The spec of a run of your own code.

    Raises:
        InputError: No run, or a damaged one.
        UsageError: The run is of your own code and ``model`` is missing.
    """
    directory = Path(directory)
    network, described, preprocess = artifact.load_network(directory, model)
    shape = (len(preprocess.mean), preprocess.input_size, preprocess.input_size)
    if not _was_pruned(directory):
        return Networks({"dense": network.module}, shape)
    return Networks({"dense": _dense(described, model), "pruned": network.module}, shape)


def network_of(directory: str | Path, name: str, model: str | None = None) -> nn.Module:
    """``dense`` or ``pruned``, made alone: a process that measures what it takes holds nothing of the other."""
    directory = Path(directory)
    if name == "dense" and _was_pruned(directory):
        return _dense(artifact.read_json(directory / artifact.ARCHITECTURE), model)
    return artifact.load_network(directory, model)[0].module


def _was_pruned(directory: Path) -> bool:
    return artifact.read_json(directory / artifact.SUMMARY).get("pruned") is not None


def _dense(described: Mapping[str, Any], model: str | None) -> nn.Module:
    dense = open_network(model or described["spec"], int(described["classes"])).module
    head = described["head"]
    if head["sliced"]:
        dense = slice_head(dense, str(head["layer"]), head["kept"])
    return artifact.deliverable(dense)
