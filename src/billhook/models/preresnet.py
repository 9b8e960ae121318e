"""Pre-activation bottleneck ResNets for CIFAR (He et al., 2016, "Identity mappings"): 9n + 2 layers.

Laid out and named as in the public code of Network Slimming (Liu et al., 2017): a shortcut that changes the shape is
one bare 1x1 convolution (``downsample.0``) of the block's input as it is, not of its activation.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from billhook.models.architecture import CIFAR100_MEAN, CIFAR100_STD, Architecture, Defaults, Options
from billhook.models.blocks import conv3x3

_EXPANSION = 4


class PreBottleneck(nn.Module):
    """Normalisation and activation before each of a 1x1, a 3x3 (strided) and a 1x1 convolution, and a shortcut.

    Args:
        inputs: Channels in.
        planes: Channels of the 3x3 convolution; the block puts out four times as many.
        stride: Of the 3x3 convolution.
        downsample: The shortcut where it is not the identity.
    """

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = nn.BatchNorm2d(planes)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(planes, planes * _EXPANSION, 1, bias=False)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 * planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(self.relu2(self.bn2(out)))
        out = self.conv3(self.relu3(self.bn3(out)))
        return cast(Tensor, out + shortcut)


class PreResNet(nn.Module):
    """A pre-activation CIFAR ResNet of bottlenecks, 16, 32 and 64 planes.

    Args:
        blocks: Residual blocks per stage, n of 9n + 2.
        classes: Outputs of the head.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16 * _EXPANSION, 32, blocks, 2)
        self.layer3 = _stage(32 * _EXPANSION, 64, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * _EXPANSION)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * _EXPANSION, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return cast(Tensor, self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1)))


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = planes * _EXPANSION
    downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
    first = PreBottleneck(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(PreBottleneck(outputs, planes, 1, None) for _ in range(blocks - 1)))


def _defaults(options: Options) -> Defaults:
    return Defaults(CIFAR100_MEAN, CIFAR100_STD, input_size=32, classes=10)


def architecture(depth: int) -> Architecture:
    """The registry's line for ``depth`` = 9n + 2 layers."""

    def build(classes: int, options: Options) -> nn.Module:
        return PreResNet((depth - 2) // 9, classes)

    return Architecture(build, _defaults)
