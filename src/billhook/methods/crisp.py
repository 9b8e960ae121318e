"""CRISP: class-aware hybrid N:M + block sparsity (arXiv 2311.14272).

Per round: class-aware saliency → N:M mask → block scores over the survivors → rank columns → one global threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from billhook.formats import PatternInfo
from billhook.methods.accounting import TOLERANCE, Accounting
from billhook.methods.gradual import GradualConfig
from billhook.methods.hybrid_latency import HybridClock
from billhook.methods.targets import Target
from billhook.patterns import NM, HybridPattern, RankColumns, choose_removed, hybrid_mask, nm_mask, rank_columns

CORRECTIONS = 2
"""Times that the last masks are measured against a budget in milliseconds, and chosen again if they are off."""

HALVINGS = 14
"""Steps of the search for the weights that have to be closed: to a few in a hundred thousand of them."""


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

    Attributes:
        clock: What a budget in milliseconds is held against, if there is one.
    """

    def __init__(self, targets: list[Target], config: CRISP, accounting: Accounting) -> None:
        self.targets, self.config, self.accounting = targets, config, accounting
        self.pattern = config.pattern
        self.grids = {t.name: self.pattern.grid(t.outputs, t.taps, t.inputs) for t in targets}
        self.density = self.pattern.nm.density
        self.clock: HybridClock | None = None

    def choose(self, scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
        """N:M everywhere, then blocks up to ``fraction`` of what the budget needs."""
        nm_masks, columns = self._ranked(scores)
        removed = self._removed(columns, fraction)
        if self.clock is not None and self.pattern.block and fraction >= 1:
            for _ in range(CORRECTIONS):
                patterns = self.patterns(self._masks(nm_masks, columns, removed))
                if not self.clock.correct(self._kept(removed), patterns):
                    break
                before, removed = removed, self._removed(columns, fraction)
                if removed == before:
                    break
        return self._masks(nm_masks, columns, removed)

    def keeping(self, scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> dict[str, PatternInfo]:
        """How each target is stored when so many of its rank columns stay."""
        nm_masks, columns = self._ranked(scores)
        removed = [self.grids[t.name].columns - kept[t.name] for t in self.targets]
        return self.patterns(self._masks(nm_masks, columns, removed))

    def _ranked(self, scores: Mapping[str, Tensor]) -> tuple[list[Tensor], list[RankColumns]]:
        nm_masks, columns = [], []
        for target in self.targets:
            score = target.matrix(scores[target.parameter])
            mask = nm_mask(score, self.pattern.nm)
            nm_masks.append(mask)
            columns.append(rank_columns(score * mask, self.grids[target.name], self.density, self.config.normalise))
        return nm_masks, columns

    def _masks(
        self, nm_masks: Sequence[Tensor], columns: Sequence[RankColumns], removed: Sequence[int]
    ) -> dict[str, Tensor]:
        return {
            t.parameter: t.full_mask(hybrid_mask(nm, self.grids[t.name], c.order, p))
            for t, nm, c, p in zip(self.targets, nm_masks, columns, removed, strict=True)
        }

    def _removed(self, columns: Sequence[RankColumns], fraction: float) -> list[int]:
        """Rank columns that each target loses."""
        if not self.pattern.block:
            return [0] * len(columns)
        accounting = self.accounting
        scores, need = [c.score for c in columns], accounting.need() * fraction
        costs = [
            accounting.cost(t, c.cost, self.grids[t.name].rows) for t, c in zip(self.targets, columns, strict=True)
        ]
        if self.clock is None:
            return choose_removed(scores, costs, need, accounting.tolerance)
        # Milliseconds are no sum over columns: they are met by as many more weights as it takes.
        costs = [np.column_stack([cost, c.cost]) for cost, c in zip(costs, columns, strict=True)]
        tolerance = np.append(accounting.tolerance, TOLERANCE * accounting.delivered.params)

        def closing(weights: float) -> list[int]:
            return choose_removed(scores, costs, np.append(need, weights), tolerance)

        all_that_can = float(sum(int(c.cost[:-1].sum()) for c in columns))
        return closing(fraction * self._weights(closing, all_that_can))

    def _weights(self, closing: Callable[[float], list[int]], most: float) -> float:
        """The fewest weights whose closing makes the network fast enough, or all that can be closed."""
        assert self.clock is not None
        low, high = 0.0, most
        if self.clock.within(self._kept(closing(low))):
            return low
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self.clock.within(self._kept(closing(middle))):
                high = middle
            else:
                low = middle
        return high

    def _kept(self, removed: Sequence[int]) -> dict[str, int]:
        return {t.name: self.grids[t.name].columns - gone for t, gone in zip(self.targets, removed, strict=True)}

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
        fast = self.clock is None or self.clock.within({name: grid.columns for name, grid in self.grids.items()})
        if self.pattern.block and fast and np.all(self.accounting.need() <= 0):
            if not self.accounting.budgets:
                return [f"{self.pattern.nm} alone is as fast as asked: no block is pruned"]
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
