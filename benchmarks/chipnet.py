"""ChipNet beside the best baseline, at small and very small budgets; gates taken to other images; the gated step.

    BILLHOOK_DATA=DIR python benchmarks/chipnet.py --out runs/chipnet [--only PART] [--threads N]
    python benchmarks/chipnet.py --step [--threads N]

``DIR`` holds ``cifar10/``, ``cifar100/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory,
resumed or skipped when it is there already. Test images are read once, at the end of each run. ``--step`` times a
training step with gates (crispness, budget and schedules included) against the dense one, in turns, in one process.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from billhook.api import run_recipe
from billhook.cost.budget import parse_budgets
from billhook.methods import count_network
from billhook.methods.channel_pruning import channel_cost
from billhook.methods.chipnet import BudgetLoss, ChipNet, Gates, SoftCost, crispness, lay_out
from billhook.models import build, open_network, place
from billhook.progress import RichProgress
from billhook.recipe import make_recipe
from billhook.rundir import RunDirectory
from billhook.training.config import TrainConfig
from billhook.training.optim import make_optimizer
from billhook.training.precision import Room

PROTOCOLS = {"quick": {"limit_train": 5000, "epochs": 10}, "standard": {"limit_train": 15000, "epochs": 30}}
BUDGETS = ("macs<=50%", "macs<=25%", "channels<=12.5%")
EXTREME = ("channels<=6.25%", "volume<=6.25%", "params<=6.25%", "macs<=6.25%")
SHORT = {"<=": "", "%": "", ".": ""}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Of its directory.
        protocol: ``quick`` or ``standard``.
        data: ``cifar10`` or ``cifar100``.
        method: With its settings; ``transfer_from`` names another cell.
        budget: One inequality.
        seed: Of everything random.
    """

    name: str
    protocol: str
    data: str
    method: dict[str, Any]
    budget: str
    seed: int = 0

    def recipe(self, root: Path, out: Path, threads: int | None) -> dict[str, Any]:
        protocol = PROTOCOLS[self.protocol]
        method = dict(self.method)
        if "transfer_from" in method:
            method["transfer_from"] = str(out / method["transfer_from"])
        return {
            "model": "resnet56",
            "weights": str(root / "weights" / f"{self.data}_resnet56.safetensors"),
            "data": {"source": str(root / self.data), "limit_train": protocol["limit_train"]},
            "method": method,
            "budget": [self.budget],
            "train": {"epochs": protocol["epochs"]},
            "seed": self.seed,
            "threads": threads,
        }


def short(budget: str) -> str:
    for text, word in SHORT.items():
        budget = budget.replace(text, word)
    return budget


def cells() -> list[Cell]:
    """Hosts of transferred gates come before those that take them."""
    methods: dict[str, dict[str, Any]] = {
        "chipnet": {"name": "chipnet"},
        "chipnet-independent": {"name": "chipnet", "coupling": "independent"},
        "chipnet-published": {"name": "chipnet", "initialise": "published", "distil_gates": False},
        "taylor": {"name": "taylor"},
        "l1": {"name": "l1"},
    }
    made = [
        Cell(f"{data}-{name}-{short(budget)}-{protocol}", protocol, data, method, budget)
        for protocol in ("quick", "standard")
        for data in ("cifar10", "cifar100")
        for budget in BUDGETS
        for name, method in methods.items()
        if protocol == "quick" or data == "cifar10"
    ]
    made += [
        Cell(f"{target}-from-{host}{mark}-quick", "quick", target, {"name": "chipnet"} | more, "macs<=50%")
        for host, target in (("cifar100", "cifar10"), ("cifar10", "cifar100"))
        for mark, more in (
            ("", {"transfer_from": f"{host}-chipnet-macs50-quick"}),
            ("-scratch", {"transfer_from": f"{host}-chipnet-macs50-quick", "scratch": True}),
        )
    ]
    made += [
        Cell(f"extreme-{short(budget)}-seed{seed}", "quick", "cifar10", {"name": "chipnet"}, budget, seed)
        for budget in EXTREME
        for seed in range(3)
    ]
    return made


