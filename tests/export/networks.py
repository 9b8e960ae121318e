"""Networks as users write them: each of them takes a path of its own through the lowering."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from billhook.models import ChannelMap, PadShortcut


def settle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random scales, shifts and statistics, so that nothing that goes wrong hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.data = low + (high - low) * torch.rand(tensor.shape, generator=generator)

    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            if part.affine:
                uniform(part.weight, 0.5, 1.5)
                uniform(part.bias, -0.5, 0.5)
            uniform(part.running_mean, -0.3, 0.3)
            uniform(part.running_var, 0.5, 1.5)
        elif isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            uniform(part.bias, -0.3, 0.3)
    return module.eval()


class Written(nn.Module):
    """A stem of 8 channels, something in the middle, and a head."""

    def __init__(self, middle: Callable[[Tensor], Tensor], features: int = 8, *parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.parts, self.middle = nn.ModuleList(parts), middle
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.norm(self.stem(x))), *self.parts)
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)


class Gate(nn.Module):
    """Squeeze and excitation by linear layers."""

    def __init__(self, spread: bool) -> None:
        super().__init__()
        self.down, self.up, self.spread = nn.Linear(8, 3), nn.Linear(3, 8), spread

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)))))
        gate = gate.view(x.shape[0], -1, 1, 1)
        return x * gate.expand_as(x) if self.spread else gate * x


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def assigned(x: Tensor) -> Tensor:
    """Writes in place, also through a view."""
    x = x * 2
    x[:, :3] = 0
    part = x[:, 4:6]
    part += 1
    return x.relu_()


def halves(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    """A ShuffleNet unit."""
    a, b = x.chunk(2, 1)
    return shuffle(torch.cat([a, two(F.relu(one(b)))], 1))


def factorised(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    """A FactorizedReduce: the second path sees the pixels that the first leaves out."""
    return torch.cat([one(x), two(x[:, :, 1:, 1:])], 1)


def parted(x: Tensor, one: nn.Module) -> Tensor:
    a, b, c = x.split([2, 5, 1], 1)
    return torch.cat([c, one(b), a], 1)


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def frozen(x: Tensor) -> Tensor:
    weight, bias = torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)
    return x * weight.view(1, -1, 1, 1) + bias.reshape(8, 1, 1)


def twice(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """One convolution in two places, normalised in one of them."""
    return F.relu(norm(conv(x))) + conv(F.relu(x - 0.1))


def two_readers(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    y = conv(x)
    return F.relu(norm(y)) + y


class Twins(nn.Module):
    """Two linear layers after flattened maps, and BatchNorm of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4 * 4 * 4, 6), nn.Linear(6, 5)
        self.first, self.norm = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(self.first(self.one(self.stem(x).flatten(1)))))
        return F.softmax(self.two(F.dropout(x, 0.5, self.training)), -1)


