"""A budget in milliseconds for methods of the hybrid pattern: what each layer takes at a few numbers of kept blocks.

Our runtime skips what is zero, so the time of a layer falls with the rank columns that it keeps. All layers are
measured at one level at a time, inside the whole network; in between they are interpolated. What that predicts is set
right once more by the network that was chosen, before its masks are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from billhook import artifact
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, InputError, UsageError
from billhook.formats import PatternInfo
from billhook.latency.packed import LayerTimes, Packable, line, steps_ms
from billhook.methods.base import Setting
from billhook.methods.channel_latency import MARGIN, NEAR, kept_table
from billhook.methods.counted import Counted
from billhook.methods.targets import Target
from billhook.patterns import HybridPattern
from billhook.runtime import native
from billhook.runtime.choice import DENSE_ABOVE
from billhook.runtime.planner import cpu_name
from billhook.surgery import slice_head

VERSION = 1
SHARES = (1.0, 0.5, 0.25, 0.12)
"""Of the rank columns, at which layers are measured; one column of each is another level."""

SHARE_BETWEEN = 0.75
"""A further one for patterns so dense that the runtime multiplies their zeros until many blocks are gone."""

_T = TypeVar("_T")
_CHANNELS = 3
_DENSE = "dense"


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one image by what each layer keeps.

    Attributes:
        columns: By layer: the numbers of kept rank columns that were measured, ascending.
        milliseconds: By layer: the time at each of them, never less for more columns.
        dense: By layer: the time without a pattern.
        rest_ms: Of all that is in none of these layers.
        scale: The median time of a whole network is that of its steps, which is their shortest, times this,
        call_ms: and this more.
        dense_ms: Of the dense network, by the same line.
        smallest_ms: With one column of each layer, or with all where none can go, by the same line.
        about: Machine, network and pattern that it holds for.
    """

    columns: dict[str, tuple[int, ...]]
    milliseconds: dict[str, tuple[float, ...]]
    dense: dict[str, float]
    rest_ms: float
    scale: float
    call_ms: float
    dense_ms: float
    smallest_ms: float
    about: dict[str, Any]

    def predict(self, kept: Mapping[str, int]) -> float:
        """Milliseconds of the network whose layers keep so many rank columns."""
        layers = sum(
            float(np.interp(kept[name], columns, self.milliseconds[name])) for name, columns in self.columns.items()
        )
        return self.scale * (self.rest_ms + layers) + self.call_ms

    def whole(self, times: LayerTimes) -> float:
        """Milliseconds of a network whose steps were timed; its own median would tell what else the machine did."""
        return self.scale * steps_ms(times) + self.call_ms

    @property
    def slowest(self) -> str:
        """The layer that takes longest at its smallest."""
        return max(self.milliseconds, key=lambda name: self.milliseconds[name][0])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], about: Mapping[str, Any]) -> LatencyTable:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: It is no table, or one for another machine, network or pattern.
        """
        if values.get("about") != about:
            raise ValueError("it is about something else")
        try:
            columns = {str(name): tuple(int(n) for n in found) for name, found in values["columns"].items()}
            times = {str(name): tuple(float(t) for t in found) for name, found in values["milliseconds"].items()}
            dense = {str(name): float(time) for name, time in values["dense"].items()}
            numbers = [float(values[key]) for key in ("rest_ms", "scale", "call_ms", "dense_ms", "smallest_ms")]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it is no table: {error!r}") from error
        shaped = columns.keys() == times.keys() == dense.keys() == about["layers"].keys() and all(
            len(found) == len(times[name]) > 0 for name, found in columns.items()
        )
        rest, scale, call, whole, smallest = numbers
        if not shaped or not all(np.isfinite(numbers)) or min(scale, whole, smallest) <= 0:
            raise ValueError("it is no table")
        return cls(columns, times, dense, rest, scale, call, whole, smallest, dict(about))


def tabulate(
    levels: Mapping[str, Mapping[str, int]], times: Mapping[str, LayerTimes], about: Mapping[str, Any]
) -> LatencyTable:
    """The table of what was measured.

    Args:
        levels: Rank columns that each layer keeps, by level; the last level is the smallest.
        times: By level, and of ``dense``. A layer that is not there takes no time of its own.
        about: What the table holds for.
    """
    names = list(next(iter(levels.values())))
    columns, milliseconds = {}, {}
    for name in names:
        found: dict[int, float] = {}
        for level, kept in levels.items():
            time = times[level].layers.get(f"{name}.weight", 0.0)
            found[kept[name]] = min(time, found.get(kept[name], float("inf")))
        columns[name] = tuple(sorted(found))
        rising = np.maximum.accumulate([found[number] for number in columns[name]])
        milliseconds[name] = tuple(float(time) for time in rising)
    scale, call_ms = line([(steps_ms(time), time.p50_ms) for time in times.values()])
    last = times[list(levels)[-1]]
    return LatencyTable(
        columns,
        milliseconds,
        {name: times[_DENSE].layers.get(f"{name}.weight", 0.0) for name in names},
        median(times[level].rest_ms for level in levels),
        scale,
        call_ms,
        scale * steps_ms(times[_DENSE]) + call_ms,
        scale * steps_ms(last) + call_ms,
        dict(about),
    )


def levels_of(columns: Mapping[str, int], pattern: HybridPattern) -> dict[str, dict[str, int]]:
    """Kept rank columns of each layer at every level, the most first.

    Args:
        columns: That each layer has.
        pattern: Without blocks no column can go.
    """
    every = {"all": dict(columns)}
    if not pattern.block:
        return every
    shares = list(SHARES[1:])
    if pattern.nm.density > DENSE_ABOVE:
        shares.insert(0, SHARE_BETWEEN)
    some = {f"{100 * share:g} %": {name: max(1, round(share * n)) for name, n in columns.items()} for share in shares}
    found: dict[str, dict[str, int]] = {}
    for level, kept in {**every, **some, "one": dict.fromkeys(columns, 1)}.items():
        if kept not in found.values():
            found[level] = kept
    return found


class HybridClock:
    """Milliseconds of hybrid-sparse networks on this machine, and the budget on them.

    Args:
        counted: The dense network.
        budget: On latency.
        targets: Layers that take the pattern.
        pattern: That they take.
        patterns: How weights are stored when each layer keeps so many rank columns.

    Attributes:
        table: What was measured.
        error: By which the last choice that was timed differs from what the table says of it.

    Raises:
        UsageError: The native library is missing.
        InputError: The runtime cannot run the network.
    """

    def __init__(
        self,
        counted: Counted,
        budget: Budget,
        targets: Sequence[Target],
        pattern: HybridPattern,
        patterns: Callable[[Mapping[str, int]], dict[str, PatternInfo]],
    ) -> None:
        if not native.available():
            raise UsageError(
                f"{budget} needs billhook's native library, which cannot be used ({native.reason()}): "
                "other engines multiply zeros",
                "ask for sparsity, effective_macs or bytes",
            )
        self.counted, self.budget, self.pattern = counted, budget, pattern
        self.threads, self.size = torch.get_num_threads(), counted.cost.input_size[0]
        self._room = counted.room if isinstance(counted, Setting) else None
        columns = {t.name: pattern.grid(t.outputs, t.taps, t.inputs).columns for t in targets}
        about, levels = self._about(targets), levels_of(columns, pattern)
        earlier = counted.earlier if isinstance(counted, Setting) else None

        def measured() -> LatencyTable:
            kept = kept_table(earlier, lambda values: LatencyTable.from_dict(values, about))
            return kept or self._measured(levels, patterns, about)

        self.table = self._shared(measured)
        self.error = 1.0

    # ------------------------------------------------------------------ feasibility
    @property
    def bound(self) -> float:
        """Milliseconds that the network may take."""
        return self.budget.bound * self.table.dense_ms if self.budget.unit == "ratio" else self.budget.bound

    def row(self) -> dict[str, object]:
        """The entry of the feasibility table."""
        return {
            "quantity": "latency",
            "dense": self.table.dense_ms,
            "smallest": self.table.smallest_ms,
            "asked": self.bound,
            "binding_layer": self.table.slowest,
            "feasible": bool(self.table.smallest_ms <= self.bound),
        }

    def check(self, limit: str) -> None:
        """Refuse what is out of reach.

        Args:
            limit: What keeps the method from going further.

        Raises:
            InfeasibleError: The smallest network is too slow.
        """
        if self.table.smallest_ms > self.bound:
            raise InfeasibleError(
                f"{self.budget} cannot be reached: {limit} takes {self.table.smallest_ms:.3g} ms here",
                "ask for less, use a finer pattern, or prune channels first",
            )

    # ------------------------------------------------------------------ choosing
    def within(self, kept: Mapping[str, int]) -> bool:
        """Whether layers that keep so many rank columns are fast enough, as far as the table says."""
        return self.error * self.table.predict(kept) <= MARGIN * self.bound

    def correct(self, kept: Mapping[str, int], patterns: dict[str, PatternInfo]) -> bool:
        """Time a choice, and remember by how much the table was wrong about it.

        Args:
            kept: Rank columns that each layer keeps.
            patterns: How its weights are stored.

        Returns:
            Whether the choice is too slow, or faster than it has to be, and should be made again.
        """
        found = self._shared(lambda: self.table.whole(self._time({"chosen": patterns})["chosen"]))
        self.error = found / self.table.predict(kept)
        return not NEAR * self.bound <= found <= self.bound

    # ------------------------------------------------------------------ measuring
    @cached_property
    def _packable(self) -> Packable:
        counted = self.counted
        module = counted.network.module
        module = module if counted.rows is None else slice_head(module, counted.head, counted.rows)
        try:
            return Packable(module, (_CHANNELS, self.size, self.size))
        except InputError as error:
            raise InputError(
                f"{self.budget} is measured in billhook's runtime, which cannot run this network: {error.message}",
                error.hint,
            ) from error

    def _time(self, versions: Mapping[str, dict[str, PatternInfo]]) -> dict[str, LayerTimes]:
        counted = self.counted
        if counted.rows is not None:
            rows = counted.rows
            versions = {name: artifact.slice_patterns(found, counted.head, rows) for name, found in versions.items()}
        return self._packable.time(versions, self.threads)

    def _measured(
        self,
        levels: Mapping[str, Mapping[str, int]],
        patterns: Callable[[Mapping[str, int]], dict[str, PatternInfo]],
        about: Mapping[str, Any],
    ) -> LatencyTable:
        versions = {level: patterns(kept) for level, kept in levels.items()}
        return tabulate(levels, self._time({_DENSE: {}, **versions}), about)

    def _shared(self, work: Callable[[], _T]) -> _T:
        return work() if self._room is None else self._room.from_first(work)

    def _about(self, targets: Sequence[Target]) -> dict[str, Any]:
        nm = self.pattern.nm
        return {
            "version": VERSION,
            "cpu": cpu_name(),
            "isa": native.ISAS[native.best()],
            "threads": self.threads,
            "precision": "f32",
            "input_size": self.size,
            "nm": f"{nm.n}:{nm.m}",
            "block": self.pattern.block,
            "layers": {t.name: [t.outputs, t.taps, t.inputs] for t in targets},
        }
