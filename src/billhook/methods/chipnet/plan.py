"""ChipNet from a budget to a smaller network: learn gates, make them hard, cut, fine-tune; or take another's gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from billhook.artifact import GATES
from billhook.cost.budget import Budget
from billhook.errors import InputError
from billhook.methods.base import Outcome, Setting
from billhook.methods.channel_limits import ChannelLimits
from billhook.methods.channel_run import ChannelRun, RemovalPlan
from billhook.methods.chipnet.file import SavedGates, read_gates
from billhook.methods.chipnet.gates import Gates
from billhook.methods.chipnet.learning import GateLearning, Named
from billhook.methods.chipnet.losses import BudgetLoss
from billhook.methods.chipnet.places import lay_out
from billhook.methods.chipnet.schedules import ChipNet, gate_rate
from billhook.methods.chipnet.soft_cost import SoftCost
from billhook.methods.chipnet.threshold import Choice, harden
from billhook.methods.kept import Kept
from billhook.models import place
from billhook.surgery import plan_channels
from billhook.training.config import TrainConfig


class ChipNetPlan(RemovalPlan):
    """A feasible run of ChipNet.

    Raises:
        InputError: No channel can be gated; the gates to be taken are missing, damaged or another network's.
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    config: ChipNet
    limits: ChannelLimits

    def __init__(self, setting: Setting, config: ChipNet) -> None:
        problem = setting.problem
        self.given = read_gates(config.transfer_from) if config.transfer_from is not None else None
        if self.given is not None:
            config = _as_given(setting, config, self.given)
        super().__init__(setting, config, ChannelLimits(setting, problem.budgets, config))
        self.layout = lay_out(setting.network.module, self.limits.grouping, config.coupling, self.limits.floor)
        if not self.layout.vectors:
            raise InputError(
                f"every channel of {setting.network.spec} that could go is a residual stream's", "choose streams=true"
            )
        if self.given is not None and (misfit := self._misfit(self.given)):
            what, hint = misfit
            where = f"the gates of {config.transfer_from} do not fit {setting.network.spec}"
            raise InputError(f"{where}: {what}", hint)
        if config.coupling == "independent":
            # The floor of gates of their own depends on which are the best: refused here where no gates could do it.
            self._choose(self._level, self._budgets)
        images = 0 if self.given is not None else config.share * problem.images
        self.gate_steps = int(images / config.batch_size)
        self.fine_steps = self.steps_without(self.gate_steps * config.batch_size)
        # In steps of the run's own batch size, which is what the time estimate knows of.
        early = self.gate_steps * config.batch_size / problem.train.batch_size
        self.steps = max(1, round(early) + self.fine_steps)
        self.share = early / self.steps
        self.notes += self._notes()

    @property
    def _level(self) -> Named:
        return {vector.name: np.zeros(vector.channels) for vector in self.layout.vectors}

    def _misfit(self, saved: SavedGates) -> tuple[str, str] | None:
        """Why gates are not those of this network, and what to do: each has to be there, and none besides."""
        coupling, grouping = self.config.coupling, self.limits.grouping
        # Streams that are to stay whole here may have had gates there.
        every = lay_out(self.setting.network.module, grouping, coupling, replace(self.limits.floor, streams=0.0))
        sizes = {vector.name: vector.channels for vector in every.vectors}
        hint = f"gates go to the same architecture with the same coupling (theirs: {saved.coupling})"
        for name, row in saved.psi.items():
            if sizes.get(name, len(row)) != len(row):
                return f"'{name}' needs {sizes[name]} gates", hint
        missing = [vector for vector in self.layout.vectors if vector.name not in saved.psi]
        if extra := next((name for name in saved.psi if name not in sizes), None):
            return (f"'{missing[0].name}' has none" if missing else f"it has no '{extra}'"), hint
        if missing:
            if saved.coupling == coupling and all(grouping.groups[vector.group].stream for vector in missing):
                hint = "that run left residual streams whole: choose streams=false here too"
            return f"'{missing[0].name}' has none", hint
        return None

    def _notes(self) -> list[str]:
        notes = []
        if self.given is None and self.gate_steps < 100:
            notes.append(f"gates are learnt in {self.gate_steps} steps: expect little; more --epochs or images")
        if self.given is not None:
            source = "random weights" if self.config.scratch else "the network's own weights"
            notes.append(f"the gates of {self.config.transfer_from} decide which channels stay, over {source}")
        return notes

    # ------------------------------------------------------------------ choices
    @cached_property
    def _budgets(self) -> tuple[Budget, ...]:
        """What gates are learnt for: a latency is stood in for by what it comes to for a uniform network."""
        return (*self.limits.budgets, *self.limits.counted_as(self.limits.same_share))

    def _choose(self, psi: Named, budgets: Sequence[Budget]) -> Choice:
        return harden(psi, self.layout, self.limits.cost, budgets, self.setting.dense, self.limits.floor)

    def _final(self, psi: Named) -> Choice:
        """The choice that is carried out; a latency is measured."""
        limits = self.limits
        if not limits.clocked:
            return self._choose(psi, self._budgets)

        def kept(more: Sequence[Budget]) -> Kept:
            return self._choose(psi, [*limits.budgets, *more]).kept

        return self._choose(psi, [*limits.budgets, *limits.counted_as(kept)])

    # ------------------------------------------------------------------ the run
    def carry_out(self, run: ChannelRun, module: nn.Module) -> Outcome:
        """Learn gates (or take them), cut, fine-tune."""
        if self.given is not None:
            psi: Named = self.given.psi
            beta, gamma = self.given.beta, self.given.gamma
            if self.config.scratch:
                _begin_again(module, self.setting.problem.seed)
        else:
            psi, beta, gamma = self._learn(run, module)
        choice = self._final(psi)
        plan = plan_channels(module, self.layout.grouping, choice.kept, choice.own)
        small = run.remove(module, plan)
        totals = SoftCost(self.limits.cost, self.layout).hard(choice.mask)
        run.record_removal(1, dict(zip(self.limits.cost.quantities, totals.tolist(), strict=True)))
        run.train(small, "prune", self.fine_steps)
        outcome = run.outcome(small)
        saved = SavedGates(
            {name: np.asarray(psi[name], dtype=np.float32) for name in self.layout.numbers},
            {name: np.asarray(part, dtype=bool) for name, part in self.layout.split(choice.mask).items()},
            self.config.coupling,
            beta,
            gamma,
            choice.threshold,
        )
        outcome.files[GATES] = saved.content()
        return outcome

    def _learn(self, run: ChannelRun, module: nn.Module) -> tuple[Named, float, float]:
        """The gates; the module ends with the weights of the best hard network, and without gates on it."""
        setting, config = self.setting, self.config
        problem, room = setting.problem, setting.room
        place(module, room.device, problem.train.channels_last)
        gates = Gates(self.layout, beta=config.beta, gamma=config.gamma, seed=problem.seed).to(room.device)
        if config.initialise == "identity":
            gates.compensate(module)
        gates.attach(module)
        loss = BudgetLoss(SoftCost(self.limits.cost, self.layout), self._budgets, setting.dense)
        steps = max(1, self.gate_steps)
        learning = GateLearning(
            module,
            gates,
            loss,
            lambda psi: self._choose(psi, self._budgets),
            config,
            problem,
            room,
            steps,
            gate_rate(config, steps),
        )
        run.train(module, "gates", steps, recipe=self._recipe(), plugin=learning, distil=config.distil_gates)
        learning.restore()
        gates.detach(module)
        return gates.named(), float(gates.beta), float(gates.gamma)

    def _recipe(self) -> TrainConfig:
        """AdamW at a constant rate on the weights, as published; hints would hold on to channels that are to go."""
        config = self.config
        changes: dict[str, Any] = {
            "optimizer": "adamw",
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "batch_size": config.batch_size,
            "schedule": "constant",
            "warmup": 0.0,
            "ema": None,
            "recalibrate": 0,
            "distil_features": 0.0,
        }
        return self.setting.problem.train.model_copy(update=changes)


def _begin_again(module: nn.Module, seed: int) -> None:
    """Random weights, as every layer's own initialisation draws them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()


def _as_given(setting: Setting, config: ChipNet, given: SavedGates) -> ChipNet:
    """Streams stay whole with the gates of a run that left them whole, unless somebody says otherwise."""
    if not config.either or given.coupling != config.coupling:
        return config
    streams = [name for name, group in setting.groups().groups.items() if group.stream]
    return config if any(name in given.psi for name in streams) else config.model_copy(update={"streams": False})
