"""What a network costs, which methods can prune which of its layers, and which budgets they can meet.

Nothing is trained and nothing written; without images it works from the spec alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from billhook import artifact
from billhook.cost import LayerCost
from billhook.cost.budget import Budget, parse_budgets
from billhook.data import Preprocess, Source, open_source
from billhook.data.labels import LabelMap, label_map, named_outputs, read_labels, resolve_classes
from billhook.errors import InputError, UsageError, nearest
from billhook.methods import METHODS, Counted, count_network, find_method, first_problem, make_config
from billhook.models import Network, open_network
from billhook.recipe import DataRecipe, TrainRecipe, choose_preprocess, refuse_strangers, refuse_unknown
from billhook.surgery import Grouping
from billhook.surgery.channel_cost import QUANTITIES


class Inspection(BaseModel):
    """What ``billhook inspect`` is asked.

    Attributes:
        model: A spec or a run directory.
        weights: A file; None: random weights.
        rebuild: For a run of the user's own code: the spec to rebuild it from.
        data: Images, classes, labels and input size, each of which may be missing.
        method: Its name and settings; None: all methods with their defaults.
        budget: Inequalities to check.
        train: Accepted, so that the settings of a pruning command may stay; nothing here depends on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str | None = None
    rebuild: str | None = None
    data: DataRecipe = Field(default_factory=DataRecipe)
    method: dict[str, Any] | None = None
    budget: tuple[str, ...] = ()
    train: TrainRecipe = Field(default_factory=TrainRecipe)


@dataclass(frozen=True)
class _Opened:
    network: Network
    source: Source | None
    labels: list[Any] | None
    preprocess: Preprocess | None
    file: Path | None  # the weights of a run


def make_inspection(content: Mapping[str, Any]) -> Inspection:
    """Check plain content.

    Raises:
        UsageError: Unknown settings, values that do not fit, or budgets without a method.
    """
    for part, model in (("data", DataRecipe), ("train", TrainRecipe)):
        if isinstance(content.get(part), Mapping):
            refuse_unknown(content[part], model.model_fields, f"setting {part}.")
    try:
        asked = Inspection.model_validate(dict(content))
    except ValidationError as error:
        raise UsageError(f"inspect: {first_problem(error)}") from error
    if asked.method is not None and not asked.method.get("name"):
        raise UsageError("settings are given, but no method", f"--method: {nearest('', METHODS)}")
    if asked.budget and asked.method is None:
        raise UsageError("a budget is given, but no method that is to meet it", f"--method: {nearest('', METHODS)}")
    return asked


def inspect_network(asked: Inspection, model: nn.Module | None = None) -> dict[str, Any]:
    """Count a network in one forward pass of one image, trace its channels, and ask the methods about it.

    Args:
        asked: The network and what is asked about it.
        model: A network that was passed in, instead of ``asked.model``; it is left as it is.

    Returns:
        The document of ``billhook inspect --json``. ``totals`` and ``layers`` are of the network as it is;
        ``delivered`` holds its totals with the head sliced to the classes asked for, or None. ``bytes`` is the size of
        its weights file: as written for a run, else as it would be written. ``groups`` are the channel groups: the
        layers that write the channels, those that read them, the equal runs (``sections``) that must keep equally
        many, and whether all may go, with the residual branch that they are the inside of; empty where the channels
        cannot be traced. A layer's ``group`` is the one whose channels it puts out: its own, or, for a normalisation or
        a depthwise convolution, that of the channels it carries. ``reachable`` says of one method how little it could
        leave of each quantity, when no budget is asked about.

    Raises:
        UsageError: A wrong name, option or value, or a budget that the method cannot move.
        InputError: The network or the data cannot be used, the network cannot take the image, or there is a budget and
            no layer that the method could prune.
    """
    configs = _configs(asked)
    budgets = parse_budgets(asked.budget) if asked.budget else ()
    opened = _open(asked, model)
    network = opened.network
    kept = _kept(asked.data, opened)
    size = _input_size(asked.data, opened)
    counted = count_network(network, size, kept if kept is not None and len(kept) < network.classes else None)
    grouping = _grouping(counted)
    totals = dict(counted.dense)
    if opened.file is not None:
        totals["bytes"] = opened.file.stat().st_size
    return {
        "model": network.spec,
        "classes": network.classes,
        "input_size": [size, size],
        "totals": totals,
        "delivered": _delivered(counted),
        "peak_activation_bytes": counted.cost.peak_activation_bytes,
        "layers": _layers(counted, configs, grouping),
        "groups": _groups(grouping),
        "feasible": _feasible(counted, budgets, configs),
        "reachable": [] if budgets or len(configs) > 1 else _reachable(counted, configs),
    }


def _configs(asked: Inspection) -> dict[str, BaseModel]:
    if asked.method is None:
        return {name: make_config(name, {}) for name in METHODS}
    fields = dict(asked.method)
    name = str(fields.pop("name"))
    return {name: make_config(name, fields)}


