"""The methods: a config, a plan, and one line in the registry each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from billhook.errors import UsageError, nearest
from billhook.methods.base import Limits, Method, Outcome, Plan, Setting
from billhook.methods.channel_limits import ChannelLimits
from billhook.methods.channel_pruning import CHANNEL_CONFIGS, ChannelPruningPlan
from billhook.methods.chipnet import ChipNet, ChipNetPlan
from billhook.methods.counted import Counted, count_network
from billhook.methods.crisp import CRISP, BlockOnly, NMOnly
from billhook.methods.greedy import GREEDY_PLANS, greedy_limits
from billhook.methods.unstructured import Magnitude, Saliency
from billhook.methods.weight_sparsity import WeightSparsityLimits, WeightSparsityPlan

_GENTLY = {"lr": 0.01}
"""What is left of a network that lost channels is trained already; at the rate that masked weights need in order to
grow back, it forgets most of that in its first epoch (docs/channels.md)."""

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("crisp", CRISP, WeightSparsityPlan, WeightSparsityLimits),
        Method("nm-only", NMOnly, WeightSparsityPlan, WeightSparsityLimits),
        Method("block-only", BlockOnly, WeightSparsityPlan, WeightSparsityLimits),
        Method("magnitude", Magnitude, WeightSparsityPlan, WeightSparsityLimits),
        Method("saliency", Saliency, WeightSparsityPlan, WeightSparsityLimits),
        Method("chipnet", ChipNet, ChipNetPlan, ChannelLimits, _GENTLY),
        *(Method(name, config, ChannelPruningPlan, ChannelLimits, _GENTLY) for name, config in CHANNEL_CONFIGS.items()),
        *(Method(name, config, plan, greedy_limits, _GENTLY) for name, (config, plan) in GREEDY_PLANS.items()),
    )
}

WEIGHT_METHODS = tuple(name for name, method in METHODS.items() if method.limits is WeightSparsityLimits)
"""Methods that set weights to zero."""

CHANNEL_METHODS = tuple(name for name in METHODS if name not in WEIGHT_METHODS)
"""Methods that remove channels."""


def find_method(name: str) -> Method:
    """Look a method up.

    Raises:
        UsageError: There is none of that name; the nearest is suggested.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}'", nearest(name, METHODS))
    return METHODS[name]


def make_config(name: str, fields: dict[str, Any]) -> BaseModel:
    """A method's config from plain values.

    Raises:
        UsageError: An unknown field (the nearest is suggested) or a value that does not fit.
    """
    config = find_method(name).config
    unknown = [key for key in fields if key not in config.model_fields]
    if unknown:
        raise UsageError(
            f"the method '{name}' has no setting '{unknown[0]}'",
            nearest(unknown[0], [f for f in config.model_fields if f != "name"]),
        )
    try:
        return config.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"method '{name}': {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first complaint of a validation, on one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    given = first.get("input")
    # The project's own complaints quote the value themselves.
    shown = not str(first["msg"]).startswith("Value error") and isinstance(given, str | int | float)
    return f"{where} = {given}: {message}" if shown else f"{where}: {message}"


__all__ = [
    "CHANNEL_CONFIGS",
    "CHANNEL_METHODS",
    "CRISP",
    "METHODS",
    "WEIGHT_METHODS",
    "BlockOnly",
    "Counted",
    "Limits",
    "Magnitude",
    "Method",
    "NMOnly",
    "Outcome",
    "Plan",
    "Saliency",
    "Setting",
    "count_network",
    "find_method",
    "first_problem",
    "make_config",
]
