"""What the tables of runs share: protocols, one run as a cell, making those that are not there yet, the table.

Every cell is a run directory, resumed or skipped when it is there already, so a script can be stopped and started. Test
images are read once, at the end of each run.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from billhook.api import run_recipe
from billhook.progress import RichProgress
from billhook.recipe import make_recipe
from billhook.rundir import RunDirectory

PROTOCOLS = {"quick": {"limit_train": 5000, "epochs": 10}, "standard": {"limit_train": 15000, "epochs": 30}}
"""Those of docs/protocols.md."""

CIFAR100 = {"mean": (0.5070, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2761)}
"""What its dense networks were trained on."""

RESNET56_CIFAR100 = {
    "model": "resnet56,shortcut=conv",
    "data": "cifar100",
    "weights": "cifar100_resnet56_chenyaofo.safetensors",
}
"""The network that there are weights of: 72.63 %."""

Summary = dict[str, Any]
"""Of a finished run."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Of its directory.
        protocol: ``quick`` or ``standard``.
        method: With its settings.
        budget: One inequality.
        model: A spec.
        data: ``cifar10`` or ``cifar100``.
        weights: Their file; empty: named after data and model.
        classes: Kept classes; empty: all of them.
        seed: Of everything random.
        train: Fields of the training recipe besides the epochs.
    """

    name: str
    protocol: str
    method: dict[str, Any]
    budget: str
    model: str = "resnet56"
    data: str = "cifar10"
    weights: str = ""
    classes: tuple[str, ...] = ()
    seed: int = 0
    train: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, root: Path, out: Path) -> dict[str, Any]:
        """What the run is asked.

        Args:
            root: Data and weights.
            out: The directories of all cells.
        """
        protocol = PROTOCOLS[self.protocol]
        data: dict[str, Any] = {"source": str(root / self.data), "limit_train": protocol["limit_train"]}
        if self.classes:
            data["classes"] = list(self.classes)
        if self.data == "cifar100":
            data |= CIFAR100
        return {
            "model": self.model,
            "weights": str(root / "weights" / (self.weights or f"{self.data}_{self.model}.safetensors")),
            "data": data,
            "method": self.method,
            "budget": [self.budget],
            "train": {"epochs": protocol["epochs"], **self.train},
            "seed": self.seed,
        }


SomeCell = TypeVar("SomeCell", bound=Cell)


def make_parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The flags of every table.

    Args:
        doc: Of the script.
        out: Where its runs go when nobody says otherwise.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--only", default="", help="run only cells whose name holds that text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--control", default="run", help="none: without the fine-tuned dense network (half the time)")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    return parser


def data_root() -> Path:
    """Data and weights."""
    return Path(os.environ["BILLHOOK_DATA"])


def make_runs(cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Run what is asked for and not there yet.

    Args:
        cells: In this order.
        arguments: Of :func:`make_parser`.
    """
    for cell in cells:
        place = RunDirectory(arguments.out / cell.name)
        if arguments.table or arguments.only not in cell.name or place.finished:
            continue
        print(f"== {cell.name}", flush=True)
        asked = {"threads": arguments.threads, "control": arguments.control}
        content = cell.recipe(data_root(), arguments.out) | asked
        resume = place.partial is not None and place.partial.is_dir()
        run_recipe(make_recipe(content), out=place.directory, resume=resume, progress=RichProgress())


def print_runs(
    header: Sequence[str], cells: Sequence[SomeCell], out: Path, row: Callable[[SomeCell, Summary], list[str]]
) -> None:
    """The table of the runs that are there."""
    paths = [(cell, out / cell.name / "summary.json") for cell in cells]
    print_table(header, [row(cell, json.loads(path.read_text())) for cell, path in paths if path.is_file()])


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Row after row, as they come."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def accuracies(summary: Summary) -> list[str]:
    """Top-1 over the kept classes: of the dense network, of the control where there is one, of the pruned network."""
    found = (summary["dense"], summary["dense_finetuned"], summary["pruned"])
    return [f"{100 * part['top1_kept']:.2f}" if part else "" for part in found]


def left(summary: Summary, quantity: str) -> str:
    """Percent of the dense network's."""
    return f"{100 * summary['pruned'][quantity] / summary['dense'][quantity]:.2f}"
