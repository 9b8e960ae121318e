"""What every method is to the pipeline: a plan that can be looked at, and then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from billhook.cost.budget import Budget
from billhook.formats import PatternInfo
from billhook.methods.counted import Counted
from billhook.problem import Problem
from billhook.progress import Progress
from billhook.surgery import ChannelPlan
from billhook.training.checkpoint import Journal
from billhook.training.precision import Room

HistoryWriter = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Setting(Counted):
    """What a method may look at when it plans.

    Attributes:
        problem: What is asked.
        room: Device, precision, processes.
        earlier: Directory of the interrupted run that goes on, with what it measured.
    """

    problem: Problem
    room: Room
    earlier: Path | None = None


@dataclass
class Outcome:
    """What a method hands back, before the head is sliced.

    Attributes:
        module: The trained network; its zeros are real zeros.
        masked: Of a method that removes channels: the network in its old shape that computes what ``module`` does.
            None where ``module`` itself is the masked network.
        channels: What of the network stayed at each removal of channels, in order.
        masks: Boolean, by parameter name, in the parameters' shapes.
        patterns: How to store the masked weights.
        history: One line per epoch and per mask update.
        files: Further files for the run directory: tensors and metadata, by name.
        pictures: Further arrays of ``report_data.npz``, by name.
        enlarged: What the network costs with all layers that the method adds and all its channels, by quantity: the
            paper's own base for reductions. None where nothing is added.
    """

    module: nn.Module
    masked: nn.Module | None = None
    channels: tuple[ChannelPlan, ...] = ()
    masks: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, PatternInfo] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, tuple[dict[str, NDArray[Any]], dict[str, str]]] = field(default_factory=dict)
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)
    enlarged: dict[str, int] | None = None


class Plan(Protocol):
    """A method that has looked at the problem and found it feasible."""

    feasible: list[dict[str, object]]
    notes: list[str]
    left_dense: list[dict[str, str]]
    steps: int
    share: float  # of the steps, before the last mask or removal
    distil: bool

    @property
    def documents(self) -> Mapping[str, Any]:
        """What was measured for the plan, as JSON files of the run directory, by name: kept from the start on."""
        ...

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


class Limits(Protocol):
    """How far a method can go on a network; no images are needed to say so."""

    left_dense: list[dict[str, str]]

    def feasibility(self) -> list[dict[str, object]]:
        """One row per budget: dense, smallest reachable, asked, feasible."""
        ...


@dataclass(frozen=True)
class Method:
    """One entry of the registry.

    Attributes:
        name: On the command line and in recipes.
        config: Its settings.
        plan: Looks at a problem; raises when a budget is out of reach.
        limits: Looks at a network and its budgets (none, to ask which layers it leaves dense); no budget is out of
            reach here, but one that the method cannot move is refused.
        train: Fields of the training recipe that runs of this method have unless somebody says otherwise.
    """

    name: str
    config: type[BaseModel]
    plan: Callable[[Setting, Any], Plan]
    limits: Callable[[Counted, Sequence[Budget], Any], Limits]
    train: Mapping[str, Any] = field(default_factory=dict)
