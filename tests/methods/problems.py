"""Tiny pruning problems: networks with every kind of layer, images in memory, two or three steps of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from billhook import artifact
from billhook.cost import Cost, count
from billhook.cost.budget import parse_budgets
from billhook.formats import PatternInfo
from billhook.methods import CHANNEL_METHODS, Outcome, make_config
from billhook.models import build, open_network
from billhook.pipeline import Prepared, prepare
from billhook.problem import Problem, Run
from billhook.progress import Progress
from billhook.surgery import slice_head
from billhook.training.checkpoint import Journal
from billhook.training.config import TrainConfig
from training.small import TinyNet, data, preprocess, seeded


class Ragged(nn.Module):
    """Channel counts that no block of 16 divides (24 -> 40 -> 36 -> 20), a first convolution and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.a, self.norm = nn.Conv2d(24, 40, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(40)
        self.b = nn.Conv2d(40, 36, 3, padding=1)
        self.c = nn.Conv2d(36, 20, 1)
        self.fc = nn.Linear(20, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.norm(self.a(self.first(x).relu())).relu()
        return self.fc(self.c(self.b(x).relu()).relu().mean(dim=(2, 3)))


NETWORKS: dict[str, Any] = {
    "ragged": lambda classes: seeded(Ragged, classes),
    "tiny": lambda classes: seeded(TinyNet, classes),
    "tinycnn": lambda classes: build("tinycnn", classes),
    "resnet20": lambda classes: build("resnet20", classes),
    "mobilenet_v2": lambda classes: build("mobilenet_v2,width=0.25", classes),
}


@dataclass
class Done:
    """A plan that was run.

    Attributes:
        full: The masked network with the full head.
        small: The network as delivered.
        patterns: Of the delivered network.
        cost: Of the delivered network.
    """

    prepared: Prepared
    outcome: Outcome
    full: nn.Module
    small: nn.Module
    patterns: dict[str, PatternInfo]
    cost: Cost

    @property
    def sparsity(self) -> float:
        """Zeros under the masks over all parameters of the delivered network."""
        closed = sum(int((~info.mask).sum()) for info in self.patterns.values())
        return closed / self.cost.params

    @property
    def bytes(self) -> int:
        """Size of the file, by the packer."""
        return artifact.file_bytes(artifact.state_arrays(self.small), self.patterns)


def ready(
    module: nn.Module | str,
    method: str,
    budget: str | list[str],
    *,
    classes: int = 4,
    keep: list[int] | None = None,
    epochs: float = 1.0,
    size: int = 8,
    **fields: Any,
) -> Prepared:
    """Plan a run on a few images."""
    if isinstance(module, str):
        module = NETWORKS[module](classes)
    images = data(48, classes, size=size, keep=keep)
    brief = {} if method in CHANNEL_METHODS else {"rounds": 2, "saliency_images": 8}
    config: BaseModel = make_config(method, brief | fields)
    problem = Problem(
        open_network(module),
        images,
        preprocess(size=size),
        parse_budgets([budget] if isinstance(budget, str) else budget),
        TrainConfig(batch_size=12, lr=0.01),
        epochs,
        slice_head=keep is not None,
    )
    return prepare(problem, config, Run("cpu", "fp32", "none"), timed=False)


def carry_out(prepared: Prepared) -> Done:
    """Run a plan, slice the head, count."""
    setting = prepared.setting
    problem = setting.problem
    with torch.random.fork_rng(devices=[]):
        outcome = prepared.plan.run(problem.network.module, None, Journal(None), Progress(), lambda history: None)
    full = artifact.deliverable(outcome.module)
    small, patterns = full, outcome.patterns
    if problem.slice_head:
        small = slice_head(full, setting.head, problem.data.kept)
        patterns = artifact.slice_patterns(patterns, setting.head, problem.data.kept)
    return Done(prepared, outcome, full, small, patterns, count(small, problem.preprocess.input_size))


def check_conformance(done: Done) -> nn.Module:
    """Half of the parameters or fewer are left, as counted, and the network in its old shape computes the same.

    Returns:
        That network.
    """
    setting = done.prepared.setting
    size = setting.problem.preprocess.input_size
    assert done.cost.params <= 0.5 * setting.dense["params"]
    assert done.cost.params == sum(parameter.numel() for parameter in done.small.parameters())
    assert done.outcome.masked is not None
    masked = artifact.deliverable(done.outcome.masked)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = masked(images), done.full(images)
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()
    return masked


def counted_and_bound(done: Done, budget: str) -> tuple[str, float, float]:
    """The quantity that falls for a budget in percent, what is left of it when delivered, and how much may be."""
    sparsity = budget.startswith("sparsity")
    quantity = "params" if sparsity else budget.split("<=")[0]
    share = float(budget.split("=")[1][:-1]) / 100
    bound = done.prepared.setting.dense[quantity] * (1 - share if sparsity else share)
    return quantity, done.bytes if quantity == "bytes" else done.cost.totals()[quantity], bound
