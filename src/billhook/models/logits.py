"""Whether a network takes the images it will be fed, and answers with logits."""

from __future__ import annotations

import torch

from billhook.errors import InputError
from billhook.models.network import Network


@torch.no_grad()
def check_logits(network: Network, size: int) -> None:
    """Refuse a network that cannot take the images, or returns anything but one row of logits per image.

    Args:
        network: Is left in evaluation mode.
        size: Height and width of the input in pixels.

    Raises:
        InputError: Its forward pass fails, or returns something else.
    """
    try:
        found = network.module.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever a user's forward pass may raise
        raise InputError(
            f"{network.spec} fails on an image of {size}x{size} pixels: {type(error).__name__}: {error}",
            "--input-size gives another size",
        ) from error
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (1, network.classes):
        what = f"{list(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"{network.spec} returns {what} for one image, not [1, {network.classes}]",
            "wrap it so that it gives logits",
        )
