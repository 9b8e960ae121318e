"""ChipNet beside the best baseline, at small and very small budgets; gates taken to other images; the gated step.

    BILLHOOK_DATA=DIR python benchmarks/chipnet.py --out runs/chipnet [--only PART] [--threads N]
    python benchmarks/chipnet.py --step [--threads N]

``DIR`` holds ``cifar10/``, ``cifar100/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory,
resumed or skipped when it is there already. Test images are read once, at the end of each run. ``--step`` times a
training step with gates (crispness, budget and schedules included) against the dense one, in turns, in one process.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from billhook.cost.budget import parse_budgets
from billhook.dense import make_train_recipe, train_dense
from billhook.methods import count_network
from billhook.methods.channel_limits import channel_cost
from billhook.methods.chipnet import BudgetLoss, ChipNet, Gates, SoftCost, crispness, lay_out
from billhook.models import build, open_network, place
from billhook.progress import RichProgress
from billhook.recipe import train_preset
from billhook.rundir import RunDirectory
from billhook.training.config import TrainConfig
from billhook.training.optim import make_optimizer
from billhook.training.precision import Room
from cells import (
    CIFAR100,
    RESNET56_CIFAR100,
    Cell,
    Summary,
    accuracies,
    data_root,
    left,
    make_parser,
    make_runs,
    print_runs,
)

BUDGETS = ("macs<=50%", "macs<=25%", "channels<=12.5%")
EXTREME = ("channels<=6.25%", "volume<=6.25%", "params<=6.25%", "macs<=6.25%")
SHORT = {"<=": "", "%": "", ".": ""}


TWIN = "cifar10-dense-shortcut-conv"
"""The CIFAR-100 network with a new head, trained on CIFAR-10: gates go between networks of the same architecture."""


class GateCell(Cell):
    """One run; ``transfer_from`` in its method names another cell, the model ``TWIN`` the run that trained it."""

    def recipe(self, root: Path, out: Path) -> dict[str, Any]:
        recipe = super().recipe(root, out)
        if "transfer_from" in self.method:
            recipe["method"] = self.method | {"transfer_from": str(out / self.method["transfer_from"])}
        if self.model == TWIN:
            recipe |= {"model": str(out / TWIN), "weights": None}
        return recipe


def short(budget: str) -> str:
    for text, word in SHORT.items():
        budget = budget.replace(text, word)
    return budget


def cells() -> list[GateCell]:
    """Hosts of transferred gates come before those that take them."""
    methods: dict[str, dict[str, Any]] = {
        "chipnet": {"name": "chipnet"},
        "chipnet-streams": {"name": "chipnet", "streams": True},
        "chipnet-whole": {"name": "chipnet", "streams": False},
        "chipnet-independent": {"name": "chipnet", "coupling": "independent"},
        "chipnet-published": {"name": "chipnet", "initialise": "published", "distil_gates": False},
        "taylor": {"name": "taylor"},
        "taylor-streams": {"name": "taylor", "streams": True},
        "taylor-whole": {"name": "taylor", "streams": False},
        "l1": {"name": "l1"},
    }
    networks: dict[str, dict[str, Any]] = {"cifar10": {}, "cifar100": RESNET56_CIFAR100}
    made = [
        GateCell(f"{data}-{name}-{short(budget)}-{protocol}", protocol, method, budget, **networks[data])
        for protocol in ("quick", "standard")
        for data in networks
        for budget in BUDGETS
        for name, method in methods.items()
        if protocol == "quick" or data == "cifar10"
    ]
    gates: dict[str, Any] = {"name": "chipnet"}
    twins: dict[str, dict[str, Any]] = {"cifar10": {"model": TWIN}, "cifar100": RESNET56_CIFAR100}
    hosts = {"cifar10": "twin-chipnet-macs50-quick", "cifar100": "cifar100-chipnet-macs50-quick"}
    made.append(GateCell(hosts["cifar10"], "quick", gates, "macs<=50%", model=TWIN))
    made += [
        GateCell(f"{target}-from-{host}{mark}-quick", "quick", gates | more, "macs<=50%", **twins[target])
        for host, target in (("cifar100", "cifar10"), ("cifar10", "cifar100"))
        for mark, more in (
            ("", {"transfer_from": hosts[host]}),
            ("-scratch", {"transfer_from": hosts[host], "scratch": True}),
        )
    ]
    made += [
        GateCell(f"extreme-{short(budget)}-seed{seed}", "quick", gates, budget, seed=seed)
        for budget in EXTREME
        for seed in range(3)
    ]
    return made


def train_twin(root: Path, out: Path, threads: int | None) -> None:
    """The dense network that gates are taken to and from, unless it is there."""
    place = RunDirectory(out / TWIN)
    if place.finished:
        return
    content = {
        "model": RESNET56_CIFAR100["model"],
        "weights": str(root / "weights" / RESNET56_CIFAR100["weights"]),
        "data": {"source": str(root / "cifar10"), "limit_train": 15000, **CIFAR100},
        "train": train_preset("finetune") | {"epochs": 10},
        "threads": threads,
    }
    resume = place.partial is not None and place.partial.is_dir()
    train_dense(make_train_recipe(content), out / TWIN, resume, overwrite=False, progress=RichProgress())


def row(cell: Cell, summary: Summary) -> list[str]:
    (budget,) = summary["budget"]
    counted = [f"{100 * budget['value']:.2f}", left(summary, "macs"), left(summary, "params")]
    return [cell.name, *accuracies(summary), *counted, f"{summary['seconds']['total']:.0f}"]


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
    parser = make_parser(__doc__, "runs/chipnet")
    parser.add_argument("--step", action="store_true", help="time the gated step")
    arguments = parser.parse_args()
    if arguments.step:
        time_steps(arguments.threads)
        return
    if any(arguments.only in cell.name and cell.model == TWIN for cell in cells()) and not arguments.table:
        train_twin(data_root(), arguments.out, arguments.threads)
    make_runs(cells(), arguments)
    header = ["cell", "dense", "fine-tuned", "pruned", "budget %", "MACs %", "params %", "seconds"]
    print_runs(header, cells(), arguments.out, row)


if __name__ == "__main__":
    main()
