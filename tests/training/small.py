"""Images of a few classes that a tiny network can tell apart, and such networks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from billhook.data import Data, Preprocess, open_source, select
from billhook.training.precision import Room

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def room(precision: str = "fp32") -> Room:
    """One process on the CPU."""
    return Room("cpu", precision)


def pictures(count: int, classes: int = 4, size: int = 8, seed: int = 0) -> TensorDataset:
    """uint8 images: noise, and a bright patch whose place and colour say the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row = (label // 2) % 2 * (size // 2)
        column = label % 2 * (size // 2)
        image[label % 3, row : row + size // 2, column : column + size // 2] += 120
    return TensorDataset(images, labels)


def preprocess(augment: bool = True, size: int = 8) -> Preprocess:
    """As a source of such images has it; without augmentation when asked."""
    plain = Preprocess(size, MEAN, STD, size, "crop", True, 1)
    return plain if augment else replace(plain, augment="none", flip=False)


def data(count: int = 48, classes: int = 4, size: int = 8, keep: list[int] | None = None) -> Data:
    """Train, validation and test images."""
    source = open_source((pictures(count, classes, size, 0), pictures(4 * classes, classes, size, 1)))
    return select(source, classes=keep)


def seeded(make: type[nn.Module] | object, *args: object, seed: int = 0) -> nn.Module:
    """A network from a fixed seed, the global random state left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args)  # type: ignore[operator, no-any-return]


class TinyNet(nn.Module):
    """Three convolutions, normalisation, optional dropout, a linear head."""

    def __init__(self, classes: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.conv3(x).relu().mean(dim=(2, 3))
        return self.fc(self.dropout(x))


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Whether every parameter and buffer is bit-equal."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
