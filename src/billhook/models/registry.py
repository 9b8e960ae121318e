"""The built-in architectures, one line each, and the text form of a choice among them.

A spec is ``name[,option=value]...``; a text with a colon names somebody else's network and takes no options.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from billhook.errors import UsageError
from billhook.models import cifar_resnet, mobilenet_v2, preresnet, resnet, resnext, tinycnn, vgg, wide_resnet
from billhook.models.architecture import Architecture, Options, OptionValue, check_name
from billhook.models.blocks import BasicBlock, Bottleneck
from billhook.models.head import find_head

REGISTRY: dict[str, Architecture] = {
    "resnet20": cifar_resnet.architecture(20),
    "resnet32": cifar_resnet.architecture(32),
    "resnet44": cifar_resnet.architecture(44),
    "resnet56": cifar_resnet.architecture(56),
    "resnet110": cifar_resnet.architecture(110),
    "resnet18": resnet.architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": resnet.architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": resnet.architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": resnet.architecture(Bottleneck, (3, 4, 23, 3)),
    "resnext50_32x4d": resnext.architecture((3, 4, 6, 3), group_width=4),
    "resnext101_32x8d": resnext.architecture((3, 4, 23, 3), group_width=8),
    "resnext101_32x16d": resnext.architecture((3, 4, 23, 3), group_width=16),
    "vgg16": vgg.architecture(batch_norm=False),
    "vgg16_bn": vgg.architecture(batch_norm=True),
    "wrn26_12": wide_resnet.architecture(26, 12),
    "preresnet20": preresnet.architecture(20),
    "preresnet56": preresnet.architecture(56),
    "preresnet110": preresnet.architecture(110),
    "preresnet164": preresnet.architecture(164),
    "mobilenet_v2": mobilenet_v2.ARCHITECTURE,
    "tinycnn": tinycnn.ARCHITECTURE,
}


def is_foreign(text: str) -> bool:
    """Whether a spec names a network that is not ours: ``torchvision:``, ``timm:``, ``module:factory``."""
    return ":" in text


def parse_spec(text: str) -> tuple[str, Options]:
    """The name and the options that are said, typed; a foreign spec is its own name.

    Raises:
        UsageError: An unknown name, option or value.
    """
    if is_foreign(text):
        return text.strip(), {}
    name, *parts = (part.strip() for part in text.split(","))
    check_name(name, REGISTRY)
    known = REGISTRY[name].options
    options: Options = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in known or key in options:
            problem = "is said twice" if key in options else "is not known"
            listed = ", ".join(f"{k}={'|'.join(o.choices) or 'NUMBER'}" for k, o in known.items())
            hint = f"options of {name}: {listed}" if listed else f"{name} takes no options"
            raise UsageError(f"option '{part}' of network '{name}' {problem}", hint)
        options[key] = known[key].parse(key, value)
    return name, options


def _text(value: OptionValue) -> str:
    return value if isinstance(value, str) else str(value).removesuffix(".0")


def canonical(name: str, options: Mapping[str, OptionValue]) -> str:
    """The one text for a choice: options in the registry's order, defaults left out. Specs with it are equal or differ.

    Raises:
        UsageError: An unknown name.
    """
    if is_foreign(name):
        return name
    check_name(name, REGISTRY)
    said = [
        f"{key}={_text(options[key])}"
        for key, option in REGISTRY[name].options.items()
        if key in options and options[key] != option.default
    ]
    return ",".join([name, *said])


def look_alike(state: Mapping[str, Tensor]) -> str | None:
    """The canonical spec of the built-in architecture that these tensors fit, the head's size apart."""
    for name, architecture in REGISTRY.items():
        options = architecture.complete(architecture.read(state))
        with torch.device("meta"):  # names and shapes only: nothing is allocated
            module = architecture.build(1, options)
        head = find_head(module)
        own = {key: value.shape for key, value in module.state_dict().items() if not _loose(key, head)}
        theirs = {key: value.shape for key, value in state.items() if not _loose(key, head)}
        if own == theirs and f"{head}.weight" in state:
            return canonical(name, options)
    return None


def _loose(key: str, head: str) -> bool:
    return key.startswith(f"{head}.") or key.endswith("num_batches_tracked")
