"""The section on speed: every engine's milliseconds for the dense and the pruned network, from ``bench.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from billhook.report import plots, words
from billhook.report.read import Json, Run

ENGINES = {
    "billhook": "billhook", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch",
    "deepsparse": "DeepSparse",
}  # fmt: skip
MOST_LAYERS = 400


@dataclass(frozen=True)
class BenchRow:
    """One engine and network, as text.

    Attributes:
        picture: A bar as long as its share of the slowest.
        ratio: How many times as fast as the dense network in ONNX Runtime.
        spread: Its 95 % interval.
    """

    engine: str
    picture: Markup
    p50: str
    p90: str
    ratio: str
    spread: str
    images: str
    memory: str
    file: str


@dataclass(frozen=True)
class LayerLine:
    """One layer of ours, as text."""

    name: str
    kernel: str
    picture: Markup
    milliseconds: str
    speed: str
    share: str


@dataclass(frozen=True)
class BenchView:
    """The section.

    Attributes:
        sentence: The pruned network in our runtime against the dense one in the others.
        setting: Batch, threads, input.
        networks: (title, rows) of the dense and the pruned network.
        layers: (title, lines) where layers were timed.
    """

    sentence: str
    setting: str
    networks: list[tuple[str, list[BenchRow]]]
    layers: list[tuple[str, list[LayerLine]]]
    notes: list[str]


def bench_view(run: Run) -> BenchView | None:
    """The section; None where nothing was timed, or what is there cannot be read."""
    found = _list(run.bench.get("rows"))
    rows = [row for row in found if isinstance(row, dict) and words.number(row.get("p50_ms"))]
    if not rows:
        return None
    slowest = max(float(row["p50_ms"]) for row in rows)
    networks = []
    for network, title in (("dense", "Dense network"), ("pruned", "Pruned network")):
        lines = [_row(row, slowest) for row in rows if row.get("network") == network]
        if lines:
            networks.append((title, lines))
    return BenchView(
        sentence=_sentence(run.bench),
        setting=_setting(rows[0], run.bench),
        networks=networks,
        layers=_layers(run.bench),
        notes=[str(note) for note in _list(run.bench.get("notes"))],
    )


def _row(row: Json, slowest: float) -> BenchRow:
    low, high = words.number(row.get("ratio_low")), words.number(row.get("ratio_high"))
    ours = row.get("engine") == "billhook"
    return BenchRow(
        engine=_engine(row),
        picture=plots.bar(float(row["p50_ms"]) / slowest, "pruned" if ours else "control"),
        p50=milliseconds(row["p50_ms"]),
        p90=milliseconds(row.get("p90_ms")),
        ratio=_times(row.get("ratio_to_dense_onnxruntime")),
        spread="" if low is None or high is None else f"{low:.2f} to {high:.2f}",
        images=_images(row.get("images_per_second")),
        memory=_size(row.get("peak_memory_bytes")),
        file=_size(row.get("file_bytes")),
    )


def _engine(row: Mapping[str, Any]) -> str:
    name = str(row.get("engine"))
    own = " (its default)" if row.get("default") else ""
    return f"{ENGINES.get(name, name)}, {row.get('precision')}{own}"


def milliseconds(value: Any) -> str:
    """Three digits that count: ``0.0123 ms``, ``4.56 ms``, ``123 ms``."""
    found = words.number(value)
    if found is None:
        return "–"
    digits = 4 if found < 0.1 else 3 if found < 1 else 2 if found < 10 else 1 if found < 100 else 0
    return f"{found:.{digits}f}{words.NBSP}ms"


def _times(value: Any) -> str:
    found = words.number(value)
    return "–" if found is None else f"{found:.2f}×"


def _images(value: Any) -> str:
    found = words.number(value)
    return "–" if found is None else words.count(round(found))


def _size(value: Any) -> str:
    return "–" if words.number(value) is None else words.size(value)


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _setting(row: Json, bench: Json) -> str:
    batch, threads = words.number(row.get("batch")), words.number(row.get("threads"))
    text = "One image at a time" if batch == 1 else f"{words.count(batch)} images at a time"
    if threads is not None:
        text += ", one thread" if threads == 1 else f", {words.count(threads)} threads"
    shape = _list(bench.get("input"))
    if len(shape) == 4:
        text += f", {shape[3]}{words.NBSP}×{words.NBSP}{shape[2]} pixels"
    return text


def _sentence(bench: Json) -> str:
    """The pruned network in our runtime against the dense one in each other engine, at equal precisions."""
    parts: list[str] = []
    for entry in _list(bench.get("comparisons")):
        other = entry.get("against") if isinstance(entry, dict) else None
        if not isinstance(other, dict) or other.get("network") != "dense" or entry.get("network") != "pruned":
            continue
        if entry.get("precision") != other.get("precision"):
            continue
        place = "in" if parts else "as fast as the dense one in"
        name = str(other.get("engine"))
        parts.append(f"{_times(entry.get('ratio'))} {place} {ENGINES.get(name, name)} ({other.get('precision')})")
    if not parts:
        return ""
    return f"At the same precision, the pruned network in billhook's runtime is {words.joined(parts)}."


def _layers(bench: Json) -> list[tuple[str, list[LayerLine]]]:
    result = []
    for entry in _list(bench.get("layers")):
        lines = _list(entry.get("layers")) if isinstance(entry, dict) else []
        lines = [line for line in lines if isinstance(line, dict)][:MOST_LAYERS]
        if not lines:
            continue
        longest = max((words.number(line.get("ms")) or 0.0 for line in lines), default=0.0) or 1.0
        title = f"{str(entry.get('network', '')).capitalize()} network, {entry.get('precision')}"
        peak = words.number(entry.get("peak_gflops"))
        if peak is not None:
            title += f"; peak {peak:.0f} GF/s per core"
        result.append((title, [_line(line, longest) for line in lines]))
    return result


def _line(line: Json, longest: float) -> LayerLine:
    time, speed = words.number(line.get("ms")), words.number(line.get("gflops"))
    return LayerLine(
        name=str(line.get("name", "")),
        kernel=str(line.get("kernel", "")),
        picture=plots.bar((time or 0.0) / longest),
        milliseconds=milliseconds(time),
        speed="–" if speed is None else f"{speed:.0f}",
        share="–" if words.number(line.get("share_of_peak")) is None else words.percent(line.get("share_of_peak"), 0),
    )