def row(name: str, summary: dict[str, Any]) -> list[str]:
    dense, control, pruned = summary["dense"], summary["dense_finetuned"], summary["pruned"]
    (budget,) = summary["budget"]
    return [
        name,
        f"{100 * dense['top1_kept']:.2f}",
        f"{100 * control['top1_kept']:.2f}" if control else "",
        f"{100 * pruned['top1_kept']:.2f}",
        f"{100 * budget['value']:.2f}",
        f"{100 * pruned['macs'] / dense['macs']:.2f}",
        f"{100 * pruned['params'] / dense['params']:.2f}",
        f"{summary['seconds']['total']:.0f}",
    ]


# ---------------------------------------------------------------------- the step
def steps_of(name: str, batch: int, coupling: str, room: Room) -> dict[str, Callable[[], None]]:
    """A dense and a gated training step of the same network."""
    network = open_network(build(name, 10))
    counted = count_network(network, 32, None)
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    config = ChipNet(coupling=coupling)
    recipe = TrainConfig(optimizer="adamw", lr=config.lr)
    layout = lay_out(network.module, counted.groups(), config.coupling)
    loss_of = BudgetLoss(SoftCost(channel_cost(counted), layout), parse_budgets(["macs<=50%"]), counted.dense)
    made: dict[str, Callable[[], None]] = {}
    for kind in ("dense", "gated"):
        module = place(copy.deepcopy(network.module), room.device).train()
        gates = Gates(layout)
        if kind == "gated":
            gates.compensate(module)
            gates.attach(module)
        more = [{"params": [gates.psi], "weight_decay": 0.0}] if kind == "gated" else []
        optimizer = make_optimizer(module, recipe, more)

        def step(
            module: nn.Module = module, gates: Gates = gates, gated: bool = bool(more), own: Any = optimizer
        ) -> None:
            with room.autocast():
                logits = module(images)
            loss = functional.cross_entropy(logits.float(), labels)
            if gated:
                values = gates.values()
                loss = loss + config.crisp_weight * crispness(gates.logistic(), values)
                loss = loss + config.budget_weight * loss_of(values, config.steepness).to(loss.dtype)
            own.zero_grad(set_to_none=True)
            loss.backward()
            own.step()

        made[kind] = step
    return made


def time_steps(threads: int | None) -> None:
    torch.set_num_threads(threads or torch.get_num_threads())
    room = Room("cpu")
    print(f"threads {torch.get_num_threads()}, {room.precision}, milliseconds of a step: median (quartiles)")
    for name in ("resnet56", "resnet18,stem=cifar"):
        for coupling in ("group", "independent"):
            for batch in (32, 128):
                steps = steps_of(name, batch, coupling, room)
                times: dict[str, list[float]] = {kind: [] for kind in steps}
                for turn in range(14):
                    for kind, step in steps.items():
                        started = time.perf_counter()
                        step()
                        if turn > 1:
                            times[kind].append(1e3 * (time.perf_counter() - started))
                parts = []
                for kind, taken in times.items():
                    low, middle, high = statistics.quantiles(taken, n=4)
                    parts.append(f"{kind} {middle:7.1f} ({low:.1f} to {high:.1f})")
                ratio = statistics.median(
                    gated / dense for gated, dense in zip(times["gated"], times["dense"], strict=True)
                )
                print(f"{name:20s} {coupling:12s} batch {batch:4d}  {'  '.join(parts)}  {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/chipnet"))
    parser.add_argument("--only", default="", help="run only cells whose name holds that text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--step", action="store_true", help="time the gated step")
    arguments = parser.parse_args()
    if arguments.step:
        return time_steps(arguments.threads)
    root, out = Path(os.environ["BILLHOOK_DATA"]), arguments.out
    for cell in cells():
        where = RunDirectory(out / cell.name)
        if arguments.table or arguments.only not in cell.name or where.finished:
            continue
        print(f"== {cell.name}", flush=True)
        recipe = make_recipe(cell.recipe(root, out, arguments.threads))
        resume = where.partial is not None and where.partial.is_dir()
        run_recipe(recipe, out=where.directory, resume=resume, progress=RichProgress())
    header = ["cell", "dense", "fine-tuned", "pruned", "budget %", "MACs %", "params %", "seconds"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for cell in cells():
        path = out / cell.name / "summary.json"
        if path.is_file():
            print("| " + " | ".join(row(cell.name, json.loads(path.read_text()))) + " |")
    return None


if __name__ == "__main__":
    main()
