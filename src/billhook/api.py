"""The Python API: what a notebook types."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import nn

from billhook import artifact
from billhook.control import control_key
from billhook.data import open_source, parse_classes, read_image
from billhook.errors import InputError, UsageError
from billhook.methods import make_config
from billhook.models import open_network, place
from billhook.pipeline import Prepared, Result, execute, prepare
from billhook.problem import Run
from billhook.progress import Progress
from billhook.recipe import DataRecipe, Recipe, build_problem, check_device, make_recipe, open_data
from billhook.rundir import MAY_CHANGE, RunDirectory
from billhook.training.evaluate import evaluate
from billhook.training.precision import Room


def prune(
    model: nn.Module | str,
    data: Any,
    *,
    method: str | Mapping[str, Any] | BaseModel = "crisp",
    budget: str | Sequence[str],
    classes: str | Sequence[str | int] | None = None,
    labels: str | Path | None = None,
    weights: str | Path | None = None,
    epochs: float = 10.0,
    seed: int = 0,
    limit_train: int | None = None,
    images_per_class: int | None = None,
    train: dict[str, Any] | None = None,
    control: str = "run",
    head: Literal["slice", "full"] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Prune a trained network to a budget and prove the result.

    Args:
        model: Any ``nn.Module`` (it is not modified), a spec, or the directory of an earlier run.
        data: A path, a spec (``"digits"``), or a pair of PyTorch datasets (train, test).
        method: A name, a config such as ``billhook.CRISP(nm="2:4", block=16)``, or the two as in a recipe:
            ``{"name": "taylor", "rounds": 5}``.
        budget: ``"sparsity>=90%"``, or several.
        classes: Kept classes, by name or index, or as the command line takes them (``"cat,dog"``); all by default.
        labels: JSON file that names every head output.
        weights: Checkpoint for a spec.
        epochs: Passes over the training images in all phases together.
        train: Fields of the training recipe, such as ``{"lr": 0.02}``.
        control: ``"run"``, ``"none"``, or a run directory whose control is taken.
        head: ``"slice"`` keeps only the kept classes' outputs (default when ``classes`` is given); ``"full"`` all.
        out: Run directory; without one nothing is written until ``result.save(DIR)``.
        resume: Continue an interrupted run in ``out``.

    Returns:
        The pruned network and its summary.

    Raises:
        UsageError, InputError: Something asked for does not exist or does not fit.
        InfeasibleError: The budget is out of reach.
        RunError: The run failed while working.
    """
    classes = None if classes is None or classes == "all" else _listed(classes)
    budgets = [budget] if isinstance(budget, str) else budget
    if not isinstance(budgets, Sequence) or not all(isinstance(text, str) for text in budgets):
        raise UsageError(f"the budget {budget!r} is not text", 'such as "sparsity>=90%", or a list of several')
    content: dict[str, Any] = {
        "model": model if isinstance(model, str) else f"module:{type(model).__name__}",
        "weights": None if weights is None else str(weights),
        "data": {
            "source": str(data) if isinstance(data, str | Path) else "objects",
            "classes": None if classes is None else list(classes),
            "labels": None if labels is None else str(labels),
            "limit_train": limit_train,
            "images_per_class": images_per_class,
            "mean": None if mean is None else tuple(mean),
            "std": None if std is None else tuple(std),
            "input_size": input_size,
        },
        "method": _method_fields(method),
        "budget": list(budgets),
        "train": dict(train or {}) | {"epochs": epochs},
        "seed": seed,
        "head": head,
        "control": control,
        "device": device,
        "precision": precision,
    }
    recipe = make_recipe(content)
    if classes is not None:
        # In Python an integer is an index, also where a class is called so.
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": tuple(classes)})})
    module = model if isinstance(model, nn.Module) else None
    source = None if isinstance(data, str | Path) else data
    return run_recipe(
        recipe, out=out, resume=resume, overwrite=overwrite, progress=progress, model=module, source=source
    )


def run_recipe(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    model: nn.Module | None = None,
    source: Any = None,
) -> Result:
    """Carry out a recipe; see :func:`prune`."""
    progress = progress or Progress()
    place = RunDirectory(None if out is None else Path(out))
    place.check(resume=resume, overwrite=overwrite)
    if resume and place.finished:
        raise InputError(f"the run in {out} is finished", "there is nothing to resume")
    prepared, run = look(recipe, model=model, source=source, earlier=place.directory if resume else None)
    # Only now, with everything opened, checked and feasible, is anything written.
    inputs = control_key(prepared.setting, ignore=MAY_CHANGE)
    prepared.setting.room.first(
        lambda: place.claim(recipe.model_dump(mode="json"), inputs, resume=resume, overwrite=overwrite)
    )
    return execute(prepared, run, place, progress)


