"""Callables timed in turns, and what their times say: medians, and ratios of medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 5
"""Turns that each callable gets; what disturbs the machine for a moment then falls on all of them."""

BLOCK_SECONDS = 0.2
"""A turn runs a callable as often as fits here."""

FEWEST, MOST = 3, 500
"""Runs in a turn, whatever fits."""

DRAWS = 1000
"""Of the bootstrap."""

Blocks = Sequence[Sequence[float]]
"""Milliseconds of single runs, by turn."""


def in_turns(
    runs: Mapping[str, Callable[[], object]], *, blocks: int = BLOCKS, block_seconds: float = BLOCK_SECONDS
) -> dict[str, list[list[float]]]:
    """Time callables against each other.

    Each is warmed up by two runs. In every turn, a first run that does not count brings its weights back into the
    cache, and lets the threads of the one before go to sleep.

    Args:
        runs: By name; each does the same work at every call.
        blocks: Turns of each.
        block_seconds: Of one turn, between :data:`FEWEST` and :data:`MOST` runs.

    Returns:
        Milliseconds of every run, by name and turn.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    repeats = {}
    for name, run in runs.items():
        run()
        started = time.perf_counter()
        run()
        once = max(time.perf_counter() - started, 1e-7)
        repeats[name] = min(MOST, max(FEWEST, int(block_seconds / once)))
    for _ in range(blocks):
        for name, run in runs.items():
            run()
            block = []
            for _ in range(repeats[name]):
                started = time.perf_counter()
                run()
                block.append(1e3 * (time.perf_counter() - started))
            times[name].append(block)
    return times


def median(blocks: Blocks) -> float:
    """Of all runs of all turns."""
    return statistics.median(value for block in blocks for value in block)


def ninetieth(blocks: Blocks) -> float:
    """The value that nine of ten runs stay below."""
    values = sorted(value for block in blocks for value in block)
    return values[int(0.9 * len(values))]


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as another.

    Attributes:
        value: Median over median.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def ratio(*links: tuple[Blocks, Blocks]) -> Ratio:
    """The ratio of medians (slower, faster), with the interval that resampling the turns gives.

    Turns are drawn together for both, since what disturbs the machine disturbs neighbours. Several links are
    multiplied: a / b timed in one process and b / c timed in another make a / c.

    Args:
        links: Pairs of times (numerator, denominator), taken in turns with each other.
    """
    value, drawn = 1.0, np.ones(DRAWS)
    for number, (above, below) in enumerate(links):
        value *= median(above) / median(below)
        drawn = drawn * _resampled(above, below, number)
    low, high = np.quantile(drawn, [0.025, 0.975])
    # A median of all runs may lie just outside what medians of turns give.
    return Ratio(value, min(value, float(low)), max(value, float(high)))


def _resampled(above: Blocks, below: Blocks, seed: int) -> NDArray[np.float64]:
    """Ratios of the medians of the turns' medians, over draws of as many turns with replacement."""
    over = np.array([statistics.median(block) for block in above])
    under = np.array([statistics.median(block) for block in below])
    turns = min(over.size, under.size)
    chosen = np.random.default_rng(seed).integers(0, turns, (DRAWS, turns))
    result: NDArray[np.float64] = np.median(over[chosen], axis=1) / np.median(under[chosen], axis=1)
    return result
