"""Recipes: everything that is in force for a run, as text that runs it again."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from billhook import artifact
from billhook.cost.budget import parse_budgets
from billhook.data import Data, ImageSet, Preprocess, Source, open_source, parse_classes, select
from billhook.errors import InputError, UsageError, nearest
from billhook.methods import METHODS, find_method, first_problem, make_config
from billhook.models import Network, open_network
from billhook.problem import Problem
from billhook.training.config import PRESETS, TrainConfig


class DataRecipe(BaseModel):
    """Which images, which classes, how many, how they reach the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    classes: tuple[str | int, ...] | None = None
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
            return None if value == "all" else tuple(parse_classes(value))
        if isinstance(value, int):
            return (str(value),)
        # Text decides by name first: 3 in a recipe is the class called "3" where there is one.
        return tuple(str(item) for item in value) if isinstance(value, list | tuple) else value


class TrainRecipe(TrainConfig):
    """The training recipe with the number of epochs in all phases together."""

    epochs: float = Field(10.0, gt=0, allow_inf_nan=False)

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


class _Loader(yaml.SafeLoader):
    """YAML without its base-60 integers, so that ``nm: 2:4`` needs no quotes."""


_INTEGER = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, re.compile(r"[-+]?[0-9]+$") if tag == _INTEGER else pattern) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The plain content of a recipe file.

    Raises:
        InputError: Missing, unreadable, or not a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the recipe {path}: {what}") from error
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise InputError(f"the recipe {path} is not YAML: {f'line {mark.line + 1}: ' if mark else ''}{what}") from error
    if not isinstance(content, dict):
        raise InputError(f"the recipe {path} is not a mapping", "it starts with 'model: NAME'")
    method = content.get("method")
    if isinstance(method, dict) and isinstance(method.get("nm"), int):
        # YAML 1.1 reads an unquoted 2:4 as 124, a number of base 60.
        method["nm"] = "{}:{}".format(*divmod(method["nm"], 60))
    return content


def make_recipe(content: Mapping[str, Any]) -> Recipe:
    """Check the plain content of a recipe.

    Raises:
        UsageError: Unknown keys (the nearest is suggested), missing ones, values that do not fit.
    """
    refuse_unknown(content, Recipe.model_fields, "recipe key")
    for part, model, more in (("data", DataRecipe, ()), ("train", TrainRecipe, ("preset",))):
        if isinstance(content.get(part), Mapping):
            refuse_unknown(content[part], [*model.model_fields, *more], f"setting {part}.")
    named = {part: _named(content.get(part), key) for part, key in (("data", "source"), ("method", "name"))}
    for key, flag in (("model", "a model"), ("data", "--data"), ("method", "--method"), ("budget", "--budget")):
        if not named.get(key, content.get(key)):
            raise UsageError(f"nothing given for {flag}", f"the recipe key '{key}', or {flag} on the command line")
    content = dict(content) | {"train": _training(content)}
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"recipe: {first_problem(error)}") from error
    recipe.method_config()
    parse_budgets(recipe.budget)
    check_device(recipe.device)
    return recipe


def _training(content: Mapping[str, Any]) -> Any:
    """What is said of the training, over the preset that it names, or else over what the method asks for."""
    said = content.get("train")
    if said is not None and not isinstance(said, Mapping):
        return said
    said = dict(said or {})
    preset = said.pop("preset", None)
    if preset is not None:
        return train_preset(str(preset)) | said
    method = METHODS.get(str(_named(content.get("method"), "name")))
    return (dict(method.train) if method is not None else {}) | said


def _named(section: Any, key: str) -> Any:
    """What a section of a recipe is about: its text, or its entry ``key``."""
    return section.get(key) if isinstance(section, Mapping) else section


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        UsageError: No such device.
    """
    if name in ("auto", "cpu"):
        return
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"the device '{name}' cannot be used on this machine", "auto, cpu, cuda, cuda:1 ..."
        ) from error


def refuse_unknown(content: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Raise for the first key that is not known.

    Raises:
        UsageError: The nearest known key is suggested.
    """
    names = list(known)
    for key in content:
        if key not in names:
            space = "" if what.endswith(".") else " "
            raise UsageError(f"unknown {what}{space}{key}", nearest(str(key), names))


def apply_settings(content: dict[str, Any], settings: Sequence[str], *, method: bool = True) -> None:
    """Put ``key=value`` texts into a recipe's content: ``train.``, ``data.``, or a field of the method.

    Without a method (``billhook train``) a bare key is one of ``train.``.

    Raises:
        UsageError: Not of that form.
    """
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {text} is not of the form key=value", "such as --set nm=2:4")
        part, dot, field = key.strip().partition(".")
        parts = ("train", "data", "method") if method else ("train", "data")
        if dot and part not in parts:
            raise UsageError(f"--set {key}: unknown part '{part}'", nearest(part, parts))
        section, field = (part, field) if dot else ("method" if method else "train", part)
        content[section] = opened_section(content.get(section), section) | {field: read_value(value)}


