"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import billhook
from billhook.environment import versions
from billhook.errors import UsageError, nearest
from billhook.progress import Progress, RichProgress

Data = Annotated[str | None, typer.Option("--data", help="Image folder, parquet directory, digits, or hf:OWNER/NAME.")]
Weights = Annotated[str | None, typer.Option("--weights", help="Checkpoint: safetensors, .pt or .pth.")]
Classes = Annotated[str | None, typer.Option("--classes", help="Kept classes: a,b,c or @file; names or indices.")]
Labels = Annotated[str | None, typer.Option("--labels", help="JSON list that names every head output.")]
ModelFlag = Annotated[str | None, typer.Option("--model", help="The network to rebuild for a run of your own code.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=2)]
Rate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
InputSize = Annotated[int | None, typer.Option("--input-size", min=1, help="Side of the input in pixels.")]
Mean = Annotated[str | None, typer.Option("--mean", help="Three numbers, r,g,b, of images scaled to 0..1.")]
Std = Annotated[str | None, typer.Option("--std", help="Three numbers, r,g,b, of images scaled to 0..1.")]
LimitTrain = Annotated[int | None, typer.Option("--limit-train", min=1, help="Stratified cap on training images.")]
PerClass = Annotated[int | None, typer.Option("--images-per-class", min=1)]
Seed = Annotated[int | None, typer.Option("--seed", min=0)]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Default: all cores.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
PrecisionFlag = Annotated[str | None, typer.Option("--precision", help="auto, fp32 or bf16.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the training images in all phases.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value: of the method, train.KEY or data.KEY.")]
Track = Annotated[str | None, typer.Option("--track", help="tensorboard: event files beside the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output directory holds.")]


def version_callback(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version.")] = False,
) -> None:
    """Cut a trained CNN down to the classes and the budget you need, and prove the result."""
    if version:
        if as_json:
            print_json({"billhook": billhook.__version__} | versions())
        else:
            typer.echo(f"billhook {billhook.__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        raise UsageError("no command given", "see billhook --help")


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(document, indent=1))


def make_progress(quiet: bool) -> Progress:
    """Progress goes to standard error, so it may stay with ``--json``; ``--quiet`` silences it."""
    return Progress() if quiet else RichProgress()


def triple(text: str | None, flag: str) -> tuple[float, float, float] | None:
    """Read ``0.5,0.5,0.5`` (or one number for all three).

    Raises:
        UsageError: Not numbers, or not one or three of them.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text}: not numbers", "such as 0.485,0.456,0.406") from None
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(f"{flag} {text}: give one number or three", "such as 0.485,0.456,0.406")
    return numbers[0], numbers[1], numbers[2]


def require(value: str | None, flag: str) -> str:
    """A flag that the command cannot do without.

    Raises:
        UsageError: It was not given.
    """
    if not value:
        raise UsageError(f"{flag} is missing", "see --help")
    return value


def one_of(value: str, flag: str, choices: Sequence[str]) -> Any:
    """A flag with a fixed set of values.

    Raises:
        UsageError: Another value.
    """
    if value not in choices:
        raise UsageError(f"{flag} {value} is unknown", nearest(value, choices))
    return value


def is_recipe(text: str) -> bool:
    """Whether the positional argument names a recipe file."""
    return Path(text).suffix.lower() in (".yaml", ".yml")


def percent(value: float | None) -> str:
    """``93.40 %``, or a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"
