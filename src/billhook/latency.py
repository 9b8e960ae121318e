"""Milliseconds of a network on this machine: one image, medians over interleaved blocks.

The engine is ONNX Runtime where it is installed, else PyTorch as it runs it; which one it was is part of the result.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

BLOCKS = 5
"""Turns that each network gets; what disturbs the machine for a moment then falls on all of them."""

BLOCK_SECONDS = 0.2
"""A block runs a network as often as fits here, three times at least."""


@dataclass(frozen=True)
class Latency:
    """Time of one image.

    Attributes:
        p50_ms: Median, in milliseconds.
        p90_ms: The value that nine of ten runs stay below.
        engine: ``onnxruntime`` or ``pytorch``.
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
    count = torch.get_num_threads() if threads is None else threads
    image = torch.rand(1, channels, input_size, input_size, generator=torch.Generator().manual_seed(0))
    engine = "onnxruntime" if has_onnxruntime() else "pytorch"
    make = _onnxruntime if engine == "onnxruntime" else _pytorch
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        runs = {name: make(module.eval(), image, count) for name, module in networks.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        repeats = {}
        for name, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            repeats[name] = max(3, int(BLOCK_SECONDS / max(time.perf_counter() - started, 1e-6)))
        for _ in range(BLOCKS):
            for name, run in runs.items():
                for _ in range(repeats[name]):
                    started = time.perf_counter()
                    run()
                    times[name].append(1e3 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(before)
    return {
        name: Latency(statistics.median(values), sorted(values)[int(0.9 * len(values))], engine, count)
        for name, values in times.items()
    }


def has_onnxruntime() -> bool:
    """Whether networks can be exported to ONNX Runtime here."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def _pytorch(module: nn.Module, image: torch.Tensor, threads: int) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(image)

    return run


def _onnxruntime(module: nn.Module, image: torch.Tensor, threads: int) -> Callable[[], object]:
    onnxruntime = importlib.import_module("onnxruntime")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (image,), content, dynamo=False, input_names=["image"])  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {"image": image.numpy()}
    return lambda: session.run(None, feed)
