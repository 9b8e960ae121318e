"""``billhook inspect``."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billhook.cli import common
from billhook.cli.common import print_json
from billhook.data import parse_classes
from billhook.inspection import inspect_network, make_inspection
from billhook.methods import CHANNEL_METHODS, WEIGHT_METHODS
from billhook.recipe import apply_settings

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 240
"""Columns where nobody looks: wide enough that no row is wrapped."""

NARROW = 100
"""Below so many columns the table does without some of its air, and without the volume."""


def inspect(
    model: Annotated[str, typer.Argument(help="Model spec or run directory.")],
    data: common.Data = None,
    method: Annotated[str | None, typer.Option("--method", help="One method instead of all.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help='"QUANTITY OP BOUND", e.g. "sparsity>=90%".')
    ] = None,
    weights: common.Weights = None,
    classes: common.Classes = None,
    labels: common.Labels = None,
    model_flag: common.ModelFlag = None,
    input_size: common.InputSize = None,
    settings: common.Settings = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """What a network costs, layer by layer, what can be pruned, and whether a budget can be met."""
    del debug, quiet
    given = {
        "source": data,
        "classes": None if classes is None else "all" if classes == "all" else parse_classes(classes),
        "labels": labels,
        "input_size": input_size,
    }
    content: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "rebuild": model_flag,
        "data": {key: value for key, value in given.items() if value is not None},
        "method": None if method is None else {"name": method},
        "budget": budget or (),
    }
    apply_settings(content, settings or [])
    document = inspect_network(make_inspection(content))
    if as_json:
        print_json(document)
    else:
        show(document, _console())
    return 0 if all(row["feasible"] for row in document["feasible"]) else 3


def show(document: dict[str, Any], console: Console) -> None:
    """Print a document of ``inspect`` as tables; colours are the console's business."""
    from rich.table import Table
    from rich.text import Text

    narrow = console.width < NARROW

    def grid(*titles: str, left: tuple[str, ...] = ()) -> Table:
        made = Table(box=None, padding=(0, 1 if narrow else 2, 0, 0), pad_edge=False, header_style="bold")
        for title in titles:
            # Names and words may be folded on a narrow terminal; numbers never are.
            if title in left:
                made.add_column(title, overflow="fold")
            else:
                made.add_column(title, justify="right", no_wrap=True)
        return made

    layers = [layer for layer in document["layers"] if layer["macs"]]
    # Not the odd zero of random weights, nor biases that start at zero.
    sparse = any(layer["effective_macs"] < 0.99 * layer["macs"] for layer in layers)
    notes = _Notes()
    numbers = ["params", *(["nonzero"] if sparse else []), "MACs", *([] if narrow else ["volume"])]
    # A group is named after a layer; a number, in the order of the rows, fits a narrow column.
    groups: dict[str | None, str] = {None: "-"}
    for layer in layers:
        groups.setdefault(layer["group"], str(len(groups)))
    table = grid("layer", "kind", "shape", *numbers, "group", "prunable", left=("layer", "prunable"))
    for layer in layers:
        word, by_all = notes.word(layer["prunable"])
        cells = [layer["name"] or "(whole)", layer["kind"], "x".join(str(n) for n in layer["shape"])]
        cells += [short(layer[title.lower()]) for title in numbers]
        cells.append(groups[layer["group"]])
        table.add_row(*(Text(cell) for cell in cells), Text(word, "green" if by_all else "yellow"))
    console.print(table)
    for line in (*_others(document), *_about_groups(document), *notes.lines()):
        console.print(Text(line, "dim"))

    columns = [("total", document["totals"])]
    if document["delivered"] is not None:
        columns.append(("head sliced", document["delivered"]))
    totals = grid("", *(title for title, _ in columns), left=("",))
    for key in document["totals"]:
        title = "MACs" if key == "macs" else key.replace("_macs", " MACs")
        totals.add_row(Text(title), *(f"{part[key]:,}" for _, part in columns))
    totals.add_row("peak activation bytes", f"{document['peak_activation_bytes']:,}")
    side = "x".join(str(n) for n in document["input_size"])
    console.print()
    console.print(Text(f"{document['model']}, {document['classes']} outputs, for one image of {side} pixels"))
    console.print(totals)

    if document["feasible"]:
        rows = grid("budget", "dense", "reachable", "asked", "feasible", "bound by", left=("budget", "bound by"))
        for row in document["feasible"]:
            cells = [_amount(row, key) for key in ("dense", "smallest", "asked")]
            answer = Text("yes", "green") if row["feasible"] else Text("no", "bold red")
            rows.add_row(row["quantity"], *cells, answer, Text(str(row["binding_layer"])))
        console.print()
        console.print(rows)
    if document["reachable"]:
        rows = grid("quantity", "dense", "reachable", "bound by", left=("quantity", "bound by"))
        for row in document["reachable"]:
            rows.add_row(
                row["quantity"], *(_amount(row, key) for key in ("dense", "smallest")), str(row["binding_layer"])
            )
        console.print()
        console.print(rows)


