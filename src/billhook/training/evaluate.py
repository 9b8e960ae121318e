"""Top-1 over the full head and over the kept classes, per class, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from billhook.data import ImageSet, Preprocess
from billhook.training.precision import Room


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on one set of images of the kept classes.

    Attributes:
        top1_full: Arg-max over the original head; None for a sliced head.
        top1_kept: Arg-max over the kept classes.
        confusion: int64 ``[k, k]``, rows true class, columns predicted, among the kept classes.
        images: Number of images.
    """

    top1_full: float | None
    top1_kept: float
    confusion: NDArray[np.int64]
    images: int

    @property
    def per_class(self) -> NDArray[np.float64]:
        """Top-1 (kept) of every kept class; NaN without images."""
        totals = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.diag(self.confusion) / totals, dtype=np.float64)


@torch.no_grad()
def evaluate(
    module: nn.Module,
    images: ImageSet,
    preprocess: Preprocess,
    kept: Sequence[int],
    room: Room,
    *,
    sliced: bool = False,
    batch_size: int = 250,
    exact: bool = True,
) -> Evaluation:
    """Classify every image once.

    Args:
        module: The network; its training flag is restored.
        images: Labels are head outputs.
        preprocess: Evaluation transform.
        kept: Head outputs of the kept classes, ascending.
        room: Device, precision and processes; every process sees all images and gets the same answer.
        sliced: The head has only the kept outputs, in the order of ``kept``.
        exact: fp32; otherwise the run's own precision (faster, for the epochs' validation).
    """
    was_training = module.training
    module.eval()
    index = torch.as_tensor(list(kept), device=room.device)
    position = torch.full((int(index.max()) + 1,), -1, device=room.device)
    position[index] = torch.arange(len(index), device=room.device)
    confusion = torch.zeros(len(index), len(index), dtype=torch.int64, device=room.device)
    right_full = torch.zeros((), dtype=torch.int64, device=room.device)
    try:
        for batch in images.batches(batch_size, preprocess):
            inputs, labels = batch.images.to(room.device), batch.labels.to(room.device)
            with room.autocast(not exact):
                logits = module(inputs).float()
            if not sliced:
                right_full += (logits.argmax(dim=1) == labels).sum()
                logits = logits[:, index]
            cells = position[labels] * len(index) + logits.argmax(dim=1)
            confusion += torch.bincount(cells, minlength=len(index) ** 2).reshape(len(index), -1)
    finally:
        module.train(was_training)
    count = int(confusion.sum())
    right = int(confusion.diagonal().sum())
    return Evaluation(
        top1_full=None if sliced else int(right_full) / max(1, count),
        top1_kept=right / max(1, count),
        confusion=confusion.cpu().numpy(),
        images=count,
    )
