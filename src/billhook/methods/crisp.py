"""CRISP: class-aware hybrid N:M + block sparsity (arXiv 2311.14272).

Per round: class-aware saliency → N:M mask → block scores over the survivors → rank columns → one global threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from billhook.formats import PatternInfo
from billhook.methods.accounting import Accounting
from billhook.methods.gradual import GradualConfig
from billhook.methods.targets import Target
from billhook.patterns import NM, HybridPattern, choose_removed, hybrid_mask, nm_mask, rank_columns


class CRISP(GradualConfig):
    """Configuration of the method ``crisp``.

    ``nm`` null or ``"1:1"`` prunes blocks only; ``block`` 0 prunes N:M only.
    """

    name: Literal["crisp", "nm-only", "block-only"] = "crisp"
    nm: str | None = Field("2:4", description="N:M inside the blocks that survive")
    block: int = Field(16, ge=0, description="block side B; M must divide it")
    normalise: Literal["weight", "sum"] = Field(
        "weight", description="block scores per weight, or raw sums (as published)"
    )

    # Measured: under this pattern the order of weights inside a layer is better by magnitude (docs/crisp.md).
    score: Literal["saliency", "magnitude"] = Field("magnitude", description="|w|, or |w·mean|∂L/∂w|| (as published)")
    balance: float | None = Field(0.5, ge=0, le=1)

    @field_validator("nm")
    @classmethod
    def _nm(cls, text: str | None) -> str | None:
        return None if text is None else str(NM.parse(text))

    @model_validator(mode="after")
    def _fits(self) -> CRISP:
        pattern = self.pattern
        if self.name == "nm-only" and pattern.block:
            raise ValueError("nm-only prunes no blocks: leave block away, or use crisp")
        if self.name == "block-only" and (not pattern.block or pattern.nm.n != pattern.nm.m):
            raise ValueError("block-only has a block size and no N:M: leave nm away, or use crisp")
        return self

    @property
    def pattern(self) -> HybridPattern:
        """The pattern that every target obeys."""
        return HybridPattern(NM.parse(self.nm) if self.nm else NM(1, 1), self.block)


class NMOnly(CRISP):
    """``nm-only``: CRISP without blocks; its sparsity is that of N:M."""

    name: Literal["nm-only"] = "nm-only"
    block: int = 0


class BlockOnly(CRISP):
    """``block-only``: CRISP without N:M."""

    name: Literal["block-only"] = "block-only"
    nm: str | None = None


class HybridChooser:
    """Masks of the hybrid pattern that meet the budget at the last round.

    Args:
        targets: Layers that take the pattern.
        config: Pattern and normalisation.
        accounting: What the budget counts.
    """

    def __init__(self, targets: list[Target], config: CRISP, accounting: Accounting) -> None:
        self.targets, self.config, self.accounting = targets, config, accounting
        self.pattern = config.pattern
        self.grids = {t.name: self.pattern.grid(t.outputs, t.taps, t.inputs) for t in targets}
        self.density = self.pattern.nm.density

    def choose(self, scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
        """N:M everywhere, then blocks up to ``fraction`` of what the budget needs."""
        nm_masks, ranks = {}, {}
        for target in self.targets:
            score = target.matrix(scores[target.parameter])
            mask = nm_mask(score, self.pattern.nm)
            nm_masks[target.name] = mask
            ranks[target.name] = rank_columns(
                score * mask, self.grids[target.name], self.density, self.config.normalise
            )
        columns = [ranks[t.name] for t in self.targets]
        removed = [0] * len(columns)
        if self.pattern.block:
            removed = choose_removed(
                [c.score for c in columns],
                [
                    self.accounting.cost(t, c.cost, self.grids[t.name].rows)
                    for t, c in zip(self.targets, columns, strict=True)
                ],
                self.accounting.need() * fraction,
                self.accounting.tolerance,
            )
        return {
            t.parameter: t.full_mask(hybrid_mask(nm_masks[t.name], self.grids[t.name], c.order, p))
            for t, c, p in zip(self.targets, columns, removed, strict=True)
        }

    def sparsity(self, masks: Mapping[str, Tensor]) -> float:
        """Sparsity of the delivered network under these masks."""
        return self.accounting.sparsity(masks)

    def patterns(self, masks: Mapping[str, Tensor]) -> dict[str, PatternInfo]:
        """How each target is stored."""
        nm = self.pattern.nm
        return {
            t.parameter: PatternInfo("hybrid", nm.n, nm.m, self.pattern.block, masks[t.parameter].cpu().numpy())
            for t in self.targets
        }

    def floor(self) -> dict[str, int]:
        """Survivors per layer with one rank column left (of the widest blocks, where they are ragged)."""
        if not self.pattern.block:
            return dict(self.accounting.start)
        widest = {name: int(grid.widths().max()) for name, grid in self.grids.items()}
        return {t.name: round(t.outputs * widest[t.name] * self.density) for t in self.targets}

    def notes(self) -> list[str]:
        """Sentences that the user should read before the run."""
        if self.pattern.block and np.all(self.accounting.need() <= 0):
            reached = self.accounting.sparsity_of(self.accounting.start)
            return [
                f"{self.config.nm} alone gives {100 * reached:.2f} % sparsity, as much as asked: no block is pruned"
            ]
        return []

    @property
    def limit(self) -> str:
        """What keeps the method from going further, for the message of an infeasible budget."""
        if not self.pattern.block:
            return f"{self.pattern.nm} without blocks"
        return f"one rank column of {self.pattern.block}x{self.pattern.block} blocks per layer"
