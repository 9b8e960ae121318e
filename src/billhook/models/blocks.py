"""The residual blocks of He et al. (2016), with torchvision's parameter names.

Activations are modules of their own and additions make new tensors, so that hooks may keep what they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 and no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv_shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Option B of He et al.: a strided 1x1 convolution and its normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class ChannelMap(nn.Module):
    """Every output channel is one input channel, or zero; no parameters.

    Args:
        source: The input channel of each output channel; -1 for zero.
    """

    source: Tensor

    def __init__(self, source: Sequence[int]) -> None:
        super().__init__()
        # A plan says it when the network is rebuilt: it is no weight of the file.
        self.register_buffer("source", torch.tensor(list(source), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, len(source), H, W)."""
        padded = F.pad(x, (0, 0, 0, 0, 0, 1))
        return padded.index_select(1, torch.where(self.source < 0, x.shape[1], self.source))


class PadShortcut(nn.Module):
    """Option A of He et al.: strided subsampling and zero channels, no parameters.

    Args:
        inputs: Channels in.
        before: Zero channels put in front.
        after: Zero channels put behind.
        stride: Subsampling in both directions.

    Attributes:
        channels: The map from inputs to outputs once channels were removed; None: as ``before`` and ``after`` say.
    """

    def __init__(self, inputs: int, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.before, self.after, self.stride = inputs, before, after, stride
        self.channels: ChannelMap | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, before + C + after, ceil(H / stride), ceil(W / stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        if self.channels is not None:
            return cast(Tensor, self.channels(x))
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def source(self) -> list[int]:
        """The input channel of each output channel, -1 for zero."""
        if self.channels is not None:
            return [int(channel) for channel in self.channels.source]
        return [-1] * self.before + list(range(self.inputs)) + [-1] * self.after

    def keep(self, outputs: Sequence[int] | None, inputs: Sequence[int] | None) -> None:
        """Keep these channels only (None: all), in place; an output whose input is gone is zero."""
        source = self.source()
        if inputs is not None:
            place = {channel: number for number, channel in enumerate(inputs)}
            source = [place.get(channel, -1) for channel in source]
            self.inputs = len(inputs)
        if outputs is not None:
            source = [source[channel] for channel in outputs]
        self.channels = ChannelMap(source)


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
