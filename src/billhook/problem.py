"""What a run is asked to do: the nouns that travel from the command line to the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from billhook.cost.budget import Budget
from billhook.data import Data, ImageSet, Preprocess
from billhook.models import Network
from billhook.training.config import TrainConfig
from billhook.training.loop import Task


@dataclass(frozen=True)
class Problem:
    """One pruning problem.

    Attributes:
        network: The trained network and its spec.
        data: Images of the kept classes, split.
        preprocess: Transforms.
        budgets: What the delivered network must meet.
        train: Recipe of every training phase.
        epochs: Passes over the training images in all phases together; the control gets the same.
        all_classes: Training images of every class that the data have, for class-agnostic scores; None: not asked for.
        seed: Of everything random.
        slice_head: Deliver only the kept classes' outputs.
    """

    network: Network
    data: Data
    preprocess: Preprocess
    budgets: tuple[Budget, ...]
    train: TrainConfig = field(default_factory=TrainConfig)
    epochs: float = 10.0
    seed: int = 0
    slice_head: bool = False
    all_classes: ImageSet | None = None

    @property
    def images(self) -> int:
        """Training images that all phases together may use, each pass counted."""
        return round(self.epochs * len(self.data.train))

    @property
    def steps(self) -> int:
        """Optimiser steps that ``epochs`` pays for."""
        return max(1, round(self.epochs * self.data.train.steps(self.train.batch_size)))

    def task(self, module: nn.Module, phase: str, steps: int, **more: Any) -> Task:
        """A training phase of this problem.

        Args:
            module: Trained in place.
            phase: Names the journal's file and the history lines.
            steps: Optimiser steps.
            more: Further fields of the task: teacher, plugin, journal, progress, on_history.
        """
        return Task(
            module=module,
            train=self.data.train,
            validation=self.data.val,
            kept=self.data.kept,
            preprocess=self.preprocess,
            config=self.train,
            steps=steps,
            seed=self.seed,
            phase=phase,
            **more,
        )


@dataclass(frozen=True)
class Run:
    """How a run is carried out; nothing here changes what is asked.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` ...
        precision: ``auto``, ``fp32`` or ``bf16``.
        control: ``run``, ``none``, or the directory of a run whose control is taken.
        recipe_yaml: The recipe as the user can run it again.
        earlier: Directory of the interrupted run that goes on.
    """

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    control: str = "run"
    recipe_yaml: str = ""
    earlier: Path | None = None
