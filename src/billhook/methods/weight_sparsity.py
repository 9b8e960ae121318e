"""The run that all weight-sparsity methods share: targets → budget → gradual masks → fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from billhook import artifact
from billhook.cost.budget import Budget
from billhook.errors import InputError, UsageError
from billhook.formats import PatternInfo, index_width
from billhook.methods.accounting import Accounting
from billhook.methods.base import HistoryWriter, Outcome, Setting
from billhook.methods.counted import Counted
from billhook.methods.crisp import CRISP, HybridChooser
from billhook.methods.gradual import GradualConfig, GradualMasks, count_passes, plan_images
from billhook.methods.hybrid_latency import HybridClock
from billhook.methods.targets import Target, find_targets
from billhook.methods.unstructured import ThresholdChooser
from billhook.models import place
from billhook.patterns import nm_mask
from billhook.progress import Progress
from billhook.training.checkpoint import Journal
from billhook.training.loop import fit


class WeightSparsityLimits:
    """The layers that take the pattern, and what the budgets count on them.

    Args:
        counted: The network.
        budgets: The inequalities; may be none.
        config: Of the method.

    Raises:
        InputError: There are budgets, and no layer takes the pattern.
        UsageError: A budget that the method cannot move.
    """

    def __init__(self, counted: Counted, budgets: Sequence[Budget], config: GradualConfig) -> None:
        self.counted, self.config = counted, config
        pattern = config.pattern if isinstance(config, CRISP) else None
        targets, self.left_dense = find_targets(counted.cost, counted.head, counted.rows, pattern)
        # A weight that a parametrization computes, or that goes by another layer's name, is no parameter to mask.
        own = dict(counted.network.module.named_parameters())
        self.left_dense += [
            {"name": t.name, "reason": "its weight is no parameter of its own (shared, or computed)"}
            for t in targets
            if t.parameter not in own
        ]
        self.targets = [t for t in targets if t.parameter in own]
        clocked = [budget for budget in budgets if budget.quantity == "latency"]
        if clocked and pattern is None:
            raise UsageError(
                f"the method '{getattr(config, 'name', '')}' cannot move latency: zeros in no pattern are multiplied",
                "take crisp, nm-only or block-only, or ask for sparsity, effective_macs or bytes",
            )
        density = pattern.nm.density if pattern else 1.0
        self.accounting = Accounting(
            [budget for budget in budgets if budget not in clocked],
            self.targets,
            {t.name: round(t.weights * density) for t in self.targets},
            counted.dense,
            counted.delivered,
            method=str(getattr(config, "name", "")),
            bytes_per_weight=4.0 + (index_width(pattern.nm.m) / 8 if pattern else 0.0),
            start_bytes=lambda: counted.file_bytes(self._start_patterns()),
            bytes_per_block=lambda t: self._block_bytes(t),
        )
        if budgets and not self.targets:
            reasons = "; ".join(f"{entry['name']}: {entry['reason']}" for entry in self.left_dense[:3])
            what, hint = ("takes the pattern", "choose another N:M") if pattern else ("can be pruned", "")
            raise InputError(f"no layer of {counted.network.spec} {what} ({reasons})", hint)
        self.chooser: HybridChooser | ThresholdChooser
        self.clock: HybridClock | None = None
        if isinstance(config, CRISP):
            self.chooser = chooser = HybridChooser(self.targets, config, self.accounting)
            if clocked:
                # Which blocks stay matters little to the time: those with the largest weights do here.
                scores = {t.parameter: own[t.parameter].detach().abs() for t in self.targets}
                self.clock = chooser.clock = HybridClock(
                    counted, clocked[0], self.targets, chooser.pattern, lambda kept: chooser.keeping(scores, kept)
                )
        else:
            self.chooser = ThresholdChooser(self.targets, self.accounting)

    def check(self) -> None:
        """Refuse what is out of reach.

        Raises:
            InfeasibleError: The budget is below what the method must leave.
        """
        self.accounting.check(self.chooser.floor(), self.chooser.limit)
        if self.clock is not None:
            self.clock.check(self.chooser.limit)

    def feasibility(self) -> list[dict[str, object]]:
        """One row per budget: dense, smallest reachable, asked, feasible."""
        rows = self.accounting.feasibility(self.chooser.floor())
        return rows if self.clock is None else [*rows, self.clock.row()]

    def _start_patterns(self) -> dict[str, PatternInfo]:
        """Patterns of the starting point, with any valid mask: its file has the size that the budget starts from."""
        state = self.counted.network.module.state_dict()
        patterns = {}
        for target in self.targets:
            weight = state[target.parameter]
            if isinstance(self.config, CRISP):
                nm = self.config.pattern.nm
                mask = target.full_mask(nm_mask(target.matrix(weight).abs(), nm))
                info = PatternInfo("hybrid", nm.n, nm.m, self.config.pattern.block, mask.cpu().numpy())
            else:
                info = PatternInfo("unstructured", 1, 1, 0, np.ones(tuple(weight.shape), dtype=bool))
            patterns[target.parameter] = info
        return patterns

    def _block_bytes(self, target: Target) -> float:
        if not isinstance(self.chooser, HybridChooser):
            return 0.0
        return index_width(self.chooser.grids[target.name].columns) / 8


class WeightSparsityPlan:
    """A feasible weight-sparsity run.

    Raises:
        InputError: No layer takes the pattern.
        InfeasibleError: The budget is below what the method must leave.
        UsageError: A budget that the method cannot move.
    """

    def __init__(self, setting: Setting, config: GradualConfig) -> None:
        problem = setting.problem
        self.setting, self.config = setting, config
        limits = WeightSparsityLimits(setting, problem.budgets, config)
        self.targets, self.left_dense, self.chooser = limits.targets, limits.left_dense, limits.chooser
        limits.check()
        self.feasible, self.clock = limits.feasibility(), limits.clock
        if self.clock is not None:
            setting.dense["latency_ms"] = self.clock.table.dense_ms
        self.notes = self.chooser.notes()
        images, self.steps = plan_images(config, problem)
        self.share = config.share
        self.distil = problem.train.distil if problem.train.distil is not None else config.distil
        passes = count_passes(config)
        if config.score == "saliency" and images < min(config.saliency_images, len(problem.data.train)):
            self.notes.append(f"saliency uses {images} images per pass ({passes} in all), a fifth of the run's images")

    @property
    def documents(self) -> dict[str, Any]:
        """The table of milliseconds, where there is a budget on them."""
        return {} if self.clock is None else {artifact.LATENCY: self.clock.table.as_dict()}

    def run(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        journal: Journal,
        progress: Progress,
        on_history: HistoryWriter,
    ) -> Outcome:
        """Prune and fine-tune ``module`` in place; continues from the journal."""
        problem, room = self.setting.problem, self.setting.room
        # Before the masks take hold of the weights: what the loop moves to a device or a layout is another tensor.
        place(module, room.device, problem.train.channels_last)
        plugin = GradualMasks(module, self.targets, self.config, self.chooser, problem, room)
        task = problem.task(
            module,
            "prune",
            self.steps,
            teacher=teacher,
            plugin=plugin,
            journal=journal,
            progress=progress,
            on_history=on_history,
        )
        history = fit(task, room)
        plugin.deliver()
        masks = dict(plugin.masked.masks)
        return Outcome(task.module, masks=masks, patterns=self.chooser.patterns(masks), history=history)
