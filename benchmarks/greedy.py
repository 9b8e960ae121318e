"""Greedy filter pruning with compensation: what is left straight after pruning, and after fine-tuning.

    BILLHOOK_DATA=DIR python benchmarks/greedy.py --out runs/greedy [--only PART] [--threads N]
    BILLHOOK_DATA=DIR python benchmarks/greedy.py --no-finetune [--only PART] [--model resnet20]

``DIR`` holds ``cifar10/`` and ``weights/`` (see benchmarks/README.md). Every cell is a run directory, resumed or
skipped when it is there already. With ``--no-finetune`` nothing is trained and nothing written: accuracies on test
images are printed, with and without compensation. Nothing is chosen on test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from billhook.api import look, run_recipe
from billhook.methods.channel_pruning import ChannelPruningPlan
from billhook.methods.channel_run import ChannelRun
from billhook.methods.greedy import SearchPlan, UniformPlan
from billhook.models import place
from billhook.progress import Progress, RichProgress
from billhook.recipe import make_recipe
from billhook.rundir import RunDirectory
from billhook.training.checkpoint import Journal
from billhook.training.evaluate import evaluate

PROTOCOLS = {"quick": {"limit_train": 5000, "epochs": 10}, "standard": {"limit_train": 15000, "epochs": 30}}
METHODS = ("l1", "fp-backward", "fp-omp", "hbgs", "hbgts")
MODELS = ("resnet56", "resnet32")

STRAIGHT: dict[str, dict[str, Any]] = {
    "l1": {"name": "l1"},
    "l1-uniform": {"name": "l1", "scope": "uniform"},
    **{
        f"{name}{mark}": {"name": name} | fields
        for name in ("lrf", "fp-omp", "fp-backward")
        for mark, fields in (("-bare", {"compensation": "none"}), ("", {}))
    },
    "fp-backward-activations": {"name": "fp-backward", "score": "activations"},
    **{
        f"{name}{mark}": {"name": name, "finetune_every": 0} | fields
        for name in ("hbgs", "hbgts")
        for mark, fields in (
            ("-bare", {"compensation": "none"}),
            ("", {}),
            ("-omp", {"selector": "omp"}),
            ("-activations", {"score": "activations"}),
            ("-error", {"weigh": "error"}),
            ("-activations-error", {"score": "activations", "weigh": "error"}),
        )
    },
}
"""What ``--no-finetune`` compares: the bare ones without compensation, ``-error`` weighed as published."""


@dataclass(frozen=True)
class Cell:
    """One run: a method's settings on a network, under a protocol."""

    name: str
    model: str
    protocol: str
    method: dict[str, Any]
    budget: str

    def recipe(self, root: Path, threads: int | None) -> dict[str, Any]:
        protocol = PROTOCOLS[self.protocol]
        return {
            "model": self.model,
            "weights": str(root / "weights" / f"cifar10_{self.model}.safetensors"),
            "data": {"source": str(root / "cifar10"), "limit_train": protocol["limit_train"]},
            "method": self.method,
            "budget": [self.budget],
            "train": {"epochs": protocol["epochs"]},
            "seed": 0,
            "threads": threads,
        }


def cells(budget: str) -> list[Cell]:
    return [
        Cell(f"{model}-{method}-{protocol}", model, protocol, {"name": method}, budget)
        for protocol in PROTOCOLS
        for model in MODELS
        for method in METHODS
    ]


def row(name: str, summary: dict[str, Any]) -> list[str]:
    dense, control, pruned = summary["dense"], summary["dense_finetuned"], summary["pruned"]
    seconds = summary["seconds"]
    return [
        name,
        f"{100 * dense['top1_kept']:.2f}",
        f"{100 * control['top1_kept']:.2f}" if control else "",
        f"{100 * pruned['top1_kept']:.2f}",
        f"{100 * pruned['params'] / dense['params']:.2f}",
        f"{100 * pruned['macs'] / dense['macs']:.2f}",
        f"{seconds['prune']:.0f}",
        f"{seconds['total']:.0f}",
    ]


def straight(cell: Cell, root: Path, threads: int | None, images: int, seed: int) -> list[str]:
    """One row: accuracy on test images when nothing is trained."""
    if threads:
        torch.set_num_threads(threads)
    prepared, _ = look(make_recipe(cell.recipe(root, threads) | {"control": "none", "device": "cpu"}))
    setting, plan = prepared.setting, prepared.plan
    problem = setting.problem
    run = ChannelRun(setting, None, Journal(None), Progress(), lambda history: None)
    module: nn.Module = place(copy.deepcopy(problem.network.module), setting.room.device)
    started = time.perf_counter()
    if isinstance(plan, UniformPlan | SearchPlan):
        small = plan.removed(run)
    else:
        assert isinstance(plan, ChannelPruningPlan)
        small = run.remove(module, plan.removal(module, 1)[0])
    seconds = time.perf_counter() - started
    chosen = torch.randperm(len(problem.data.test), generator=torch.Generator().manual_seed(seed))[:images]
    test = problem.data.test.subset(chosen)
    found = [
        evaluate(part, test, problem.preprocess, problem.data.kept, setting.room).top1_kept for part in (module, small)
    ]
    params = sum(parameter.numel() for parameter in small.parameters())
    rounds = sum(line.get("event") == "round" for line in run.history)
    return [
        cell.name,
        *(f"{100 * value:.2f}" for value in found),
        f"{100 * params / setting.dense['params']:.2f}",
        str(rounds or ""),
        f"{seconds:.1f}",
    ]


def table(header: list[str], rows: list[list[str]]) -> None:
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/greedy"))
    parser.add_argument("--only", default="", help="run only cells whose name holds that text")
    parser.add_argument("--budget", default="params<=37%")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--no-finetune", action="store_true", help="accuracy straight after pruning; writes nothing")
    parser.add_argument("--model", default="resnet56", help="of --no-finetune")
    parser.add_argument("--protocol", default="standard", choices=list(PROTOCOLS), help="of --no-finetune")
    parser.add_argument("--images", type=int, default=10000, help="test images of --no-finetune")
    parser.add_argument("--set", action="append", default=[], help="a setting of the methods of --no-finetune, as JSON")
    arguments = parser.parse_args()
    root, out = Path(os.environ["BILLHOOK_DATA"]), arguments.out
    if arguments.no_finetune:
        more = {key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments.set)}
        wanted = [name for name in STRAIGHT if arguments.only in name]
        table(["cell", "dense", "pruned", "params %", "rounds", "seconds"], [])
        for name in wanted:
            method = STRAIGHT[name] | (more if not name.startswith("l1") else {})
            cell = Cell(name, arguments.model, arguments.protocol, method, arguments.budget)
            print("| " + " | ".join(straight(cell, root, arguments.threads, arguments.images, 0)) + " |", flush=True)
        return
    for cell in cells(arguments.budget):
        place_ = RunDirectory(out / cell.name)
        if arguments.table or arguments.only not in cell.name or place_.finished:
            continue
        print(f"== {cell.name}", flush=True)
        recipe = make_recipe(cell.recipe(root, arguments.threads))
        resume = place_.partial is not None and place_.partial.is_dir()
        run_recipe(recipe, out=place_.directory, resume=resume, progress=RichProgress())
    done = [(cell, out / cell.name / "summary.json") for cell in cells(arguments.budget)]
    table(
        ["cell", "dense", "fine-tuned", "pruned", "params %", "MACs %", "seconds of search", "seconds"],
        [row(cell.name, json.loads(path.read_text())) for cell, path in done if path.is_file()],
    )


if __name__ == "__main__":
    main()
