"""What greedy plans share: limits, images that measuring takes, and the recipe within a search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from billhook.data import ImageSet
from billhook.methods.base import Setting
from billhook.methods.channel_choice import Costs
from billhook.methods.channel_run import ChannelRun
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.removable import removable
from billhook.methods.greedy.shrinking import Batches, Shrinking
from billhook.models import place
from billhook.scores import saliency_images
from billhook.training.config import TrainConfig

FORWARD = 1 / 3
"""A forward pass of an image costs about a third of a training step on it, and counts as that much of an image."""

BATCH = 64


class GreedyPlan:
    """A feasible run of a greedy method; subclasses say how it runs.

    Args:
        setting: What is asked, and where it runs.
        config: Of the method.

    Attributes:
        left: The network as :meth:`finish` cut it.

    Raises:
        InputError: No channel can be removed.
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    def __init__(self, setting: Setting, config: GreedyConfig) -> None:
        problem = setting.problem
        self.setting, self.config = setting, config
        self.removable = removable(setting, problem.budgets, config)
        self.limits = self.removable.limits
        self.left_dense = self.limits.left_dense
        self.limits.check()
        self.feasible = self.limits.feasibility()
        if self.limits.clocked:
            setting.dense["latency_ms"] = self.limits.clock.dense_ms
        self.distil = problem.train.distil if problem.train.distil is not None else config.distil
        self.notes: list[str] = []
        self.steps, self.share = max(1, problem.steps), 0.0

    @property
    def cost(self) -> Costs:
        """What the network costs with fewer channels."""
        return self.limits.cost

    def steps_without(self, images: float) -> int:
        """Optimiser steps that are left of the run's images when measuring took so many."""
        problem = self.setting.problem
        return max(1, int((1 - images / max(1, problem.images)) * problem.steps))

    def recipe(self) -> TrainConfig:
        """Within the search: a constant, smaller rate."""
        train = self.setting.problem.train
        changes = {"schedule": "constant", "warmup": 0.0, "lr": self.config.rate * train.lr, "recalibrate": 0}
        return train.model_copy(update=changes)

    # ------------------------------------------------------------------ parts of a run
    def original(self) -> nn.Module:
        """The network with all its channels, where the run is."""
        setting = self.setting
        original = place(copy.deepcopy(setting.network.module), setting.room.device, self._layout)
        return original.requires_grad_(False).eval()

    def begin(self, calibration: int) -> Shrinking:
        """The network that will lose channels, proposals for it being made on so many images."""
        return self.removable.begin(self.setting.room.device, self._layout, self.bare(self.images(calibration, 1)))

    def images(self, count: int, draw: int) -> ImageSet:
        """So many images of the training split: of the kept classes, that is."""
        problem = self.setting.problem
        return saliency_images(problem.data.train, count, problem.seed, draw)

    def labelled(self, images: ImageSet) -> Callable[[int], Iterable[tuple[Tensor, Tensor]]]:
        """Batches with labels, by their size."""
        device = self.setting.room.device

        def batches(size: int) -> Iterable[tuple[Tensor, Tensor]]:
            for batch in images.batches(size, self.setting.problem.preprocess, channels_last=self._layout):
                yield batch.images.to(device), batch.labels.to(device)

        return batches

    def bare(self, images: ImageSet) -> Batches:
        """Batches of images alone."""
        labelled = self.labelled(images)
        return lambda: (batch for batch, _ in labelled(BATCH))

    def finish(self, run: ChannelRun, network: Shrinking, line: dict[str, Any]) -> nn.Module:
        """Cut the network, and write down what is left."""
        totals = self.cost.totals({name: len(channels) for name, channels in network.kept.items()})
        run.record(
            {"phase": "prune", "event": "channels", "step": 0, "epoch": 0.0}
            | line
            | {name: int(totals[name]) for name in ("params", "macs", "channels")}
        )
        self.left = network
        return network.cut(run)

    @property
    def _layout(self) -> bool:
        return self.setting.problem.train.channels_last
