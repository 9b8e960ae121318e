"""Which entries of a layer's tensors stay: one description for weights, averages and optimiser state alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.models import PadShortcut

Positions = tuple[int, ...]


@dataclass(frozen=True)
class TensorCut:
    """The entries of one tensor that stay.

    Attributes:
        dims: Pairs of dimension and positions; applied one after the other.
        rows: Of a grouped convolution: the inputs ``[rows, inputs of one group]`` that each remaining row reads,
            applied along dimension 1 after ``dims``.
    """

    dims: tuple[tuple[int, Positions], ...] = ()
    rows: tuple[Positions, ...] | None = None

    def take(self, tensor: Tensor) -> Tensor:
        """The smaller tensor."""
        for dim, positions in self.dims:
            tensor = tensor.index_select(dim, torch.tensor(positions, dtype=torch.int64, device=tensor.device))
        if self.rows is not None:
            tensor = tensor.gather(1, self._index(tensor))
        return tensor.contiguous()

    def put(self, small: Tensor, large: Tensor) -> Tensor:
        """A tensor like ``large``, zero but where ``small`` came from."""
        shapes = [large.shape]
        for dim, positions in self.dims:
            shapes.append(torch.Size([*shapes[-1][:dim], len(positions), *shapes[-1][dim + 1 :]]))
        if self.rows is not None:
            wide = small.new_zeros(shapes[-1])
            small = wide.scatter(1, self._index(wide), small)
        for (dim, positions), shape in zip(reversed(self.dims), reversed(shapes[:-1]), strict=True):
            wide = small.new_zeros(shape)
            small = wide.index_copy(dim, torch.tensor(positions, dtype=torch.int64, device=small.device), small)
        return small

    def clear(self, large: Tensor) -> None:
        """Set everything but the entries that stay to zero, in place: ``put`` of what ``take`` gives, in less time."""
        if self.rows is not None:
            large.copy_(self.put(self.take(large), large))
            return
        for dim, positions in self.dims:
            gone = torch.ones(large.shape[dim], dtype=torch.bool)
            gone[list(positions)] = False
            large.index_fill_(dim, gone.nonzero().flatten().to(large.device), 0)

    def _index(self, tensor: Tensor) -> Tensor:
        index = torch.tensor(self.rows, dtype=torch.int64, device=tensor.device)
        if not index.numel():
            index = index.reshape(tensor.shape[0], -1)
        while index.ndim < tensor.ndim:
            index = index.unsqueeze(-1)
        return index.expand(-1, -1, *tensor.shape[2:])


def layer_cuts(layer: nn.Module, out: Positions | None, inside: Positions | None) -> dict[str, TensorCut]:
    """How each tensor of a layer is cut.

    Args:
        layer: A convolution, a linear layer, a normalisation or a PReLU.
        out: Output channels that stay; None: all.
        inside: Input channels that stay; None: all. Of a depthwise convolution or a normalisation: nothing but ``out``.

    Raises:
        TypeError: Channels of such a layer cannot be removed.
    """
    if isinstance(layer, _NormBase | nn.PReLU):
        if out is None:
            return {}
        own = [
            name for name, t in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)) if t.ndim
        ]
        return {name: TensorCut(((0, out),)) for name in own}
    if not isinstance(layer, _ConvNd | nn.Linear):
        raise TypeError(f"channels of a {type(layer).__name__} cannot be removed")
    transposed = isinstance(layer, _ConvTransposeNd)
    groups = int(getattr(layer, "groups", 1))
    dims: list[tuple[int, Positions]] = []
    rows = None
    if out is not None:
        dims.append((1 if transposed and groups == 1 else 0, out))
    if inside is not None and groups == 1:
        dims.append((0 if transposed else 1, inside))
    elif inside is not None and not is_depthwise(layer):
        rows = _grouped_rows(layer, out, inside)
    cuts = {"weight": TensorCut(tuple(dims), rows)} if dims or rows is not None else {}
    if out is not None and layer.bias is not None:
        cuts["bias"] = TensorCut(((0, out),))
    return cuts


def layer_channels(part: nn.Module, side: str) -> int:
    """Channels of a layer.

    Args:
        part: The layer.
        side: ``in`` or ``out``.

    Raises:
        TypeError: Channels of such a layer cannot be removed.
    """
    if isinstance(part, PadShortcut):
        return part.inputs if side == "in" else len(part.source())
    if isinstance(part, _ConvNd):
        return part.in_channels if side == "in" else part.out_channels
    if isinstance(part, nn.Linear):
        return part.in_features if side == "in" else part.out_features
    if isinstance(part, _NormBase):
        return part.num_features
    if isinstance(part, nn.PReLU):
        return part.num_parameters
    raise TypeError(f"a {type(part).__name__} has no channels that can be removed")


def is_depthwise(layer: nn.Module) -> bool:
    """A convolution with one filter per channel."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels == layer.out_channels > 1


def _grouped_rows(layer: _ConvNd | nn.Linear, out: Positions | None, inside: Positions) -> tuple[Positions, ...]:
    assert isinstance(layer, _ConvNd)
    width, height = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    local: list[list[int]] = [[] for _ in range(layer.groups)]
    for position in inside:
        local[position // width].append(position % width)
    kept = range(layer.out_channels) if out is None else out
    return tuple(tuple(local[row // height]) for row in kept)


def resize(layer: nn.Module, out: Positions | None, inside: Positions | None) -> None:
    """Remove all other channels of a layer in place.

    Raises:
        TypeError: Channels of such a layer cannot be removed.
    """
    if isinstance(layer, PadShortcut):
        layer.keep(out, inside)
        return
    for name, cut in layer_cuts(layer, out, inside).items():
        old = getattr(layer, name)
        new = cut.take(old.detach())
        setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    if isinstance(layer, _NormBase):
        layer.num_features = layer.num_features if out is None else len(out)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.numel()
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _ConvNd):
        if is_depthwise(layer) and out is not None:
            layer.groups = layer.in_channels = layer.out_channels = len(out)
            return
        layer.out_channels = layer.out_channels if out is None else len(out)
        layer.in_channels = layer.in_channels if inside is None else len(inside)
