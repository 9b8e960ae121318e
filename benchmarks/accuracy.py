"""Accuracy of CRISP beside the dense network fine-tuned on the same images with the same schedule.

    BILLHOOK_DATA=DIR python benchmarks/accuracy.py --out runs/accuracy [--only PART] [--threads N]

``DIR`` holds ``cifar10/``, ``cifar100/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory,
resumed or skipped when it is there already, so the script can be stopped and started. It prints the table each time.
Protocols (quick, standard) are those of docs/protocols.md. Test images are read once, at the end of each run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from cells import Cell, Summary, accuracies, make_parser, make_runs, print_runs

PETS = ("cat", "dog", "horse")
VEHICLES = ("airplane", "ship", "truck")
TEN_OF_HUNDRED = tuple(str(c) for c in sorted(random.Random(0).sample(range(100), 10)))
"""Ten CIFAR-100 classes of a seeded draw."""


@dataclass(frozen=True)
class Sparse(Cell):
    """One run, and what the project asks of it.

    Attributes:
        group: Of classes.
        settings: Of the method that are not the usual ones.
        asked: The largest drop against the control, in points.
    """

    group: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    asked: float | None = None


def sparse(
    group: str,
    classes: tuple[str, ...],
    protocol: str,
    sparsity: int,
    method: str = "crisp",
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Sparse:
    settings = settings or {}
    pattern = {"nm": "2:4"} if method in ("crisp", "nm-only") else {}
    block = {"block": 16} if method in ("crisp", "block-only") else {}
    extra = "".join(f"-{key}={value}" for key, value in settings.items())
    return Sparse(
        f"{group}-{method}{extra}-{protocol}-{sparsity}",
        protocol,
        {"name": method} | pattern | block | settings,
        f"sparsity>={sparsity}%",
        classes=classes,
        group=group,
        settings=settings,
        **more,
    )


def cells() -> list[Sparse]:
    resnet18: dict[str, Any] = {
        "model": "resnet18,stem=cifar,width=0.5",
        "weights": "cifar100_resnet18_half.safetensors",
        "data": "cifar100",
    }
    pets = [sparse("pets", PETS, "standard", s, asked=a) for s, a in ((90, 1.2), (80, 0.5), (95, 3.0))]
    ten = [sparse("ten", TEN_OF_HUNDRED, "standard", s, asked=a, **resnet18) for s, a in ((90, 0.0), (95, 1.5))]
    vehicles = [sparse("vehicles", VEHICLES, "quick", s) for s in (90, 80, 95)]
    ablation = [
        sparse("pets", PETS, "quick", 90),
        sparse("pets", PETS, "quick", 90, settings={"score": "saliency"}),
        sparse("pets", PETS, "quick", 90, settings={"score": "saliency", "class_aware": False}),
        sparse("pets", PETS, "quick", 90, method="block-only"),
        sparse("pets", PETS, "quick", 90, method="magnitude"),
        sparse("pets", PETS, "quick", 90, method="saliency"),
    ]
    return [*pets, *ten, *ablation, *vehicles]


def row(cell: Sparse, summary: Summary) -> list[str]:
    dense, control, pruned = summary["dense"], summary["dense_finetuned"], summary["pruned"]
    drop = 100 * (control["top1_kept"] - pruned["top1_kept"])
    settings = ", ".join(f"{key}={value}" for key, value in cell.settings.items())
    return [
        cell.group,
        cell.method["name"] + (f" ({settings})" if settings else ""),
        cell.protocol,
        f"{100 * pruned['sparsity']:.2f}",
        *accuracies(summary),
        f"{drop:+.2f}",
        "" if cell.asked is None else f"{cell.asked:.1f}",
        f"{dense['bytes'] / pruned['bytes']:.2f}",
    ]


HEADER = ["cell", "method", "protocol", "sparsity %", "dense", "fine-tuned", "pruned", "drop", "asked", "size ratio"]


def main() -> None:
    arguments = make_parser(__doc__, "runs/accuracy").parse_args()
    make_runs(cells(), arguments)
    print_runs(HEADER, cells(), arguments.out, row)


if __name__ == "__main__":
    main()