def look(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    source: Any = None,
    timed: bool = True,
    earlier: Path | None = None,
) -> tuple[Prepared, Run]:
    """Open, plan and check a recipe; nothing is trained and nothing written (``--dry-run``).

    Args:
        earlier: Directory of the interrupted run that goes on.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    problem, config = build_problem(recipe, model, source)
    if any(isinstance(name, int) for name in recipe.data.classes or ()):
        spelled = recipe.data.model_copy(update={"classes": problem.data.kept_names})
        recipe = recipe.model_copy(update={"data": spelled})
    run = Run(recipe.device, recipe.precision, recipe.control, recipe.as_yaml(), earlier)
    return prepare(problem, config, run, timed=timed), run


def measure(
    model: nn.Module | str,
    images_of: Any,
    *,
    weights: str | Path | None = None,
    classes: str | Sequence[str | int] | None = None,
    labels: str | Path | None = None,
    model_for: str | None = None,
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "fp32",
    batch_size: int = 250,
) -> dict[str, Any]:
    """Accuracy of a network or of a run on test images; the document of ``billhook evaluate --json``.

    Args:
        model: A spec, an ``nn.Module``, or a run directory (then labels and preprocessing are the run's own).
        images_of: Data: a path, a spec, or a pair of PyTorch datasets.
        model_for: For a run of your own code: the spec to rebuild from.

    Returns:
        ``{"top1_full", "top1_kept", "per_class", "confusion", "classes", "images"}``; ``top1_full`` is None for a
        sliced head.
    """
    check_device(device)
    source = open_source(images_of)
    room = Room(device, precision)
    recipe = DataRecipe(
        classes=None if classes is None else tuple(str(c) for c in _listed(classes)),
        labels=None if labels is None else str(labels),
        input_size=input_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )
    sliced = False
    if isinstance(model, str) and artifact.names_run(model):
        artifact.refuse_weights(model, weights)
        network, described, preprocess = artifact.load_network(model, model_for)
        sliced = bool(described["head"]["sliced"])
        if recipe.classes is None:
            kept_outputs = range(network.classes) if sliced else described["head"]["kept"]
            recipe = recipe.model_copy(update={"classes": tuple(kept_outputs)})
        recipe = recipe.model_copy(update={"labels": None})
        _, data = open_data(
            source, network, recipe, 0, labels=described["labels"], preprocess=preprocess, decode=False, only_test=True
        )
    else:
        named = weights is not None or labels is not None or not isinstance(model, str)
        # A network that was passed in keeps its device and layout.
        own = model if isinstance(model, str) else copy.deepcopy(model)
        network = open_network(own, None if named else len(source.classes), weights)
        preprocess, data = open_data(source, network, recipe, 0, decode=False, only_test=True)
    images, kept, names = data.test, data.kept, list(data.kept_names)
    module = place(network.module, room.device)
    # The outputs that were asked for may be fewer than a sliced head has, so they are picked from it like any others.
    result = evaluate(module, images, preprocess, kept, room, batch_size=batch_size, exact=precision == "fp32")
    return {
        "top1_full": None if sliced else result.top1_full,
        "top1_kept": result.top1_kept,
        "per_class": dict(zip(names, (float(v) for v in result.per_class), strict=True)),
        "confusion": result.confusion.tolist(),
        "classes": names,
        "images": result.images,
    }


@torch.no_grad()
def classify(directory: str | Path, images: Sequence[str | Path], model_for: str | None = None) -> list[dict[str, Any]]:
    """Label and probability of image files; the document of ``billhook predict --json``."""
    network, described, preprocess = artifact.load_network(directory, model_for)
    labels = described["labels"]
    opened = [(str(path), read_image(path)) for path in images]
    rows: list[dict[str, Any]] = []
    for path, image in opened:
        probabilities = network.module(preprocess.one_image(image))[0].softmax(dim=0)
        best = int(probabilities.argmax())
        name = labels[best] if isinstance(labels[best], str) else labels[best][1]
        rows.append({"image": path, "label": name, "probability": float(probabilities[best])})
    return rows


def load(directory: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Rebuild the network of a run directory; see :func:`billhook.artifact.load`."""
    return artifact.load(directory, model)


def _listed(classes: str | Sequence[str | int]) -> Sequence[str | int]:
    """A lone text is read as the command line reads it; as a sequence it would be a class per letter."""
    return parse_classes(classes) if isinstance(classes, str) else classes


def _method_fields(method: str | Mapping[str, Any] | BaseModel) -> dict[str, Any]:
    if isinstance(method, str):
        return {"name": method}
    if isinstance(method, Mapping) and "name" in method:
        return dict(method)
    if not isinstance(method, BaseModel) or "name" not in type(method).model_fields:
        raise UsageError(f"method {method!r} is neither a name nor a method's config", "such as billhook.CRISP()")
    fields = method.model_dump(mode="json")
    make_config(str(fields["name"]), {key: value for key, value in fields.items() if key != "name"})
    return fields


__all__ = ["Result", "load", "look", "prune", "run_recipe"]
