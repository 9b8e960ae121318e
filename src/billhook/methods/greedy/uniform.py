"""FP-Backward, FP-OMP and LRF: every group loses the same share, from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from billhook.cost.budget import Budget
from billhook.methods.base import HistoryWriter, Outcome, Setting
from billhook.methods.channel_choice import choose_channels, smallest
from billhook.methods.channel_latency import Kept, within
from billhook.methods.channel_run import ChannelRun
from billhook.methods.greedy.candidates import Candidates
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.plan import FORWARD, GreedyPlan
from billhook.progress import Progress
from billhook.surgery import ChannelGroup
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
        needs = config.compensation != "none" or config.score == "activations"
        passes = (1 + self.finetunings + (config.score == "activations")) if needs else 0
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
        return run.outcome(small)

    def removed(self, run: ChannelRun) -> nn.Module:
        """The smaller network, before the long fine-tuning."""
        started = perf_counter()
        current = self.current()
        candidates = self.candidates(current, self.calibration)
        kept = self._choose(candidates)
        names = [name for name in reversed(kept) if len(kept[name]) < len(current.kept[name])]
        every = self.config.finetune_every or len(names)
        self._done, short = 0, False
        for number in range(0, len(names), every or 1):
            if number and self.each:
                small = current.small()
                run.train(small, f"round-{number // every}", self.each, recipe=self.recipe())
                current.take_back(small)
                self._done += self.each
                candidates.changed()
            part = names[number : number + every]
            proposed = candidates.propose({name: len(kept[name]) for name in part})
            for name in part:
                short |= proposed[name].short
                current.remove(name, proposed[name].kept, proposed[name].maps)
        if short:
            self.notes.append(short_note(self.calibration))
        line = {"round": 1, "groups": {name: len(kept[name]) for name in kept}, "search_seconds": since(started)}
        return self.finish(run, current, line)

    def _choose(self, candidates: Candidates) -> Kept:
        limits, config = self.limits, self.config
        orders = candidates.orders()
        scores = {name: ranks(orders[name], group) for name, group in limits.grouping.groups.items()}

        def choose(more: Sequence[Budget]) -> Kept:
            return choose_channels(
                scores,
                limits.grouping,
                limits.cost,
                [*limits.budgets, *more],
                self.setting.dense,
                scope="uniform",
                round_to=config.round_to,
                least=config.least,
                branches=config.branches,
            )

        return choose(in_macs(self, choose))


def ranks(order: NDArray[np.int64], group: ChannelGroup) -> NDArray[np.float64]:
    """``[channels]``: a score that is higher the longer a channel stays; of all sections alike."""
    scores = np.zeros(group.channels)
    for section in order:
        scores[section] = np.arange(len(section), 0, -1)
    return scores


def in_macs(plan: GreedyPlan, choose: Callable[[Sequence[Budget]], Kept]) -> tuple[Budget, ...]:
    """What the latency asked for comes to in MACs, by measuring choices of channels; nothing when none is."""
    limits, config = plan.limits, plan.config
    if not limits.clocked:
        return ()
    cost, module = limits.cost, plan.setting.network.module
    fewest = smallest(limits.grouping, cost, config.round_to, config.least, branches=config.branches)
    kept = within(
        choose,
        lambda kept: limits.clock.without(module, plan.setting, kept),
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
