"""Class-aware saliency: ``|w * g|`` with g the mean absolute gradient on the kept classes' images (CRISP)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from billhook.data import ImageSet, Preprocess
from billhook.training.precision import Room


def saliency_images(images: ImageSet, count: int, seed: int, draw: int) -> ImageSet:
    """``count`` images of a set, a function of (seed, draw) alone; all of them when there are fewer."""
    if count >= len(images):
        return images
    generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
    return images.subset(torch.randperm(len(images), generator=generator)[:count])


def mean_absolute_gradient(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    images: ImageSet,
    preprocess: Preprocess,
    room: Room,
    *,
    micro_batch: int = 32,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """Mean over micro-batches of ``|dL/dw|``, L the cross-entropy of the softened full head, with frozen weights.

    BatchNorm runs on its running statistics, the mean is taken in fp32, and micro-batches are fixed by index, so the
    result does not depend on the training batch size, and on the number of processes only to floating-point order.

    Args:
        module: The network as it is, masks applied; its training flags and gradients are restored (gradients: none).
        parameters: Whose gradients are taken, by name.
        images: Images of the kept classes.
        preprocess: Evaluation transform.
        room: Device, precision, processes; each process takes every world-th micro-batch.
        micro_batch: Images per gradient.
        temperature: Divides the logits. Where every image is classified with certainty, the cross-entropy has no
            gradient but that of a few odd images; softened outputs let all of them speak.

    Returns:
        A float32 tensor per parameter, in its shape.
    """
    flags = [(m, m.training) for m in module.modules()]
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    names = list(parameters)
    sums = {name: torch.zeros_like(parameters[name], dtype=torch.float32) for name in names}
    batches = 0
    module.eval()
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        for name in names:
            parameters[name].requires_grad_(True)
        for index, batch in enumerate(images.batches(micro_batch, preprocess)):
            batches += 1
            if index % room.world != room.rank:
                continue
            with room.autocast():
                logits = module(batch.images.to(room.device))
            loss = functional.cross_entropy(logits.float() / temperature, batch.labels.to(room.device))
            gradients = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    sums[name].add_(gradient.abs())
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for part, training in flags:
            part.training = training
    return {name: room.sum(total) / max(1, batches) for name, total in sums.items()}
