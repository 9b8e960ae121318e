"""Counting a network: one forward pass of one image, with hooks on every module.

A MAC is one multiply-accumulate of a convolution or a linear layer; biases, normalisation, activations and additions
are not counted (He et al. 2016 and torchvision's tables count so; ``torch.utils.flop_counter`` says twice as much).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.errors import InputError

_BYTES = 4  # of one fp32 value


@dataclass(frozen=True)
class LayerCost:
    """What one module with parameters of its own costs for one image.

    Attributes:
        name: In ``named_modules``.
        kind: ``conv``, ``depthwise``, ``grouped``, ``transposed``, ``linear``, ``batchnorm``, else the lower-case
            class name.
        params: Values of its own parameters; 0 for those that an earlier layer shares.
        nonzero: Those of them that are not zero.
        macs: Multiply-accumulates, over all its calls; 0 when it is neither convolution nor linear.
        effective_macs: The same without those whose weight is zero.
        channels: Output channels of a convolution, else 0.
        volume: Output values of a convolution (channels x H x W) over all its calls, else 0.
        bytes: Of its parameters in fp32.
        weight_shape: Of ``weight``; empty when it has none.
        output_shape: (C, H, W) of its last call; a linear layer's is (features, positions, 1).
        groups: Of a convolution, else 1.
        first: It is the first convolution or linear layer that runs.
        activation_bytes: The largest input plus output of one of its calls, fp32.
    """

    name: str
    kind: str
    params: int
    nonzero: int
    macs: int
    effective_macs: int
    channels: int
    volume: int
    bytes: int
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, int, int]
    groups: int
    first: bool
    activation_bytes: int = 0


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image.

    Attributes:
        layers: In the order of their first call; modules that never run are not among them.
        params: Over all parameters of the network, also of modules that never run; shared ones once.
        nonzero: Those of them that are not zero.
        macs: Multiply-accumulates of convolutions and linear layers.
        effective_macs: The same without those whose weight is zero.
        channels: Output channels of all convolutions.
        volume: Output channels times output height times width, of all convolutions.
        bytes: Of the parameters in fp32, without buffers.
        peak_activation_bytes: The largest input plus output of one module, fp32; branches that wait for an addition
            are not in it, so it is a lower bound of what an eager run holds.
        input_size: (height, width) of the image.
    """

    layers: tuple[LayerCost, ...]
    params: int
    nonzero: int
    macs: int
    effective_macs: int
    channels: int
    volume: int
    bytes: int
    peak_activation_bytes: int
    input_size: tuple[int, int]

    def totals(self) -> dict[str, int]:
        """The seven quantities that ``inspect`` and ``summary.json`` show."""
        names = ("params", "nonzero", "macs", "effective_macs", "channels", "volume", "bytes")
        return {name: getattr(self, name) for name in names}


@dataclass
class _Seen:
    """What the hooks have noted of one module."""

    positions: int = 0  # spatial positions at which the weight is applied, over all calls
    volume: int = 0
    output_shape: tuple[int, int, int] = (0, 0, 0)
    bytes: int = 0  # of the largest input plus output of one call


@dataclass
class _Watch:
    """What the hooks have noted of one pass."""

    seen: dict[str, _Seen] = field(default_factory=dict)
    entered: list[str] = field(default_factory=list)
    peak: int = 0


def count(module: nn.Module, input_size: int | tuple[int, int], channels: int = 3) -> Cost:
    """Counts everything in one forward pass of a zero image, in eval mode; the network is left as it was.

    A module that is called several times counts its MACs and volume each time and its parameters once. Layers under
    ``torch.nn.utils.parametrize``, or the older hooks, are counted by the weight they compute, as it would be
    delivered.

    Args:
        module: The network.
        input_size: Height and width in pixels, or one number for both.
        channels: Of the image.

    Raises:
        InputError: The forward pass fails; names the layer.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    example = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, channels, *size, device=example.device, dtype=example.dtype)
    watch = _Watch()
    with torch.no_grad():
        with _watching(module, watch), _evaluating(module):
            try:
                module(image)
            except Exception as error:  # whatever a forward may raise
                name = watch.entered[-1] if watch.entered else ""
                where = f"layer '{name}'" if name else type(module).__name__
                raise InputError(
                    f"the network fails on a {channels}x{size[0]}x{size[1]} image in {where}: {error}",
                    "choose the input size and channels that the network is made for",
                ) from error
        return _sum_up(module, watch, size)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag


@contextlib.contextmanager
def _watching(module: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    try:
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(_enter(watch, name)))
            handles.append(part.register_forward_hook(_leave(watch, name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(watch: _Watch, name: str) -> Any:
    def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
        watch.entered.append(name)

    return hook


def _leave(watch: _Watch, name: str) -> Any:
    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        watch.entered.pop()
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not isinstance(output, Tensor):
            return
        seen = watch.seen.setdefault(name, _Seen())
        seen.bytes = max(seen.bytes, _BYTES * (output.numel() + sum(value.numel() for value in inputs)))
        if next(part.children(), None) is None:
            watch.peak = max(watch.peak, seen.bytes)
        seen.output_shape = _shape(part, output)
        seen.volume += output.numel()
        if isinstance(part, _ConvTransposeNd):
            seen.positions += inputs[0].numel() // part.in_channels
        elif isinstance(part, _ConvNd):
            seen.positions += output.numel() // part.out_channels
        elif isinstance(part, nn.Linear):
            seen.positions += output.numel() // part.out_features

    return hook


def _shape(part: nn.Module, output: Tensor) -> tuple[int, int, int]:
    if isinstance(part, nn.Linear):
        return part.out_features, output.numel() // part.out_features, 1
    sizes = [*output.shape[1:], 1, 1, 1][:3] if output.ndim <= 4 else [output.shape[1], output[0, 0].numel(), 1]
    return sizes[0], sizes[1], sizes[2]


class _Sizes(NamedTuple):
    params: int
    nonzero: int


class _Nonzero:
    """How many values of a tensor are not zero; each parameter is gone through once."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def __call__(self, tensor: Tensor) -> int:
        found = self._known.get(id(tensor))
        if found is None:
            found = int(torch.count_nonzero(tensor))
            if isinstance(tensor, nn.Parameter):  # computed tensors come and go, and so do their ids
                self._known[id(tensor)] = found
        return found


