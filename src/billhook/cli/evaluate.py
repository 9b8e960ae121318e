"""``billhook evaluate``."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from billhook.api import measure
from billhook.cli import common
from billhook.cli.common import percent, print_json
from billhook.data import parse_classes
from billhook.text import table


def evaluate(
    model: Annotated[str, typer.Argument(help="Model spec or run directory.")],
    data: common.Data = None,
    weights: common.Weights = None,
    classes: common.Classes = None,
    labels: common.Labels = None,
    model_flag: common.ModelFlag = None,
    batch_size: common.BatchSize = None,
    input_size: common.InputSize = None,
    mean: common.Mean = None,
    std: common.Std = None,
    threads: common.Threads = None,
    device: common.Device = None,
    precision: common.PrecisionFlag = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Top-1 on the test images: full head, kept classes, per class, confusion."""
    del debug, quiet
    if threads:
        torch.set_num_threads(threads)
    result = measure(
        model,
        common.require(data, "--data"),
        weights=weights,
        classes=None if classes is None else parse_classes(classes),
        labels=labels,
        model_for=model_flag,
        input_size=input_size,
        mean=common.triple(mean, "--mean"),
        std=common.triple(std, "--std"),
        device=device or "auto",
        precision=common.one_of(precision or "fp32", "--precision", ("auto", "fp32", "bf16")),
        batch_size=batch_size or 250,
    )
    if as_json:
        print_json(result)
        return 0
    typer.echo(f"top-1, kept classes: {percent(result['top1_kept'])} of {result['images']:,} test images")
    if result["top1_full"] is not None:
        typer.echo(f"top-1, full head:    {percent(result['top1_full'])}")
    typer.echo(table([[name, percent(value)] for name, value in result["per_class"].items()], ["class", "top-1"]))
    return 0
