"""Layers as matrices: one row per filter, or per input slice, in one block for each group of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.errors import UsageError
from billhook.surgery import ChannelGroup
from billhook.surgery.tensors import is_depthwise

Layer = _ConvNd | nn.Linear


def output_filters(layer: Layer) -> Tensor:
    """``[groups, outputs of a group, features]`` float64: the weights behind each output; biases are not part of it."""
    by_input = _by_input(layer)
    return by_input.transpose(1, 2).flatten(2)


def input_slices(layer: Layer) -> Tensor:
    """``[groups, inputs of a group, features]`` float64: the weights that each input meets."""
    return _by_input(layer).flatten(2)


def group_filters(module: nn.Module, group: ChannelGroup) -> Tensor:
    """``[sections, channels of a section, features]`` float64: the filters that put the channels of a group out.

    Filters of several writers (of a residual stream, say) stand side by side, each writer's divided by the root of its
    sum of squares, so that every layer counts alike. Depthwise convolutions and normalisations carry channels on: they
    follow. So do maps without weights.

    Raises:
        UsageError: No convolution or linear layer writes the group.
    """
    found = []
    for member in group.writers:
        layer = module.get_submodule(member.layer) if member.dim is None else None
        if isinstance(layer, _ConvNd | nn.Linear) and not is_depthwise(layer):
            rows = output_filters(layer).flatten(0, 1)[torch.from_numpy(member.index)].flatten(1)
            found.append(rows / rows.norm().clamp(min=torch.finfo(rows.dtype).tiny))
    if not found:
        raise UsageError(
            f"no convolution or linear layer writes the channels of '{group.name}'", "choose them by activations"
        )
    return runs(torch.cat(found, dim=1), 0, group.sections)


def runs(tensor: Tensor, dim: int, count: int) -> Tensor:
    """One dimension as ``count`` equal runs: ``[..., n, ...]`` to ``[..., count, n / count, ...]``."""
    shape = tensor.shape
    return tensor.reshape(*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :])


def _by_input(layer: Layer) -> Tensor:
    """``[groups, inputs of a group, outputs of a group, taps]``."""
    weight = layer.weight.detach().to("cpu", torch.float64)
    split = runs(weight.flatten(2) if weight.ndim > 2 else weight[..., None], 0, int(getattr(layer, "groups", 1)))
    # A transposed convolution has its inputs first, and of the outputs those of one group.
    return split if isinstance(layer, _ConvTransposeNd) else split.transpose(1, 2)
