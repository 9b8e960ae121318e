"""A budget in milliseconds for methods that remove channels: something counted is bisected, milliseconds are measured.

What is counted are milliseconds as a table of the layers tells them (:mod:`~billhook.methods.channel_times`), where our
runtime runs the network, else MACs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from billhook import artifact, latency
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, InputError
from billhook.methods.counted import Counted
from billhook.methods.kept import Kept
from billhook.surgery import plan_channels, remove_channels, slice_head
from billhook.surgery.channel_cost import LATENCY
from billhook.training.checkpoint import Journal
from billhook.training.precision import Room

CLOSE = 0.01
"""The search ends when what it counts is this close together, as a share."""

NEAR = 0.95
"""Of the bound: a network that is faster than that has lost more than it had to."""

_PHASE = "latency"
_Table = TypeVar("_Table")

MARGIN = 0.98
"""Of the bound: what the search aims at, since a time measured again is never quite the same."""


def kept_table(directory: Path | None, read: Callable[[dict[str, Any]], _Table]) -> _Table | None:
    """The table of milliseconds that an interrupted run measured; None where there is none that fits.

    Args:
        directory: Of the run.
        read: Makes a table of the file's content, or raises ``ValueError``.
    """
    if directory is None or not (directory / artifact.LATENCY).is_file():
        return None
    try:
        return read(artifact.read_json(directory / artifact.LATENCY))
    except (InputError, ValueError):
        return None


class Memory:
    """What was measured in the course of a run, so that a resumed one makes the same choices.

    Args:
        directory: Of the interrupted run that goes on.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._journal: Journal | None = None
        saved = None if directory is None else Journal(directory / artifact.PARTIAL).load(_PHASE)
        self._values: list[float] = [] if saved is None else [float(value) for value in saved[1]["values"]]
        self._recalled = 0

    def begin(self, journal: Journal) -> None:
        """Keep everything there from now on."""
        self._journal = journal
        self._save()

    def recall(self, work: Callable[[], float]) -> float:
        """What this call of the run returned before it was interrupted, else what ``work`` returns now."""
        if self._recalled == len(self._values):
            self._values.append(work())
            self._save()
        self._recalled += 1
        return self._values[self._recalled - 1]

    def _save(self) -> None:
        if self._journal is not None and self._values:
            self._journal.save(_PHASE, {}, {"values": self._values})


@dataclass
class Clock:
    """Milliseconds of networks against the dense one's, all in the engine that takes the dense one best.

    Args:
        counted: The dense network.
        size: Height and width of the image in pixels.
        room: Of a run in several processes, which must all go by the same times.
    """

    counted: Counted
    size: int
    room: Room | None = None

    def __post_init__(self) -> None:
        self.dense = self.delivered(self.counted.network.module)
        found = self._timed(self.dense, None)
        self.dense_ms, self.engine, self.note = found.p50_ms, found.engine, found.note

    def delivered(self, module: nn.Module) -> nn.Module:
        """The network with the head as it will be delivered."""
        rows = self.counted.rows
        return module if rows is None else slice_head(module, self.counted.head, rows)

    def without(
        self, module: nn.Module, counted: Counted, kept: Mapping[str, Sequence[int] | NDArray[np.int64]]
    ) -> float:
        """Milliseconds of ``module`` when its groups keep these channels; weights do not matter."""
        return self.of(remove_channels(module, plan_channels(module, counted.groups(), kept)))

    def of(self, small: nn.Module) -> float:
        """Milliseconds of a network with all outputs of its head, when it is delivered."""
        return self._timed(self.delivered(small), self.engine).p50_ms

    def _timed(self, module: nn.Module, engine: str | None) -> latency.Latency:
        def work() -> latency.Latency:
            return latency.measure({"network": module}, self.size, engine=engine)["network"]

        return work() if self.room is None else self.room.from_first(work)

    def bound(self, budget: Budget) -> float:
        """The budget in milliseconds."""
        return budget.bound * self.dense_ms if budget.unit == "ratio" else budget.bound

    def row(self, budget: Budget, floor_ms: float, binding: str) -> dict[str, object]:
        """The entry of the feasibility table."""
        asked = self.bound(budget)
        return {
            "quantity": "latency",
            "dense": self.dense_ms,
            "smallest": floor_ms,
            "asked": asked,
            "binding_layer": binding,
            "feasible": floor_ms <= asked,
        }


def within(
    choose: Callable[[Sequence[Budget]], Kept],
    milliseconds: Callable[[Kept], float],
    bound: float,
    counted: tuple[str, float, float],
) -> Kept:
    """The most channels that run within ``bound`` milliseconds.

    Args:
        choose: Channels that stay under further budgets.
        milliseconds: Measures a choice.
        bound: In milliseconds.
        counted: The quantity that is bisected, and how much of it the smallest and the largest network have that can
            be chosen. Where that is ``latency``, the first guess is what the table says.

    Raises:
        InfeasibleError: The smallest is too slow already.
    """
    quantity, low, high = counted  # of all choices; the floor may be above the lowest of them
    everything = choose(())
    if milliseconds(everything) <= MARGIN * bound:
        return everything
    best = choose((stand_in(quantity, low),))
    if milliseconds(best) > bound:
        raise InfeasibleError(f"no choice of channels runs within {bound:.3g} ms", "ask for less")
    told = quantity == LATENCY
    middle = MARGIN * bound if told and low < MARGIN * bound < high else (low + high) / 2
    while high - low > CLOSE * high:
        kept = choose((stand_in(quantity, middle),))
        found = milliseconds(kept)
        if found <= MARGIN * bound:
            low, best = middle, kept
            if told and found >= NEAR * bound:
                break
        else:
            high = middle
        guess = middle * MARGIN * bound / found * (1 - CLOSE / 4) if told else low
        middle = guess if low < guess < high else (low + high) / 2
    return best


def stand_in(quantity: str, bound: float) -> Budget:
    """The budget on what is counted in the place of milliseconds on a clock."""
    if quantity == LATENCY:
        return Budget(LATENCY, bound, "ms")
    return Budget(quantity, float(np.ceil(bound)), "count")
