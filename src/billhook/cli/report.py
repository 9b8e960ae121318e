"""``billhook report``."""

from __future__ import annotations

from typing import Annotated

import typer

from billhook.cli import common
from billhook.cli.common import print_json


def report(
    directory: Annotated[str, typer.Argument(help="Run directory.", metavar="DIR")],
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Write DIR/report.html again."""
    from billhook.report import write_report  # its templates are nothing to the other commands

    del debug, quiet
    path = write_report(directory)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(f"written {path}")
    return 0
