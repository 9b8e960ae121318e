"""The one training loop: dense training, the control, and every method's fine-tuning run through it.

Randomness is a function of (seed, epoch, step), so a run that resumes at step s sees what an unbroken one saw.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from billhook.data import ImageSet, Preprocess
from billhook.data.splits import seed_of
from billhook.errors import Interrupted, RunError
from billhook.models import load_into, place
from billhook.progress import Progress
from billhook.training.checkpoint import Journal, load_optimizer, optimizer_tensors, split_prefix
from billhook.training.config import TrainConfig
from billhook.training.distil import Hints, distillation_loss
from billhook.training.evaluate import evaluate
from billhook.training.interrupt import Interrupts
from billhook.training.mixup import Blend
from billhook.training.optim import learning_rate, make_optimizer
from billhook.training.plugin import Plugin
from billhook.training.precision import Room
from billhook.training.recalibrate import recalibrate


@dataclass
class Task:
    """What one call of :func:`fit` trains.

    Attributes:
        module: Trained in place.
        train: Training images.
        validation: Watched after every epoch; never trained on.
        kept: Head outputs of the kept classes.
        preprocess: Transforms.
        config: The recipe.
        steps: Optimiser steps in all.
        seed: Of order and augmentation.
        phase: ``control``, ``prune`` or ``train``: names the journal's file and the history lines.
        teacher: Dense network to distil from, or None.
        plugin: The pruning method's part, or None.
        journal: Where the state is kept for ``--resume``.
        progress: What the user sees.
        on_history: Called with the whole history whenever it has grown.
    """

    module: nn.Module
    train: ImageSet
    validation: ImageSet
    kept: tuple[int, ...]
    preprocess: Preprocess
    config: TrainConfig
    steps: int
    seed: int
    phase: str
    teacher: nn.Module | None = None
    plugin: Plugin | None = None
    journal: Journal = field(default_factory=lambda: Journal(None))
    progress: Progress = field(default_factory=Progress)
    on_history: Callable[[list[dict[str, Any]]], None] | None = None


def fit(task: Task, room: Room) -> list[dict[str, Any]]:
    """Train ``task.module`` for ``task.steps`` steps, or go on where the journal stopped.

    Returns:
        The history: one dictionary per epoch and per event of the plugin.

    Raises:
        RunError: The loss or a weight is not finite; the journal keeps the last good state.
        Interrupted: SIGINT or SIGTERM; the current step was finished and saved.
    """
    training = None
    try:
        training = _Fit(task, room)
        return training.run()
    finally:
        if training is not None and training.hints is not None:
            training.hints.close()
        room.release()


class _Fit:
    def __init__(self, task: Task, room: Room) -> None:
        self.task, self.room, self.config = task, room, task.config
        self.plugin = task.plugin or Plugin()
        layout = self.config.channels_last
        self.bare = place(task.module, room.device, layout)
        self.teacher = place(task.teacher, room.device, layout).eval() if task.teacher is not None else None
        self.optimizer = make_optimizer(self.bare, self.config, self.plugin.parameters())
        self.steps_per_epoch = task.train.steps(self.config.batch_size)
        self.hints: Hints | None = None
        self.history: list[dict[str, Any]] = []
        self.step = 0
        self.seconds = 0.0
        self.average: dict[str, Tensor] = {}
        # Sums over the running epoch: loss, hits, images. Saved, so that a resumed epoch reports itself whole.
        self.sums = torch.zeros(3, dtype=torch.float64, device=room.device)
        self._restore()
        if self.config.ema is not None and not self.average:
            self.average = {name: t.detach().clone() for name, t in self.bare.state_dict().items()}
        self.module = room.prepare(self.bare)

    # ------------------------------------------------------------------ the loop
    def run(self) -> list[dict[str, Any]]:
        task = self.task
        started, last_save = time.perf_counter() - self.seconds, time.perf_counter()
        devices = [self.room.device] if self.room.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            Interrupts() as interrupts,
            task.progress.bar(task.phase, task.steps, self.step) as bar,
        ):
            while self.step < task.steps:
                epoch, start = divmod(self.step, self.steps_per_epoch)
                batches = task.train.batches(
                    self.config.batch_size,
                    task.preprocess,
                    train=True,
                    seed=task.seed,
                    epoch=epoch,
                    start=start,
                    rank=self.room.rank,
                    world=self.room.world,
                    channels_last=self.config.channels_last,
                )
                self.module.train()
                for batch in batches:
                    # Dropout draws from the global generator: a resumed step draws what an unbroken one drew.
                    torch.manual_seed(seed_of("step", task.seed, task.phase, self.step, self.room.rank))
                    lr = learning_rate(self.config, self.step, task.steps, self.steps_per_epoch)
                    self._record(self.plugin.before_step(self.step))
                    loss, hits = self._step(batch.images, batch.labels, lr)
                    self.step += 1
                    self.sums += torch.stack(
                        [loss.double(), hits.double(), hits.new_tensor(len(batch.labels)).double()]
                    )
                    bar.advance(1)
                    self.seconds = time.perf_counter() - started
                    ended = self.step >= task.steps or self.step % self.steps_per_epoch == 0
                    if ended:
                        self._finish_epoch(lr)
                    stop = self._interrupted(interrupts)
                    overdue = time.perf_counter() - last_save > 60 and self.room.world == 1
                    if ended or stop or overdue:
                        self._save()
                        last_save = time.perf_counter()
                    if stop:
                        number = interrupts.pending or 15
                        word = "interrupted" if number == 2 else "terminated"
                        raise Interrupted(
                            f"{word} after step {self.step} of {task.steps} ({task.phase})",
                            "continue with --resume",
                            signal_number=number,
                        )
                    if self.step >= task.steps:
                        break
        self._finish()
        return self.history

    def _step(self, images: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        config = self.config
        images, labels = images.to(self.room.device), labels.to(self.room.device)
        blend = Blend(config.mixup, len(images)) if config.mixup else None
        if blend is not None:
            images = blend.images(images)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        with self.room.autocast():
            if self.teacher is not None and self.hints is None and config.distil_features:
                self.hints = Hints(self.bare, self.teacher, images)
            logits = self.module(images)
            teacher_logits = None
            if self.teacher is not None:
                with torch.no_grad():
                    teacher_logits = self.teacher(images)
        logits = logits.float()

        def wrong(labels: Tensor) -> Tensor:
            return functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)

        loss = wrong(labels) if blend is None else blend.loss(wrong, labels)
        if teacher_logits is not None:
            soft = distillation_loss(logits, teacher_logits, config.temperature)
            loss = (1 - config.distil_weight) * loss + config.distil_weight * soft
            if self.hints is not None:
                loss = loss + config.distil_features * self.hints.loss()
        if (more := self.plugin.loss(self.step)) is not None:
            loss = loss + more
        worst = self.room.sum(loss.detach())  # no process goes on alone
        if not math.isfinite(worst.item()):
            raise self._diverged(f"the loss is {worst.item()} at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        self.room.accelerator.backward(loss)
        self.plugin.after_backward(self.step)
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.bare.parameters(), config.clip)
        self.optimizer.step()
        self.room.agree(self.bare)
        if self.average:
            self._update_average()
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        return loss.detach() * len(labels), hits

    def _diverged(self, what: str) -> RunError:
        """What is not finite, and where in the training."""
        return RunError(
            f"{what} (epoch {self.step / self.steps_per_epoch:.2f}, phase {self.task.phase}, "
            f"learning rate {self.optimizer.param_groups[0]['lr']:.3g})",
            "lower --lr or set train.clip, and --resume: the last good state is kept",
        )

    def _interrupted(self, interrupts: Interrupts) -> bool:
        """Whether any process was asked to stop: all of them then stop at the same step."""
        return self.room.any(interrupts.pending is not None)

    # ------------------------------------------------------------------ epochs
    def _finish_epoch(self, lr: float) -> None:
        task = self.task
        totals = self.room.sum(self.sums.clone())
        self.sums.zero_()
        line: dict[str, Any] = {
            "phase": task.phase,
            "event": "epoch",
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "step": self.step,
            "loss": float(totals[0] / totals[2].clamp(min=1)),
            "train_top1": float(totals[1] / totals[2].clamp(min=1)),
            "lr": lr,
        }
        if len(task.validation):
            self.plugin.before_evaluate()
            result = evaluate(self.bare, task.validation, task.preprocess, task.kept, self.room, exact=False)
            self.plugin.after_evaluate()
            line["val_top1_full"], line["val_top1_kept"] = result.top1_full, result.top1_kept
        line.update(self.plugin.describe())
        line["seconds"] = round(self.seconds, 3)
        self._record([line])
        self._record(self.plugin.after_epoch(self.step))

    def _record(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self.task.progress.line(event)
        if events:
            self.history.extend(events)
            if self.task.on_history is not None and self.room.is_main:
                self.task.on_history(self.history)

    def _finish(self) -> None:
        """The averaged weights, where there are any, are the result; BatchNorm's statistics may be measured anew."""
        if self.average:
            load_into(self.bare, self.average, "the average")
        if self.config.recalibrate:
            self.plugin.before_evaluate()
            count = self.config.recalibrate
            recalibrate(self.bare, self.task.train, self.task.preprocess, self.room, limit=count)
            self.plugin.after_evaluate()
        self.task.module = self.bare

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = self.config.ema or 0.0
        # A short average at the start: the first steps would otherwise dominate a young mean.
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.bare.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    # ------------------------------------------------------------------ state
    def _save(self) -> None:
        task = self.task
        for name, parameter in self.bare.named_parameters():
            # A finite loss may have had a gradient that is not: the state before it is the good one.
            if not parameter.isfinite().all():
                raise self._diverged(f"{name} is not finite after step {self.step}")
        tensors = {f"model/{name}": t for name, t in self.bare.state_dict().items()}
        tensors |= {f"average/{name}": t for name, t in self.average.items()}
        tensors |= {f"optimizer/{name}": t for name, t in optimizer_tensors(self.optimizer).items()}
        meta: dict[str, Any] = {"step": self.step, "seconds": self.seconds, "history": self.history}
        tensors["sums"] = self.sums
        plugin_tensors, meta["plugin"] = self.plugin.state()
        tensors |= {f"plugin/{name}": t for name, t in plugin_tensors.items()}
        task.journal.save(task.phase, tensors, json.loads(json.dumps(meta)))

    def _restore(self) -> None:
        saved = self.task.journal.load(self.task.phase)
        if saved is None:
            return
        tensors, meta = saved
        load_into(self.bare, split_prefix(tensors, "model"), "the interrupted run")
        self.average = {name: t.to(self.room.device) for name, t in split_prefix(tensors, "average").items()}
        load_optimizer(self.optimizer, split_prefix(tensors, "optimizer"))
        self.sums = tensors["sums"].to(self.room.device)
        self.step, self.seconds, self.history = meta["step"], meta["seconds"], meta["history"]
        self.plugin.load_state(split_prefix(tensors, "plugin"), meta.get("plugin", {}))
