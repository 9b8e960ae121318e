"""``billhook demo``: train, prune, evaluate and report on the built-in digits, in under two minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from billhook.api import prune
from billhook.cli import common
from billhook.cli.common import print_json
from billhook.cli.prune import describe
from billhook.dense import make_train_recipe, train_dense
from billhook.recipe import train_preset

CLASSES = ("3", "5", "8")
BUDGET = "sparsity>=80%"


def demo(
    out: Annotated[str | None, typer.Option("--out", help="Where to; a temporary folder by default.")] = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Train a small CNN on the built-in digits, keep three classes, prune to 80 %, write the report."""
    del debug
    progress = common.make_progress(quiet)
    place = Path(out) if out else Path(tempfile.mkdtemp(prefix="billhook-demo-"))
    progress.say("1/2  training a small CNN on the ten digits")
    train = train_preset("cifar") | {"epochs": 8, "batch_size": 64, "lr": 0.1}
    recipe = make_train_recipe({"model": "tinycnn", "data": "digits", "train": train, "threads": threads})
    train_dense(recipe, place / "dense", False, out is not None, progress)
    progress.say(f"2/2  keeping the digits {', '.join(CLASSES)} and pruning to {BUDGET}")
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
    if as_json:
        print_json(result.summary)
    else:
        typer.echo(describe(result.summary))
        typer.echo(f"\nreport: {place / 'pruned' / 'report.html'}")
        typer.echo(f"try:    billhook evaluate {place / 'pruned'} --data digits")
    return 0 if result.met else 3
