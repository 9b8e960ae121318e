"""Networks without an initialisation: rough random weights for a look, or none, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_STOCK = 262_147
"""Numbers in stock: a prime, so that no two filters of a layer are dealt the same ones."""

_LARGE = 1 << 14  # values; smaller tensors are initialised as always


class RoughWeights(TorchFunctionMode):
    """While it is entered, large tensors are filled from a stock of random numbers, over and over.

    Each tensor goes on in the stock where the one before it stopped. That is enough to count a network and to see
    where its channels go, not to train it.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self._normal = torch.randn(_STOCK, generator=generator)
        self._uniform = torch.rand(_STOCK, generator=generator)
        self._place = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        tensor = args[0] if args else named.get("tensor")
        if func in _READ and isinstance(tensor, Tensor) and _is_large(tensor):
            stock = self._normal if func in _NORMAL else self._uniform
            self._fill(tensor.detach().view(-1), stock, *_READ[func](*args, **named))
            return tensor
        return func(*args, **named)

    def _fill(self, flat: Tensor, stock: Tensor, shift: float, scale: float) -> None:
        done = 0
        while done < len(flat):
            part = flat[done : done + _STOCK - self._place]
            torch.mul(stock[self._place : self._place + len(part)], scale, out=part)
            if shift:
                part.add_(shift)
            self._place = (self._place + len(part)) % _STOCK
            done += len(part)


class NoWeights(TorchFunctionMode):
    """While it is entered, random numbers are not drawn: what they were to fill stays as the memory was.

    For weights that are loaded afterwards. Memory that nothing is written to is not taken from the machine, so that
    the dense network costs none while a smaller one is cut from it; and on the meta device PyTorch's initialisations
    import its decompositions, which takes seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _DRAWING:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _is_large(tensor: Tensor) -> bool:
    plain = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
    return plain and tensor.numel() >= _LARGE


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: object = None) -> tuple[float, float]:
    return mean, std


def _uniform(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: object = None) -> tuple[float, float]:
    return a, b - a


def _kaiming(tensor: Tensor, *settings: Any, **more: Any) -> tuple[float, float]:
    """The bound that PyTorch's layers ask for; an architecture that asks for another does so afterwards."""
    bound = tensor[0].numel() ** -0.5
    return -bound, 2 * bound


# What fills a tensor with random numbers, and how its numbers are made of those in stock: shift and scale. The
# initialisations of PyTorch that are not here end in one of these.
_READ: dict[Any, Any] = {
    Tensor.normal_: _normal,
    Tensor.uniform_: _uniform,
    nn.init.normal_: _normal,
    nn.init.uniform_: _uniform,
    nn.init.kaiming_uniform_: _kaiming,
}
_NORMAL = (Tensor.normal_, nn.init.normal_)
_FIXED = ("constant_", "ones_", "zeros_", "eye_", "dirac_")
_DRAWING: set[Any] = {*_READ, *(part for name, part in vars(nn.init).items() if name.endswith("_") and name[0] != "_")}
_DRAWING -= {getattr(nn.init, name) for name in _FIXED}
