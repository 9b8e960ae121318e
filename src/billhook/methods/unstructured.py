"""The unstructured baselines: ``magnitude`` and ``saliency`` under one global threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from billhook.formats import PatternInfo
from billhook.methods.accounting import Accounting
from billhook.methods.gradual import GradualConfig
from billhook.methods.targets import Target
from billhook.patterns import choose_saving_mask


class Magnitude(GradualConfig):
    """``magnitude``: the smallest weights of the whole network go (Han et al., 2015)."""

    name: Literal["magnitude"] = "magnitude"
    score: Literal["magnitude"] = "magnitude"


class Saliency(GradualConfig):
    """``saliency``: the weights of least class-aware saliency go."""

    name: Literal["saliency"] = "saliency"
    score: Literal["saliency"] = Field("saliency")


class ThresholdChooser:
    """Unstructured masks that meet the budget at the last round.

    Args:
        targets: Layers whose weights may go.
        accounting: What the budget counts.
    """

    limit = "one weight per layer"

    def __init__(self, targets: list[Target], accounting: Accounting) -> None:
        self.targets, self.accounting = targets, accounting

    def choose(self, scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
        """Close the lowest scores of all layers until ``fraction`` of the need is met."""
        views = [t.matrix(scores[t.parameter]) for t in self.targets]
        savings = np.concatenate([self.accounting.cost(t, np.ones(1, dtype=np.int64)) for t in self.targets])
        masks = choose_saving_mask(views, savings, self.accounting.need() * fraction)
        return {t.parameter: t.full_mask(mask) for t, mask in zip(self.targets, masks, strict=True)}

    def sparsity(self, masks: Mapping[str, Tensor]) -> float:
        """Sparsity of the delivered network under these masks."""
        return self.accounting.sparsity(masks)

    def patterns(self, masks: Mapping[str, Tensor]) -> dict[str, PatternInfo]:
        """How each target is stored."""
        return {
            t.parameter: PatternInfo("unstructured", 1, 1, 0, masks[t.parameter].cpu().numpy()) for t in self.targets
        }

    def floor(self) -> dict[str, int]:
        """One weight per layer."""
        return {t.name: 1 for t in self.targets}

    def notes(self) -> list[str]:
        """Nothing to warn of."""
        return []
