"""The section on speed: figures from bench.json as text, and a page that survives whatever the file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from billhook.report import write_report
from billhook.report.bench import bench_view, milliseconds
from billhook.report.read import Run


def row(engine: str, network: str, p50: float, ratio: float | None = None, **more: Any) -> dict[str, Any]:
    return {
        "engine": engine, "network": network, "precision": "f32", "threads": 2, "batch": 1, "p50_ms": p50,
        "p90_ms": 1.1 * p50, "ratio_to_dense_onnxruntime": ratio, "ratio_low": ratio and ratio - 0.1,
        "ratio_high": ratio and ratio + 0.1, "images_per_second": 1000 / p50, "peak_memory_bytes": 250_000_000,
        "file_bytes": 2_000_000, **more,
    }  # fmt: skip


def against(engine: str, ratio: float, network: str = "dense", precision: str = "f32") -> dict[str, Any]:
    other = {"engine": engine, "network": network, "precision": precision}
    return {"network": "pruned", "precision": precision, "against": other, "ratio": ratio, "low": 1.0, "high": 9.0}


BENCH: dict[str, Any] = {
    "rows": [
        row("onnxruntime", "dense", 20.0, 1.0),
        row("openvino", "dense", 10.0, 2.0, precision="bf16", default=True),
        row("billhook", "dense", 21.0, 0.95),
        row("billhook", "pruned", 5.0, 4.0),
    ],
    "comparisons": [
        against("onnxruntime", 4.0),
        against("onnxruntime", 4.1, network="pruned"),
        against("openvino", 2.5, precision="bf16"),
    ],
    "layers": [
        {
            "network": "pruned", "precision": "f32", "peak_gflops": 272.0,
            "layers": [
                {"name": "conv1", "kernel": "dense, tile 14", "ms": 2.0, "gflops": 136.0, "share_of_peak": 0.5},
                {"name": "add", "kernel": "add", "ms": 0.5, "gflops": None, "share_of_peak": None},
            ],
        }
    ],
    "notes": ["torch is left out: <not> there"],
    "input": [1, 3, 224, 200],
}  # fmt: skip


def view(bench: dict[str, Any]) -> Any:
    return bench_view(Run(summary={}, recipe=None, history=[], unreadable=0, architecture={}, data={}, bench=bench))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_figures() -> None:
    found = view(BENCH)
    assert [title for title, _ in found.networks] == ["Dense network", "Pruned network"]
    dense, pruned = (rows for _, rows in found.networks)
    assert [line.engine for line in dense] == ["ONNX Runtime, f32", "OpenVINO, bf16 (its default)", "billhook, f32"]
    assert plain(pruned[0].p50) == "5.00 ms"
    assert (pruned[0].ratio, pruned[0].spread, pruned[0].images) == ("4.00×", "3.90 to 4.10", "200")
    assert [plain(text) for text in (pruned[0].memory, pruned[0].file)] == ["250.0 MB", "2.00 MB"]
    # Bars are shares of the slowest row, ours in their own colour.
    assert 'class="control" width="95.24%"' in dense[0].picture
    assert 'class="pruned" width="23.81%"' in pruned[0].picture
    assert plain(found.setting) == "One image at a time, 2 threads, 200 × 224 pixels"


def test_the_sentence_compares_equal_precisions_with_the_dense_network() -> None:
    assert view(BENCH).sentence == (
        "At the same precision, the pruned network in billhook's runtime is 4.00× as fast as the dense one in"
        " ONNX Runtime (f32) and 2.50× in OpenVINO (bf16)."
    )


def test_layers() -> None:
    ((title, lines),) = view(BENCH).layers
    assert title == "Pruned network, f32; peak 272 GF/s per core"
    assert [(line.name, plain(line.milliseconds), line.speed, plain(line.share)) for line in lines] == [
        ("conv1", "2.00 ms", "136", "50 %"),
        ("add", "0.500 ms", "–", "–"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123 ms"), (0.5, "0.500 ms"), (4.5678, "4.57 ms"), (35.44, "35.4 ms"),
                        (123.4, "123 ms"), (None, "–"), ("x", "–")]
)  # fmt: skip
def test_milliseconds(value: Any, text: str) -> None:
    assert plain(milliseconds(value)) == text


def test_the_page_has_the_section_and_escapes(run_directory: Path) -> None:
    without = write_report(run_directory).read_text()
    assert 'id="bench"' not in without
    (run_directory / "bench.json").write_text(json.dumps(BENCH))
    text = write_report(run_directory).read_text()
    assert '<section id="bench">' in text
    assert "torch is left out: &lt;not&gt; there" in text
    assert "dense, tile 14" in text


@pytest.mark.parametrize(
    "bench",
    [
        {},
        {"rows": None},
        {"rows": []},
        {"rows": [3, None, {"p50_ms": "fast"}]},
        {"rows": [{"p50_ms": 1.0}]},
        {"rows": [{"p50_ms": 1.0, "network": "dense"}], "comparisons": [None, {"against": 1}], "layers": 4, "notes": 1},
        {"rows": [{"p50_ms": 1.0, "network": "dense"}], "layers": [None, {}, {"layers": [None, {}]}], "input": [1]},
    ],
)
def test_whatever_the_file_holds(run_directory: Path, bench: dict[str, Any]) -> None:
    (run_directory / "bench.json").write_text(json.dumps(bench))
    assert "</html>" in write_report(run_directory).read_text()
