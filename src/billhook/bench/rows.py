"""From times to what ``bench.json`` says: medians, ratios to the dense network in ONNX Runtime, direct comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from billhook.bench.jobs import OURS, Timed
from billhook.latency import Blocks, median, ninetieth, ratio

Key = tuple[str, str, str]
ORDER = ("torch", "onnxruntime", "openvino", "deepsparse", OURS)
BASE: Key = ("onnxruntime", "dense", "f32")


@dataclass
class Measured:
    """What is known when everything was run.

    Attributes:
        pairs: By the other engine's name ("" for ours alone): what was timed in one process.
        memory: Bytes of a process with one engine and one network.
        bytes: Of the file that the engine reads.
    """

    pairs: dict[str, list[Timed]] = field(default_factory=dict)
    memory: dict[Key, int] = field(default_factory=dict)
    bytes: dict[Key, int] = field(default_factory=dict)

    def homes(self) -> dict[Key, tuple[str, Timed]]:
        """Each subject with the pair that it is reported from: ONNX Runtime's where it is in several."""
        found: dict[Key, tuple[str, Timed]] = {}
        for other in sorted(self.pairs, key=lambda name: name != BASE[0]):
            for timed in self.pairs[other]:
                found.setdefault(timed.key, (other, timed))
        return found


def rows(measured: Measured, batch: int, threads: int) -> list[dict[str, Any]]:
    """One row per network, engine and precision, the dense network first."""
    homes = measured.homes()
    result = []
    for key in sorted(homes, key=_place):
        other, timed = homes[key]
        links = _links(measured.pairs, other, timed)
        against = ratio(*links) if links is not None else None
        p50 = median(timed.blocks)
        result.append(
            {
                "engine": timed.engine,
                "network": timed.network,
                "precision": timed.precision,
                "default": timed.default,
                "threads": threads,
                "batch": batch,
                "p50_ms": p50,
                "p90_ms": ninetieth(timed.blocks),
                "ratio_to_dense_onnxruntime": None if against is None else against.value,
                "ratio_low": None if against is None else against.low,
                "ratio_high": None if against is None else against.high,
                "images_per_second": 1000 * batch / p50,
                "peak_memory_bytes": measured.memory.get(key),
                "file_bytes": measured.bytes.get(key),
                "max_difference": timed.difference,
            }
        )
    return result


def comparisons(pairs: Mapping[str, Sequence[Timed]]) -> list[dict[str, Any]]:
    """Ours against each other engine, timed in turns with it: how many times as fast ours is."""
    result = []
    for timed in pairs.values():
        ours = sorted((entry for entry in timed if entry.engine == OURS), key=lambda entry: _place(entry.key))
        others = sorted((entry for entry in timed if entry.engine != OURS), key=lambda entry: _place(entry.key))
        for entry in ours:
            for other in others:
                found = ratio((other.blocks, entry.blocks))
                result.append(
                    {
                        "network": entry.network,
                        "precision": entry.precision,
                        "against": {
                            "engine": other.engine, "network": other.network, "precision": other.precision,
                        },
                        "ratio": found.value,
                        "low": found.low,
                        "high": found.high,
                    }
                )  # fmt: skip
    return result


def _place(key: Key) -> tuple[bool, int, bool, str]:
    engine, network, precision = key
    number = ORDER.index(engine) if engine in ORDER else len(ORDER)
    return network != "dense", number, precision != "f32", precision


def _links(pairs: Mapping[str, Sequence[Timed]], other: str, timed: Timed) -> list[tuple[Blocks, Blocks]] | None:
    """From the dense network in ONNX Runtime to a subject: directly, or over one of ours that both processes timed."""
    home = {entry.key: entry for entry in pairs.get(BASE[0], ())}
    if BASE not in home:
        return None
    base = home[BASE]
    if other == BASE[0]:
        return [(base.blocks, timed.blocks)]
    there = {entry.key: entry for entry in pairs[other]}
    shared = next((key for key in home if key in there), None)
    if shared is None:
        return [(base.blocks, timed.blocks)]
    return [(base.blocks, home[shared].blocks), (there[shared].blocks, timed.blocks)]
