"""Channel pruning: the baselines side by side, the best of them for longer, and channels first, then CRISP.

    BILLHOOK_DATA=DIR python benchmarks/channels.py --out runs/channels [--only PART] [--threads N]

``DIR`` holds ``cifar10/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory, resumed or
skipped when it is there already. Test images are read once, at the end of each run; nothing is chosen on them.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billhook.api import run_recipe
from billhook.progress import RichProgress
from billhook.recipe import make_recipe
from billhook.rundir import RunDirectory

PROTOCOLS = {"quick": {"limit_train": 5000, "epochs": 10}, "standard": {"limit_train": 15000, "epochs": 30}}
BASELINES = ("random", "l1", "l2", "fpgm", "slimming", "taylor", "activation")
PETS = ("cat", "dog", "horse")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Of its directory.
        protocol: ``quick`` or ``standard``.
        method: With its settings.
        budget: One inequality; ``{bytes}`` stands for the size of the file of the cell ``equals``.
        classes: Kept classes; empty: all ten.
        after: The cell whose network is pruned further; None: the dense network.
        equals: The cell whose file must not be exceeded.
        share: Of the protocol's epochs; two runs in a row share one protocol.
    """

    name: str
    protocol: str
    method: dict[str, Any]
    budget: str
    classes: tuple[str, ...] = ()
    after: str | None = None
    equals: str | None = None
    share: float = 1.0
    train: dict[str, Any] = field(default_factory=dict)

    def recipe(self, root: Path, out: Path, threads: int | None, control: str) -> dict[str, Any]:
        protocol = PROTOCOLS[self.protocol]
        size = ""
        if self.equals is not None:
            size = str(json.loads((out / self.equals / "summary.json").read_text())["pruned"]["bytes"])
        data: dict[str, Any] = {"source": str(root / "cifar10"), "limit_train": protocol["limit_train"]}
        if self.classes:
            data["classes"] = list(self.classes)
        origin: dict[str, Any] = {
            "model": "resnet56",
            "weights": str(root / "weights" / "cifar10_resnet56.safetensors"),
        }
        if self.after is not None:
            origin = {"model": str(out / self.after)}
        return origin | {
            "data": data,
            "method": self.method,
            "budget": [self.budget.format(bytes=size)],
            "train": {"epochs": self.share * protocol["epochs"]} | self.train,
            "seed": 0,
            "threads": threads,
            "control": control,
        }


def cells(best: str) -> list[Cell]:
    baselines = [Cell(f"{name}-quick", "quick", {"name": name}, "macs<=50%") for name in BASELINES]
    variants = [
        Cell("l1-uniform-quick", "quick", {"name": "l1", "scope": "uniform"}, "macs<=50%"),
        Cell("taylor-rounds-quick", "quick", {"name": "taylor", "rounds": 5}, "macs<=50%"),
        Cell("slimming-no-penalty-quick", "quick", {"name": "slimming", "penalty": False}, "macs<=50%"),
    ]
    longer = [Cell(f"{best}-standard", "standard", {"name": best}, "macs<=50%")]
    crisp = {"name": "crisp", "nm": "2:4", "block": 16}
    pets = [
        Cell("pets-crisp", "quick", crisp, "sparsity>=90%", PETS),
        Cell("pets-channels", "quick", {"name": best, "round_to": 4}, "params<=50%", PETS, share=0.4),
        Cell(
            "pets-channels-crisp",
            "quick",
            crisp,
            "bytes<={bytes}B",
            PETS,
            after="pets-channels",
            equals="pets-crisp",
            share=0.6,
        ),
    ]
    return [*baselines, *variants, *longer, *pets]


def row(name: str, summary: dict[str, Any]) -> list[str]:
    dense, control, pruned = summary["dense"], summary["dense_finetuned"], summary["pruned"]
    return [
        name,
        f"{100 * dense['top1_kept']:.2f}",
        f"{100 * control['top1_kept']:.2f}" if control else "",
        f"{100 * pruned['top1_kept']:.2f}",
        f"{100 * pruned['macs'] / dense['macs']:.2f}",
        f"{100 * pruned['params'] / dense['params']:.2f}",
        f"{pruned['bytes'] / 1e3:.1f}",
        f"{summary['seconds']['total']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/channels"))
    parser.add_argument("--only", default="", help="run only cells whose name holds that text")
    parser.add_argument("--best", default="taylor", help="the baseline that goes on: best on validation images")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--control", default="run", help="none: without the fine-tuned dense network (half the time)")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    arguments = parser.parse_args()
    root, out = Path(os.environ["BILLHOOK_DATA"]), arguments.out
    for cell in cells(arguments.best):
        place = RunDirectory(out / cell.name)
        if arguments.table or arguments.only not in cell.name or place.finished:
            continue
        print(f"== {cell.name}", flush=True)
        recipe = make_recipe(cell.recipe(root, out, arguments.threads, arguments.control))
        resume = place.partial is not None and place.partial.is_dir()
        run_recipe(recipe, out=place.directory, resume=resume, progress=RichProgress())
    header = ["cell", "dense", "fine-tuned", "pruned", "MACs %", "params %", "kB", "seconds"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for cell in cells(arguments.best):
        path = out / cell.name / "summary.json"
        if path.is_file():
            print("| " + " | ".join(row(cell.name, json.loads(path.read_text()))) + " |")


if __name__ == "__main__":
    main()
