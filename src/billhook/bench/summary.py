"""The milliseconds of a bench, in the run's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from billhook import artifact
from billhook.bench.jobs import OURS

PREFERRED = ((OURS, "f32"), ("onnxruntime", "f32"), ("torch", "f32"), ("openvino", "f32"))


def fill(directory: Path, document: Mapping[str, Any]) -> None:
    """Write ``latency_ms`` (one image, float32) and ``latency`` into ``summary.json``.

    The engine is ours, else ONNX Runtime, else PyTorch, and the same for both networks. A run that was asked for a
    latency keeps what it was measured with.

    Args:
        directory: The run.
        document: ``bench.json``.
    """
    if document["input"][0] != 1:
        return
    summary = artifact.read_json(directory / artifact.SUMMARY)
    if any(entry.get("quantity") == "latency" for entry in summary.get("budget") or ()):
        return
    dense, pruned = dict(summary["dense"]), summary.get("pruned")
    pruned = None if pruned is None else dict(pruned)
    found = chosen(document["rows"], ["dense"] if pruned is None else ["dense", "pruned"])
    if not found:
        return
    dense["latency_ms"] = found["dense"]["p50_ms"]
    if pruned is not None:
        pruned["latency_ms"] = found["pruned"]["p50_ms"]
        keys = ("p50_ms", "p90_ms", "engine", "threads", "precision")
        pruned["latency"] = {network: {key: row[key] for key in keys} for network, row in found.items()}
    artifact.write_json(directory / artifact.SUMMARY, dict(summary) | {"dense": dense, "pruned": pruned})


def chosen(rows: Sequence[Mapping[str, Any]], networks: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The rows of the first engine that ran all the networks, by network; empty where none did."""
    for engine, precision in PREFERRED:
        found = {row["network"]: row for row in rows if (row["engine"], row["precision"]) == (engine, precision)}
        if all(network in found for network in networks):
            return found
    return {}
