"""ChipNet's settings and what changes while gates are learnt: beta, gamma, the steepness, the budget's weight."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from billhook.methods.chipnet.gates import Initialise
from billhook.methods.chipnet.losses import Crispness
from billhook.methods.chipnet.places import Coupling
from billhook.methods.floor import LOWEST, RemovalConfig

EPOCHS = 20
"""Epochs of gate learning in the paper, which schedules are written for."""

STEPS = EPOCHS * 45_000 / 32
"""Its optimiser steps: 45,000 images in batches of 32."""


class ChipNet(RemovalConfig):
    """Settings of ``chipnet``; defaults are those of the authors' code where a field does not say otherwise."""

    name: Literal["chipnet"] = "chipnet"
    coupling: Coupling = Field(
        "group", description="one gate per channel of a group, or independent ones per layer (as published)"
    )
    initialise: Initialise = Field(
        "identity", description="gates begin at 0.7: the weights make up for it, or nothing does (published)"
    )
    share: float = Field(0.3, gt=0, lt=1, description="share of the run's images that gates are learnt on (ours)")
    crispness: Crispness = Field("mean", description="over the gates; the sum needs a smaller crisp_weight")
    crisp_weight: float = Field(10.0, ge=0, description="of the crispness loss; more if gates stay between 0 and 1")
    budget_weight: float = Field(30.0, gt=0, description="of the budget loss, to begin with")
    growth: float = Field(
        1.5, ge=1, description="factor of the budget's weight whenever the budget is not going to be met; 1: never"
    )
    most: float = Field(10.0, ge=1, description="times its beginning that the budget's weight may reach (ours)")
    due: float = Field(
        0.75, gt=0, le=1, description="share of gate learning by which the soft network meets its budget (ours)"
    )
    beta: float = Field(1.0, gt=0, description="of the logistic function, in the first epoch")
    beta_step: float = Field(0.02, ge=0, description="what an epoch of 20 adds to it")
    beta_most: float = Field(6.0, gt=0, description="never above")
    gamma: float = Field(2.0, gt=0, description="of the Heaviside, in the first epoch")
    gamma_every: float = Field(2.0, gt=0, description="epochs of 20 in which it doubles")
    gamma_most: float = Field(256.0, gt=0, description="never above")
    steepness: float = Field(10.0, gt=0, description="of the rounding inside the budget loss, at the first step")
    steepness_step: float = Field(5.0, ge=0, description="what an epoch of 20 adds to it, little by little")
    steepness_most: float = Field(60.0, gt=0, description="never above")
    lr: float = Field(1e-3, gt=0, description="AdamW's learning rate of the weights while gates are learnt")
    gate_lr: float | None = Field(
        None, gt=0, description="that of the gates; null: 0.001, and more where there are fewer steps than in the paper"
    )
    weight_decay: float = Field(1e-3, ge=0, description="AdamW's, of the weights; gates have none")
    batch_size: int = Field(32, ge=2, description="while gates are learnt")
    fold: bool = Field(
        True, description="open gates, once hard, leave weights multiplied by what they were (ours); false: by 1"
    )
    distil: bool = Field(True, description="distil from the dense network when the smaller one is fine-tuned")
    distil_gates: bool = Field(True, description="and while gates are learnt (ours)")
    transfer_from: str | None = Field(
        None, description="run directory whose gates decide instead of gates learnt here (mask transfer)"
    )
    scratch: bool = Field(False, description="with transfer_from: begin with random weights, as published")

    @model_validator(mode="after")
    def _check(self) -> ChipNet:
        if self.coupling == "independent" and self.floor != LOWEST:
            raise ValueError(
                "round_to, least, branches, streams and streams_least are for coupled gates: choose the coupling group"
            )
        if self.scratch and self.transfer_from is None:
            raise ValueError("scratch is for gates of another run: name it as transfer_from")
        for name in ("beta", "gamma", "steepness"):
            if getattr(self, name) > getattr(self, f"{name}_most"):
                raise ValueError(f"{name} begins above {name}_most")
        return self

    @property
    def whole_branches(self) -> bool:
        """Whether branches are weighed against each other as a whole: the threshold of coupled gates does."""
        return self.coupling == "group"

    @property
    def either(self) -> bool:
        """With gates of their own, layers of a stream decide by their union."""
        return super().either and self.coupling == "group"


