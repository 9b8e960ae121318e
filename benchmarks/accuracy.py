"""Accuracy of CRISP beside the dense network fine-tuned on the same images with the same schedule.

    BILLHOOK_DATA=DIR python benchmarks/accuracy.py --out runs/accuracy [--only PART] [--threads N]

``DIR`` holds ``cifar10/``, ``cifar100/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory,
resumed or skipped when it is there already, so the script can be stopped and started. It prints the table each time.
Protocols (quick, standard) are those of docs/protocols.md. Test images are read once, at the end of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billhook.api import run_recipe
from billhook.progress import RichProgress
from billhook.recipe import make_recipe
from billhook.rundir import RunDirectory

PROTOCOLS = {"quick": {"limit_train": 5000, "epochs": 10}, "standard": {"limit_train": 15000, "epochs": 30}}
PETS = ("cat", "dog", "horse")
VEHICLES = ("airplane", "ship", "truck")
TEN_OF_HUNDRED = tuple(str(c) for c in sorted(random.Random(0).sample(range(100), 10)))
"""Ten CIFAR-100 classes of a seeded draw."""


@dataclass(frozen=True)
class Cell:
    """One run: what is pruned, how, and the drop against the control that the project asks for (points, or None)."""

    group: str
    model: str
    weights: str
    data: str
    classes: tuple[str, ...]
    protocol: str
    sparsity: int
    method: str = "crisp"
    settings: dict[str, Any] = field(default_factory=dict)
    asked: float | None = None

    @property
    def name(self) -> str:
        extra = "".join(f"-{key}={value}" for key, value in self.settings.items())
        return f"{self.group}-{self.method}{extra}-{self.protocol}-{self.sparsity}"

    def recipe(self, root: Path, threads: int | None) -> dict[str, Any]:
        protocol = PROTOCOLS[self.protocol]
        pattern = {"nm": "2:4"} if self.method in ("crisp", "nm-only") else {}
        block = {"block": 16} if self.method in ("crisp", "block-only") else {}
        return {
            "model": self.model,
            "weights": str(root / "weights" / self.weights),
            "data": {
                "source": str(root / self.data),
                "classes": list(self.classes),
                "limit_train": protocol["limit_train"],
            },
            "method": {"name": self.method} | pattern | block | self.settings,
            "budget": [f"sparsity>={self.sparsity}%"],
            "train": {"epochs": protocol["epochs"]},
            "seed": 0,
            "threads": threads,
        }


def cells() -> list[Cell]:
    resnet56 = ("resnet56", "cifar10_resnet56.safetensors", "cifar10")
    resnet18 = ("resnet18,stem=cifar,width=0.5", "cifar100_resnet18_half.safetensors", "cifar100")
    pets = [Cell("pets", *resnet56, PETS, "standard", s, asked=a) for s, a in ((90, 1.2), (80, 0.5), (95, 3.0))]
    ten = [Cell("ten", *resnet18, TEN_OF_HUNDRED, "standard", s, asked=a) for s, a in ((90, 0.0), (95, 1.5))]
    vehicles = [Cell("vehicles", *resnet56, VEHICLES, "quick", s) for s in (90, 80, 95)]
    ablation = [
        Cell("pets", *resnet56, PETS, "quick", 90),
        Cell("pets", *resnet56, PETS, "quick", 90, settings={"score": "saliency"}),
        Cell("pets", *resnet56, PETS, "quick", 90, settings={"score": "saliency", "class_aware": False}),
        Cell("pets", *resnet56, PETS, "quick", 90, method="block-only"),
        Cell("pets", *resnet56, PETS, "quick", 90, method="magnitude"),
        Cell("pets", *resnet56, PETS, "quick", 90, method="saliency"),
    ]
    return [*pets, *ten, *ablation, *vehicles]


def row(cell: Cell, summary: dict[str, Any]) -> list[str]:
    dense, control, pruned = summary["dense"], summary["dense_finetuned"], summary["pruned"]
    drop = 100 * (control["top1_kept"] - pruned["top1_kept"])
    asked = "" if cell.asked is None else f"{cell.asked:.1f}"
    settings = ", ".join(f"{key}={value}" for key, value in cell.settings.items())
    return [
        cell.group,
        cell.method + (f" ({settings})" if settings else ""),
        cell.protocol,
        f"{100 * pruned['sparsity']:.2f}",
        f"{100 * dense['top1_kept']:.2f}",
        f"{100 * control['top1_kept']:.2f}",
        f"{100 * pruned['top1_kept']:.2f}",
        f"{drop:+.2f}",
        asked,
        f"{dense['bytes'] / pruned['bytes']:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--only", default="", help="run only cells whose name holds this text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    arguments = parser.parse_args()
    root = Path(os.environ["BILLHOOK_DATA"])
    for cell in cells():
        place = RunDirectory(arguments.out / cell.name)
        if arguments.table or arguments.only not in cell.name or place.finished:
            continue
        print(f"== {cell.name}", flush=True)
        recipe = make_recipe(cell.recipe(root, arguments.threads))
        resume = place.partial is not None and place.partial.is_dir()
        run_recipe(recipe, out=place.directory, resume=resume, progress=RichProgress())
    header = [
        "cell",
        "method",
        "protocol",
        "sparsity %",
        "dense",
        "fine-tuned",
        "pruned",
        "drop",
        "asked",
        "size ratio",
    ]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for cell in cells():
        path = arguments.out / cell.name / "summary.json"
        if path.is_file():
            print("| " + " | ".join(row(cell, json.loads(path.read_text()))) + " |")


if __name__ == "__main__":
    main()
