"""Dense training: ``billhook train``. Its run directory holds a network that ``prune`` and ``evaluate`` can take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import billhook
from billhook import artifact
from billhook.cost import count
from billhook.data import open_source
from billhook.environment import describe_environment, peak_rss_bytes
from billhook.errors import InputError, UsageError
from billhook.estimate import estimate_seconds, few_steps, in_words
from billhook.methods import first_problem
from billhook.models import check_logits, find_head, open_for_classes
from billhook.problem import Problem
from billhook.progress import Progress
from billhook.proof import refuse_wild
from billhook.recipe import DataRecipe, TrainRecipe, check_device, open_data, refuse_unknown
from billhook.rundir import RunDirectory
from billhook.training.checkpoint import Journal
from billhook.training.evaluate import evaluate
from billhook.training.loop import fit
from billhook.training.precision import Room


class DenseRecipe(BaseModel):
    """One run of ``billhook train``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str | None = None
    data: DataRecipe
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(None, ge=1)

    @field_validator("data", mode="before")
    @classmethod
    def _sourced(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


def make_train_recipe(content: Mapping[str, Any]) -> DenseRecipe:
    """Check plain content.

    Raises:
        UsageError: Unknown settings or values that do not fit.
    """
    for part, model in (("data", DataRecipe), ("train", TrainRecipe)):
        if isinstance(content.get(part), Mapping):
            refuse_unknown(content[part], model.model_fields, f"setting {part}.")
    try:
        recipe = DenseRecipe.model_validate(dict(content))
    except ValidationError as error:
        raise UsageError(f"recipe: {first_problem(error)}") from error
    if not recipe.data.source:
        raise UsageError("nothing given for --data", "name an image folder, a parquet folder or digits")
    check_device(recipe.device)
    return recipe


def train_dense(
    recipe: DenseRecipe, out: str | Path, resume: bool, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Train, evaluate on the test images, write the run directory.

    Returns:
        The content of ``summary.json``: ``method`` is ``dense`` and there is no ``pruned`` entry.

    Raises:
        UsageError, InputError: Something asked for does not exist or does not fit.
        RunError: Non-finite loss, full disk. ``resume`` continues.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    place = RunDirectory(Path(out))
    place.check(resume=resume, overwrite=overwrite)
    if resume and place.finished:
        raise InputError(f"the run in {out} is finished", "there is nothing to resume")
    source = open_source(recipe.data.source)
    chosen = recipe.data.classes
    network = open_for_classes(recipe.model, len(source.classes), recipe.weights, seed=recipe.seed)
    preprocess, data = open_data(source, network, recipe.data, recipe.seed)
    check_logits(network, preprocess.input_size)
    room = Room(recipe.device, recipe.precision)
    progress = progress if room.is_main else Progress()
    train = recipe.train.config()
    problem = Problem(network, data, preprocess, (), train, recipe.train.epochs, recipe.seed, slice_head=False)
    if text := few_steps(problem):
        progress.say(f"note: {text}")
    progress.say(f"about {in_words(estimate_seconds(problem, room, problem.steps, False, 'none'))} of work")
    inputs = f"{artifact.state_hash(network.module)} {data.fingerprint}"
    room.first(lambda: place.claim(recipe.model_dump(mode="json"), inputs, resume=resume, overwrite=overwrite))

    started = time.perf_counter()
    task = problem.task(
        network.module,
        "train",
        problem.steps,
        journal=Journal(place.partial, writes=room.is_main),
        progress=progress,
        on_history=place.history_writer([]),
    )
    history = fit(task, room)
    trained = time.perf_counter()
    module = artifact.deliverable(task.module)
    refuse_wild(module, data, preprocess)
    result = evaluate(module.to(room.device), data.test, preprocess, data.kept, room)
    module = artifact.deliverable(module)
    cost = count(module, preprocess.input_size)
    described = artifact.architecture(
        network,
        module,
        head=find_head(module),
        sliced=False,
        data=data,
        preprocess=preprocess,
        patterns={},
    )
    summary: dict[str, Any] = {
        "billhook": billhook.__version__,
        "method": "dense",
        "seed": recipe.seed,
        "model": network.spec,
        "data": data.name,
        "classes": list(data.kept_names if chosen else data.outputs),
        "epochs": recipe.train.epochs,
        "budget": [],
        "dense": {"top1_full": result.top1_full, "top1_kept": result.top1_kept}
        | cost.totals()
        | {"bytes": artifact.file_bytes(artifact.state_arrays(module), {})},
        "dense_finetuned": None,
        "pruned": None,
        "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "seconds": {"train": trained - started, "total": time.perf_counter() - started},
        "peak_rss_bytes": peak_rss_bytes(),
        "environment": describe_environment() | {"precision": room.precision, "threads": torch.get_num_threads()},
    }
    files = artifact.Contents(
        described=described,
        patterns={},
        recipe=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        report_data={},
    )
    room.first(lambda: place.finish(module, files, summary, history))
    return summary
