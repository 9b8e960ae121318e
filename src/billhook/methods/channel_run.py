"""What all runs that remove channels share: phases of training, removals, one history, the network in its old shape."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from billhook import artifact
from billhook.data import ImageSet
from billhook.methods.base import HistoryWriter, Outcome, Setting
from billhook.methods.floor import RemovalConfig
from billhook.methods.group_limits import GroupLimits
from billhook.progress import Progress
from billhook.scores import saliency_images
from billhook.surgery import ChannelPlan, expand_channels, remove_channels
from billhook.training.checkpoint import Journal
from billhook.training.config import TrainConfig
from billhook.training.loop import fit
from billhook.training.plugin import Plugin

FORWARD = 1 / 3
"""A forward pass of an image costs about a third of a training step on it, and counts as that much of an image."""

BATCH = 64

SPARSE = 0.05
"""Share of zeros among the weights above which somebody has put them there."""

Batches = Callable[[], Iterable[Tensor]]
"""Images, anew with each call, on the network's device."""


@dataclass
class ChannelRun:
    """One run, from the dense network to the smaller one.

    Attributes:
        setting: What is asked, and where it runs.
        teacher: Dense network to distil from, or None.
        journal: Where the state of every phase is kept for ``--resume``.
        progress: What the user sees.
        on_history: Called with the whole history whenever it has grown.
        history: One line per epoch and per event; ``seconds`` counts from the start of the run.
    """

    setting: Setting
    teacher: nn.Module | None
    journal: Journal
    progress: Progress
    on_history: HistoryWriter
    history: list[dict[str, Any]] = field(default_factory=list)
    _removals: list[tuple[nn.Module, ChannelPlan]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long training took so far."""
        return next((float(line["seconds"]) for line in reversed(self.history) if "seconds" in line), 0.0)

    def train(
        self,
        module: nn.Module,
        phase: str,
        steps: int,
        *,
        recipe: TrainConfig | None = None,
        plugin: Plugin | None = None,
        distil: bool = True,
    ) -> None:
        """Train ``module`` in place, or go on where the journal stopped.

        Args:
            module: The network.
            phase: Names the journal's file.
            steps: Optimiser steps.
            recipe: Instead of the run's own.
            plugin: The method's part in the loop.
            distil: From the teacher, where there is one.
        """
        before, whole = self.seconds, list(self.history)
        task = self.setting.problem.task(
            module,
            phase,
            steps,
            teacher=self.teacher if distil else None,
            plugin=plugin,
            journal=self.journal,
            progress=self.progress,
            on_history=lambda new: self.on_history([*whole, *new]),
        )
        if recipe is not None:
            task.config = recipe
        lines = fit(task, self.setting.room)
        self.history.extend(
            line | ({"seconds": line["seconds"] + before} if "seconds" in line else {}) for line in lines
        )

    def record(self, line: dict[str, Any]) -> None:
        """Write an event down that happened between two phases."""
        self.history.append(line | {"seconds": self.seconds})
        self.progress.line(line)

    def record_removal(self, number: int, totals: Mapping[str, float], **more: Any) -> None:
        """Write down that channels went.

        Args:
            number: Of the removal, or of the last round of a search; from 1.
            totals: What the network costs without them.
            more: What the line says besides.
        """
        line = {"phase": "prune", "event": "channels", "round": number, "step": 0, "epoch": 0.0}
        self.record(line | more | counted(totals))

    def remove(self, module: nn.Module, plan: ChannelPlan) -> nn.Module:
        """The smaller network; ``module`` is left as it is."""
        self._removals.append((copy.deepcopy(module), plan))
        return remove_channels(module, plan)

    def outcome(self, module: nn.Module) -> Outcome:
        """What the method hands back: the smaller network, and one in the old shape that computes the same."""
        masked = module
        for before, plan in reversed(self._removals):
            masked = expand_channels(masked, before, plan)
        return Outcome(module, masked=masked, channels=tuple(plan for _, plan in self._removals), history=self.history)


def counted(totals: Mapping[str, float]) -> dict[str, int]:
    """What the history says of a network that lost channels."""
    return {name: int(totals[name]) for name in ("params", "macs", "channels")}


class RemovalPlan(ABC):
    """A feasible run of a method that removes channels; subclasses say how it runs.

    Args:
        setting: What is asked, and where it runs.
        config: Of the method.
        limits: How far it can go.

    Attributes:
        steps: Optimiser steps of all phases.
        share: Of the steps, those before the last removal.

    Raises:
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    steps: int
    share: float

    def __init__(self, setting: Setting, config: RemovalConfig, limits: GroupLimits) -> None:
        self.setting, self.config, self.limits = setting, config, limits
        self.left_dense = limits.left_dense
        limits.check()
        self.feasible = limits.feasibility()
        self.notes: list[str] = [*limits.notes]
        zeros = 1 - setting.dense["nonzero"] / max(1, setting.dense["params"])
        if zeros > SPARSE:
            self.notes.append(
                f"{100 * zeros:.0f} % of the weights are zero, and are counted as any other: those that stay grow back "
                "when the network is fine-tuned; prune channels first, and weights of what is left"
            )
        if limits.clocked:
            setting.dense["latency_ms"] = limits.clock.dense_ms
            self.notes += [limits.clock.note] if limits.clock.note else []
        train = setting.problem.train
        self.distil = train.distil if train.distil is not None else config.distil
        table = limits.table
        self.documents: dict[str, Any] = {} if table is None else {artifact.LATENCY: table.as_dict()}

    def run(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        journal: Journal,
        progress: Progress,
        on_history: HistoryWriter,
    ) -> Outcome:
        """Remove channels and fine-tune; continues from the journal. ``module`` is left behind."""
        self.limits.memory.begin(journal)
        return self.carry_out(ChannelRun(self.setting, teacher, journal, progress, on_history), module)

    @abstractmethod
    def carry_out(self, run: ChannelRun, module: nn.Module) -> Outcome:
        """Remove channels of ``module`` and fine-tune what is left."""

    def steps_without(self, images: float) -> int:
        """Optimiser steps that are left of the run's images when so many are taken for something else."""
        problem = self.setting.problem
        return max(1, int((problem.images - images) / max(1, problem.images) * problem.steps))

    def gently(self, rate: float) -> TrainConfig:
        """The recipe before the last removal: a constant, smaller learning rate.

        Args:
            rate: Of it, as a share of the run's.
        """
        train = self.setting.problem.train
        changes = {"schedule": "constant", "warmup": 0.0, "lr": rate * train.lr, "recalibrate": 0}
        return train.model_copy(update=changes)

    # ------------------------------------------------------------------ images
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

    @property
    def _layout(self) -> bool:
        return self.setting.problem.train.channels_last


def short_note(images: int) -> str:
    """A warning."""
    return (
        f"some channel groups have readers with fewer calibration samples than channels ({images} images): "
        "a ridge makes up for it; raise calibration"
    )
