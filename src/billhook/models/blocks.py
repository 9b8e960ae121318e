"""The residual blocks of He et al. (2016), with torchvision's parameter names.

Activations are modules of their own and additions make new tensors, so that hooks may keep what they see.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 and no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv_shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Option B of He et al.: a strided 1x1 convolution and its normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class PadShortcut(nn.Module):
    """Option A of He et al.: strided subsampling and zero channels, no parameters.

    Args:
        before: Zero channels put in front.
        after: Zero channels put behind.
        stride: Subsampling in both directions.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, before + C + after, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs: Channels in.
        planes: Channels of both convolutions.
        stride: Of the first convolution.
        downsample: The shortcut where it is not the identity.
    """

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + shortcut
        return cast(Tensor, self.relu2(out))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, as in torchvision) and 1x1 convolutions and a shortcut.

    Args:
        inputs: Channels in.
        planes: A quarter of the channels that the block puts out.
        stride: Of the 3x3 convolution.
        downsample: The shortcut where it is not the identity.
        groups: Of the 3x3 convolution (the cardinality of Xie et al., 2017).
        group_width: Channels of one group where ``planes`` is 64, and in proportion elsewhere.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        super().__init__()
        outputs = planes * self.expansion
        middle = max(1, planes * group_width // 64) * groups
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = downsample
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 * planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + shortcut
        return cast(Tensor, self.relu3(out))
