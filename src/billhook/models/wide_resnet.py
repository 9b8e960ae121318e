"""The wide CIFAR ResNet that ChipNet prunes (arXiv 2102.07156): a CIFAR ResNet with ``width`` times the channels.

Its stem keeps 16 channels, so the first block of every stage has a 1x1 convolution in its shortcut. Activations come
after the normalisations, unlike in the networks of Zagoruyko & Komodakis (2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from billhook.models.architecture import CIFAR100_MEAN, CIFAR100_STD, Architecture, Defaults, Option, Options
from billhook.models.blocks import BasicBlock, conv3x3, conv_shortcut

_STEM = 16


class WideResNet(nn.Module):
    """A wide CIFAR ResNet.

    Args:
        blocks: Residual blocks per stage, n of 6n + 2.
        classes: Outputs of the head.
        width: Multiplies 16, 32 and 64 channels; the stem has 16.
    """

    def __init__(self, blocks: int, classes: int, width: float) -> None:
        super().__init__()
        planes = [max(1, round(base * width)) for base in (16, 32, 64)]
        self.conv1 = conv3x3(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        self.layer1 = _stage(_STEM, planes[0], blocks, 1)
        self.layer2 = _stage(planes[0], planes[1], blocks, 2)
        self.layer3 = _stage(planes[1], planes[2], blocks, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(planes[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = conv_shortcut(inputs, planes, stride) if stride != 1 or inputs != planes else None
    first = BasicBlock(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1, None) for _ in range(blocks - 1)))


def _defaults(options: Options) -> Defaults:
    return Defaults(CIFAR100_MEAN, CIFAR100_STD, input_size=32, classes=10)


def _read(state: Mapping[str, Tensor]) -> Options:
    weight = state.get("layer1.0.conv1.weight")
    return {} if weight is None or weight.ndim != 4 else {"width": weight.shape[0] / 16}


def architecture(depth: int, width: int) -> Architecture:
    """The registry's line for ``depth`` = 6n + 2 layers, ``width`` times as wide unless said otherwise."""

    def build(classes: int, options: Options) -> nn.Module:
        return WideResNet((depth - 2) // 6, classes, float(options["width"]))

    return Architecture(build, _defaults, {"width": Option(float(width))}, _read)
