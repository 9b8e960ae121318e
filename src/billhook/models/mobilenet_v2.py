"""MobileNetV2 (Sandler et al., 2018, table 2), with torchvision's parameter names.

``padding=tf`` pads as TensorFlow's SAME does: with stride 2 the bottom and the right get the odd row and column.
Weights trained with one padding lose about nine points under the other.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from billhook.models.architecture import IMAGENET, Architecture, Defaults, Option, Options

# Expansion, channels, repeats, stride of the first: table 2 of the paper.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _divisible(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller, as the reference code rounds."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pads (N, C, H, W) as TensorFlow's SAME: ceil(H / stride) rows come out, the odd row goes to the bottom."""
    vertical, horizontal = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:])
    top, left = vertical // 2, horizontal // 2
    return F.pad(x, (left, horizontal - left, top, vertical - top))


class ConvNormReLU(nn.Sequential):
    """Convolution, normalisation, ReLU6.

    The padding lives here and not in the convolution where it is asymmetric, so that the convolution stays an
    ordinary ``nn.Conv2d`` under the name that the public weights use.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, padding: str) -> None:
        self_padded = padding == "tf" and stride > 1
        symmetric = 0 if self_padded else (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, symmetric, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )
        self.kernel, self.stride, self.self_padded = kernel, stride, self_padded

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        if self.self_padded:
            x = pad_same(x, self.kernel, self.stride)
        for layer in self:
            x = layer(x)
        return x


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection, and a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, padding: str) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        expand = [ConvNormReLU(inputs, hidden, 1, 1, 1, padding)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            ConvNormReLU(hidden, hidden, 3, stride, hidden, padding),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        out = cast(Tensor, self.conv(x))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Args:
        classes: Outputs of the head.
        width: Multiplies all channel counts (the last never falls below 1280), in multiples of 8.
        padding: ``torch`` (symmetric) or ``tf`` (SAME).
    """

    def __init__(self, classes: int, width: float, padding: str) -> None:
        super().__init__()
        inputs, last = _divisible(32 * width), _divisible(1280 * max(1.0, width))
        layers: list[nn.Module] = [ConvNormReLU(3, inputs, 3, 2, 1, padding)]
        for expansion, base, repeats, stride in _STAGES:
            outputs = _divisible(base * width)
            for index in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion, padding))
                inputs = outputs
        layers.append(ConvNormReLU(inputs, last, 1, 1, 1, padding))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        return cast(Tensor, self.classifier(self.avgpool(self.features(x)).flatten(1)))


def _defaults(options: Options) -> Defaults:
    if options["padding"] == "tf":
        return Defaults((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), input_size=224, classes=1000)
    return IMAGENET


def _build(classes: int, options: Options) -> nn.Module:
    return MobileNetV2(classes, float(options["width"]), str(options["padding"]))


ARCHITECTURE = Architecture(_build, _defaults, {"padding": Option("torch", ("torch", "tf")), "width": Option(1.0)})
