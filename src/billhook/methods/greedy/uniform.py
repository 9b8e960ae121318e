"""FP-Backward, FP-OMP and LRF: every group loses the same share, from the last to the first."""

from __future__ import annotations

from time import perf_counter

from torch import nn

from billhook.methods.base import Outcome, Setting
from billhook.methods.channel_run import FORWARD, ChannelRun, short_note
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.plan import GreedyPlan, since
from billhook.methods.kept import how_many


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
            self.notes.append(f"{config.name} measures on {self.calibration} images, which {share} of the run's allow")
        self.steps = self.steps_without(passes * FORWARD * self.calibration)
        self.each = self.each_finetuning(self.finetunings)
        self.share = self.finetunings * self.each / self.steps

    def carry_out(self, run: ChannelRun, module: nn.Module) -> Outcome:
        """Remove, fine-tune."""
        small = self.removed(run)
        run.train(small, "prune", max(1, self.steps - self._done))
        return self.handed_back(run, small)

    def removed(self, run: ChannelRun) -> nn.Module:
        """The smaller network, before the long fine-tuning."""
        started = perf_counter()
        network = self.begin(self.calibration)
        wanted = how_many(self.limits.same_share(self.counted_as()))
        names = [name for name in reversed(wanted) if wanted[name] < len(network.kept[name])]
        every = self.config.finetune_every or len(names)
        self._done, short = 0, False
        for number in range(0, len(names), every or 1):
            if number and self.each:
                small = network.small()
                run.train(small, f"round-{number // every}", self.each, recipe=self.gently(self.config.rate))
                network.take_back(small)
                self._done += self.each
            network.forget()
            short |= network.lose({name: wanted[name] for name in names[number : number + every]}, wanted)
        if short:
            self.notes.append(short_note(self.calibration))
        return self.finish(run, network, 1, groups=wanted, search_seconds=since(started))
