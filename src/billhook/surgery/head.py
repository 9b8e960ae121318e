"""Head slicing: the delivered network keeps only the kept classes' outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def slice_head(module: nn.Module, head: str, kept: Sequence[int]) -> nn.Module:
    """A copy of ``module`` whose classifier has only the rows ``kept``, in that order.

    The classifier stays the object that it is (its class, flags and hooks); only its rows go.

    Args:
        module: The network; left as it is.
        head: Name of its classifier, an ``nn.Linear`` or a 1×1 ``nn.Conv2d``; empty when it is the whole network.
        kept: Output rows to keep.

    Raises:
        TypeError: The head is neither.
    """
    small = copy.deepcopy(module)
    layer = small.get_submodule(head)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(kept)
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        layer.out_channels = len(kept)
    else:
        raise TypeError(f"the head {head} is a {type(layer).__name__}, not a linear layer or a 1x1 convolution")
    layer.weight = _rows(layer.weight, kept)
    if layer.bias is not None:
        layer.bias = _rows(layer.bias, kept)
    return small


def _rows(parameter: Tensor, kept: Sequence[int]) -> nn.Parameter:
    index = torch.as_tensor(list(kept), device=parameter.device)
    return nn.Parameter(parameter.detach()[index], requires_grad=parameter.requires_grad)
