"""What every method is to the pipeline: a plan that can be looked at, and then run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor, nn

from billhook.cost import Cost
from billhook.formats import PatternInfo
from billhook.problem import Problem
from billhook.progress import Progress
from billhook.training.checkpoint import Journal
from billhook.training.precision import Room

HistoryWriter = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Setting:
    """What a method may look at when it plans.

    Attributes:
        problem: What is asked.
        head: Name of the classifier.
        cost: Of the dense network.
        delivered: Of the dense network with the head as delivered.
        dense: Totals of the dense network, ``bytes`` as its file would have.
        file_bytes: Size of ``model.safetensors`` for a state stored under these patterns.
        room: Device, precision, processes.
    """

    problem: Problem
    head: str
    cost: Cost
    delivered: Cost
    dense: dict[str, Any]
    file_bytes: Callable[[dict[str, PatternInfo]], int]
    room: Room


@dataclass
class Outcome:
    """What a method hands back: the last masked network, before the head is sliced.

    Attributes:
        module: Its zeros are real zeros.
        masks: Boolean, by parameter name, in the parameters' shapes.
        patterns: How to store the masked weights.
        history: One line per epoch and per mask update.
    """

    module: nn.Module
    masks: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, PatternInfo] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


class Plan(Protocol):
    """A method that has looked at the problem and found it feasible."""

    feasible: list[dict[str, object]]
    notes: list[str]
    left_dense: list[dict[str, str]]
    steps: int
    distil: bool

    def run(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        journal: Journal,
        progress: Progress,
        on_history: HistoryWriter,
    ) -> Outcome:
        """Prune and fine-tune ``module`` in place."""
        ...


@dataclass(frozen=True)
class Method:
    """One entry of the registry."""

    name: str
    config: type[BaseModel]
    plan: Callable[[Setting, Any], Plan]
