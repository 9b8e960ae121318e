"""Milliseconds of networks on this machine, taken in turns, in whichever engine is there.

What is imported here knows no PyTorch: a process that times ONNX Runtime must not hold PyTorch's threads as well.
"""

from __future__ import annotations

from billhook.latency.engines import ENGINES, Engine, installed, open_engine
from billhook.latency.networks import Latency, measure
from billhook.latency.turns import Blocks, Ratio, in_turns, median, ninetieth, ratio

__all__ = [
    "ENGINES",
    "Blocks",
    "Engine",
    "Latency",
    "Ratio",
    "in_turns",
    "installed",
    "measure",
    "median",
    "ninetieth",
    "open_engine",
    "ratio",
]
