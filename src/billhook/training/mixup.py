"""Images blended in pairs (mixup: Zhang et al., 2018, arXiv 1710.09412)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Blend:
    """How one batch is blended: share · image + (1 - share) · partner, the share at least a half.

    Draws from torch's global generator, which the loop seeds for every step.

    Args:
        alpha: Parameter of the Beta distribution that the share comes from, above 0.
        images: How many the batch has.
    """

    def __init__(self, alpha: float, images: int) -> None:
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        self.share = max(share, 1 - share)  # so that the labels as they stand are those of the greater part
        self.partner = torch.randperm(images)

    def images(self, images: Tensor) -> Tensor:
        """``[b, c, h, w]``, blended."""
        return torch.lerp(images[self.partner.to(images.device)], images, self.share)

    def loss(self, loss: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
        """The mean of ``loss`` on the labels ``[b]`` and on those of the partners, in their shares."""
        return self.share * loss(labels) + (1 - self.share) * loss(labels[self.partner.to(labels.device)])
