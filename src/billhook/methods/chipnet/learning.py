"""Gates learnt beside the weights: the losses, the schedules, and the hard network looked at after every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.methods.chipnet.gates import Gates
from billhook.methods.chipnet.losses import BudgetLoss, crispness
from billhook.methods.chipnet.schedules import BudgetWeight, ChipNet, Schedule
from billhook.methods.chipnet.threshold import Choice
from billhook.models import load_into
from billhook.problem import Problem
from billhook.training.checkpoint import split_prefix
from billhook.training.evaluate import evaluate
from billhook.training.plugin import Plugin
from billhook.training.precision import Room
from billhook.training.recalibrate import recalibrate

BINS = 20
"""Of the histogram of gates that every look at the hard network leaves in the history."""

Named = Mapping[str, NDArray[np.floating[Any]]]


class GateLearning(Plugin):
    """The loop's plugin: ``alpha_c`` crispness + ``alpha_b`` budget loss beside the loss on the outputs (2102.07156).

    After every epoch the gates of a copy are made 0 or 1 within the budget, its BatchNorm statistics are measured
    again, and it is evaluated on the validation images: the best of these networks is what the phase ends in.

    Args:
        module: Trained in place; the gates are on it.
        gates: On the device of the network.
        loss: Of the budgets.
        choose: Which gates stay open, by the values of psi.
        config: The settings.
        problem: Images and transforms.
        room: Device, precision, processes.
        steps: Of the phase.
        rate: The gates' learning rate.
    """

    def __init__(
        self,
        module: nn.Module,
        gates: Gates,
        loss: BudgetLoss,
        choose: Callable[[Named], Choice],
        config: ChipNet,
        problem: Problem,
        room: Room,
        steps: int,
        rate: float,
    ) -> None:
        self.module, self.gates, self.budget, self.choose = module, gates, loss, choose
        self.config, self.problem, self.room, self.steps, self.rate = config, problem, room, steps, rate
        self.schedule = Schedule(config, steps / problem.data.train.steps(config.batch_size))
        self.weight = BudgetWeight(config)
        self.steepness = config.steepness
        self.looks = 0
        # Of the best hard network: the network's tensors and the gates; validation accuracy, beta, gamma.
        self.best: dict[str, Tensor] = {}
        self.best_meta: dict[str, float] = {}

    # ------------------------------------------------------------------ the loop
    def parameters(self) -> list[dict[str, Any]]:
        """psi: a learning rate of its own, no weight decay."""
        return [{"params": [self.gates.psi], "weight_decay": 0.0, "scale": self.rate / self.config.lr}]

    def before_step(self, step: int) -> list[dict[str, Any]]:
        """Move the schedules; now and then see whether the budget is going to be met."""
        progress = step / self.steps
        stage = self.schedule.at(progress)
        self.gates.advance(stage.beta, stage.gamma)
        self.steepness = stage.steepness
        look = int(progress * self.schedule.updates + 1e-9)
        if look == self.looks:
            return []
        self.looks = look
        with torch.no_grad():
            excess = float(self.budget.excess(self.gates.values()).max())
        event = self.weight.look(progress, excess)
        return [] if event is None else [{"phase": "gates", "step": step} | event]

    def loss(self, step: int) -> Tensor:
        """Crispness and budget, weighed."""
        soft, values = self.gates.logistic(), self.gates.values()
        crisp = self.config.crisp_weight * crispness(soft, values, self.config.crispness)
        return crisp + self.weight.value * self.budget(values, self.steepness).to(crisp.dtype)

    def after_backward(self, step: int) -> None:
        """Every process takes the mean gradient of the gates, as it does of the weights."""
        gradient = self.gates.psi.grad
        if gradient is not None and self.room.world > 1:
            gradient.copy_(self.room.sum(gradient) / self.room.world)

    def describe(self) -> dict[str, Any]:
        """Where the schedules are."""
        return {
            "beta": float(self.gates.beta),
            "gamma": float(self.gates.gamma),
            "steepness": self.steepness,
            "budget_weight": self.weight.value,
        }

    # ------------------------------------------------------------------ the hard network
    def after_epoch(self, step: int) -> list[dict[str, Any]]:
        """Make the gates of a copy hard, look at it, keep it if it is the best so far."""
        problem, psi = self.problem, self.gates.named()
        choice = self.choose(psi)
        module, gates = copy.deepcopy((self.module, self.gates))
        gates.harden(choice.mask, keep=self.config.fold)
        recalibrate(module, problem.data.train, problem.preprocess, self.room)
        # Without validation images the last network is the best.
        top1: dict[str, float | None] = {"hard_top1_kept": None, "hard_top1_full": None}
        if len(problem.data.val):
            result = evaluate(module, problem.data.val, problem.preprocess, problem.data.kept, self.room, exact=False)
            top1 = {"hard_top1_kept": result.top1_kept, "hard_top1_full": result.top1_full}
        accuracy = top1["hard_top1_kept"] or 0.0
        better = not self.best or accuracy >= self.best_meta["accuracy"]
        if better:
            self.best = {f"model/{name}": t.detach().clone() for name, t in module.state_dict().items()}
            self.best["psi"] = self.gates.psi.detach().clone()
            self.best_meta = {"accuracy": accuracy, "step": float(step)}
            self.best_meta |= {"beta": float(self.gates.beta), "gamma": float(self.gates.gamma)}
        return [{"phase": "gates", "event": "gates", "step": step, "best": better} | top1 | self._line(choice)]

    @torch.no_grad()
    def _line(self, choice: Choice) -> dict[str, Any]:
        values = self.gates.values()
        mask = torch.as_tensor(choice.mask).to(values)
        counts = np.histogram(values.float().cpu().numpy(), bins=BINS, range=(0.0, 1.0))[0]
        return {
            "soft_share": self.budget.shares(values).tolist(),
            "hard_share": self.budget.shares(mask, branches=True).tolist(),
            "allowed": list(self.budget.allowed),
            "open": int(choice.mask.sum()),
            "between": float(((values > 0.05) & (values < 0.95)).float().mean()),
            "histogram": counts.tolist(),
        }

    @torch.no_grad()
    def restore(self) -> Choice:
        """Put the best hard network's weights into the module and its gates on it; what stays open of them.

        With ``fold``, weights are multiplied by what open gates are.
        """
        load_into(self.module, split_prefix(self.best, "model"), "the best hard network")
        self.gates.psi.copy_(self.best["psi"].to(self.gates.psi))
        self.gates.advance(self.best_meta["beta"], self.best_meta["gamma"])
        choice = self.choose(self.gates.named())
        if self.config.fold:
            self.gates.fold(self.module, choice.mask)
        return choice

    # ------------------------------------------------------------------ state
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Gates, the best network so far, the budget's weight."""
        tensors = {"psi": self.gates.psi.detach()} | {f"best/{name}": t for name, t in self.best.items()}
        meta = {"weight": self.weight.state(), "looks": self.looks, "best": dict(self.best_meta)}
        return tensors, meta | {"beta": float(self.gates.beta), "gamma": float(self.gates.gamma)}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take them back."""
        with torch.no_grad():
            self.gates.psi.copy_(tensors["psi"])
        self.gates.advance(meta["beta"], meta["gamma"])
        self.weight.load_state(meta["weight"])
        self.looks, self.best_meta = int(meta["looks"]), dict(meta["best"])
        self.best = {name: t.clone() for name, t in split_prefix(dict(tensors), "best").items()}