class Stage(NamedTuple):
    """What holds at one step."""

    beta: float
    gamma: float
    steepness: float


@dataclass(frozen=True)
class Schedule:
    """The published schedules, stretched: 20 epochs' worth of changes, whatever the length.

    beta and gamma change after every epoch, or after every twentieth of the steps where there are fewer epochs; the
    steepness changes with every step.

    Args:
        config: The settings.
        epochs: How long gates are learnt; need not be whole.
    """

    config: ChipNet
    epochs: float

    @property
    def updates(self) -> int:
        """How many times beta and gamma are set."""
        return max(EPOCHS, round(self.epochs))

    def at(self, progress: float) -> Stage:
        """What holds after this share of the steps.

        Args:
            progress: In [0, 1]: steps done / all steps.
        """
        config = self.config
        now = min(max(progress, 0.0), 1.0)
        # Steps done / all steps may fall short of a whole number by rounding.
        number = min(floor(now * self.updates + 1e-9), self.updates - 1)
        epoch = number * EPOCHS / self.updates
        return Stage(
            min(config.beta_most, config.beta + config.beta_step * epoch),
            min(config.gamma_most, config.gamma * 2 ** min(epoch / config.gamma_every, 64.0)),
            min(config.steepness_most, config.steepness + config.steepness_step * EPOCHS * now),
        )


def gate_rate(config: ChipNet, steps: int) -> float:
    """The gates' learning rate.

    With AdamW a gate moves by about the learning rate in a step, whatever its gradient: with fewer steps than the
    paper's, gates at the paper's rate would not get far enough to close. So what is not said is 0.001 times as many
    as the steps are fewer, at most 0.1.

    Args:
        config: The settings.
        steps: Optimiser steps while gates are learnt.
    """
    if config.gate_lr is not None:
        return config.gate_lr
    return min(0.1, 1e-3 * max(1.0, STEPS / max(1, steps)))


class BudgetWeight:
    """The weight of the budget loss, which rises when the budget is not going to be met.

    After each look at the soft network, the excess is carried on to the time it is due at the pace of the last stretch
    (after that time: taken as it is). If it would still be more than :data:`SLACK`, the weight is multiplied by
    ``growth``. The authors' advice is to raise it by hand; their scripts go from 30 to 45 for 10 % of the channels.

    Args:
        config: ``budget_weight``, ``growth``, ``most``, ``due``.

    Attributes:
        value: The weight.
    """

    SLACK = 0.01
    """Share of the network's cost by which a soft network may exceed its budget: the hard threshold takes it off."""

    def __init__(self, config: ChipNet) -> None:
        self.config = config
        self.value = config.budget_weight
        self.last: tuple[float, float] | None = None

    def look(self, progress: float, excess: float) -> dict[str, Any] | None:
        """Raise the weight if need be.

        Args:
            progress: In [0, 1]: share of the steps done.
            excess: ``V - V0`` of the budget that is furthest from being met, gates soft.

        Returns:
            What to write into the history when it rose.
        """
        before, self.last = self.last, (progress, excess)
        expected = excess
        if before is not None and progress > before[0] and progress < self.config.due:
            pace = (excess - before[1]) / (progress - before[0])
            expected = excess + pace * (self.config.due - progress)
        elif progress < self.config.due:
            return None  # one look says nothing of the pace
        highest = self.config.budget_weight * self.config.most
        if expected <= self.SLACK or self.config.growth == 1 or self.value >= highest:
            return None
        old, self.value = self.value, min(highest, self.value * self.config.growth)
        return {
            "event": "budget_weight",
            "before": old,
            "after": self.value,
            "excess": excess,
            "expected": expected,
        }

    def state(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"value": self.value, "last": list(self.last) if self.last is not None else None}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.value = float(state["value"])
        last = state["last"]
        self.last = None if last is None else (float(last[0]), float(last[1]))
