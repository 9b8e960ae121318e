"""The small network of the demo: four convolutions for the 8x8 digits, 132 thousand parameters."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from billhook.models.architecture import Architecture, Defaults, Options
from billhook.models.blocks import conv3x3


class TinyCNN(nn.Module):
    """Four 3x3 convolutions of 32, 64, 64 and 128 channels, global average pooling and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv3x3(3, 32), nn.BatchNorm2d(32), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv3x3(32, 64), nn.BatchNorm2d(64), nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.conv3, self.bn3, self.relu3 = conv3x3(64, 64), nn.BatchNorm2d(64), nn.ReLU()
        self.conv4, self.bn4, self.relu4 = conv3x3(64, 128), nn.BatchNorm2d(128), nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.maxpool(self.relu2(self.bn2(self.conv2(x))))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.relu4(self.bn4(self.conv4(x)))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def _build(classes: int, options: Options) -> nn.Module:
    return TinyCNN(classes)


def _defaults(options: Options) -> Defaults:
    return Defaults((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), input_size=8, classes=10)


ARCHITECTURE = Architecture(_build, _defaults)
