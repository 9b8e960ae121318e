"""What all runs that remove channels share: phases of training, removals, one history, the network in its old shape."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from billhook.methods.base import HistoryWriter, Outcome, Setting
from billhook.progress import Progress
from billhook.surgery import ChannelPlan, expand_channels, remove_channels
from billhook.training.checkpoint import Journal
from billhook.training.config import TrainConfig
from billhook.training.loop import fit
from billhook.training.plugin import Plugin


class ChannelRun:
    """One run, from the dense network to the smaller one.

    Args:
        setting: What is asked, and where it runs.
        teacher: Dense network to distil from, or None.
        journal: Where the state of every phase is kept for ``--resume``.
        progress: What the user sees.
        on_history: Called with the whole history whenever it has grown.

    Attributes:
        history: One line per epoch and per event; ``seconds`` counts from the start of the run.
    """

    def __init__(
        self,
        setting: Setting,
        teacher: nn.Module | None,
        journal: Journal,
        progress: Progress,
        on_history: HistoryWriter,
    ) -> None:
        self.setting, self.teacher, self.journal = setting, teacher, journal
        self.progress, self.on_history = progress, on_history
        self.history: list[dict[str, Any]] = []
        self._removals: list[tuple[nn.Module, ChannelPlan]] = []

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
