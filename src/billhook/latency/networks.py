"""Milliseconds of one image through networks that are in memory: what a budget in milliseconds is held against.

The engine is ONNX Runtime where it is installed, else PyTorch as it runs it; which one it was is part of the result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from billhook.latency import turns
from billhook.latency.engines import installed, open_engine, write_onnx

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Latency:
    """Time of one image.

    Attributes:
        p50_ms: Median, in milliseconds.
        p90_ms: The value that nine of ten runs stay below.
        engine: ``onnxruntime`` or ``torch``.
        threads: That the engine was given.
    """

    p50_ms: float
    p90_ms: float
    engine: str
    threads: int


def measure(
    networks: Mapping[str, nn.Module], input_size: int, *, threads: int | None = None, channels: int = 3
) -> dict[str, Latency]:
    """Time networks against each other, in turns.

    Args:
        networks: In evaluation mode, on the CPU.
        input_size: Height and width of the image in pixels.
        threads: Of the engine; None: as many as PyTorch has now.
        channels: Of the image.
    """
    import torch

    before = torch.get_num_threads()
    count = before if threads is None else threads
    image = np.random.default_rng(0).random((1, channels, input_size, input_size), np.float32)
    engine = default_engine()
    try:
        runs = {}
        with tempfile.TemporaryDirectory() as folder:
            for number, (name, module) in enumerate(networks.items()):
                network: nn.Module | Path = module.eval()
                if engine == "onnxruntime":
                    network = write_onnx(module, image.shape, Path(folder) / f"{number}.onnx")
                runs[name] = open_engine(engine, network, image, count).run
        times = turns.in_turns(runs, blocks=turns.BLOCKS, block_seconds=turns.BLOCK_SECONDS)
    finally:
        torch.set_num_threads(before)
    return {
        name: Latency(turns.median(blocks), turns.ninetieth(blocks), engine, count) for name, blocks in times.items()
    }


def default_engine() -> str:
    """ONNX Runtime where networks can be exported to it, else PyTorch."""
    return "onnxruntime" if installed("onnx") and installed("onnxruntime") else "torch"
