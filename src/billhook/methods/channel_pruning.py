"""The baselines of channel pruning: score → lowest channels go → fine-tune; once, or in several rounds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from pydantic import Field, create_model
from torch import nn

from billhook.compensation import make_up
from billhook.cost.budget import Budget
from billhook.methods.base import Outcome, Setting
from billhook.methods.channel_choice import Scope, choose_channels
from billhook.methods.channel_limits import ChannelLimits
from billhook.methods.channel_run import FORWARD, ChannelRun, RemovalPlan, short_note
from billhook.methods.counted import Counted, count_network
from billhook.methods.floor import RemovalConfig
from billhook.methods.kept import Kept, how_many
from billhook.methods.slimming import L1Scales, strength
from billhook.models import place
from billhook.problem import Problem
from billhook.scores import ChannelScore, channel_scores, normalised, without_batchnorm
from billhook.surgery import ChannelPlan, plan_channels

IMAGES_SHARE = 0.2
"""Scoring may use at most this share of the images that the run may train on."""

ON_IMAGES = ("taylor", "activation")


class ChannelConfig(RemovalConfig):
    """Fields that all channel baselines share."""

    name: ChannelScore
    scope: Scope = Field("global", description="groups compete for the budget, or each loses the same share")
    normalise: Literal["none", "mean", "max", "sum", "l2"] = Field(
        "mean", description="what makes the scores of different groups comparable"
    )
    rounds: int = Field(1, ge=1, description="removals; 1: all at once, before fine-tuning")
    share: float = Field(0.3, ge=0, lt=1, description="share of the steps before the last removal, where any are")
    rate: float = Field(0.2, gt=0, le=1, description="learning rate before the last removal, as a share of train.lr")
    images: int = Field(1024, ge=1, description="images per scoring (taylor, activation); counted as images trained")
    micro_batch: int = Field(16, ge=1, description="images per gradient (taylor)")
    compensation: Literal["next-layer", "none"] = Field(
        "none", description="whether the weights that read removed channels make up for them, by least squares"
    )
    calibration: int = Field(256, ge=2, description="images that compensation is fitted on, in every round")

    @property
    def whole_branches(self) -> bool:
        """Whether branches are weighed against each other as a whole."""
        return self.scope == "global"


class SlimmingConfig(ChannelConfig):
    """``slimming``: BatchNorm scales, pushed towards zero by an L1 penalty first (Liu et al., 2017)."""

    name: ChannelScore = "slimming"
    normalise: Literal["none", "mean", "max", "sum", "l2"] = "none"
    penalty: bool = Field(True, description="a phase with an L1 penalty on the scales comes first")
    l1: float | None = Field(
        None, ge=0, description="its strength; null: so strong that a scale of 0.1 can reach zero in the phase"
    )
    rate: float = Field(1.0, gt=0, le=1)


def config_of(score: ChannelScore) -> type[ChannelConfig]:
    """The config class of one baseline."""
    if score == "slimming":
        return SlimmingConfig
    own: Any = (Literal[score], score)
    return create_model(score.capitalize(), __base__=ChannelConfig, name=own)


CHANNEL_CONFIGS: dict[str, type[ChannelConfig]] = {score: config_of(score) for score in get_args(ChannelScore)}


class ChannelPruningPlan(RemovalPlan):
    """A feasible run of a channel baseline.

    Raises:
        InputError: No channel can be removed.
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    config: ChannelConfig
    limits: ChannelLimits

    def __init__(self, setting: Setting, config: ChannelConfig) -> None:
        problem = setting.problem
        super().__init__(setting, config, ChannelLimits(setting, problem.budgets, config))
        self.scored = self._scored(problem)
        self.calibration = self._calibration(problem)
        self.steps = self.steps_without(config.rounds * (self.scored + FORWARD * self.calibration))
        self.early = self._early()
        self.share = sum(steps for _, steps in self.early) / self.steps
        self.notes += self._notes()

    def _scored(self, problem: Problem) -> int:
        if self.config.name not in ON_IMAGES:
            return 0
        allowed = int(IMAGES_SHARE * problem.images / self.config.rounds)
        return max(1, min(self.config.images, len(problem.data.train), allowed))

    def _calibration(self, problem: Problem) -> int:
        if self.config.compensation == "none":
            return 0
        allowed = int(IMAGES_SHARE * problem.images / (self.config.rounds * FORWARD))
        return max(2, min(self.config.calibration, len(problem.data.train), allowed))

    def _early(self) -> list[tuple[str, int]]:
        """Phases before the last removal, and their steps."""
        config = self.config
        names = [f"round-{number}" for number in range(1, config.rounds)]
        if isinstance(config, SlimmingConfig) and config.penalty:
            names.insert(0, "penalty")
        each = int(config.share * self.steps / len(names)) if names else 0
        return [(name, each) for name in names if each]

    def _notes(self) -> list[str]:
        notes = []
        config = self.config
        if self.scored and self.scored < min(config.images, len(self.setting.problem.data.train)):
            notes.append(f"{config.name} scores on {self.scored} images, a fifth of the run's images at most")
        if config.name == "slimming":
            bare = without_batchnorm(self.setting.network.module, self.limits.grouping)
            if bare:
                notes.append(f"{len(bare)} channel groups have no BatchNorm and go by l1 ({bare[0]}, ...)")
        return notes

    # ------------------------------------------------------------------ the run
    def carry_out(self, run: ChannelRun, module: nn.Module) -> Outcome:
        """Score and remove, train in between, fine-tune."""
        early = dict(self.early)
        if "penalty" in early:
            assert isinstance(self.config, SlimmingConfig)
            recipe = self.gently(self.config.rate)
            # The scales are found once they are where the loop will keep them.
            place(module, self.setting.room.device, self.setting.problem.train.channels_last)
            scales = L1Scales(module, strength(self.config.l1, recipe.lr, early["penalty"]))
            run.train(module, "penalty", early["penalty"], recipe=recipe, plugin=scales)
        for number in range(1, self.config.rounds + 1):
            plan, totals = self.removal(module, number)
            module = run.remove(module, plan)
            run.record_removal(number, totals)
            phase = f"round-{number}"
            if phase in early:
                run.train(module, phase, early[phase], recipe=self.gently(self.config.rate))
        run.train(module, "prune", self.steps - sum(early.values()))
        return run.outcome(module)

    def removal(self, module: nn.Module, number: int) -> tuple[ChannelPlan, dict[str, float]]:
        """What goes of the network, and what it costs without.

        Args:
            module: The network as it is now; with compensation, readers of what goes have taken it up afterwards.
            number: Of the removal; from 1.
        """
        setting, config = self.setting, self.config
        problem, room = setting.problem, setting.room
        counted: Counted = setting
        if number > 1:
            network = replace(setting.network, module=copy.deepcopy(module).cpu())
            counted = count_network(network, problem.preprocess.input_size, setting.rows)
        grouping, cost = counted.groups(), self.limits.cost_of(counted)
        images = self.images(self.scored, number) if self.scored else None
        place(module, room.device, problem.train.channels_last)
        scores = channel_scores(
            config.name,
            module,
            grouping,
            images,
            problem.preprocess,
            room,
            seed=problem.seed + number,
            micro_batch=config.micro_batch,
        )
        # Of what is still to go, the share that brings all removals so far to number / rounds.
        fraction = 1 / (config.rounds - number + 1)
        comparable = normalised(scores, config.normalise)
        # The share that always stays is one of the channels there were, not of those that earlier rounds have left.
        before = {name: group.channels for name, group in self.limits.grouping.groups.items()}
        floor = replace(self.limits.floor, originally=before)

        def choose(more: Sequence[Budget], fraction: float = 1.0) -> Kept:
            return choose_channels(
                comparable,
                grouping,
                cost,
                [*self.limits.budgets, *more],
                setting.dense,
                floor=floor,
                scope=config.scope,
                fraction=fraction,
            )

        kept = choose(self.limits.counted_of(counted, cost, choose, floor), fraction)
        if self.calibration and make_up(module, grouping, kept, self.bare(self.images(self.calibration, number))):
            self.notes.append(short_note(self.calibration))
        return plan_channels(module, grouping, kept), cost.totals(how_many(kept))
