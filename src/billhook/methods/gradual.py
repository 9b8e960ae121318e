"""Gradual masking: the part that every weight-sparsity method shares.

The first ``share`` of the steps is divided by ``rounds`` mask updates. Each update re-chooses all masks from the score
of *every* position (open or closed), at a target that rises along the schedule; between updates the straight-through
estimator keeps closed weights learning, so they can come back. After the last update the masks are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from billhook.methods.targets import Target
from billhook.problem import Problem
from billhook.scores import mean_absolute_gradient, saliency_images
from billhook.training.masked import MaskedWeights
from billhook.training.plugin import Plugin
from billhook.training.precision import Room

SALIENCY_SHARE = 0.2
"""Saliency passes may use at most this share of the images that the run may train on."""


class GradualConfig(BaseModel):
    """Fields that CRISP and the unstructured baselines share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Literal["saliency", "magnitude"] = Field("saliency", description="|w·mean|∂L/∂w|| or |w|")
    saliency: Literal["dense", "frozen", "training"] = Field(
        "dense",
        description="gradients from one pass over the dense network, from a pass before every mask update, or from the "
        "training steps (as published)",
    )
    class_aware: bool = Field(True, description="saliency on the kept classes' images; false: on all classes'")
    saliency_images: int = Field(2048, ge=1, description="images per pass; counted as images trained")
    temperature: float = Field(
        2.0, gt=0, description="softens the outputs in a pass: a network that is sure of its images has no gradient"
    )
    smooth: float = Field(0.5, ge=0, lt=1, description="share of the earlier rounds in the running mean of |∂L/∂w|")
    balance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a layer counts by its mean score in the dense network to the power 1 - balance (1: all layers "
        "alike); null: scores as they are",
    )
    micro_batch: int = Field(16, ge=1, description="images per gradient of a saliency pass")
    rounds: int = Field(12, ge=1, description="mask updates")
    share: float = Field(0.4, gt=0, le=1, description="share of the steps before the masks are fixed")
    schedule: Literal["cubic", "linear"] = "cubic"
    ste: bool = Field(True, description="straight-through gradients: closed weights keep learning")
    ste_rate: float = Field(0.02, ge=0, le=1, description="share of the gradient that reaches a closed weight")
    decay: float = Field(2e-4, ge=0, description="SR-STE's decay of closed weights")
    distil: bool = Field(True, description="distil from the dense network")


