"""From a spec, a class count and weights to a network that knows what its images should be."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from billhook.errors import InputError, UsageError
from billhook.models.architecture import IMAGENET, Defaults, Triple
from billhook.models.checkpoint import load_checkpoint, load_into, weights_hash
from billhook.models.foreign import build_foreign, is_library
from billhook.models.head import find_head, head_outputs
from billhook.models.registry import REGISTRY, canonical, is_foreign, parse_spec
from billhook.models.rough import NoWeights, RoughWeights

Draw = Literal["seeded", "rough", "none"]

_DRAWN: dict[Draw, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "seeded": contextlib.nullcontext,
    "rough": RoughWeights,
    "none": NoWeights,
}


@dataclass(frozen=True)
class Network:
    """A network and what one has to know to use it.

    Attributes:
        module: The network.
        spec: The canonical text, with the options that were read from the weights; ``module:CLASS`` for a module
            that was passed in.
        classes: Outputs of the head.
        mean: Per channel, of images scaled to 0..1.
        std: Per channel, of images scaled to 0..1.
        input_size: Height and width in pixels.
        builtin: It can be rebuilt from its spec alone: ours, torchvision's or timm's, but no user's code.
        weights_hash: SHA-256 of the weights; None when they are random, that is, when spec and seed settle them.
        initialised: It carries weights that were given: a file's, a library's, or those of a passed module.
        channels: The channel plans that made it smaller than its spec, in the order they were carried out.
    """

    module: nn.Module
    spec: str
    classes: int
    mean: Triple
    std: Triple
    input_size: int
    builtin: bool
    weights_hash: str | None
    initialised: bool
    channels: tuple[Mapping[str, Any], ...] = ()


def build(spec: str, classes: int | None = None, weights: str | Path | None = None) -> nn.Module:
    """The network that a spec names, in eval mode.

    Args:
        spec: ``name[,option=value]...``, ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory`` or
            ``path/file.py:factory``.
        classes: Outputs of the head; None: as many as the weights have, else the architecture's usual number.
        weights: A safetensors or PyTorch file; ``default`` for the library's own; None for random weights.

    Raises:
        UsageError: A wrong name, option or value.
        InputError: Weights that cannot be read or do not fit, or user code that fails.
    """
    return open_network(spec, classes, weights).module


def open_network(
    spec: str | nn.Module,
    classes: int | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    *,
    draw: Draw = "seeded",
) -> Network:
    """The network that a spec names, or a passed module, with what its images should be.

    A passed module is never changed: it is copied when weights are to be loaded. The global random state is left
    as it was.

    Args:
        spec: As in ``build``, or an ``nn.Module``.
        classes: As in ``build``.
        weights: As in ``build``.
        seed: Of the random weights.
        draw: How random weights come about: ``seeded``, the architecture's initialisation; ``rough``, quickly made,
            for a look; ``none``, left as the memory was, for weights that are loaded afterwards.

    Raises:
        UsageError: A wrong name, option or value.
        InputError: Weights that cannot be read or do not fit, user code that fails, or no classifier.
    """
    if classes is not None and classes < 1:
        raise UsageError(f"classes={classes} is not a number of classes", "give 1 or more, or leave it out")
    if isinstance(spec, nn.Module):
        return _open_module(spec, classes, weights)
    spec = spec.strip()
    pretrained = str(weights) == "default"
    if pretrained and not is_library(spec):
        raise UsageError(
            f"weights 'default' are not known for {spec}", "they exist for torchvision: and timm: specs; give a file"
        )
    parse_spec(spec)  # a wrong name is told before a missing file
    state = None if weights is None or pretrained else load_checkpoint(weights)
    text, make = _maker(spec, state, pretrained)
    builtin = not is_foreign(text) or is_library(text)
    with _DRAWN[draw]() if builtin else contextlib.nullcontext():
        module, defaults = _seeded(make, classes, seed)
    if state is not None:
        found = _outputs_of(state, find_head(module))
        if classes is not None and found not in (None, classes):
            raise _other_head(f"weights {weights}", found, classes)
        if found not in (None, head_outputs(module)):
            module, defaults = _seeded(make, found, seed)
        load_into(module, state, str(weights))
    outputs = head_outputs(module)
    if classes is not None and outputs != classes:
        raise _other_head(text, outputs, classes)
    given = state is not None or pretrained
    # A user's factory may load weights of its own, so its spec does not settle them: hash what it made.
    digest = weights_hash(module) if given or not builtin else None
    module.eval()
    return Network(
        module, text, outputs, defaults.mean, defaults.std, defaults.input_size, builtin, digest, initialised=given
    )


def open_for_classes(spec: str, classes: int, weights: str | Path | None = None, seed: int = 0) -> Network:
    """Like ``open_network``, with a new, random head when the weights' head has another number of outputs.

    Raises:
        UsageError: A wrong name, option or value.
        InputError: Weights that cannot be read or do not fit (the head aside).
    """
    if weights is None or str(weights) == "default":
        return open_network(spec, classes, weights, seed)
    state = load_checkpoint(weights)
    text, make = _maker(spec, state, False)
    module, _ = _seeded(make, classes, seed)
    head = find_head(module)
    if _outputs_of(state, head) in (None, classes):
        return open_network(spec, classes, weights, seed)
    fresh = {name: t for name, t in module.state_dict().items() if name.startswith(f"{head}.")}
    load_into(module, {name: fresh.get(name, t) for name, t in state.items()}, str(weights))
    network = open_network(text, classes, None, seed)
    return replace(network, module=module.eval(), weights_hash=weights_hash(module), initialised=True)


def _open_module(module: nn.Module, classes: int | None, weights: str | Path | None) -> Network:
    text = f"module:{type(module).__name__}"
    if weights is not None:
        module = copy.deepcopy(module)
        load_into(module, load_checkpoint(weights), str(weights))
    outputs = head_outputs(module)
    if classes is not None and outputs != classes:
        raise _other_head(text, outputs, classes)
    return Network(
        module,
        text,
        outputs,
        IMAGENET.mean,
        IMAGENET.std,
        IMAGENET.input_size,
        builtin=False,
        weights_hash=weights_hash(module),
        initialised=True,
    )


_Maker = Callable[[int | None], tuple[nn.Module, Defaults]]


def _maker(spec: str, state: Mapping[str, Tensor] | None, pretrained: bool) -> tuple[str, _Maker]:
    """The canonical text and a function from a class count (None: the usual) to a network."""
    if is_foreign(spec):
        return spec, lambda classes: build_foreign(spec, classes, pretrained)
    name, given = parse_spec(spec)
    architecture = REGISTRY[name]
    read = architecture.read(state) if state is not None else {}
    options = architecture.complete(read | given)
    defaults = architecture.defaults(options)
    text = canonical(name, options)

    def make(classes: int | None) -> tuple[nn.Module, Defaults]:
        try:
            return architecture.build(classes or defaults.classes, options), defaults
        except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
            # A width of thousands, say: the options were read, so nothing but the size can be wrong.
            raise UsageError(f"{text} is too large for this machine's memory", "ask for fewer channels") from error

    return text, make


def _seeded(make: _Maker, classes: int | None, seed: int) -> tuple[nn.Module, Defaults]:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, and those are not forked here.
        torch.default_generator.manual_seed(seed)
        return make(classes)


def _outputs_of(state: Mapping[str, Tensor], head: str) -> int | None:
    weight = state.get(f"{head}.weight" if head else "weight")
    return None if weight is None or weight.ndim < 2 else int(weight.shape[0])


def _other_head(what: str, found: int | None, asked: int) -> InputError:
    return InputError(f"{what}: the head has {found} outputs, and {asked} classes are asked for", "leave classes out")
