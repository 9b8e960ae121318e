"""The L1 penalty on BatchNorm scales of network slimming (Liu et al., 2017, equation 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from billhook.training.plugin import Plugin

REACH = 0.1
"""A scale that the penalty alone can bring to zero in its phase, when nobody says how strong it is."""


def strength(l1: float | None, lr: float, steps: int) -> float:
    """The penalty's factor: as given, or so that ``steps`` of plain descent at ``lr`` reach from REACH to zero."""
    return l1 if l1 is not None else REACH / max(lr * steps, 1e-12)


class L1Scales(Plugin):
    """The loop's plugin: adds the subgradient of ``l1 * |gamma|`` to every BatchNorm scale.

    Args:
        module: Whose BatchNorms are pushed.
        l1: The penalty's factor (lambda in the paper).
    """

    def __init__(self, module: nn.Module, l1: float) -> None:
        self.l1 = l1
        self.scales = [
            part.weight for part in module.modules() if isinstance(part, _BatchNorm) and part.weight is not None
        ]

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        """The subgradient, beside the loss's gradient."""
        for scale in self.scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.l1)

    def describe(self) -> dict[str, Any]:
        """How far the scales have come: the share of them below a hundredth."""
        values = torch.cat([scale.detach().abs().flatten() for scale in self.scales]) if self.scales else torch.ones(1)
        return {"small_scales": float((values < 0.01).float().mean())}