def _open(asked: Inspection, model: nn.Module | None) -> _Opened:
    recipe = asked.data
    if model is None and artifact.names_run(asked.model):
        artifact.refuse_weights(asked.model, asked.weights)
        network, described, preprocess = artifact.load_network(asked.model, asked.rebuild)
        source = open_source(recipe.source) if recipe.source else None
        return _Opened(network, source, described["labels"], preprocess, Path(asked.model) / artifact.WEIGHTS)
    source = open_source(recipe.source) if recipe.source else None
    classes = None
    if asked.weights is None and model is None:
        # Random weights have as many outputs as there are names for them.
        if recipe.labels is not None:
            classes = len(read_labels(recipe.labels)[0])
        elif source is not None:
            classes = len(source.classes)
    own = asked.model if model is None else copy.deepcopy(model).cpu().float()
    return _Opened(open_network(own, classes, asked.weights, draw="rough"), source, None, None, None)


def _kept(recipe: DataRecipe, opened: _Opened) -> tuple[int, ...] | None:
    """The head outputs of the classes asked for; None when none were."""
    network, source, labels = opened.network, opened.source, recipe.labels or opened.labels
    if recipe.labels is None and opened.labels is not None and source is not None:
        refuse_strangers(source, recipe.classes or (), opened.labels)
    if source is not None:
        # Also without classes, so that data that do not fit the head are refused as when pruning.
        run = opened.labels is not None
        table = label_map(source, network.classes, labels, strict=recipe.classes is None and not run)
    elif recipe.classes is None:
        return None
    elif labels is None:
        words = [name for name in recipe.classes if isinstance(name, str) and not name.isdecimal()]
        if words:
            raise UsageError(
                f"nothing says which output of {network.spec} is the class '{words[0]}'",
                "give --data or --labels, or the classes' indices",
            )
        table = LabelMap(tuple(str(index) for index in range(network.classes)), None, ())
    else:
        table = LabelMap(*named_outputs(labels, network.classes), ())
    return None if recipe.classes is None else resolve_classes(list(recipe.classes), table, source)


def _input_size(recipe: DataRecipe, opened: _Opened) -> int:
    network = opened.network
    if opened.source is not None:
        return choose_preprocess(opened.source, network, recipe, opened.preprocess).input_size
    if opened.preprocess is not None and recipe.input_size is None:
        return opened.preprocess.input_size
    size = recipe.input_size or network.input_size
    return Preprocess(size, network.mean, network.std, size).input_size  # which refuses sizes out of range


def _delivered(counted: Counted) -> dict[str, Any] | None:
    if counted.rows is None:
        return None
    return counted.delivered.totals() | {"bytes": counted.file_bytes({})}


def _grouping(counted: Counted) -> Grouping:
    """The channel groups; none where the channels cannot be traced, which the methods give as their reason."""
    try:
        return counted.groups()
    except InputError:
        return Grouping({})


def _groups(grouping: Grouping) -> list[dict[str, Any]]:
    return [
        {
            "name": group.name,
            "channels": group.channels,
            "sections": group.sections,
            "layers": [member.layer for member in group.writers],
            "readers": [member.layer for member in group.readers],
            "may_vanish": group.branch is not None,
        }
        for group in grouping.groups.values()
    ]


def _layers(counted: Counted, configs: Mapping[str, BaseModel], grouping: Grouping) -> list[dict[str, Any]]:
    group_of = {
        member.layer: group.name
        for group in grouping.groups.values()
        for member in group.members
        if member.side != "in"
    }
    left = {
        name: {entry["name"]: entry["reason"] for entry in METHODS[name].limits(counted, (), config).left_dense}
        for name, config in configs.items()
    }
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "shape": list(layer.weight_shape),
            "output_shape": list(layer.output_shape),
            "params": layer.params,
            "nonzero": layer.nonzero,
            "macs": layer.macs,
            "effective_macs": layer.effective_macs,
            "channels": layer.channels,
            "volume": layer.volume,
            "bytes": layer.bytes,
            "activation_bytes": layer.activation_bytes,
            "group": group_of.get(layer.name),
            "prunable": {name: _prunable(layer, reasons) for name, reasons in left.items()},
        }
        for layer in counted.cost.layers
    ]


def _prunable(layer: LayerCost, reasons: Mapping[str, str]) -> bool | str:
    if not layer.macs:
        return f"{layer.kind} has no weight matrix"
    return reasons.get(layer.name, True)


def _reachable(counted: Counted, configs: Mapping[str, BaseModel]) -> list[dict[str, object]]:
    """How far one method can go in each quantity that it moves, when nothing is asked yet."""
    rows = []
    for text in ("sparsity>=1%", *(f"{name}<=100%" for name in QUANTITIES if name != "nonzero")):
        try:
            (row,) = _feasible(counted, parse_budgets([text]), configs)
        except (InputError, UsageError):  # not moved by it, or nothing can go
            continue
        rows.append({key: row[key] for key in ("quantity", "dense", "smallest", "binding_layer")})
    return rows


def _feasible(
    counted: Counted, budgets: tuple[Budget, ...], configs: Mapping[str, BaseModel]
) -> list[dict[str, object]]:
    if not budgets:
        return []
    ((name, config),) = configs.items()
    return find_method(name).limits(counted, budgets, config).feasibility()
