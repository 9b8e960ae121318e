"""``billhook demo``: train, prune, evaluate, time and report on the built-in digits, in under two minutes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from billhook.api import prune
from billhook.artifact import SUMMARY, read_json
from billhook.cli import common
from billhook.cli.bench import describe as describe_bench
from billhook.cli.common import print_json
from billhook.cli.prune import describe
from billhook.dense import make_train_recipe, train_dense
from billhook.errors import BillhookError
from billhook.latency import installed
from billhook.progress import Progress
from billhook.recipe import train_preset

CLASSES = ("3", "5", "8")
BUDGET = "sparsity>=80%"
SECONDS = 0.3
"""Of timing for each row."""


def demo(
    out: Annotated[str | None, typer.Option("--out", help="Where to; a temporary folder by default.")] = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Train a small CNN on the built-in digits, keep three classes, prune to 80 %, time it, write the report."""
    del debug
    progress = common.make_progress(quiet)
    place = Path(out) if out else Path(tempfile.mkdtemp(prefix="billhook-demo-"))
    progress.say("1/3  training a small CNN on the ten digits")
    train = train_preset("cifar") | {"epochs": 8, "batch_size": 64, "lr": 0.1}
    recipe = make_train_recipe({"model": "tinycnn", "data": "digits", "train": train, "threads": threads})
    train_dense(recipe, place / "dense", False, out is not None, progress)
    progress.say(f"2/3  keeping the digits {', '.join(CLASSES)} and pruning to {BUDGET}")
    result = prune(
        "tinycnn",
        "digits",
        weights=place / "dense" / "model.safetensors",
        classes=list(CLASSES),
        method="crisp",
        budget=BUDGET,
        epochs=20,
        out=place / "pruned",
        overwrite=out is not None,
        progress=progress,
    )
    progress.say("3/3  timing it beside the dense network")
    timed = _timed(place / "pruned", threads or 1, progress)
    if as_json:
        print_json(read_json(place / "pruned" / SUMMARY))
    else:
        typer.echo(describe(result.summary))
        if timed:
            typer.echo("\n" + describe_bench(timed))
        typer.echo(f"\nreport: {place / 'pruned' / 'report.html'}")
        typer.echo(f"try:    billhook evaluate {place / 'pruned'} --data digits")
    return 0 if result.met else 3


def _timed(directory: Path, threads: int, progress: Progress) -> Mapping[str, Any] | None:
    """A short bench against what is installed, PyTorch only where nothing else is: starting that takes seconds.

    On one thread, unless more were asked for: images of 8 x 8 pixels are too little work to share.
    """
    from billhook.bench import bench  # its tracer is nothing to the other commands

    fast = [name for name in ("onnxruntime", "openvino") if installed("onnx") and installed(name)]
    try:
        return bench(
            directory, against=fast or ["torch"], threads=threads, seconds=SECONDS, memory=False, progress=progress
        )
    except BillhookError as error:
        progress.say(f"note: nothing was timed: {error}")
        return None
