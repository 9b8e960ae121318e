"""BatchNorm recalibration: running statistics measured again after the weights in front of them changed."""

from __future__ import annotations

import torch
from torch import nn

from billhook.data import ImageSet, Preprocess
from billhook.training.precision import Room


@torch.no_grad()
def recalibrate(
    module: nn.Module, images: ImageSet, preprocess: Preprocess, room: Room, *, limit: int = 2048, batch_size: int = 128
) -> int:
    """Replace every BatchNorm's running mean and variance by the cumulative average over training images.

    Args:
        limit: At most this many images, a seeded draw from the set; whole batches where there is one, so that every
            image counts alike and no batch is too small for a variance.

    Returns:
        The number of images used (0 when the network has no BatchNorm).
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    was_training = module.training
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(images), generator=generator)[:limit]
    chosen = chosen[: len(chosen) // batch_size * batch_size or len(chosen)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.eval()
    for norm in norms:
        norm.train()  # statistics only: dropout stays off
    try:
        for batch in images.subset(chosen).batches(batch_size, preprocess):
            with room.autocast():
                module(batch.images.to(room.device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.train(was_training)
    return len(chosen)
