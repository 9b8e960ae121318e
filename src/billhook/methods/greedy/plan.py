"""What greedy plans share: limits, images that measuring takes, the network as it is in the end."""

from __future__ import annotations

import copy
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import nn

from billhook.cost.budget import Budget
from billhook.environment import peak_rss_bytes
from billhook.errors import UsageError
from billhook.methods.base import Outcome, Setting
from billhook.methods.ceilings import Costs
from billhook.methods.channel_run import ChannelRun, RemovalPlan
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.feature_maps import feature_maps, pictured_layers
from billhook.methods.greedy.removable import removable
from billhook.methods.greedy.shrinking import Shrinking
from billhook.methods.kept import how_many
from billhook.models import place
from billhook.training.precision import Room


class GreedyPlan(RemovalPlan):
    """A feasible run of a greedy method; subclasses say how it runs.

    Args:
        setting: What is asked, and where it runs.
        config: Of the method.

    Attributes:
        left: The network as :meth:`finish` cut it.

    Raises:
        InputError: No channel can be removed.
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    config: GreedyConfig

    def __init__(self, setting: Setting, config: GreedyConfig) -> None:
        self.removable = removable(setting, setting.problem.budgets, config)
        super().__init__(setting, config, self.removable.limits)
        self._peak = 0

    @property
    def cost(self) -> Costs:
        """What the network costs with fewer channels."""
        return self.limits.cost

    def counted_as(self) -> tuple[Budget, ...]:
        """What the latency asked for comes to in something counted, where all groups lose the same share; nothing when
        none is."""
        found = self.limits.counted_as(self.limits.same_share)
        return tuple(replace(budget, bound=agreed(self.setting.room, budget.bound)) for budget in found)

    def each_finetuning(self, number: int) -> int:
        """Steps of each fine-tuning before the last removal.

        Args:
            number: How many there will be; :attr:`steps` are to be shared among them and the long one.

        Raises:
            UsageError: They take more than the run has.
        """
        config, problem = self.config, self.setting.problem
        if not number:
            return 0
        if config.finetune_epochs is None:
            return int(config.finetune_share * self.steps / number)  # none, where a run has hardly any
        each = max(1, round(config.finetune_epochs * problem.steps / problem.epochs))
        if number * each >= self.steps:
            raise UsageError(
                f"about {number} fine-tunings of {config.finetune_epochs:g} epochs within the search are more than the "
                f"run's {problem.epochs:g} epochs allow",
                "raise --epochs or finetune_every, or lower finetune_epochs",
            )
        return each

    # ------------------------------------------------------------------ parts of a run
    def original(self) -> nn.Module:
        """The network with all its channels, where the run is."""
        setting = self.setting
        original = place(copy.deepcopy(setting.network.module), setting.room.device, self._layout)
        return original.requires_grad_(False).eval()

    def begin(self, calibration: int) -> Shrinking:
        """The network that will lose channels, proposals for it being made on so many images."""
        self._peak = peak_rss_bytes()
        return self.removable.begin(self.setting.room.device, self._layout, self.bare(self.images(calibration, 1)))

    def finish(self, run: ChannelRun, network: Shrinking, number: int, **more: Any) -> nn.Module:
        """Cut the network, and write down what is left.

        Args:
            run: What it is a part of.
            network: What is left.
            number: Of the last round.
            more: What the history says besides.
        """
        memory = {"peak_rss_bytes_before": self._peak, "peak_rss_bytes": peak_rss_bytes()}
        run.record_removal(number, self.cost.totals(how_many(network.kept)), **memory, **more)
        self.left = network
        return network.cut(run)

    def handed_back(self, run: ChannelRun, small: nn.Module) -> Outcome:
        """The outcome, once the network of :meth:`finish` was trained, with what the report shows of it."""
        run.history[-1] = run.history[-1] | {"peak_rss_bytes": peak_rss_bytes()}
        outcome = self.left.outcome(run, small)
        if outcome.masked is not None:
            outer = self.config.compensation == "pointwise"
            layers = pictured_layers(self.limits.grouping, self.left.kept, outer=outer)
            image = next(iter(self.bare(self.images(1, 1))()))
            outcome.pictures |= feature_maps(self.original(), outcome.masked, image, layers)
        return outcome


def agreed(room: Room, value: float) -> float:
    """The first process's value, in all of them: no two measure the same milliseconds."""
    mine = torch.tensor(value if room.is_main else 0.0, dtype=torch.float64)
    return float(room.sum(mine.to(room.device)))


def since(started: float) -> float:
    """Seconds."""
    return round(perf_counter() - started, 3)