def opened_section(value: Any, section: str) -> dict[str, Any]:
    """A section of a recipe as a mapping, where it may be its one word: ``data: digits``, ``method: crisp``.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if not value:
        return {}
    if not isinstance(value, str) or section == "train":
        raise UsageError(f"recipe: {section} is not a mapping", "such as train: {epochs: 10}")
    return {"name" if section == "method" else "source": value}


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
    network, preprocess, labels = _open_model(recipe, opened, model)
    preprocess, data = open_data(opened, network, recipe.data, recipe.seed, labels=labels, preprocess=preprocess)
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
        all_classes=None if getattr(config, "class_aware", True) else _all_classes(opened, network, recipe, labels),
    )
    return problem, config


def _open_model(recipe: Recipe, source: Source, model: Any) -> tuple[Network, Preprocess | None, list[Any] | None]:
    """The network; of a run directory also how its images are prepared and what its outputs are called."""
    if model is not None:
        # Nothing that was passed in is modified. Its copy, on the CPU as if read from a file, is trained in fp32, what
        # it has frozen included.
        own = copy.deepcopy(model).cpu().float().requires_grad_(True)
        return open_network(own, None, recipe.weights, seed=recipe.seed), None, None
    if artifact.names_run(recipe.model):
        artifact.refuse_weights(recipe.model, recipe.weights)
        network, described, preprocess = artifact.load_network(
            recipe.model,
            # prune has no --model: a trained network goes by its spec and file, a pruned one through Python.
            remedy=f"prune SPEC --weights {recipe.model}/model.safetensors; or in Python prune(load(DIR, model), ...)",
        )
        return network, preprocess, described["labels"]
    named = recipe.weights is not None or recipe.data.labels is not None
    network = open_network(recipe.model, None if named else len(source.classes), recipe.weights, seed=recipe.seed)
    return network, None, None


def _all_classes(source: Source, network: Network, recipe: Recipe, labels: Sequence[Any] | None) -> ImageSet:
    """Training images of all classes, as many as the recipe allows of the kept ones."""
    everything = recipe.data.model_copy(update={"classes": None})
    return open_data(source, network, everything, recipe.seed, labels=labels, decode=False)[1].train


def open_data(
    source: Source,
    network: Network,
    recipe: DataRecipe,
    seed: int,
    *,
    labels: Sequence[Any] | None = None,
    preprocess: Preprocess | None = None,
    decode: bool = True,
    only_test: bool = False,
) -> tuple[Preprocess, Data]:
    """The images of a recipe, prepared for a network.

    Args:
        labels: What a run calls its outputs; the recipe's own label file goes first.
        preprocess: A run's own; the recipe's own sizes and normalisation go first.
        decode: Decode all images now instead of on first use.
        only_test: Only test images are needed.
    """
    classes = recipe.classes
    if labels is not None and recipe.labels is None:
        refuse_strangers(source, classes or (), labels)
        if classes is None and len(labels) < len(source.classes):
            # A run whose head is sliced: it has no other classes.
            classes = tuple(range(len(labels)))
    preprocess = choose_preprocess(source, network, recipe, preprocess)
    data = select(
        source,
        outputs=network.classes,
        labels=recipe.labels or labels,
        classes=None if classes is None else list(classes),
        limit_train=recipe.limit_train,
        images_per_class=recipe.images_per_class,
        seed=seed,
        preprocess=preprocess if decode else None,
        only_test=only_test,
    )
    return preprocess, data


def choose_preprocess(
    source: Source, network: Network, recipe: DataRecipe, preprocess: Preprocess | None = None
) -> Preprocess:
    """How images reach a network: as the recipe says, else as a run says, else by the network and the source.

    Args:
        preprocess: A run's own.

    Raises:
        UsageError, InputError: A size that is out of range, or that float tensors do not have.
    """
    if preprocess is not None and not (recipe.input_size or recipe.mean or recipe.std):
        return preprocess
    size = recipe.input_size
    if size is None and network.builtin and source.pixels != "float":
        size = network.input_size
    return Preprocess.for_source(source, size, recipe.mean or network.mean, recipe.std or network.std)


def refuse_strangers(source: Source, asked: Sequence[str | int], labels: Sequence[Any]) -> None:
    """A class of the data that a run's head does not have; its digits must not be taken for an index.

    Raises:
        UsageError: One was asked for.
    """
    names = [word for entry in labels for word in ([entry] if isinstance(entry, str) else entry)]
    for name in asked:
        if isinstance(name, str) and name in source.classes and name not in names and name.isdigit():
            raise UsageError(f"the run does not know the class '{name}'", nearest(name, names))


def train_preset(name: str) -> dict[str, Any]:
    """Fields of a training preset.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset '{name}'", nearest(name, PRESETS))
    return dict(PRESETS[name])
