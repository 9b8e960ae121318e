"""A network in our runtime under one set of masks after the other, and the milliseconds of its layers.

The operators are found once; masks only change how weights are stored.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from torch import nn

from billhook import runtime
from billhook.export import carried_over, lower_network
from billhook.formats import PatternInfo, write_network
from billhook.latency import turns
from billhook.runtime.network import Network

PROFILES = 3
"""Turns in which the layers of each version are timed."""

PROFILE_SECONDS = 0.1
"""Of one such turn."""

FEWEST, MOST = 3, 30
"""Runs in it, whatever fits."""


@dataclass(frozen=True)
class LayerTimes:
    """Where the milliseconds of one image go.

    Attributes:
        layers: By the name of the weight: the shortest times of the steps that read it, added up.
        rest_ms: Those of all other steps.
        p50_ms: Median of the whole network, which is more than the shortest times of its steps.
    """

    layers: dict[str, float]
    rest_ms: float
    p50_ms: float


class Packable:
    """A network as operators, to be packed under any masks.

    Args:
        module: On the CPU; it is not changed.
        shape: Channels, height and width of the image.

    Raises:
        InputError: It is not made of operators of a packed file.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        self.lowered = lower_network(module, shape)
        self.shape = shape

    def load(self, patterns: Mapping[str, PatternInfo], threads: int) -> Network:
        """The network, ready to run in float32, with the kernels that the runtime guesses.

        Args:
            patterns: How weights are pruned, by their names in the state dictionary; the masks decide, what a weight
                holds outside does not matter.
            threads: That share the work of one image.

        Raises:
            InputError: The runtime cannot run it.
        """
        lowered = self.lowered
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "packed.safetensors"
            write_network(path, lowered.graph, lowered.tensors, carried_over(lowered, patterns))
            return runtime.load(path, threads, "f32", plan="default")  # type: ignore[no-any-return]

    def time(self, versions: Mapping[str, Mapping[str, PatternInfo]], threads: int) -> dict[str, LayerTimes]:
        """Time versions of the network against each other, in turns: their layers, then each as a whole.

        Args:
            versions: Patterns of the weights, by the version's name.
            threads: That share the work of one image.
        """
        networks = {name: self.load(patterns, threads) for name, patterns in versions.items()}
        steps: dict[str, list[float]] = {}
        for _ in range(PROFILES):
            for name, network in networks.items():
                once = sum(step["seconds"] for step in network.profile(repeats=1))
                repeats = min(MOST, max(FEWEST, int(PROFILE_SECONDS / max(once, 1e-7))))
                seconds = [float(step["seconds"]) for step in network.profile(repeats=repeats)]
                steps[name] = list(np.minimum(steps.get(name, seconds), seconds))
        image = np.random.default_rng(0).standard_normal((1, *self.shape), np.float32)
        blocks = turns.in_turns(
            {name: lambda network=network: network(image) for name, network in networks.items()},  # type: ignore[misc]
            blocks=turns.BLOCKS,
            block_seconds=turns.BLOCK_SECONDS,
        )
        return {
            name: self._by_layer([step["name"] for step in network.plan], steps[name], turns.median(blocks[name]))
            for name, network in networks.items()
        }

    def _by_layer(self, names: list[str], seconds: list[float], p50_ms: float) -> LayerTimes:
        layers: dict[str, float] = {}
        rest = 0.0
        for name, time in zip(names, seconds, strict=True):
            weight = self._weights.get(name)
            if weight is None:
                rest += 1e3 * time
            else:
                layers[weight] = layers.get(weight, 0.0) + 1e3 * time
        return LayerTimes(layers, rest, p50_ms)

    @property
    def _weights(self) -> dict[str, str]:
        """The network's own weights that operators read, by the operators' names."""
        origins = self.lowered.origins
        return {
            operator.name: origins[operator.tensors["weight"]]
            for operator in self.lowered.graph.operators
            if operator.tensors.get("weight") in origins
        }


def steps_ms(times: LayerTimes) -> float:
    """All steps of a network, each at its shortest."""
    return sum(times.layers.values()) + times.rest_ms


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept, the latter not negative, of a line that one disturbed point does not turn (Theil-Sen).

    Args:
        points: Sum of the shortest times of the steps, and median time of the whole network.
    """
    slopes = [(b - d) / (a - c) for (a, b), (c, d) in itertools.combinations(points, 2) if a != c]
    slope = median(slopes) if slopes else 0.0
    intercept = median(b - slope * a for a, b in points)
    return (slope, intercept) if slope > 0 and intercept >= 0 else (median(b / a for a, b in points), 0.0)
