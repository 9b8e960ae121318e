"""``billhook train``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from billhook.cli import common
from billhook.cli.common import percent, print_json
from billhook.dense import make_train_recipe, train_dense
from billhook.recipe import apply_settings, train_preset
from billhook.track import tracked
from billhook.training.config import PRESETS


def train(
    model: Annotated[str, typer.Argument(help="Model spec.")],
    data: common.Data = None,
    out: Annotated[str | None, typer.Option("--out", help="Run directory.")] = None,
    weights: common.Weights = None,
    preset: Annotated[str | None, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}.")] = None,
    classes: common.Classes = None,
    settings: common.Settings = None,
    epochs: common.Epochs = None,
    limit_train: common.LimitTrain = None,
    images_per_class: common.PerClass = None,
    batch_size: common.BatchSize = None,
    lr: common.Rate = None,
    input_size: common.InputSize = None,
    mean: common.Mean = None,
    std: common.Std = None,
    seed: common.Seed = None,
    threads: common.Threads = None,
    device: common.Device = None,
    precision: common.PrecisionFlag = None,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    track: common.Track = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Train a dense network; a new head when the classes differ from the checkpoint's."""
    del debug
    name = preset or ("finetune" if weights else "cifar")
    content: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "data": {
            "source": common.require(data, "--data"),
            "classes": classes,
            "limit_train": limit_train,
            "images_per_class": images_per_class,
            "input_size": input_size,
            "mean": common.triple(mean, "--mean"),
            "std": common.triple(std, "--std"),
        },
        "train": train_preset(name),
        "seed": seed or 0,
        "device": device or "auto",
        "precision": common.one_of(precision or "auto", "--precision", ("auto", "fp32", "bf16")),
        "threads": threads,
    }
    for key, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)):
        if value is not None:
            content["train"][key] = value
    apply_settings(content, settings or [], method=False)
    recipe = make_train_recipe(content)
    place = common.require(out, "--out")
    progress = tracked(common.make_progress(quiet), track, place)
    summary = train_dense(recipe, place, resume, overwrite, progress)
    if as_json:
        print_json(summary)
    else:
        typer.echo(f"top-1 on {summary['images']['test']:,} test images: {percent(summary['dense']['top1_kept'])}")
        typer.echo(f"written to {out}")
    return 0
