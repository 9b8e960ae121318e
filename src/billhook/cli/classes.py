"""``billhook classes``."""

from __future__ import annotations

from typing import Annotated

import typer

from billhook.cli import common
from billhook.cli.common import print_json
from billhook.data import class_table, open_source
from billhook.text import table


def classes(
    data: Annotated[str, typer.Argument(help="Image folder, parquet directory, digits, or hf:OWNER/NAME.")],
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """Class names and counts per split."""
    del debug, quiet
    source = open_source(data)
    rows = class_table(source)
    if as_json:
        print_json({"data": source.name, "classes": rows})
        return 0
    keys = [key for key in ("name", "id", "train", "val", "test") if key in rows[0]]
    cells = [
        [str(index), *(f"{row[k]:,}" if isinstance(row[k], int) else str(row[k]) for k in keys)]
        for index, row in enumerate(rows)
    ]
    typer.echo(table(cells, ["", *keys]))
    return 0