def _own_tensors(part: nn.Module) -> dict[str, Tensor]:
    """The parameters that a module applies: its own, and those that parametrizations or hooks compute for it."""
    own: dict[str, Tensor] = dict(part.named_parameters(recurse=False))
    if isinstance(part, _ConvNd | nn.Linear) and "weight" not in own and isinstance(part.weight, Tensor):
        # torch.nn.utils' older spectral_norm, weight_norm and prune: weight_orig, weight_g and the like make it.
        own = {name: tensor for name, tensor in own.items() if not name.startswith("weight_")} | {"weight": part.weight}
    computed = getattr(part, "parametrizations", None)
    if isinstance(computed, nn.ModuleDict):
        own.update({name: getattr(part, name) for name in computed})
    return own


def _sum_up(module: nn.Module, watch: _Watch, size: tuple[int, int]) -> Cost:
    parts = {name: part for name, part in module.named_modules() if "parametrizations" not in name.split(".")}
    counted: set[int] = set()
    never_run = [name for name in parts if name not in watch.seen]
    sizes: dict[str, _Sizes] = {}
    nonzero = _Nonzero()
    for name in (*watch.seen, *never_run):
        if name not in parts:
            continue
        own = [tensor for tensor in _own_tensors(parts[name]).values() if id(tensor) not in counted]
        counted.update(id(tensor) for tensor in own if isinstance(tensor, nn.Parameter))
        sizes[name] = _Sizes(sum(t.numel() for t in own), sum(map(nonzero, own)))
    layers: list[LayerCost] = []
    for name, seen in watch.seen.items():
        if name in parts and _own_tensors(parts[name]):
            first = not any(layer.macs for layer in layers)
            layers.append(_layer(name, parts[name], seen, sizes[name], first, nonzero))
    params = sum(entry.params for entry in sizes.values())
    return Cost(
        layers=tuple(layers),
        params=params,
        nonzero=sum(entry.nonzero for entry in sizes.values()),
        macs=sum(layer.macs for layer in layers),
        effective_macs=sum(layer.effective_macs for layer in layers),
        channels=sum(layer.channels for layer in layers),
        volume=sum(layer.volume for layer in layers),
        bytes=_BYTES * params,
        peak_activation_bytes=watch.peak,
        input_size=size,
    )


def _layer(name: str, part: nn.Module, seen: _Seen, sizes: _Sizes, first: bool, nonzero: _Nonzero) -> LayerCost:
    weight = _own_tensors(part).get("weight")
    conv = part if isinstance(part, _ConvNd) else None
    macs = effective = 0
    if weight is not None and isinstance(part, _ConvNd | nn.Linear):
        # Every weight is used once at every position, whatever the groups.
        macs = weight.numel() * seen.positions
        effective = nonzero(weight) * seen.positions
    return LayerCost(
        name=name,
        kind=_kind(part),
        params=sizes.params,
        nonzero=sizes.nonzero,
        macs=macs,
        effective_macs=effective,
        channels=conv.out_channels if conv is not None else 0,
        volume=seen.volume if conv is not None else 0,
        bytes=_BYTES * sizes.params,
        weight_shape=tuple(weight.shape) if weight is not None else (),
        output_shape=seen.output_shape,
        groups=conv.groups if conv is not None else 1,
        first=first and macs > 0,
        activation_bytes=seen.bytes,
    )


def _kind(part: nn.Module) -> str:
    if isinstance(part, _ConvTransposeNd):
        return "transposed"
    if isinstance(part, _ConvNd):
        if part.groups == 1:
            return "conv"
        return "depthwise" if part.groups == part.in_channels else "grouped"
    if isinstance(part, nn.Linear):
        return "linear"
    return "batchnorm" if isinstance(part, _BatchNorm) else type(part).__name__.lower()
