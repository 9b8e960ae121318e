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
import time
from typing import Any

import torch
from torch import nn

from billhook.api import look
from billhook.methods import find_method
from billhook.methods.channel_pruning import ChannelPruningPlan
from billhook.methods.channel_run import ChannelRun
from billhook.methods.greedy import SearchPlan, UniformPlan
from billhook.models import place
from billhook.progress import Progress
from billhook.recipe import make_recipe
from billhook.training.checkpoint import Journal
from billhook.training.evaluate import evaluate
from cells import (
    PROTOCOLS,
    RESNET56_CIFAR100,
    Cell,
    Summary,
    accuracies,
    data_root,
    left,
    make_parser,
    make_runs,
    print_runs,
    print_table,
)

METHODS = ("l1", "taylor", "fp-backward", "fp-omp", "hbgs", "hbgts")
MODELS = ("resnet56", "resnet32")
LESS = (63, 80, 90, 95)
"""Percent of the parameters that go, on CIFAR-100."""

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


def cells(budget: str) -> list[Cell]:
    """CIFAR-10 at one budget, CIFAR-100 at several."""
    made = [
        Cell(f"{model}-{method}-{protocol}", protocol, {"name": method}, budget, model=model)
        for protocol in PROTOCOLS
        for model in MODELS
        for method in METHODS
    ]
    wide: dict[str, Any] = RESNET56_CIFAR100
    made += [
        Cell(f"cifar100-{method}-{less}-quick", "quick", {"name": method}, f"params<={100 - less}%", **wide)
        for less in LESS
        for method in METHODS
    ]
    return made


def row(cell: Cell, summary: Summary) -> list[str]:
    seconds = [f"{summary['seconds'][part]:.0f}" for part in ("prune", "total")]
    return [cell.name, *accuracies(summary), left(summary, "params"), left(summary, "macs"), *seconds]


def straight(cell: Cell, arguments: argparse.Namespace) -> list[str]:
    """One row: accuracy on test images when nothing is trained."""
    threads = arguments.threads
    if threads:
        torch.set_num_threads(threads)
    more = {"threads": threads, "control": "none", "device": "cpu"}
    prepared, _ = look(make_recipe(cell.recipe(data_root(), arguments.out) | more))
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
    chosen = torch.randperm(len(problem.data.test), generator=torch.Generator().manual_seed(0))[: arguments.images]
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


def main() -> None:
    parser = make_parser(__doc__, "runs/greedy")
    parser.add_argument("--budget", default="params<=37%")
    parser.add_argument("--no-finetune", action="store_true", help="accuracy straight after pruning; writes nothing")
    parser.add_argument("--model", default="resnet56", help="of --no-finetune")
    parser.add_argument("--protocol", default="standard", choices=list(PROTOCOLS), help="of --no-finetune")
    parser.add_argument("--images", type=int, default=10000, help="test images of --no-finetune")
    parser.add_argument(
        "--set", action="append", default=[], help="a setting, as JSON, of those methods of --no-finetune that have it"
    )
    arguments = parser.parse_args()
    if arguments.no_finetune:
        more = {key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments.set)}
        chosen = [
            Cell(
                name,
                arguments.protocol,
                method
                | {key: value for key, value in more.items() if key in find_method(method["name"]).config.model_fields},
                arguments.budget,
                model=arguments.model,
            )
            for name, method in STRAIGHT.items()
            if arguments.only in name
        ]
        header = ["cell", "dense", "pruned", "params %", "rounds", "seconds"]
        print_table(header, (straight(cell, arguments) for cell in chosen))
        return
    make_runs(cells(arguments.budget), arguments)
    header = ["cell", "dense", "fine-tuned", "pruned", "params %", "MACs %", "seconds of search", "seconds"]
    print_runs(header, cells(arguments.budget), arguments.out, row)


if __name__ == "__main__":
    main()
