"""Recipes: everything that is in force for a run, as text that runs it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from billhook.cost.budget import parse_budgets
from billhook.data import Data, Preprocess, Source, open_source, select
from billhook.errors import InputError, UsageError, nearest
from billhook.methods import find_method, first_problem, make_config
from billhook.models import Network, open_network
from billhook.problem import Problem
from billhook.training.config import PRESETS, TrainConfig


class DataRecipe(BaseModel):
    """Which images, which classes, how many, how they reach the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    classes: tuple[str, ...] | None = None
    labels: str | None = None
    limit_train: int | None = Field(None, ge=1)
    images_per_class: int | None = Field(None, ge=1)
    input_size: int | None = Field(None, ge=1)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, str):
            return None if value == "all" else tuple(part.strip() for part in value.split(","))
        return None if value is None else tuple(str(item) for item in value)


class TrainRecipe(TrainConfig):
    """The training recipe with the number of epochs in all phases together."""

    epochs: float = Field(10.0, gt=0)

    def config(self) -> TrainConfig:
        """The loop's own part."""
        return TrainConfig(**self.model_dump(exclude={"epochs"}))


class Recipe(BaseModel):
    """One run of ``billhook prune``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str | None = None
    data: DataRecipe
    method: dict[str, Any]
    budget: tuple[str, ...]
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    seed: int = Field(0, ge=0)
    head: Literal["slice", "full"] | None = None
    control: str = "run"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(None, ge=1)

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("budget", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _sourced(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    def method_config(self) -> BaseModel:
        """The method's config.

        Raises:
            UsageError: Unknown method or setting.
        """
        fields = dict(self.method)
        name = str(fields.pop("name", ""))
        find_method(name)
        return make_config(name, fields)

    def as_yaml(self) -> str:
        """The recipe with every field that is in force, the method's defaults spelled out."""
        whole = self.model_dump(mode="json")
        config = self.method_config().model_dump(mode="json")
        whole["method"] = {"name": self.method["name"]} | {k: v for k, v in config.items() if k != "name"}
        return yaml.safe_dump(whole, sort_keys=False, width=110)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The plain content of a recipe file.

    Raises:
        InputError: Missing, unreadable, or not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"the recipe {path} is not a mapping", "it starts with 'model: NAME'")
    return content


def make_recipe(content: Mapping[str, Any]) -> Recipe:
    """Check the plain content of a recipe.

    Raises:
        UsageError: Unknown keys (the nearest is suggested), missing ones, values that do not fit.
    """
    _refuse_unknown(content, Recipe.model_fields, "recipe key")
    for part, model in (("data", DataRecipe), ("train", TrainRecipe)):
        if isinstance(content.get(part), Mapping):
            _refuse_unknown(content[part], model.model_fields, f"setting {part}.")
    for key, flag in (("model", "a model"), ("data", "--data"), ("method", "--method"), ("budget", "--budget")):
        if not content.get(key):
            raise UsageError(f"nothing given for {flag}", f"the recipe key '{key}', or {flag} on the command line")
    try:
        recipe = Recipe.model_validate(dict(content))
    except ValidationError as error:
        raise UsageError(f"recipe: {first_problem(error)}") from error
    recipe.method_config()
    parse_budgets(recipe.budget)
    return recipe


def apply_settings(content: dict[str, Any], settings: Sequence[str]) -> None:
    """Put ``key=value`` texts into a recipe's content: ``train.``, ``data.``, or a field of the method.

    Raises:
        UsageError: Not of that form.
    """
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {text} is not of the form key=value", "such as --set nm=2:4")
        part, dot, field = key.strip().partition(".")
        if dot and part not in ("train", "data", "method"):
            raise UsageError(f"--set {key}: unknown part '{part}'", nearest(part, ("train", "data", "method")))
        section, field = (part, field) if dot else ("method", part)
        target = content.get(section)
        if not isinstance(target, dict):
            target = {"name" if section == "method" else "source": target} if target else {}
            content[section] = target
        target[field] = read_value(value)


def read_value(text: str) -> Any:
    """A plain value from the command line: number, true/false/null, or text (``2:4`` stays text)."""
    lower = text.strip().lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower in ("null", "none", ""):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def build_problem(recipe: Recipe, model: Any = None, source: Any = None) -> tuple[Problem, BaseModel]:
    """Open everything that a recipe names.

    Args:
        recipe: What is asked.
        model: A network that was passed in, instead of ``recipe.model``.
        source: Data that were passed in, instead of ``recipe.data.source``.

    Returns:
        The problem, and the method's config.
    """
    config = recipe.method_config()
    budgets = parse_budgets(recipe.budget)
    opened = open_source(source if source is not None else recipe.data.source)
    classes = None if recipe.weights is not None or recipe.data.labels is not None else len(opened.classes)
    network = open_network(model if model is not None else recipe.model, classes, recipe.weights, seed=recipe.seed)
    preprocess, data = open_data(opened, network, recipe.data, recipe.seed)
    head = recipe.head or ("slice" if data.subset else "full")
    train = recipe.train.config()
    problem = Problem(
        network=network,
        data=data,
        preprocess=preprocess,
        budgets=budgets,
        train=train,
        epochs=recipe.train.epochs,
        seed=recipe.seed,
        slice_head=head == "slice" and len(data.kept) < network.classes,
    )
    return problem, config


def open_data(source: Source, network: Network, recipe: DataRecipe, seed: int) -> tuple[Preprocess, Data]:
    """The images of a recipe, prepared for a network."""
    size = recipe.input_size
    if size is None and network.builtin and source.pixels != "float":
        size = network.input_size
    preprocess = Preprocess.for_source(source, size, recipe.mean or network.mean, recipe.std or network.std)
    data = select(
        source,
        outputs=network.classes,
        labels=recipe.labels,
        classes=list(recipe.classes) if recipe.classes is not None else None,
        limit_train=recipe.limit_train,
        images_per_class=recipe.images_per_class,
        seed=seed,
        preprocess=preprocess,
    )
    return preprocess, data


def train_preset(name: str) -> dict[str, Any]:
    """Fields of a training preset.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset '{name}'", nearest(name, PRESETS))
    return dict(PRESETS[name])
