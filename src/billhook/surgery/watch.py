"""What the dependency graph does not tell of a network: the order of its layers, shared weights, reshaped channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from billhook.errors import InputError
from billhook.models import PadShortcut


def run_once(network: nn.Module, image: torch.Tensor) -> list[str]:
    """Forward once: names of the layers in the order of their first call. Channel maps become convolutions.

    A map of channels is a convolution with fixed weights, whose inputs and outputs belong to different groups.

    Raises:
        InputError: The network cannot take the image.
    """
    order: dict[str, None] = {}
    maps: dict[str, nn.Conv2d] = {}
    handles = []

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            order.setdefault(name)
            if isinstance(layer, PadShortcut):
                conv = nn.Conv2d(layer.inputs, len(layer.source()), 1, stride=layer.stride, bias=False)
                maps[name] = conv.to(image)

        return hook

    for name, layer in network.named_modules():
        handles.append(layer.register_forward_hook(note(name)))
    try:
        with torch.no_grad():
            network(image)
    except Exception as error:  # whatever a forward may raise
        size = "x".join(str(side) for side in image.shape[1:])
        raise InputError(
            f"the network fails on a {size} image: {error}", "choose the input size it is made for"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for name, conv in maps.items():
        parent, _, last = name.rpartition(".")
        network.get_submodule(parent).add_module(last, conv)
    return list(order)


class _Reshapes(TorchFunctionMode):
    """Notes the first map that a function gives a fifth dimension: its channels are taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.ndim > 4:
            self.found = True
        return output


def reshaping_layer(network: nn.Module, image: torch.Tensor) -> str | None:
    """The innermost layer that takes channels apart by reshaping (a channel shuffle); None when there is none."""
    culprits: list[str] = []

    def enter(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any) -> None:
            watch.found = False

        return hook

    def leave(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if watch.found:
                culprits.append(name)
                watch.found = False

        return hook

    watch = _Reshapes()
    handles = []
    for name, layer in network.named_modules():
        handles += [layer.register_forward_pre_hook(enter(name)), layer.register_forward_hook(leave(name))]
    try:
        with torch.no_grad(), watch:
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return f"'{culprits[0]}' reshapes its channels, which mixes them" if culprits else None


def shared_layers(network: nn.Module) -> dict[str, str]:
    """Layers that are there under two names, or have a parameter that another layer has too, and which that is."""
    owners: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, part in network.named_modules(remove_duplicate=False):
        # A parameter that stands on its own goes by its own name.
        things = [(name, part), *((f"{name}.{key}".lstrip("."), p) for key, p in part._parameters.items())]
        for own, thing in things:
            if thing is None:
                continue
            first = owners.setdefault(id(thing), own)
            if first != own:
                pair = (first, own) if thing is part else (first.rpartition(".")[0], name)
                for one, other in (pair, pair[::-1], (first, own), (own, first)):
                    shared.setdefault(one, other)
    return shared
