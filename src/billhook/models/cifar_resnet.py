"""The CIFAR ResNets of He et al. (2016), section 4.2: 6n + 2 layers, three stages of 16, 32 and 64 channels.

Two public families of weights are read. ``shortcut=a`` has parameter-free shortcuts and a head called ``linear``;
``shortcut=conv`` has 1x1 convolutions in its shortcuts and a head called ``fc``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from billhook.models.architecture import (
    CIFAR100_MEAN,
    CIFAR100_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    Defaults,
    Option,
    Options,
)
from billhook.models.blocks import BasicBlock, PadShortcut, conv3x3, conv_shortcut


class CifarResNet(nn.Module):
    """A CIFAR ResNet.

    Args:
        blocks: Residual blocks per stage, n of 6n + 2.
        classes: Outputs of the head.
        shortcut: ``a`` or ``conv``.
    """

    def __init__(self, blocks: int, classes: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, 1, shortcut)
        self.layer2 = _stage(16, 32, blocks, 2, shortcut)
        self.layer3 = _stage(32, 64, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self._head = "linear" if shortcut == "a" else "fc"
        self.add_module(self._head, nn.Linear(64, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, getattr(self, self._head)(self.avgpool(x).flatten(1)))


def _stage(inputs: int, planes: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    downsample: nn.Module | None = None
    if inputs != planes:
        before = planes // 4
        downsample = (
            PadShortcut(inputs, before, planes - inputs - before, stride)
            if shortcut == "a"
            else conv_shortcut(inputs, planes, stride)
        )
    first = BasicBlock(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1, None) for _ in range(blocks - 1)))


def _defaults(options: Options) -> Defaults:
    if options["shortcut"] == "a":
        return Defaults(IMAGENET_MEAN, IMAGENET_STD, input_size=32, classes=10)
    return Defaults(CIFAR100_MEAN, CIFAR100_STD, input_size=32, classes=10)


def _read(state: Mapping[str, Tensor]) -> Options:
    return {"shortcut": "conv" if any(".downsample." in key for key in state) else "a"}


def architecture(depth: int) -> Architecture:
    """The registry's line for a CIFAR ResNet of ``depth`` = 6n + 2 layers."""

    def build(classes: int, options: Options) -> nn.Module:
        return CifarResNet((depth - 2) // 6, classes, str(options["shortcut"]))

    return Architecture(build, _defaults, {"shortcut": Option("a", ("a", "conv"))}, _read)