class ConvHead(nn.Module):
    """A head of 1x1 convolutions after the pooling; the result is flattened last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 1), nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.hardswish(self.one(F.adaptive_avg_pool2d(self.stem(x), 1)))).flatten(1)


def conv(inputs: int, outputs: int, kernel: int = 1, **more: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **more)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # Channels
    "gate": lambda: Written(lambda x, gate: gate(x), 8, Gate(spread=False)),
    "gate, spread": lambda: Written(lambda x, gate: gate(x), 8, Gate(spread=True)),
    "gate by convolutions": lambda: Written(
        lambda x, down, up: x * F.hardsigmoid(up(F.silu(down(x.mean((2, 3), keepdim=True))))), 8, conv(8, 2), conv(2, 8)
    ),
    "gate of a whole map": lambda: Written(
        lambda x, line: x * torch.sigmoid(line(x.flatten(1)))[:, :, None, None], 8, nn.Linear(8 * 16 * 16, 8)
    ),
    "shuffle": lambda: Written(shuffle),
    "shuffle layer": lambda: Written(lambda x, part, after: after(part(x)), 8, nn.ChannelShuffle(4), conv(8, 8)),
    "shuffle unit": lambda: Written(
        lambda x, *p: halves(halves(x, *p[:2]), *p[2:]), 8, conv(4, 6), conv(6, 4), conv(4, 3), conv(3, 4)
    ),
    "dense blocks": lambda: Written(
        lambda x, one, two: torch.cat([x, one(x), two(torch.cat([one(x), x], 1))], 1), 14, conv(8, 3), conv(11, 3)
    ),
    "split": lambda: Written(
        lambda x, one: torch.cat([(p := x.split([2, 5, 1], 1))[2], one(p[1]), p[0]], 1), 6, conv(5, 3)
    ),
    "stack": lambda: Written(lambda x, one: torch.stack([x, one(x)], 2).flatten(1, 2), 16, conv(8, 8)),
    "doubled": lambda: Written(lambda x: torch.cat([x, x[:, :3]], 1), 11),
    "zeros behind": lambda: Written(lambda x: torch.cat([x, torch.zeros_like(x[:, :3])], 1), 11),
    "zeros between": lambda: Written(
        lambda x, one: torch.cat([x, x.new_zeros(x[:, :2].shape), one(x)], 1), 14, conv(8, 4)
    ),
    "chosen": lambda: Written(lambda x: x.index_select(1, torch.tensor([3, 3, 0])) + x[:, [1, 2, 7]], 3),
    "mirrored": lambda: Written(lambda x: x.flip(1)),
    "shortcut": lambda: Written(
        lambda x, one, short: one(x) + short(x), 16, conv(8, 16, 3, stride=2, padding=1), PadShortcut(8, 3, 5, 2)
    ),
    "cut shortcut": lambda: Written(lambda x, short: F.relu(short(x) + 1), 4, cut_shortcut()),
    "channel map": lambda: Written(lambda x, part: part(x), 5, ChannelMap([7, -1, 0, 0, 3])),
    # Rows and columns
    "padded convolution": lambda: Written(
        lambda x, one: one(F.pad(x, (0, 1, 2, 3))), 6, conv(8, 6, 3, stride=2, padding=1)
    ),
    "shuffled and padded": lambda: Written(
        lambda x, one: one(F.pad(shuffle(x), (0, 1, 0, 1))), 6, conv(8, 6, 3, groups=2)
    ),
    "padded for its own sake": lambda: Written(lambda x: F.relu(F.pad(x, (1, 0, 2, 1)) + 1)),
    "padded layer": lambda: Written(lambda x, pad: torch.sigmoid(pad(x)), 8, nn.ZeroPad2d((0, 3, 1, 1))),
    "padded maximum": lambda: Written(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)),
    "padded maximum below zero": lambda: Written(lambda x: F.max_pool2d(F.pad(x - 9, (0, 1, 0, 1)), 3, 2)),
    "padded maximum without end": lambda: Written(
        lambda x: F.max_pool2d(F.pad(x - 9, (0, 1, 0, 1), value=-torch.inf), 3, 2)
    ),
    "padded mean": lambda: Written(lambda x: F.avg_pool2d(F.pad(x + 1, (0, 1, 0, 1)), 3, 2)),
    "padded mean, twice": lambda: Written(
        lambda x: F.avg_pool2d(F.pad(x + 1, (0, 1, 0, 1)), 3, 2, 1, count_include_pad=False)
    ),
    "wide padding": lambda: Written(lambda x: F.avg_pool2d(F.pad(x + 1, (4, 4, 4, 4)), 2, 2)),
    "cropped": lambda: Written(lambda x: x[:, :, 2:-3, 1:]),
    "a corner": lambda: Written(lambda x: x[:, :, :1, :1]),
    "every third": lambda: Written(lambda x: x[:, :, ::3, ::2]),
    "every third, from the second": lambda: Written(lambda x: x[:, 2:, 1::3, :-1:2], 6),
    "factorised": lambda: Written(factorised, 10, conv(8, 5, stride=2), conv(8, 5, stride=2)),
    "focus": lambda: Written(focus, 32),
    # Layers
    "same, even kernel": lambda: Written(
        lambda x, one: one(x), 4, nn.Conv2d(8, 4, (2, 4), padding="same", dilation=(1, 3))
    ),
    "depthwise": lambda: Written(lambda x, one: one(x), 8, conv(8, 8, 5, groups=8, padding=2, stride=(2, 1))),
    "two readers": lambda: Written(two_readers, 4, conv(8, 4), nn.BatchNorm2d(4)),
    "two places": lambda: Written(twice, 8, conv(8, 8, bias=False), nn.BatchNorm2d(8)),
    "normalised first": lambda: Written(lambda x, norm, one: one(F.relu(norm(x))), 4, nn.BatchNorm2d(8), conv(8, 4)),
    "frozen normalisation": lambda: Written(lambda x, one: frozen(one(x)), 8, conv(8, 8)),
    "normalised without parameters": lambda: Written(lambda x, norm: norm(x), 8, nn.BatchNorm2d(8, affine=False)),
    "vectors": Twins,
    "head of convolutions": ConvHead,
    "weight norm": lambda: Written(lambda x, one: one(x), 4, nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3))),
    "head as a map": lambda: nn.Sequential(nn.Conv2d(3, 5, 3, stride=5), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    # Poolings
    "maximum, rounded up": lambda: Written(lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)),
    "mean, rounded up": lambda: Written(lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True)),
    "mean, rounded up for nothing": lambda: Written(lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True)),
    "mean without its padding": lambda: Written(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "mean by its size": lambda: Written(lambda x: F.avg_pool2d(x, x.shape[2:])),
    "adaptive": lambda: Written(lambda x: F.adaptive_avg_pool2d(x, (8, 4))),
    "adaptive as it is": lambda: Written(lambda x: F.adaptive_avg_pool2d(x, 16)),
    "adaptive, uneven": lambda: Written(lambda x: F.adaptive_avg_pool2d(x, (3, 5)).flatten(1), 120),
    "adaptive, larger": lambda: Written(
        lambda x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 8), (3, 5)).reshape(x.shape[0], -1), 120
    ),
    "adaptive maximum": lambda: Written(lambda x: F.adaptive_max_pool2d(x, (4, 1))),
    "mean of a vector of pixels": lambda: Written(lambda x: x.flatten(2).mean(-1)),
    "mean of chosen channels": lambda: Written(lambda x: x[:, 1::2].reshape(x.shape[0], 4, -1).mean(2), 4),
    "flattened after a choice": lambda: Written(lambda x: x[:, [5, 1]].flatten(1), 512),
    "joined vectors": lambda: Written(lambda x: torch.cat([x.mean((2, 3)), x.mean((-1, -2))[:, :3]], 1), 11),
    # Arithmetic
    "numbers": lambda: Written(lambda x: (1 - x) * 3 / 4 - (-x) + (2 - 0.5 * x)),
    "difference": lambda: Written(
        lambda x, one: torch.sub(x, one(x), alpha=0.5) + torch.add(1, x, alpha=2), 8, conv(8, 8)
    ),
    "square": lambda: Written(lambda x: x * x),
    "in place": lambda: Written(assigned),
    "hard-swish": lambda: Written(lambda x, act: act(x - 1), 8, nn.Hardswish(inplace=True)),
    "hard-swish, written out": lambda: Written(lambda x: (y := x - 1) * F.relu6(y + 3) / 6),
    "hard-swish, in halves": lambda: Written(lambda x: (y := x - 1) * (F.relu6(y + 3) / 6)),
    "hard sigmoid, written out": lambda: Written(lambda x: F.relu6(3 + (x - 1)) / 6),
    "nearly hard-swish": lambda: Written(lambda x: (x - 1) * F.relu6(x + 3) / 6),
    "silu": lambda: Written(lambda x, act: act(x - 1), 8, nn.SiLU()),
    "silu, written out": lambda: Written(lambda x: (y := x - 1) * torch.sigmoid(y)),
    "clamps": lambda: Written(lambda x: (x - 1).clamp(min=0) + F.hardtanh(3 * x, 0, 6) + (x - 0.5).clamp_min(0)),
    "dropouts": lambda: Written(
        lambda x, one, two: two(one(x)).detach().clone() + 1,
        8,
        nn.Dropout2d(),
        nn.Sequential(nn.Identity(), nn.Dropout()),
    ),
}


def cut_shortcut() -> PadShortcut:
    short = PadShortcut(8, 3, 5, 2)
    short.keep([0, 4, 5, 9], None)
    return short
