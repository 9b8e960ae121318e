"""What each layer takes on this machine by its width, so that channels go where they cost most milliseconds.

The network is made narrower, all groups by the same share, a few times; each time every layer is timed inside it, in
our runtime. A layer's milliseconds are then ``a o i + b o + c`` with ``o`` outputs that each read ``i`` inputs:
arithmetic, maps that are read and written, and what it takes whatever its width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from billhook.errors import InputError
from billhook.latency.packed import LayerTimes, Packable, line, steps_ms
from billhook.methods.channel_latency import kept_table
from billhook.methods.counted import Counted
from billhook.methods.kept import Kept, first_channels
from billhook.runtime import native
from billhook.runtime.planner import cpu_name
from billhook.surgery import Grouping, plan_channels, remove_channels, slice_head
from billhook.surgery.channel_cost import Times

VERSION = 1
SHARES = (1.0, 0.7, 0.45, 0.25, 0.12)
"""Of each group's channels, at which layers are timed."""

_CHANNELS = 3


@dataclass(frozen=True)
class ChannelTimes:
    """Milliseconds of one image by how wide the layers are.

    Attributes:
        shares: Of the channels, for each measurement.
        widths: By layer: outputs, and inputs that each of them reads, at each share.
        milliseconds: By layer: its time at each share.
        rest_ms: Of all that is no such layer, with all channels.
        scale: The median time of a whole network is that of its steps, which is their shortest, times this,
        call_ms: and this more.
        about: Machine and network that it holds for.
    """

    shares: tuple[float, ...]
    widths: dict[str, tuple[tuple[int, int], ...]]
    milliseconds: dict[str, tuple[float, ...]]
    rest_ms: float
    scale: float
    call_ms: float
    about: dict[str, Any]

    def times(self) -> Times:
        """As coefficients of a cost."""
        layers = {}
        for name, widths in self.widths.items():
            a, b, c = (self.scale * part for part in fit(widths, self.milliseconds[name]))
            layers[name] = (a, b, c)
        return Times(layers, self.scale * self.rest_ms + self.call_ms)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], about: Mapping[str, Any]) -> ChannelTimes:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: It is no table, or one for another machine or network.
        """
        if values.get("about") != about:
            raise ValueError("it is about something else")
        try:
            shares = tuple(float(share) for share in values["shares"])
            widths = {str(name): tuple((int(o), int(i)) for o, i in found) for name, found in values["widths"].items()}
            times = {str(name): tuple(float(t) for t in found) for name, found in values["milliseconds"].items()}
            rest, scale, call = (float(values[key]) for key in ("rest_ms", "scale", "call_ms"))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it is no table: {error!r}") from error
        rows = [*times.values(), (rest, scale, call)]
        shaped = widths.keys() == times.keys() and all(len(widths[name]) == len(times[name]) for name in times)
        if not shaped or not all(np.isfinite(row).all() and min(row, default=0) >= 0 for row in rows) or scale <= 0:
            raise ValueError("it is no table")
        return cls(shares, widths, times, rest, scale, call, dict(about))


def fit(widths: Sequence[tuple[int, int]], milliseconds: Sequence[float]) -> tuple[float, float, float]:
    """``a, b, c``, none negative, of ``a o i + b o + c`` nearest to the times in relative least squares.

    Args:
        widths: ``o`` and ``i`` of each measurement.
        milliseconds: Its time.
    """
    times = np.maximum(np.asarray(milliseconds, dtype=np.float64), 1e-6)
    terms = np.array([(o * i, o, 1) for o, i in widths], dtype=np.float64) / times[:, None]
    found: NDArray[np.float64] = np.zeros(3)
    best = float("inf")
    # Three unknowns: the best of all least squares over some of them that need no negative one.
    for count in (1, 2, 3):
        for chosen in itertools.combinations(range(3), count):
            some = list(chosen)
            values = np.linalg.lstsq(terms[:, some], np.ones(len(times)), rcond=None)[0]
            error = float(np.square(terms[:, some] @ values - 1).sum())
            if (values >= 0).all() and error < best - 1e-12:
                best, found = error, np.zeros(3)
                found[some] = values
    a, b, c = found.tolist()
    return a, b, c


def measured(counted: Counted, directory: Path | None) -> ChannelTimes | None:
    """The table of a network; None where our runtime cannot run it.

    Args:
        counted: The network.
        directory: Of an interrupted run, whose table is taken when it holds here.
    """
    threads = torch.get_num_threads()
    shapes = {layer.name: list(layer.weight_shape) for layer in counted.cost.layers if layer.macs}
    about: dict[str, Any] = {
        "version": VERSION,
        "cpu": cpu_name(),
        "isa": native.ISAS[native.best()],
        "threads": threads,
        "precision": "f32",
        "input_size": list(counted.cost.input_size),
        "layers": shapes,
    }
    kept = kept_table(directory, lambda values: ChannelTimes.from_dict(values, about))
    if kept is not None:
        return kept
    try:
        found = [_at(counted, share, threads) for share in SHARES]
    except InputError:
        return None
    names = [name for name in shapes if all(name in widths for widths, _ in found)]
    scale, call_ms = line([(steps_ms(times), times.p50_ms) for _, times in found])
    return ChannelTimes(
        SHARES,
        {name: tuple(widths[name] for widths, _ in found) for name in names},
        {name: tuple(times.layers.get(f"{name}.weight", 0.0) for _, times in found) for name in names},
        # Activations, sums and pools: what they take falls with the widths, but by which group's is not told.
        median(times.rest_ms for _, times in found),
        scale,
        call_ms,
        about,
    )


def narrowed(grouping: Grouping, share: float) -> Kept:
    """A share of each group's channels, the first of every section, at least one."""
    return {
        name: first_channels(group, group.sections * max(1, round(share * group.channels / group.sections)))
        for name, group in grouping.groups.items()
    }


def _at(counted: Counted, share: float, threads: int) -> tuple[dict[str, tuple[int, int]], LayerTimes]:
    """Widths and times of the layers when each group keeps a share of its channels."""
    grouping = counted.groups()
    some = narrowed(grouping, share)
    small = remove_channels(counted.network.module, plan_channels(counted.network.module, grouping, some))
    small = small if counted.rows is None else slice_head(small, counted.head, counted.rows)
    shape = (_CHANNELS, *counted.cost.input_size)
    times = Packable(small, shape).time({"": {}}, threads)[""]
    weights = {name: tuple(tensor.shape) for name, tensor in small.named_parameters()}
    widths = {
        layer.name: (weights[f"{layer.name}.weight"][0], weights[f"{layer.name}.weight"][1])
        for layer in counted.cost.layers
        if layer.macs and len(weights.get(f"{layer.name}.weight", ())) >= 2
    }
    return widths, times
