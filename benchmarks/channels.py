"""Channel pruning: the baselines side by side, the best of them for longer, and channels first, then CRISP.

    BILLHOOK_DATA=DIR python benchmarks/channels.py --out runs/channels [--only PART] [--threads N]

``DIR`` holds ``cifar10/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory, resumed or
skipped when it is there already. Test images are read once, at the end of each run; nothing is chosen on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Cell, Summary, accuracies, left, make_parser, make_runs, print_runs

BASELINES = ("random", "l1", "l2", "fpgm", "slimming", "taylor", "activation")
PETS = ("cat", "dog", "horse")
BLENDS = {"mixup": 1.0, "distil_weight": 1.0}
"""Images blended in pairs, and nothing but the dense network's outputs to learn from."""

BEST: dict[str, Any] = BLENDS | {"batch_size": 32}
MADE_UP = {"compensation": "next-layer"}


@dataclass(frozen=True)
class Step(Cell):
    """One run, which may stand on another.

    Attributes:
        after: The cell whose network is pruned further; None: the dense network.
        equals: The cell whose file must not be exceeded: ``{bytes}`` in the budget stands for its size.
        share: Of the protocol's epochs; two runs in a row share one protocol.
    """

    after: str | None = None
    equals: str | None = None
    share: float = 1.0

    def recipe(self, root: Path, out: Path) -> dict[str, Any]:
        recipe = super().recipe(root, out)
        recipe["train"]["epochs"] *= self.share
        if self.equals is not None:
            size = json.loads((out / self.equals / "summary.json").read_text())["pruned"]["bytes"]
            recipe["budget"] = [self.budget.format(bytes=size)]
        if self.after is not None:
            del recipe["weights"]
            recipe["model"] = str(out / self.after)
        return recipe


def cells(best: str) -> list[Step]:
    half = "macs<=50%"
    streams: dict[str, Any] = {"streams": True}
    baselines = [
        Step(f"{name}{mark}-quick", "quick", {"name": name} | fields, half)
        for mark, fields in (("", {}), ("-streams", streams))
        for name in BASELINES
    ]
    variants = [
        Step("l1-uniform-quick", "quick", {"name": "l1", "scope": "uniform"} | streams, half),
        Step("taylor-streams-rounds-quick", "quick", {"name": "taylor", "rounds": 5} | streams, half),
        Step("taylor-rounds-quick", "quick", {"name": "taylor", "rounds": 5}, half),
        Step("taylor-made-up-quick", "quick", {"name": "taylor"} | MADE_UP, half),
        Step("taylor-blends-quick", "quick", {"name": "taylor"}, half, train=BLENDS),
        Step("slimming-no-penalty-quick", "quick", {"name": "slimming", "penalty": False} | streams, half),
    ]
    longer = [
        Step(f"{best}-streams-standard", "standard", {"name": best} | streams, half),
        Step(f"{best}-standard", "standard", {"name": best}, half),
        Step(f"{best}-blends-standard", "standard", {"name": best}, half, train=BLENDS),
        Step(f"{best}-made-up-blends-standard", "standard", {"name": best} | MADE_UP, half, train=BEST),
    ]
    crisp = {"name": "crisp", "nm": "2:4", "block": 16}
    channels = {"name": best, "round_to": 4} | streams
    pets = [
        Step("pets-crisp", "quick", crisp, "sparsity>=90%", classes=PETS),
        Step("pets-channels", "quick", channels, "params<=50%", classes=PETS, share=0.4),
        Step(
            "pets-channels-crisp",
            "quick",
            crisp,
            "bytes<={bytes}B",
            classes=PETS,
            after="pets-channels",
            equals="pets-crisp",
            share=0.6,
        ),
    ]
    return [*baselines, *variants, *longer, *pets]


def row(cell: Step, summary: Summary) -> list[str]:
    size, seconds = f"{summary['pruned']['bytes'] / 1e3:.1f}", f"{summary['seconds']['total']:.0f}"
    return [cell.name, *accuracies(summary), left(summary, "macs"), left(summary, "params"), size, seconds]


def main() -> None:
    parser = make_parser(__doc__, "runs/channels")
    parser.add_argument("--best", default="taylor", help="the baseline that goes on: best on validation images")
    arguments = parser.parse_args()
    chosen = cells(arguments.best)
    make_runs(chosen, arguments)
    print_runs(
        ["cell", "dense", "fine-tuned", "pruned", "MACs %", "params %", "kB", "seconds"], chosen, arguments.out, row
    )


if __name__ == "__main__":
    main()
