"""``billhook predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from billhook.api import classify
from billhook.cli import common
from billhook.cli.common import percent, print_json


def predict(
    directory: Annotated[str, typer.Argument(help="Run directory.", metavar="DIR")],
    images: Annotated[list[str], typer.Argument(help="Image files.", metavar="IMAGE...")],
    model_flag: common.ModelFlag = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Label and probability, one line per image."""
    del debug, quiet
    rows = classify(directory, images, model_for=model_flag)
    if as_json:
        print_json(rows)
        return 0
    for row in rows:
        typer.echo(f"{row['image']}: {row['label']} {percent(row['probability'])}")
    return 0
