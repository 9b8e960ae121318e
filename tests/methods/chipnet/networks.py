"""Small networks with every kind of place for a gate, and their gates."""

import numpy as np
import torch
from torch import nn

from billhook.cost import count
from billhook.methods.chipnet import Gates, lay_out
from billhook.models import build
from billhook.surgery import channel_groups, trace_groups
from billhook.surgery.channel_cost import ChannelCost
from surgery.test_channels import SIZE, Concat, Ends, Plain, Pre, SharedNorm, Twice, ready

IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).double()


class Residual(nn.Module):
    """Two stages of blocks with normalisations; the second begins with a shortcut of its own, the first has none."""

    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        for name in ("a", "b"):
            self.add_module(f"{name}1", nn.Conv2d(width, 3, 3, padding=1, bias=False))
            self.add_module(f"{name}n1", nn.BatchNorm2d(3))
            self.add_module(f"{name}2", nn.Conv2d(3, width, 3, padding=1, bias=False))
            self.add_module(f"{name}n2", nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        for name in ("a", "b"):
            y = torch.relu(getattr(self, f"{name}n1")(getattr(self, f"{name}1")(x)))
            x = torch.relu(x + getattr(self, f"{name}n2")(getattr(self, f"{name}2")(y)))
        return self.fc(x.mean((2, 3)))


class Scaled(nn.Module):
    """Sections, a bare scale and a bare shift, a depthwise and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.up = nn.Conv2d(3, 6, 1)
        self.grouped = nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(9, affine=False)
        self.scale, self.shift = (nn.Parameter(torch.rand(9, 1, 1) + 0.5) for _ in range(2))
        self.depthwise = nn.Conv2d(9, 9, 3, padding=1, groups=9)
        self.turn = nn.ConvTranspose2d(9, 5, 2, stride=2)
        self.act = nn.PReLU(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm(self.grouped(torch.relu(self.up(x)))) * self.scale + self.shift
        return self.fc(self.act(self.turn(torch.relu(self.depthwise(x)))).mean((2, 3)))


class Tiny:
    """A network in float64, its groups, its cost."""

    def __init__(self, module, *, tried=False):
        torch.manual_seed(0)
        self.module = ready(module())
        self.grouping = (channel_groups if tried else trace_groups)(self.module, SIZE)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}
        counted = count(self.module, SIZE)
        self.cost = ChannelCost(counted, self.grouping, counted.bytes, shapes=shapes)
        self.dense = self.cost.totals({})

    def layout(self, coupling="group"):
        return lay_out(self.module, self.grouping, coupling)

    def gates(self, coupling="group", **fields):
        return Gates(self.layout(coupling), **fields).double()


BUILD = {
    "residual": Residual,
    "plain": Plain,
    "pre": Pre,
    "ends": lambda: Ends("shift"),
    "concat": Concat,
    "shared norm": SharedNorm,
    "chain": Twice,
    "scaled": Scaled,
    "resnet20": lambda: build("resnet20"),
    "preresnet": lambda: build("preresnet20"),
}
_made: dict[str, Tiny] = {}


def tiny(name):
    if name not in _made:
        _made[name] = Tiny(BUILD[name], tried=name == "scaled")
    return _made[name]


def random_mask(layout, seed, share=0.6, empty=0.2):
    """Open gates at random: as many of each section, at least one unless the branch can go (and is drawn to)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(layout.total, dtype=bool)
    emptied = {
        stream.writers[number].vector
        for stream in layout.streams
        for number in range(len(stream.writers))
        if stream.writers[number].inner is not None and rng.random() < empty
    }
    for number, (vector, part) in enumerate(zip(layout.vectors, layout.slices, strict=True)):
        branch = vector.shared and layout.grouping.groups[vector.group].branch is not None
        if (branch and rng.random() < empty) or number in emptied:
            continue
        run = vector.channels // vector.sections
        most = max(1, rng.binomial(run, share))
        for section in range(vector.sections):
            mask[part.start + section * run + rng.choice(run, most, replace=False)] = True
    return mask
