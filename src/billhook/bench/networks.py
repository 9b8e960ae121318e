"""The two networks of a run: the dense one with the head as it was delivered, and the pruned one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    summary = artifact.read_json(directory / artifact.SUMMARY)
    network, described, preprocess = artifact.load_network(directory, model)
    shape = (len(preprocess.mean), preprocess.input_size, preprocess.input_size)
    if summary.get("pruned") is None:
        return Networks({"dense": network.module}, shape)
    dense = open_network(model or described["spec"], int(described["classes"])).module
    head = described["head"]
    if head["sliced"]:
        dense = slice_head(dense, str(head["layer"]), head["kept"])
    return Networks({"dense": artifact.deliverable(dense), "pruned": network.module}, shape)