class _Notes:
    """Reasons below the table, so that the table stays narrow: ``none [1]``, and what 1 is."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def word(self, prunable: dict[str, bool | str]) -> tuple[str, bool]:
        """The cell of one layer, and whether all methods can prune it."""
        able = _together([method for method, state in prunable.items() if state is True], "s")
        reasons: dict[str, list[str]] = {}
        for method, state in prunable.items():
            if state is not True:
                reasons.setdefault(str(state), []).append(method)
        single = len(prunable) == 1
        if not reasons:
            return ("yes" if single else "all"), True
        marks = []
        for reason, methods in reasons.items():
            line = reason if len(methods) == len(prunable) else f"{', '.join(_together(methods, ' methods'))}: {reason}"
            marks.append(f"[{self.numbers.setdefault(line, len(self.numbers) + 1)}]")
        word = ", ".join(able) or ("no" if single else "none")
        return f"{word} {' '.join(marks)}", False

    def lines(self) -> list[str]:
        """The reasons, numbered."""
        return [f"[{number}] {line}" for line, number in self.numbers.items()]


def _together(methods: list[str], suffix: str = "") -> list[str]:
    """All methods of a kind under the name of the kind."""
    words = list(methods)
    for kind, names in (("weight", WEIGHT_METHODS), ("channel", CHANNEL_METHODS)):
        if set(names) <= set(methods):
            words = [word for word in words if word not in names]
            words.append(kind + suffix)
    return words


def short(value: int) -> str:
    """``2.36 M``: three digits are what a table of a hundred layers is read for."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            number = value / scale
            return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
    return str(value)


def _others(document: dict[str, Any]) -> list[str]:
    """One line on the layers without a weight matrix."""
    rest = [layer for layer in document["layers"] if not layer["macs"]]
    if not rest:
        return []
    kinds = Counter(layer["kind"] for layer in rest)
    words = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return [f"and {words} (no weight matrix) with {sum(layer['params'] for layer in rest):,} params"]


def _about_groups(document: dict[str, Any]) -> list[str]:
    """One line on the channel groups."""
    groups = document["groups"]
    if not groups:
        return []
    line = f"{len(groups)} channel groups: layers of one group lose the same channels"
    vanish = sum(group["may_vanish"] for group in groups)
    return [line + (f"; {vanish} of them may go entirely, with their residual branch" if vanish else "")]


def _amount(row: dict[str, Any], key: str) -> str:
    if row["quantity"] == "latency":
        return f"{row[key]:.3g} ms"
    return f"{100 * row[key]:.2f} %" if row["quantity"] == "sparsity" else f"{row[key]:,.0f}"


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal or os.environ.get("COLUMNS"):
        return console
    return Console(highlight=False, width=PIPE_WIDTH)
