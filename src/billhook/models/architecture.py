"""What the registry knows about an architecture: its options, its defaults, how it is built and recognised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from billhook.errors import UsageError, nearest

OptionValue: TypeAlias = str | float
Options: TypeAlias = dict[str, OptionValue]
Triple: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CIFAR100_MEAN: Triple = (0.5070, 0.4865, 0.4409)
CIFAR100_STD: Triple = (0.2673, 0.2564, 0.2761)


class Defaults(NamedTuple):
    """What a network expects of its images, and its number of classes when nobody says."""

    mean: Triple
    std: Triple
    input_size: int
    classes: int


IMAGENET = Defaults(IMAGENET_MEAN, IMAGENET_STD, input_size=224, classes=1000)


@dataclass(frozen=True)
class Option:
    """One option of a spec: a word out of ``choices``, or a positive number when there are none."""

    default: OptionValue
    choices: tuple[str, ...] = ()

    def parse(self, name: str, text: str) -> OptionValue:
        """The typed value of ``text``.

        Raises:
            UsageError: Not one of the choices, or not a positive finite number.
        """
        if self.choices:
            if text not in self.choices:
                raise UsageError(f"option {name}={text} is not known", f"{name} is one of: {', '.join(self.choices)}")
            return text
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"option {name}={text} is not a positive number", f"for example {name}=0.5")
        return number


def _nothing_to_read(state: Mapping[str, Tensor]) -> Options:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One line of the registry.

    Attributes:
        build: (classes, all options) to a module with random weights.
        defaults: All options to the image size, normalisation and class count.
        options: Name of each option to its kind and default.
        read: What a checkpoint says about the options; only those it settles.
    """

    build: Callable[[int, Options], nn.Module]
    defaults: Callable[[Options], Defaults]
    options: Mapping[str, Option] = field(default_factory=dict)
    read: Callable[[Mapping[str, Tensor]], Options] = _nothing_to_read

    def complete(self, given: Options) -> Options:
        """``given`` over the defaults."""
        return {name: option.default for name, option in self.options.items()} | given


def check_name(name: str, choices: Mapping[str, object]) -> None:
    """Raises UsageError with the nearest name when ``name`` is not in ``choices``."""
    if name not in choices:
        hint = nearest(name, choices)
        if name.endswith(".py"):
            hint = f"name the function too: {name}:FACTORY"
        raise UsageError(f"no network is called '{name}'", hint)
