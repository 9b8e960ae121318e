"""Head slicing: the delivered network keeps only the kept classes' outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


def slice_head(module: nn.Module, head: str, kept: Sequence[int]) -> nn.Module:
    """A copy of ``module`` whose classifier has only the rows ``kept``, in that order.

    Args:
        module: The network; left as it is.
        head: Name of its classifier, an ``nn.Linear`` or a 1×1 ``nn.Conv2d``.
        kept: Output rows to keep.

    Raises:
        TypeError: The head is neither.
    """
    small = copy.deepcopy(module)
    old = small.get_submodule(head)
    index = torch.as_tensor(list(kept))
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, len(kept), bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(
            old.in_channels,
            len(kept),
            (old.kernel_size[0], old.kernel_size[1]),
            (old.stride[0], old.stride[1]),
            bias=old.bias is not None,
        )
    else:
        raise TypeError(f"the head {head} is a {type(old).__name__}, not a linear layer or a 1x1 convolution")
    new.to(old.weight.device, old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(old.weight[index.to(old.weight.device)])
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias[index.to(old.weight.device)])
    new.train(old.training)
    parent, _, leaf = head.rpartition(".")
    setattr(small.get_submodule(parent), leaf, new)
    return small
