"""What a candidate changes in a network, and looking at the network with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor, nn


class Running(Protocol):
    """Something whose network changes from time to time."""

    @property
    def module(self) -> nn.Module:
        """The network as it is now."""
        ...


@dataclass(frozen=True)
class Changes:
    """What a candidate changes in a network.

    Attributes:
        tensors: New parameters and buffers, of the old shapes: layer → name → tensor.
        cleared: Positions of the inputs that are gone, of readers without weights (padded shortcuts).
        parts: Layers that others stand in for.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    cleared: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def layers(self) -> set[str]:
        """All layers that change."""
        return {*self.tensors, *self.cleared, *self.parts}


@contextmanager
def applied(module: nn.Module, change: Changes) -> Iterator[None]:
    """The network with a candidate's changes, for as long as the context lasts."""
    with ExitStack() as stack:
        for name, tensors in change.tensors.items():
            stack.enter_context(_holding(module.get_submodule(name), tensors))
        for name, part in change.parts.items():
            stack.enter_context(_standing_in(module.get_submodule(name), part))
        for name, positions in change.cleared.items():
            stack.enter_context(module.get_submodule(name).register_forward_pre_hook(_clear(positions)))
        yield


def called(layer: nn.Module, tensors: Mapping[str, Tensor], taken: Tensor) -> Tensor:
    """What a layer would put out with other tensors; its hooks know nothing of it."""
    with _holding(layer, tensors):
        return cast(Tensor, layer.forward(taken))


@contextmanager
def _holding(layer: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for key, tensor in tensors.items():
            store = cast(dict[str, Any], layer._parameters if key in layer._parameters else layer._buffers)
            before.append((store, key, store[key]))
            store[key] = nn.Parameter(tensor, requires_grad=False) if store is layer._parameters else tensor
        yield
    finally:
        for store, key, value in before:
            store[key] = value


@contextmanager
def _standing_in(layer: nn.Module, part: nn.Module) -> Iterator[None]:
    layer.__dict__["forward"] = part.forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]


def _clear(positions: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (cleared(inputs[0], positions), *inputs[1:])

    return hook


def cleared(taken: Tensor, positions: Tensor) -> Tensor:
    """A map with zeros in some channels; itself is left as it is."""
    return taken.index_fill(1, positions.to(taken.device), 0)