class MaskChooser(Protocol):
    """Turns scores into masks at a fraction of the way to the budget."""

    def choose(self, scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
        """Masks in the parameters' own shapes; ``fraction`` 1 meets the budget."""
        ...

    def sparsity(self, masks: Mapping[str, Tensor]) -> float:
        """Sparsity of the network that these masks would deliver."""
        ...


class GradualMasks(Plugin):
    """The loop's plugin: masks, rounds, straight-through gradients.

    Args:
        module: Trained in place.
        targets: Layers under masks.
        config: Schedule and scores.
        chooser: The pattern and the budget.
        problem: Images, preprocess and seed.
        room: Device, precision, processes.
    """

    def __init__(
        self,
        module: nn.Module,
        targets: list[Target],
        config: GradualConfig,
        chooser: MaskChooser,
        problem: Problem,
        room: Room,
    ) -> None:
        self.module, self.targets, self.config = module, targets, config
        self.chooser, self.problem, self.room = chooser, problem, room
        self.masked = MaskedWeights(
            module,
            [t.parameter for t in targets],
            rate=config.ste_rate if config.ste else 0.0,
            decay=config.decay if config.ste else 0.0,
        )
        self.round = 0
        self.images_per_round, self.steps = plan_images(config, problem)
        self.gradient_sums: dict[str, Tensor] = {}
        self.gradient_count = 0
        self.running: dict[str, Tensor] = {}
        self.layer_means: dict[str, float] = {}

    def update_steps(self) -> list[int]:
        """The steps before which masks are chosen anew; the first is step 0."""
        last = min(self.steps - 1, round(self.config.share * self.steps))
        return [round(last * i / max(1, self.config.rounds - 1)) for i in range(self.config.rounds)]

    # ------------------------------------------------------------------ the loop's calls
    def before_step(self, step: int) -> list[dict[str, Any]]:
        """Choose masks when it is time, then close the weights."""
        events = []
        while not self.masked.frozen and step >= self.update_steps()[self.round]:
            events.append(self._update(step))
        self.masked.close()
        return events

    def after_backward(self, step: int) -> None:
        """Straight-through gradients for the latent weights; sums of |g| when the score lives on them."""
        del step
        if not self.masked.frozen and self.config.score == "saliency" and self.config.saliency == "training":
            for name, parameter in self.masked.parameters.items():
                if parameter.grad is not None:
                    total = self.gradient_sums.setdefault(name, torch.zeros_like(parameter, dtype=torch.float32))
                    total.add_(parameter.grad.abs())
            self.gradient_count += 1
        self.masked.open()

    def before_evaluate(self) -> None:
        """Evaluate what would be delivered: closed weights are zero."""
        self.masked.close()

    def after_evaluate(self) -> None:
        """Back to latent weights."""
        self.masked.open()

    def describe(self) -> dict[str, Any]:
        """Sparsity for the epoch's history line."""
        return {"sparsity": self.chooser.sparsity(self.masked.masks), "round": self.round}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Masks, round and gradient sums."""
        tensors = {f"mask/{name}": mask for name, mask in self.masked.state_dict().items()}
        tensors |= {f"gradient/{name}": total for name, total in self.gradient_sums.items()}
        tensors |= {f"running/{name}": mean for name, mean in self.running.items()}
        meta = {
            "round": self.round,
            "frozen": self.masked.frozen,
            "gradient_count": self.gradient_count,
            "layer_means": self.layer_means,
        }
        return tensors, meta

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue where :meth:`state` was taken."""
        masks = {name[5:]: t for name, t in tensors.items() if name.startswith("mask/")}
        self.gradient_sums = {
            name[9:]: t.to(self.room.device) for name, t in tensors.items() if name.startswith("gradient/")
        }
        self.running = {name[8:]: t.to(self.room.device) for name, t in tensors.items() if name.startswith("running/")}
        self.layer_means = dict(meta["layer_means"])
        self.round, self.gradient_count = int(meta["round"]), int(meta["gradient_count"])
        self.masked.load_state_dict(masks, frozen=bool(meta["frozen"]))

    def deliver(self) -> None:
        """After the last step: every closed weight is zero for good, also in averaged weights."""
        with torch.no_grad():
            for name, keep in self.masked.masks.items():
                self.masked.parameters[name].mul_(keep)

    # ------------------------------------------------------------------ one round
    def _update(self, step: int) -> dict[str, Any]:
        scores = self._scores()
        self.round += 1
        fraction = schedule(self.config.schedule, self.round, self.config.rounds)
        changed, returned = self.masked.set_masks(self.chooser.choose(scores, fraction))
        if self.round == self.config.rounds:
            self.masked.freeze()
        per_epoch = self.problem.data.train.steps(self.problem.train.batch_size)
        return {
            "phase": "prune",
            "event": "mask",
            "epoch": round(step / per_epoch, 4),
            "step": step,
            "round": self.round,
            "sparsity": self.chooser.sparsity(self.masked.masks),
            "changed": changed / max(1, sum(m.numel() for m in self.masked.masks.values())),
            "returned": returned,
        }

    def _scores(self) -> dict[str, Tensor]:
        latent = self.masked.latent
        if self.config.score == "magnitude":
            return self._balanced({name: weight.abs() for name, weight in latent.items()})
        if self.config.saliency == "training" and self.gradient_count:
            # Each process saw its share of the batches; the mean over all of them decides.
            count = self.gradient_count * self.room.world
            means = {name: self.room.sum(total) / count for name, total in self.gradient_sums.items()}
            self.gradient_sums, self.gradient_count = {}, 0
        elif self.config.saliency == "dense" and self.running:
            means = self.running
        else:
            problem = self.problem
            pool = problem.data.train if self.config.class_aware else problem.all_classes
            assert pool is not None, "build_problem opens all classes when a config is not class-aware"
            images = saliency_images(pool, self.images_per_round, problem.seed, self.round)
            self.masked.close()
            means = mean_absolute_gradient(
                self.module,
                self.masked.parameters,
                images,
                problem.preprocess,
                self.room,
                micro_batch=self.config.micro_batch,
                temperature=self.config.temperature,
            )
            self.masked.open()
        if self.running:
            # Single estimates are noisy where the loss is nearly zero; masks that follow them flicker.
            means = {name: self.running[name].lerp(mean, 1 - self.config.smooth) for name, mean in means.items()}
        self.running = means
        return self._balanced({name: (latent[name] * means[name]).abs() for name in latent})

    def _balanced(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fix how much each layer counts by what the dense network says.

        Scores of a half-closed layer, and of its neighbours in the residual block, shrink with its gradient. Under one
        global threshold over the scores of the moment such a block starves until nothing of it is left.
        """
        if self.config.balance is None:
            return scores
        means = {name: float(score.mean()) for name, score in scores.items()}
        if not self.layer_means:
            self.layer_means = means
        power = 1 - self.config.balance
        return {
            name: score * (self.layer_means[name] ** power / max(means[name], 1e-30)) for name, score in scores.items()
        }


def schedule(kind: Literal["cubic", "linear"], round_: int, rounds: int) -> float:
    """The share of the way to the budget after round ``round_`` of ``rounds`` (cubic: Zhu & Gupta, 2017)."""
    if round_ >= rounds:
        return 1.0
    left = 1 - round_ / rounds
    return 1 - left**3 if kind == "cubic" else 1 - left


def count_passes(config: GradualConfig) -> int:
    """Saliency passes of a run; also the gradients of the training steps begin with one."""
    return config.rounds if config.saliency == "frozen" else 1


def plan_images(config: GradualConfig, problem: Problem) -> tuple[int, int]:
    """Split the run's images between saliency passes and training.

    Returns:
        Images per saliency pass (0 when none is needed), and optimiser steps.
    """
    if config.score != "saliency":
        return 0, problem.steps
    passes = count_passes(config)
    allowed = int(SALIENCY_SHARE * problem.images / passes)
    per_pass = max(1, min(config.saliency_images, len(problem.data.train), allowed))
    left = (problem.images - passes * per_pass) / max(1, problem.images)
    return per_pass, max(1, int(left * problem.steps))
