"""VGG-16 (Simonyan & Zisserman, 2015, configuration D), with torchvision's parameter names.

``stem=cifar`` is the network that papers call VGG-16 on CIFAR: the same convolutions, global pooling, and one linear
layer called ``classifier`` in place of three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from billhook.models.architecture import CIFAR100_MEAN, CIFAR100_STD, IMAGENET, Architecture, Defaults, Option, Options

# Channels of the convolutions of each stage; a 2x2 max-pooling ends it.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HIDDEN = 4096


class VGG(nn.Module):
    """VGG-16.

    Args:
        classes: Outputs of the head.
        batch_norm: Normalise after every convolution.
        stem: ``imagenet`` (pooling to 7x7 and three linear layers) or ``cifar`` (pooling to 1x1 and one).
        width: Multiplies the channels of the convolutions and the 4096 of the linear layers.
    """

    def __init__(self, classes: int, batch_norm: bool, stem: str, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in _STAGES:
            for base in stage:
                outputs = max(1, round(base * width))
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = 1 if stem == "cifar" else 7
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Linear(inputs, classes) if stem == "cifar" else _three(inputs * side**2, classes, width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), H and W at least 32, to logits (N, classes)."""
        return cast(Tensor, self.classifier(self.avgpool(self.features(x)).flatten(1)))


def _three(inputs: int, classes: int, width: float) -> nn.Sequential:
    hidden = max(1, round(_HIDDEN * width))
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, classes),
    )


def _defaults(options: Options) -> Defaults:
    if options["stem"] == "cifar":
        return Defaults(CIFAR100_MEAN, CIFAR100_STD, input_size=32, classes=10)
    return IMAGENET


def _read(state: Mapping[str, Tensor]) -> Options:
    weight = state.get("features.0.weight")
    if weight is None or weight.ndim != 4:
        return {}
    return {"stem": "cifar" if "classifier.weight" in state else "imagenet", "width": weight.shape[0] / 64}


def architecture(batch_norm: bool) -> Architecture:
    """The registry's line for VGG-16 with or without normalisation."""

    def build(classes: int, options: Options) -> nn.Module:
        return VGG(classes, batch_norm, str(options["stem"]), float(options["width"]))

    options = {"stem": Option("imagenet", ("imagenet", "cifar")), "width": Option(1.0)}
    return Architecture(build, _defaults, options, _read)
