"""Networks whose convolutions stand between 1x1 convolutions: which may, putting them in, and the structure as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from billhook.compensation.pointwise import Pointwise, conv_like, one_by_one, opened
from billhook.errors import InputError
from billhook.surgery.tensors import is_depthwise


@dataclass(frozen=True)
class PointwiseShape:
    """Widths of one convolution between 1x1 convolutions, as plain data.

    Attributes:
        inside: Inputs of the convolution; None: there is no 1x1 in front of it.
        out: Its outputs; None: there is none behind it.
    """

    inside: int | None
    out: int | None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PointwiseShape:
        """Read what ``dataclasses.asdict`` wrote.

        Raises:
            ValueError: Something else.
        """
        if not isinstance(content, Mapping) or set(content) != {"inside", "out"}:
            raise ValueError("widths between 1x1 convolutions are not understood")
        widths = (content["inside"], content["out"])
        # type(), because a bool is an int to isinstance.
        if widths == (None, None) or any(width is not None and type(width) is not int for width in widths):
            raise ValueError(f"{widths} are no widths between 1x1 convolutions")
        return cls(*widths)


def prunable_convolutions(module: nn.Module) -> tuple[str, ...]:
    """The convolutions that are published as prunable: wider than one pixel, and not the first; no depthwise ones.

    The outer widths of a depthwise convolution stay what they are, and it has nothing else to lose.
    """
    convs = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    return tuple(name for name, part in convs[1:] if max(part.kernel_size) > 1 and not is_depthwise(part))


def insert_pointwise(module: nn.Module, layers: Sequence[str]) -> None:
    """Put identities around convolutions, in place; the network computes what it did.

    Args:
        module: The network.
        layers: Names of ``Conv2d`` layers.

    Raises:
        InputError: A layer that is none, or a depthwise one.
    """
    for name in layers:
        module.set_submodule(name, opened(opened(_conv(module, name), "in"), "out"))


def pointwise_layers(module: nn.Module) -> dict[str, Pointwise]:
    """The convolutions that stand between 1x1 convolutions, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Pointwise)}


def fold_pointwise(module: nn.Module) -> None:
    """Fold every side that lost nothing back into its convolution, in place."""
    for name, part in pointwise_layers(module).items():
        module.set_submodule(name, part.folded())


def pointwise_shapes(module: nn.Module) -> dict[str, PointwiseShape]:
    """What :func:`shape_pointwise` needs to make the same structure of the network as it came."""
    return {
        name: PointwiseShape(
            part.conv.in_channels if isinstance(part.before, nn.Conv2d) else None,
            part.conv.out_channels if isinstance(part.after, nn.Conv2d) else None,
        )
        for name, part in pointwise_layers(module).items()
    }


def pointwise_values(module: nn.Module, shapes: Mapping[str, PointwiseShape]) -> int:
    """Weights of the 1x1 convolutions that :func:`shape_pointwise` would add; nothing is made.

    Raises:
        InputError: A layer that is not there, or widths that it cannot have.
    """
    total = 0
    for name, shape in shapes.items():
        conv = _conv(module, name)
        _widths(name, conv, shape)
        total += (shape.inside or 0) * conv.in_channels // conv.groups
        total += (shape.out or 0) * conv.out_channels // conv.groups
    return total


def shape_pointwise(module: nn.Module, shapes: Mapping[str, PointwiseShape]) -> None:
    """Give a network the structure of one that was pruned so, in place; its weights are then to be loaded.

    Args:
        module: The network as it came.
        shapes: What :func:`pointwise_shapes` said.

    Raises:
        InputError: A layer that is not there, or widths that it cannot have.
    """
    for name, shape in shapes.items():
        conv = _conv(module, name)
        inside, out = _widths(name, conv, shape)
        before: nn.Module = nn.Identity()
        after: nn.Module = nn.Identity()
        bias = conv.bias is not None
        if shape.inside is not None:
            before = one_by_one(conv, conv.in_channels, inside, bias=False)
        if shape.out is not None:
            after = one_by_one(conv, out, conv.out_channels, bias=bias)
        inner = conv_like(conv, inside, out, bias=bias and shape.out is None)
        module.set_submodule(name, Pointwise(before, inner, after))


def _conv(module: nn.Module, name: str) -> nn.Conv2d:
    conv = dict(module.named_modules()).get(name)
    if type(conv) is not nn.Conv2d or is_depthwise(conv):
        what = "a depthwise convolution" if isinstance(conv, nn.Conv2d) else "no two-dimensional convolution"
        raise InputError(f"'{name}' is {what}: it cannot stand between 1x1 convolutions")
    return conv


def _widths(name: str, conv: nn.Conv2d, shape: PointwiseShape) -> tuple[int, int]:
    """Inputs and outputs of the convolution between."""
    inside = conv.in_channels if shape.inside is None else shape.inside
    out = conv.out_channels if shape.out is None else shape.out
    for width, most in ((inside, conv.in_channels), (out, conv.out_channels)):
        if not 0 < width <= most or width % conv.groups:
            raise InputError(f"'{name}' cannot have {width} of {most} channels in {conv.groups} groups")
    return inside, out
