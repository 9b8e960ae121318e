"""FP-Backward, FP-OMP and LRF: every group loses the same share, from the last to the first."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from torch import nn

from billhook.cost.budget import Budget
from billhook.methods.base import HistoryWriter, Outcome, Setting
from billhook.methods.channel_choice import choose_channels, smallest
from billhook.methods.channel_latency import Kept, within
from billhook.methods.channel_run import ChannelRun
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.plan import FORWARD, GreedyPlan
from billhook.progress import Progress
from billhook.training.checkpoint import Journal
from billhook.training.precision import Room


class UniformPlan(GreedyPlan):
    """A feasible run that takes the same share of every group.

    From the last group to the first, as published, so that a group is fitted on inputs that no removal has changed yet:
    one pass of the calibration images serves all groups, unless there is fine-tuning in between.

    Args:
        setting: What is asked, and where it runs.
        config: Of the method.

    Raises:
        InputError: No channel can be removed.
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    def __init__(self, setting: Setting, config: GreedyConfig) -> None:
        super().__init__(setting, config)
        problem = setting.problem
        groups = len(self.limits.grouping.groups)
        every = config.finetune_every or groups
        self.finetunings = -(-groups // every) - 1
        needs = self.removable.looks
        passes = 1 + self.finetunings if needs else 0
        allowed = int(config.allowance * problem.images / max(1, passes * FORWARD))
        self.calibration = max(2, min(config.calibration, len(problem.data.train), allowed))
        if needs and self.calibration < min(config.calibration, len(problem.data.train)):
            share = f"{100 * config.allowance:g} %"
            self.notes.append(
                f"{config.method} measures on {self.calibration} images, which {share} of the run's allow"
            )
        self.steps = self.steps_without(passes * FORWARD * self.calibration)
        self.each = int(config.finetune_share * self.steps / self.finetunings) if self.finetunings else 0
        self.share = self.finetunings * self.each / self.steps

    def run(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        journal: Journal,
        progress: Progress,
        on_history: HistoryWriter,
    ) -> Outcome:
        """Remove channels and fine-tune; continues from the journal. ``module`` is left behind."""
        run = ChannelRun(self.setting, teacher, journal, progress, on_history)
        small = self.removed(run)
        run.train(small, "prune", max(1, self.steps - self._done))
        return self.left.outcome(run, small)

    def removed(self, run: ChannelRun) -> nn.Module:
        """The smaller network, before the long fine-tuning."""
        started = perf_counter()
        network = self.begin(self.calibration)
        wanted = self._choose()
        names = [name for name in reversed(wanted) if wanted[name] < len(network.kept[name])]
        every = self.config.finetune_every or len(names)
        self._done, short = 0, False
        for number in range(0, len(names), every or 1):
            if number and self.each:
                small = network.small()
                run.train(small, f"round-{number // every}", self.each, recipe=self.recipe())
                network.take_back(small)
                self._done += self.each
            network.forget()
            short |= network.lose({name: wanted[name] for name in names[number : number + every]})
        if short:
            self.notes.append(short_note(self.calibration))
        return self.finish(run, network, {"round": 1, "groups": wanted, "search_seconds": since(started)})

    def _choose(self) -> dict[str, int]:
        """How many channels each group keeps."""
        chosen = same_share(self, in_macs(self))
        return {name: len(channels) for name, channels in chosen.items()}


def same_share(plan: GreedyPlan, more: Sequence[Budget] = ()) -> Kept:
    """As many channels of every group as meet all budgets when each loses the same share; which ones is still open."""
    limits = plan.limits
    scores = {
        name: np.arange(group.channels, 0, -1, dtype=np.float64) for name, group in limits.grouping.groups.items()
    }
    bounds = limits.bounds
    return choose_channels(
        scores, limits.grouping, limits.cost, [*limits.budgets, *more], plan.setting.dense, scope="uniform", **bounds
    )


def in_macs(plan: GreedyPlan) -> tuple[Budget, ...]:
    """What the latency asked for comes to in MACs, by measuring networks of the same share; nothing when none is."""
    limits = plan.limits
    if not limits.clocked:
        return ()
    cost = limits.cost
    fewest = smallest(limits.grouping, cost, **limits.bounds)
    kept = within(
        lambda more: same_share(plan, more),
        limits.milliseconds,
        min(limits.clock.bound(budget) for budget in limits.clocked),
        (cost.totals(fewest)["macs"], cost.totals({})["macs"]),
    )
    macs = cost.totals({name: len(stay) for name, stay in kept.items()})["macs"]
    return (Budget("macs", agreed(plan.setting.room, macs), "count"),)


def agreed(room: Room, value: float) -> float:
    """The first process's value, in all of them: no two measure the same milliseconds."""
    mine = torch.tensor(value if room.is_main else 0.0, dtype=torch.float64)
    return float(room.sum(mine.to(room.device)))


def short_note(images: int) -> str:
    """A warning."""
    return (
        f"some channel groups have readers with fewer calibration samples than channels ({images} images): "
        "a ridge makes up for it; raise calibration"
    )


def since(started: float) -> float:
    """Seconds."""
    return round(perf_counter() - started, 3)
