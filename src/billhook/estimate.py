"""A time estimate before long work: a few real steps on a copy, times what lies ahead."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import nn

from billhook.models import place
from billhook.problem import Problem
from billhook.training.distil import distillation_loss
from billhook.training.optim import make_optimizer
from billhook.training.precision import Room

# Below this a learning rate schedule has hardly begun: accuracy says nothing about the method.
FEW_STEPS = 20


FEW_IMAGES = (2, 8)
PATIENCE = 2.0
"""Seconds: where a step takes longer, it is judged from steps of few images, by a straight line through both."""


def step_seconds(problem: Problem, room: Room, distil: bool, repeats: int = 2) -> float:
    """Seconds of one training step; nothing is kept of those that it takes.

    The fastest of ``repeats`` after one that warms up, or what steps of fewer images say where that would take long.
    """
    config = problem.train
    module = place(copy.deepcopy(problem.network.module), room.device, config.channels_last).train()
    teacher = copy.deepcopy(module).eval() if distil else None
    optimizer = make_optimizer(module, config)
    size = problem.preprocess.input_size
    count = max(2, min(config.batch_size, len(problem.data.train)) // room.world)

    def once(count: int) -> float:
        images = torch.zeros(count, 3, size, size, device=room.device).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(count, dtype=torch.int64, device=room.device)
        started = time.perf_counter()
        with room.autocast():
            logits = module(images)
            with torch.no_grad():
                target = teacher(images) if teacher is not None else None
        loss = nn.functional.cross_entropy(logits.float(), labels)
        if target is not None:
            loss = loss + distillation_loss(logits, target, config.temperature)
        optimizer.zero_grad(set_to_none=True)
        room.accelerator.backward(loss)
        optimizer.step()
        if room.device.type == "cuda":
            torch.cuda.synchronize(room.device)
        return time.perf_counter() - started

    return along_line(once, count, repeats)


def along_line(once: Callable[[int], float], count: int, repeats: int) -> float:
    """Seconds of a step of ``count`` images.

    Args:
        once: Takes a step of so many images, returns its seconds.
        count: Images of a step in training.
        repeats: Steps of that size, where one is short enough.
    """
    few, more = FEW_IMAGES
    once(min(few, count))  # what is set up once
    short = once(min(few, count))
    if count <= more or short * count / few <= PATIENCE:
        once(count)
        return min(once(count) for _ in range(repeats))
    long = once(more)
    return long + max(0.0, long - short) / (more - few) * (count - more)


def estimate_seconds(problem: Problem, room: Room, steps: int, distil: bool, control: str) -> float:
    """Seconds of the whole run: training of both sides and a forward pass per epoch over the validation images."""
    plain = step_seconds(problem, room, distil=False)
    pruned = step_seconds(problem, room, distil=True) if distil else plain
    validation = problem.epochs * len(problem.data.val) / problem.train.batch_size / 3
    total = (steps + validation) * pruned
    if control == "run":
        total += (problem.steps + validation) * plain
    return total


def few_steps(problem: Problem) -> str:
    """A note for who is about to train with next to no optimiser steps; empty when there are enough of them."""
    if problem.steps >= FEW_STEPS:
        return ""
    times, images = "time" if problem.steps == 1 else "times", len(problem.data.train)
    return (
        f"weights are updated only {problem.steps} {times} ({images:,} images, batches of {problem.train.batch_size}); "
        "a smaller --batch-size or more --epochs may do better"
    )


def in_words(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
