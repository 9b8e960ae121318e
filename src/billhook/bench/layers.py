"""What the planner chose for each layer of a network in our runtime, how fast that is, and how fast it could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPEATS = 50
"""Runs of which each layer's shortest time is taken."""


def describe(network: Any, image: NDArray[np.float32]) -> dict[str, Any]:
    """The layers of a network that was loaded with the native library.

    Args:
        network: A :class:`billhook.runtime.network.Network`.
        image: float32 [C, H, W], normalised.

    Returns:
        ``{"precision", "threads", "isa", "peak_gflops", "layers": [...]}``; see :func:`lines`.

    Raises:
        RunError: The native library is missing.
    """
    from billhook.runtime import native  # not needed for the arithmetic below

    steps = network.profile(image, REPEATS)
    # In operations: an addition with each multiplication.
    peak = 2e-9 * native.peak(native.ISAS.index(network.isa), network.precision == "bf16")
    return {
        "precision": network.precision,
        "threads": network.threads,
        "isa": network.isa,
        "peak_gflops": peak or None,
        "layers": lines(steps, peak * network.threads),
    }


def lines(steps: Sequence[Mapping[str, Any]], roof: float) -> list[dict[str, Any]]:
    """One entry per step.

    Speed counts the multiplications that the weights which are stored ask for, each with its addition: neither zeros
    that the network keeps nor those that fill vectors up.

    Args:
        steps: As ``Network.profile`` returns them.
        roof: 1e9 operations per second that the registers of all cores in use can do; 0: not known.

    Returns:
        ``{"name", "kind", "kernel", "shape", "density", "ms", "macs", "gflops", "share_of_peak"}``; the last two are
        None for a step without multiplications.
    """
    result = []
    for step in steps:
        seconds, macs = step["seconds"], step["multiplications"]
        speed = 2e-9 * macs / seconds if macs and seconds else None
        result.append(
            {
                "name": step["name"],
                "kind": step["kind"],
                "kernel": step["how"] or step["kind"],
                "shape": list(step["shape"]),
                "density": step["density"],
                "ms": None if seconds is None else 1e3 * seconds,
                "macs": macs,
                "gflops": speed,
                "share_of_peak": None if speed is None or not roof else speed / roof,
            }
        )
    return result
