"""The ImageNet ResNets of He et al. (2016), with torchvision's parameter names, a width and a CIFAR stem.

``resnext.py`` puts other blocks into the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

from torch import Tensor, nn

from billhook.models.architecture import CIFAR100_MEAN, CIFAR100_STD, IMAGENET, Architecture, Defaults, Option, Options
from billhook.models.blocks import BasicBlock, Bottleneck, conv3x3, conv_shortcut

MakeBlock: TypeAlias = Callable[[int, int, int, nn.Module | None], nn.Module]
Depths: TypeAlias = tuple[int, int, int, int]


class ResNet(nn.Module):
    """A ResNet with four stages.

    Args:
        block: (inputs, planes, stride, downsample) to a block: BasicBlock, Bottleneck, or one of theirs.
        expansion: Channels that a block puts out, in planes.
        depths: Blocks per stage.
        classes: Outputs of the head.
        stem: ``imagenet`` (7x7 stride 2 and max-pooling) or ``cifar`` (3x3 stride 1, no pooling).
        width: Multiplies 64, 128, 256 and 512 channels.
    """

    def __init__(self, block: MakeBlock, expansion: int, depths: Depths, classes: int, stem: str, width: float) -> None:
        super().__init__()
        planes = [max(1, round(base * width)) for base in (64, 128, 256, 512)]
        if stem == "cifar":
            self.conv1 = conv3x3(3, planes[0])
        else:
            self.conv1 = nn.Conv2d(3, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, inputs = _stage(block, expansion, planes[0], planes[0], depths[0], 1)
        self.layer2, inputs = _stage(block, expansion, inputs, planes[1], depths[1], 2)
        self.layer3, inputs = _stage(block, expansion, inputs, planes[2], depths[2], 2)
        self.layer4, inputs = _stage(block, expansion, inputs, planes[3], depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def _stage(
    block: MakeBlock, expansion: int, inputs: int, planes: int, count: int, stride: int
) -> tuple[nn.Sequential, int]:
    outputs = planes * expansion
    downsample = conv_shortcut(inputs, outputs, stride) if stride != 1 or inputs != outputs else None
    first = block(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(block(outputs, planes, 1, None) for _ in range(count - 1))), outputs


def _defaults(options: Options) -> Defaults:
    if options["stem"] == "cifar":
        return Defaults(CIFAR100_MEAN, CIFAR100_STD, input_size=32, classes=10)
    return IMAGENET


def _read(state: Mapping[str, Tensor]) -> Options:
    weight = state.get("conv1.weight")
    if weight is None or weight.ndim != 4:
        return {}
    return {"stem": "cifar" if weight.shape[-1] == 3 else "imagenet", "width": weight.shape[0] / 64}


def architecture(block: type[BasicBlock] | type[Bottleneck], depths: Depths) -> Architecture:
    """The registry's line for a ResNet of these blocks."""
    return with_blocks(block, block.expansion, depths)


def with_blocks(block: MakeBlock, expansion: int, depths: Depths) -> Architecture:
    """The same for blocks that some function makes."""

    def build(classes: int, options: Options) -> nn.Module:
        return ResNet(block, expansion, depths, classes, str(options["stem"]), float(options["width"]))

    options = {"stem": Option("imagenet", ("imagenet", "cifar")), "width": Option(1.0)}
    return Architecture(build, _defaults, options, _read)
