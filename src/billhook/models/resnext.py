"""ResNeXt (Xie et al., 2017): a ResNet whose 3x3 convolutions are grouped, with torchvision's parameter names."""

from __future__ import annotations

from functools import partial

from billhook.models.architecture import Architecture
from billhook.models.blocks import Bottleneck
from billhook.models.resnet import Depths, with_blocks


def architecture(depths: Depths, group_width: int, groups: int = 32) -> Architecture:
    """The registry's line for ``groups`` x ``group_width``d: 32x4d is ``group_width`` 4."""
    return with_blocks(partial(Bottleneck, groups=groups, group_width=group_width), Bottleneck.expansion, depths)
