"""The story of one run: problem → baseline → control → method → head slicing → artifact → proof."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

import billhook
from billhook import artifact
from billhook.control import Control, dense_finetuned, given_control
from billhook.environment import describe_environment, peak_rss_bytes
from billhook.estimate import estimate_seconds, few_steps, in_words
from billhook.methods import METHODS, Outcome, Plan, Setting, count_network
from billhook.models import check_logits
from billhook.problem import Problem, Run
from billhook.progress import Progress
from billhook.proof import Proof, prove
from billhook.rundir import RunDirectory
from billhook.surgery import slice_head
from billhook.text import feasibility
from billhook.training.checkpoint import Journal
from billhook.training.precision import Room


@dataclass(repr=False)
class Result:
    """What a run ends in.

    Attributes:
        model: The delivered network: fp32, on the CPU, in evaluation mode.
        summary: The content of ``summary.json``.
        history: One line per epoch, round and mask update.
        files: What :meth:`save` writes.
    """

    model: nn.Module
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    files: artifact.Contents

    def __repr__(self) -> str:
        """What a notebook shows: the outcome on a few lines, not every weight and epoch of it."""
        lines = ["{method} on {model}, {data}".format_map(self.summary)]
        for key in ("dense", "dense_finetuned", "pruned"):
            top1 = (self.summary[key] or {}).get("top1_kept")
            if top1 is not None:
                lines.append(f"{key.replace('_', ' ')}: {100 * top1:.2f} % top-1 of the kept classes")
        for entry in self.summary["budget"]:
            text = f"{entry['value']:.4f} ({entry['unit']}), {'met' if entry['met'] else 'missed'}"
            lines.append(f"{entry['quantity']}{entry['relation']}{entry['bound']:g}: {text}")
        return "<Result: " + "\n  ".join(lines) + ">"

    def save(self, directory: str | Path, overwrite: bool = False) -> Path:
        """Write the run directory: weights, architecture, summary, recipe, history and report.

        Raises:
            InputError: The directory holds another run and ``overwrite`` is off.
        """
        place = RunDirectory(Path(directory))
        place.claim(overwrite=overwrite)
        return place.finish(self.model, self.files, self.summary, self.history)

    @property
    def met(self) -> bool:
        """Whether every budget is met."""
        return all(entry["met"] for entry in self.summary["budget"])


@dataclass(frozen=True)
class Prepared:
    """A problem that was looked at and found feasible."""

    setting: Setting
    plan: Plan
    config: BaseModel
    seconds: float
    control: Control | None


def prepare(problem: Problem, config: BaseModel, run: Run, *, timed: bool = True) -> Prepared:
    """Count, plan, check feasibility, estimate the time; nothing is trained and nothing written.

    Raises:
        UsageError: A budget that the method cannot move.
        InputError: No layer takes the pattern, the network gives no logits, or ``--control DIR`` is of another problem.
        InfeasibleError: The budget is out of reach.
    """
    room = Room(run.device, run.precision)
    network, kept = problem.network, problem.data.kept
    size = problem.preprocess.input_size
    check_logits(network, size)
    counted = count_network(network, size, kept if problem.slice_head else None)
    setting = Setting(**vars(counted), problem=problem, room=room, earlier=run.earlier)
    plan = METHODS[str(config.name)].plan(setting, config)  # type: ignore[attr-defined]
    if text := few_steps(problem):
        plan.notes.append(text)
    control = given_control(setting, run)
    seconds = estimate_seconds(problem, room, plan.steps, plan.distil, run.control) if timed else 0.0
    return Prepared(setting, plan, config, seconds, control)


def execute(prepared: Prepared, run: Run, place: RunDirectory, progress: Progress) -> Result:
    """Carry a prepared run out; it continues from what ``place`` holds.

    Raises:
        RunError: Non-finite loss, full disk. What was finished is kept.
        Interrupted: SIGINT or SIGTERM.
    """
    setting, plan = prepared.setting, prepared.plan
    problem, room = setting.problem, setting.room
    journal = Journal(place.partial, writes=room.is_main)
    progress = progress if room.is_main else Progress()
    room.first(lambda: place.keep(plan.documents))
    if plan.feasible:
        progress.say(feasibility(plan.feasible))
    for note in plan.notes:
        progress.say(f"note: {note}")
    progress.say(f"about {in_words(prepared.seconds)} of work")

    control = prepared.control or dense_finetuned(setting, journal, progress)

    dense = problem.network.module
    module = copy.deepcopy(dense)
    teacher = copy.deepcopy(dense) if plan.distil else None
    said = len(plan.notes)
    outcome = plan.run(module, teacher, journal, progress, place.history_writer(control.history))
    for note in plan.notes[said:]:  # what only the work has shown
        progress.say(f"note: {note}")

    started = time.perf_counter()
    trained = artifact.deliverable(outcome.module)
    masked = trained if outcome.masked is None else artifact.deliverable(outcome.masked)
    small = slice_head(trained, setting.head, problem.data.kept) if problem.slice_head else trained
    patterns = outcome.patterns
    if problem.slice_head:
        patterns = artifact.slice_patterns(patterns, setting.head, problem.data.kept)
    proof = prove(setting, masked, small, patterns, control, outcome.channels)
    proof_seconds = time.perf_counter() - started

    summary = summarise(prepared, outcome, proof, control, proof_seconds)
    files = artifact.Contents(
        described=proof.described,
        patterns=patterns,
        recipe=run.recipe_yaml,
        report_data=proof.report_data | outcome.pictures,
        more=outcome.files,
        documents=plan.documents,
    )
    result = Result(proof.delivered, summary, control.history + outcome.history, files)
    if place.directory is not None:
        room.first(lambda: place.finish(result.model, files, summary, result.history))
    return result


def summarise(
    prepared: Prepared, outcome: Outcome, proof: Proof, control: Control, proof_seconds: float
) -> dict[str, Any]:
    """The content of ``summary.json``."""
    setting, problem = prepared.setting, prepared.setting.problem
    # From the history, which also counts what came before an interruption.
    pruned_seconds = float(outcome.history[-1]["seconds"])
    share = prepared.plan.share
    dense = {"top1_full": proof.dense.top1_full, "top1_kept": proof.dense.top1_kept} | setting.dense
    return {
        "billhook": billhook.__version__,
        "method": prepared.config.name,  # type: ignore[attr-defined]
        "seed": problem.seed,
        "model": problem.network.spec,
        "data": problem.data.name,
        "classes": list(problem.data.kept_names),
        "epochs": problem.epochs,
        "budget": [budget.report(setting.dense, proof.pruned) for budget in problem.budgets],
        "dense": dense,
        "dense_finetuned": control.summary(proof.control),
        "pruned": proof.pruned,
        **({"enlarged": outcome.enlarged} if outcome.enlarged else {}),
        "equivalence": proof.equivalence,
        "layers_left_dense": prepared.plan.left_dense,
        "images": {"train": len(problem.data.train), "val": len(problem.data.val), "test": len(problem.data.test)},
        "notes": prepared.plan.notes,
        "seconds": {
            "baseline": proof.seconds_dense,
            "control": control.seconds,
            "prune": share * pruned_seconds,
            "fine_tune": (1 - share) * pruned_seconds,
            "total": (0.0 if control.cached else control.seconds) + pruned_seconds + proof_seconds,
        },
        "peak_rss_bytes": peak_rss_bytes(),
        "environment": describe_environment()
        | {"precision": setting.room.precision, "threads": torch.get_num_threads()},
    }
