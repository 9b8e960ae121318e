"""``billhook prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from billhook import artifact
from billhook.api import look, run_recipe
from billhook.cli import common
from billhook.cli.common import percent, print_json
from billhook.data import parse_classes
from billhook.errors import UsageError
from billhook.estimate import in_words
from billhook.recipe import Recipe, apply_settings, make_recipe, opened_section, read_recipe
from billhook.rundir import RunDirectory
from billhook.text import feasibility, table
from billhook.track import tracked


def prune(
    model: Annotated[str, typer.Argument(help="Model spec, run directory, or a recipe (.yaml).")],
    data: common.Data = None,
    method: Annotated[str | None, typer.Option("--method", help="crisp, nm-only, block-only, magnitude ...")] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help='"QUANTITY OP BOUND", e.g. "sparsity>=90%".')
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Run directory.")] = None,
    weights: common.Weights = None,
    classes: common.Classes = None,
    labels: common.Labels = None,
    settings: common.Settings = None,
    epochs: common.Epochs = None,
    control: Annotated[str | None, typer.Option("--control", help="run, none, or a run directory.")] = None,
    head: Annotated[str | None, typer.Option("--head", help="slice or full.")] = None,
    transfer_from: Annotated[
        str | None, typer.Option("--transfer-from", help="Run directory whose gates decide (chipnet).")
    ] = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Feasibility and time estimate, then stop.")] = False,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Prune a trained network to a budget, fine-tune it, and prove the result."""
    del debug
    content: dict[str, Any] = read_recipe(model) if common.is_recipe(model) else {"model": model}
    _override(
        content,
        "data",
        {
            "source": data,
            "classes": None if classes is None else parse_classes(classes),
            "labels": labels,
            "limit_train": limit_train,
            "images_per_class": images_per_class,
            "input_size": input_size,
            "mean": common.triple(mean, "--mean"),
            "std": common.triple(std, "--std"),
        },
    )
    _override(content, "train", {"epochs": epochs, "batch_size": batch_size, "lr": lr})
    plain = {
        "weights": weights,
        "budget": budget or None,
        "control": control,
        "head": head,
        "seed": seed,
        "threads": threads,
        "device": device,
        "precision": precision,
    }
    content.update({key: value for key, value in plain.items() if value is not None})
    if method is not None and opened_section(content.get("method"), "method").get("name") != method:
        content["method"] = {"name": method}
    _override(content, "method", {"transfer_from": transfer_from})
    apply_settings(content, settings or [])
    recipe = make_recipe(content)
    if dry_run:
        return _dry_run(recipe, out, resume, overwrite, as_json)
    if out is None:
        raise UsageError("--out is missing", "name the run directory, or look first with --dry-run")
    if recipe.weights is None and not artifact.names_run(recipe.model) and not quiet:
        typer.echo("warning: no --weights: pruning a network with random weights", err=True)
    progress = tracked(common.make_progress(quiet), track, out)
    result = run_recipe(recipe, out=out, resume=resume, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(result.summary)
    else:
        typer.echo(describe(result.summary))
        typer.echo(f"\nwritten to {out} (open {Path(out) / 'report.html'})")
    return 0 if result.met else 3


ENLARGED = (("parameters", "params"), ("MACs", "macs"))


def describe(summary: dict[str, Any]) -> str:
    """The result as a table."""
    columns = [("dense", summary["dense"]), ("fine-tuned", summary["dense_finetuned"]), ("pruned", summary["pruned"])]
    keys = [
        ("top-1, kept classes", "top1_kept"),
        ("top-1, full head", "top1_full"),
        ("parameters", "params"),
        ("non-zero", "nonzero"),
        ("MACs", "macs"),
        ("effective MACs", "effective_macs"),
        ("bytes", "bytes"),
    ]
    rows = []
    for title, key in keys:
        cells = []
        for _, part in columns:
            value = None if part is None else part.get(key)
            cells.append(percent(value) if key.startswith("top1") else "-" if value is None else f"{value:,}")
        rows.append([title, *cells])
    lines = [table(rows, ["", *(name for name, _ in columns)]), ""]
    if enlarged := summary.get("enlarged"):
        less = [f"{percent(1 - summary['pruned'][key] / enlarged[key])} fewer {title}" for title, key in ENLARGED]
        lines += [f"of the network with all its 1x1 convolutions: {', '.join(less)}", ""]
    for entry in summary["budget"]:
        state = "met" if entry["met"] else "MISSED"
        lines.append(
            f"budget {entry['quantity']}{entry['relation']}{_amount(entry, 'bound')}: "
            f"{_amount(entry, 'value')}, {state}"
        )
    return "\n".join(lines)


def _amount(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if entry["unit"] == "ratio":
        return f"{100 * value:.2f}%"
    return f"{value:,.4g} ms" if entry["unit"] == "ms" else f"{value:,.0f}"


def _override(content: dict[str, Any], part: str, values: dict[str, Any]) -> None:
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return
    content[part] = opened_section(content.get(part), part) | given


def _dry_run(recipe: Recipe, out: str | None, resume: bool, overwrite: bool, as_json: bool) -> int:
    if out is not None:
        RunDirectory(Path(out)).check(resume=resume, overwrite=overwrite)
    prepared, _ = look(recipe)
    rows = prepared.plan.feasible
    if as_json:
        print_json(
            {
                "feasible": rows,
                "seconds": prepared.seconds,
                "layers_left_dense": prepared.plan.left_dense,
                "notes": prepared.plan.notes,
            }
        )
        return 0
    typer.echo(feasibility(rows))
    for entry in prepared.plan.left_dense:
        typer.echo(f"stays dense: {entry['name']} ({entry['reason']})")
    for note in prepared.plan.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"about {in_words(prepared.seconds)} of work")
    return 0
