"""Milliseconds of one image through networks that are in memory: what a budget in milliseconds is held against.

The engine is our runtime where it can run the networks, else ONNX Runtime where it is installed, else PyTorch as it
runs them; which one it was is part of the result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from billhook.errors import InputError
from billhook.latency import turns
from billhook.latency.engines import Floats, installed, open_engine, write_onnx
from billhook.runtime import native

if TYPE_CHECKING:
    from torch import nn

    from billhook.formats import PatternInfo

OURS = "billhook"
TITLES = {OURS: "billhook's runtime", "onnxruntime": "ONNX Runtime", "torch": "PyTorch"}

Patterns = Mapping[str, "PatternInfo"]
"""How weights are pruned, by their names in the state dictionary."""


@dataclass(frozen=True)
class Latency:
    """Time of one image.

    Attributes:
        p50_ms: Median, in milliseconds.
        p90_ms: The value that nine of ten runs stay below.
        engine: ``billhook``, ``onnxruntime`` or ``torch``.
        threads: That the engine was given.
        precision: Of the arithmetic.
        note: Why it was not a better engine; empty where it was the best one.
    """

    p50_ms: float
    p90_ms: float
    engine: str
    threads: int
    precision: str = "f32"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; a note only where there is one."""
        return {key: value for key, value in vars(self).items() if key != "note" or value}


def measure(
    networks: Mapping[str, nn.Module],
    input_size: int,
    *,
    threads: int | None = None,
    channels: int = 3,
    patterns: Mapping[str, Patterns] | None = None,
    engine: str | None = None,
) -> dict[str, Latency]:
    """Time networks against each other, in turns, all of them in the same engine.

    Our runtime takes the kernels that it guesses: it measures which are better for whoever runs a packed file.

    Args:
        networks: In evaluation mode, on the CPU.
        input_size: Height and width of the image in pixels.
        threads: Of the engine; None: as many as PyTorch has now.
        channels: Of the image.
        patterns: How the weights of each network are pruned; our runtime alone makes use of them.
        engine: That was chosen before; None: the best one that takes all networks.

    Raises:
        InputError: ``engine`` is ours, and cannot run one of them.
    """
    import torch

    before = torch.get_num_threads()
    count = before if threads is None else threads
    image = np.random.default_rng(0).standard_normal((1, channels, input_size, input_size), np.float32)
    try:
        name, runs, note = _ready(networks, image, count, patterns or {}, engine)
        times = turns.in_turns(runs, blocks=turns.BLOCKS, block_seconds=turns.BLOCK_SECONDS)
    finally:
        torch.set_num_threads(before)
    return {
        key: Latency(turns.median(blocks), turns.ninetieth(blocks), name, count, note=note)
        for key, blocks in times.items()
    }


def engines() -> list[str]:
    """Those that are here, the best first."""
    found = [OURS] if native.available() else []
    return [*found, *(["onnxruntime"] if installed("onnx") and installed("onnxruntime") else []), "torch"]


def _ready(
    networks: Mapping[str, nn.Module],
    image: Floats,
    threads: int,
    patterns: Mapping[str, Patterns],
    chosen: str | None,
) -> tuple[str, dict[str, Callable[[], object]], str]:
    """The first engine that takes all networks, their runs in it, and why it was not one before."""
    order = [chosen] if chosen else engines()
    missing = not chosen and not native.available()
    reason = f"the native library cannot be used ({native.reason()})" if missing else ""
    for name in order[:-1]:
        try:
            return name, _runs(name, networks, image, threads, patterns), _note(name, reason)
        except Exception as error:
            # Lowering says what it cannot do; what an exporter of others may raise, nobody knows.
            if name == OURS and not isinstance(error, InputError):
                raise
            reason = reason or f"{TITLES[name]} cannot run it: {_one_line(error)}"
    last = order[-1]
    return last, _runs(last, networks, image, threads, patterns), _note(last, reason)


def _runs(
    name: str, networks: Mapping[str, nn.Module], image: Floats, threads: int, patterns: Mapping[str, Patterns]
) -> dict[str, Callable[[], object]]:
    if name == OURS:
        from billhook.latency.packed import Packable

        shape = (image.shape[1], image.shape[2], image.shape[3])
        # Run as arrays are: what calling costs in Python is part of it.
        loaded = {
            key: Packable(module.eval(), shape).load(patterns.get(key, {}), threads) for key, module in networks.items()
        }
        return {key: lambda network=network: network(image) for key, network in loaded.items()}  # type: ignore[misc]
    runs: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (key, module) in enumerate(networks.items()):
            network: nn.Module | Path = module.eval()
            if name == "onnxruntime":
                network = write_onnx(module, image.shape, Path(folder) / f"{number}.onnx")
            runs[key] = open_engine(name, network, image, threads).run
    return runs


def _note(engine: str, reason: str) -> str:
    return f"milliseconds are those of {TITLES[engine]}: {reason}" if reason else ""


def _one_line(error: Exception) -> str:
    text = error.message if isinstance(error, InputError) else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
