"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from billhook.training.config import TrainConfig


def make_optimizer(
    module: nn.Module, config: TrainConfig, more: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """SGD or AdamW over every parameter; biases and normalisation scales (1-D) get no weight decay.

    Args:
        module: Whose parameters are trained.
        config: The recipe.
        more: Groups of further parameters.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]] + list(more)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def learning_rate(config: TrainConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Cosine to zero, constant, or in steps, after a linear warm-up of at most a tenth of all ``steps``."""
    warmup = min(round(config.warmup * steps_per_epoch), steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        passed = sum(step >= milestone * steps for milestone in config.milestones)
        if config.step_every is not None:
            passed += int(step / (config.step_every * steps_per_epoch))
        return config.lr * config.factor**passed
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
