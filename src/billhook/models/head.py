"""Finding the classifier of a network."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from billhook.errors import InputError


def find_head(module: nn.Module) -> str:
    """The name of the classifier: what produces the logits.

    It is the last module with weights when that is an ``nn.Linear``, or a 1x1 convolution with a global pooling
    behind it (as in SqueezeNet) or right before it (as in timm's DLA); else the last ``nn.Linear``, for networks that
    declare their parts out of order.

    Raises:
        InputError: No classifier is found.
    """
    leaves: list[tuple[str, nn.Module]] = [
        (name, leaf) for name, leaf in module.named_modules() if not list(leaf.children())
    ]
    pooled, last = False, ""
    for name, leaf in reversed(leaves):
        pooled = pooled or isinstance(leaf, _AdaptiveAvgPoolNd | _AvgPoolNd)
        if pooled and last:
            return last
        if isinstance(leaf, nn.Linear) or next(leaf.parameters(), None) is not None:
            if last or not (isinstance(leaf, nn.Conv2d) and leaf.kernel_size == (1, 1) and leaf.groups == 1):
                break
            last = name
            if pooled:
                return last
    linears: list[str] = [name for name, leaf in module.named_modules() if isinstance(leaf, nn.Linear)]
    if not linears:
        raise InputError(
            f"no classifier is found in {type(module).__name__}",
            "it should end in an nn.Linear, or in a 1x1 nn.Conv2d followed by an average-pooling module",
        )
    return linears[-1]


def head_outputs(module: nn.Module) -> int:
    """The number of logits.

    Raises:
        InputError: No classifier is found.
    """
    head = module.get_submodule(find_head(module))
    if isinstance(head, nn.Conv2d):
        return head.out_channels
    return cast(nn.Linear, head).out_features
