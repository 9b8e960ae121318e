"""What is no operator of a packed file is named: the function of ATen, the line of the user's code and the module."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from billhook.errors import InputError
from billhook.export import lower

from .networks import Written, conv


class Inner(nn.Module):
    """Fails where the mark is."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return torch.tanh(y)  # here


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 1), nn.ModuleList([nn.Sequential(nn.ReLU(), Inner())])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.stem(x)).mean((2, 3))


def test_function_line_and_module_are_named() -> None:
    lines, start = inspect.getsourcelines(Inner)
    line = start + next(number for number, text in enumerate(lines) if text.endswith("# here\n"))
    with pytest.raises(InputError) as caught:
        lower(Outer(), (3, 8, 8))
    assert caught.value.message == (
        f"aten.tanh.default at test_refusals.py:{line}, module 'blocks.0.1': no operator of a packed file does that"
    )
    assert caught.value.exit_code == 2


def test_a_layer_of_the_library_is_named_by_the_line_that_calls_it() -> None:
    with pytest.raises(InputError) as caught:
        lower(Written(lambda x, norm: norm(x), 8, nn.GroupNorm(2, 8)), (3, 8, 8))
    assert re.match(r"aten\.group_norm\.default at networks\.py:\d+, module 'parts\.0':", caught.value.message)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "activation": (lambda: Written(lambda x: F.leaky_relu(x)), "aten.leaky_relu.default"),
    "bounds": (lambda: Written(lambda x: x.clamp(-1, 1)), "bounds 0 and 6"),
    "transposed": (lambda: Written(lambda x, up: up(x), 8, nn.ConvTranspose2d(8, 8, 2)), "aten.conv_transpose2d"),
    "convolution of a line": (
        lambda: Written(lambda x, one: one(x.flatten(2)).flatten(1), 8 * 64, nn.Conv1d(8, 8, 1)),
        "aten.conv1d",
    ),
    "statistics of the batch": (
        lambda: Written(lambda x, norm: norm(x), 8, nn.BatchNorm2d(8, track_running_stats=False)),
        "batch_norm",
    ),
    "reflected": (lambda: Written(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), "mode 'reflect'"),
    "padded with ones": (lambda: Written(lambda x: F.pad(x, (1, 1, 1, 1), value=1.0)), "padding with 1.0"),
    "without end": (
        lambda: Written(lambda x: F.relu(F.pad(x, (1, 1, 1, 1), value=-torch.inf))),
        "before a maximum only",
    ),
    "attention to pixels": (lambda: Written(lambda x, one: x * one(x), 8, conv(8, 1)), "[1, 1, 8, 8]"),
    "added to every pixel": (lambda: Written(lambda x: x + x.mean((2, 3), keepdim=True)), "[1, 8, 1, 1]"),
    "a mask": (lambda: Written(lambda x: x * torch.linspace(0, 1, 8)), "differ from pixel to pixel"),
    "rows swapped": (lambda: Written(lambda x: x.transpose(2, 3) + x), "moves elements"),
    "pixels to channels": (lambda: Written(lambda x: F.pixel_shuffle(x, 2), 2), "moves elements"),
    "mean over channels": (lambda: Written(lambda x: x * x.mean(1, keepdim=True)), "over all pixels of a channel"),
    "softmax of maps": (lambda: Written(lambda x: x.softmax(1)), "over all values of a vector"),
    "tokens": (lambda: Written(lambda x, line: line(x.flatten(2)).mean(2), 8, nn.Linear(64, 3)), "reads a vector"),
    "a weight of the image": (
        lambda: Written(lambda x: F.conv2d(x, x[:, :, :1, :1]), 1),
        "its weight depends on the image",
    ),
    "a divisor of the image": (lambda: Written(lambda x: x / (x + 1)), "divisions"),
    "joined with ones": (
        lambda: Written(lambda x: torch.cat([x, torch.ones_like(x)], 1), 16),
        "the same for every image",
    ),
    "random": (lambda: Written(lambda x: F.dropout(x, 0.5, training=True)), "dropout"),
    "a pooling with gaps": (lambda: Written(lambda x: F.max_pool2d(x, 2, dilation=2)), "gaps"),
    "half": (lambda: Written(lambda x: x.half().float()), "torch.float16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        lower(make(), (3, 8, 8))
    assert words in caught.value.message
    assert re.search(r"^aten\.[\w.]+ at networks\.py:\d+, ", caught.value.message)
    assert "\n" not in str(caught.value)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.mean((2, 3))


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else x.flatten(1) + 1


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(1, 3)


@pytest.mark.parametrize(("make", "words"), [(Pair, "returns 2"), (Depends, "cannot be traced"), (Same, "the same")])
def test_networks_that_are_none(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lower(make(), (3, 8, 8))
