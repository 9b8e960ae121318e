"""``billhook bench``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from billhook.cli import common
from billhook.cli.common import print_json
from billhook.text import table

MIB = 1024 * 1024

Against = Annotated[
    str | None, typer.Option("--against", help="torch,onnxruntime,openvino; by default those that are installed.")
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Kernel, time and speed of each layer in our runtime.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images at once.")]
Seconds = Annotated[float, typer.Option("--seconds", help="Of timing for each row, in ten turns.")]


def bench(
    directory: Annotated[str, typer.Argument(help="Run directory.", metavar="DIR")],
    against: Against = None,
    per_layer: PerLayer = False,
    batch: Batch = 1,
    threads: common.Threads = None,
    model_flag: common.ModelFlag = None,
    seconds: Seconds = 2.0,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Time the dense and the pruned network in our runtime and in other engines, in turns."""
    from billhook.bench import bench as run_bench  # its tracer is nothing to the other commands

    del debug
    document = run_bench(
        directory,
        against=None if against is None else [name.strip() for name in against.split(",") if name.strip()],
        per_layer=per_layer,
        batch=batch,
        threads=threads,
        model=model_flag,
        seconds=seconds,
        progress=common.make_progress(quiet),
    )
    if as_json:
        print_json(document)
        return 0
    typer.echo(describe(document))
    typer.echo(f"\nwritten {directory}/bench.json and {directory}/report.html")
    return 0


def describe(document: Mapping[str, Any]) -> str:
    """A bench as text: the rows, the layers where they were asked for, what was left out."""
    rows = document["rows"]
    first = rows[0]
    images = "image" if first["batch"] == 1 else "images"
    threads = "thread" if first["threads"] == 1 else "threads"
    parts = [f"{first['batch']} {images} at a time, {first['threads']} {threads}; milliseconds", _rows_table(rows)]
    parts += [_layers_table(entry) for entry in document.get("layers", ())]
    parts += ["\n".join(f"note: {text}" for text in document["notes"])] if document["notes"] else []
    return "\n\n".join(parts)


def _rows_table(rows: list[dict[str, Any]]) -> str:
    body = [
        [
            f"{row['network']}  {row['engine']} {row['precision']}{' (default)' if row.get('default') else ''}",
            f"{row['p50_ms']:.3f}",
            f"{row['p90_ms']:.3f}",
            _times(row["ratio_to_dense_onnxruntime"]),
            "-" if row["ratio_low"] is None else f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            f"{row['images_per_second']:,.0f}",
            _mib(row["peak_memory_bytes"]),
            _mib(row["file_bytes"]),
        ]
        for row in rows
    ]
    head = ["", "p50", "p90", "x dense ORT", "95 %", "images/s", "memory", "file"]
    return table(body, head)


def _layers_table(entry: Mapping[str, Any]) -> str:
    peak = entry["peak_gflops"]
    body = [
        [
            layer["name"],
            layer["kernel"],
            f"{layer['ms']:.4f}",
            "-" if layer["gflops"] is None else f"{layer['gflops']:.1f}",
            "-" if layer["share_of_peak"] is None else common.percent(layer["share_of_peak"]),
        ]
        for layer in entry["layers"]
    ]
    roof = "" if peak is None else f"; peak {peak:.0f} GF/s per core"
    title = f"{entry['network']}, {entry['precision']}: layers{roof}"
    return title + "\n" + table(body, ["layer", "kernel", "ms", "GF/s", "of peak"])


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / MIB:.1f} MiB"
