"""``billhook export``."""

from __future__ import annotations

from typing import Annotated

import typer

from billhook.cli import common
from billhook.cli.common import print_json


def export(
    directory: Annotated[str, typer.Argument(help="Run directory.", metavar="DIR")],
    to: Annotated[str | None, typer.Option("--to", help="onnx, torch-export or packed.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="The file; by default inside DIR.")] = None,
    model_flag: common.ModelFlag = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Write the network of a run as ONNX, as PyTorch's exported program, or packed for billhook's runtime."""
    from billhook.delivery import export_run  # its tracer is nothing to the other commands

    del debug, quiet
    written = export_run(directory, common.require(to, "--to"), out, model=model_flag, overwrite=overwrite)
    if as_json:
        print_json(written)
    else:
        typer.echo(f"written {written['path']}, {written['bytes']:,} bytes")
    return 0
