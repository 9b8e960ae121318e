"""Compensation as published: a convolution between two 1x1 convolutions, which take up what removed filters did.

The outer widths never change, so nothing else in the network has to: additions stay as they are. With ``G`` the weights
of the second 1x1 and ``P`` those of the first, filters ``R`` that go and ``S`` that stay,

    f_R = Lambda f_S + remainder:        G_S <- G_S + G_R Lambda            (outputs)
    W_R = Lambda W_S + remainder:        P_S <- P_S + Lambda^T P_R          (input slices)

(Purohit, Parvathgari and Bhattacharya 2024). There is nothing between the three that is not linear: what changes is
the remainder alone, and filters that depend on others leave none. That holds for every padding of the convolution: the
first 1x1 has no bias, so it maps padding to padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from billhook.compensation.matrices import input_slices, output_filters, runs
from billhook.compensation.selection import Selection
from billhook.errors import InputError
from billhook.surgery.tensors import is_depthwise


class Pointwise(nn.Module):
    """A convolution with a 1x1 convolution in front of it and another behind it.

    The 1x1 convolutions of a grouped convolution have its groups: no group sees more of the input than before, and both
    fold back exactly.

    Args:
        before: The first; an identity when that side was folded.
        conv: The convolution, without a bias.
        after: The second, with the convolution's bias when it had one: removed filters take none of it along. An
            identity when that side was folded.
    """

    before: nn.Module
    conv: nn.Conv2d
    after: nn.Module

    def __init__(self, before: nn.Module, conv: nn.Conv2d, after: nn.Module) -> None:
        super().__init__()
        self.before, self.conv, self.after = before, conv, after

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H', W')."""
        return cast(Tensor, self.after(self.conv(self.before(x))))

    @property
    def groups(self) -> int:
        """Groups of the convolution: the sections of a selection."""
        return self.conv.groups

    def filters(self) -> Tensor:
        """``[groups, outputs of a group, features]``: what a selection of outputs is about, as the weights are now."""
        return output_filters(self.conv)

    def slices(self) -> Tensor:
        """``[groups, inputs of a group, features]``: what a selection of inputs is about."""
        return input_slices(self.conv)

    def without_outputs(self, selection: Selection, count: int) -> Pointwise:
        """A smaller one that keeps ``count`` filters of each group; the second 1x1 makes up for the others.

        It shares what did not change, the first 1x1, with this one, which stays as it is.

        Args:
            selection: Of :meth:`filters`.
            count: Of each group, at least 1.

        Raises:
            ValueError: A selection of something else, or nothing left.
        """
        after = self._open(self.after, "output")
        kept, matrix = self._matrix(selection, count, self.conv.out_channels)
        # Columns of G are channels of one group.
        weight = _blocks(after, self.groups)
        parts = torch.stack([part @ m for part, m in zip(weight, matrix, strict=True)])
        small = _conv_like(self.conv, self.conv.in_channels, len(kept))
        small.weight.data.copy_(self.conv.weight.detach()[kept])
        new_after = _conv_like(after, len(kept), after.out_channels)
        new_after.weight.data.copy_(parts.flatten(0, 1)[:, :, None, None])
        if after.bias is not None:
            cast(Tensor, new_after.bias).data.copy_(after.bias.detach())
        return Pointwise(self.before, small, new_after)

    def without_inputs(self, selection: Selection, count: int) -> Pointwise:
        """A smaller one that keeps ``count`` inputs of each group; the first 1x1 makes up for the others.

        It shares what did not change, the second 1x1, with this one, which stays as it is.

        Args:
            selection: Of :meth:`slices`.
            count: Of each group, at least 1.

        Raises:
            ValueError: A selection of something else, or nothing left.
        """
        before = self._open(self.before, "input")
        kept, matrix = self._matrix(selection, count, self.conv.in_channels)
        weight = _blocks(before, self.groups)
        parts = torch.stack([m.T @ part for part, m in zip(weight, matrix, strict=True)])
        small = _conv_like(self.conv, len(kept), self.conv.out_channels)
        width = self.conv.in_channels // self.groups
        own = runs(self.conv.weight.detach(), 0, self.groups)
        local = runs(kept, 0, self.groups) % width
        small.weight.data.copy_(torch.cat([part[:, index] for part, index in zip(own, local, strict=True)]))
        new_before = _conv_like(before, before.in_channels, len(kept))
        new_before.weight.data.copy_(parts.flatten(0, 1)[:, :, None, None])
        return Pointwise(new_before, small, self.after)

    def folded(self) -> nn.Module:
        """Without the 1x1 convolutions of sides that lost nothing: exact, up to the rounding of one product.

        A side that was pruned stays: folding it would bring the width back that was saved.

        Returns:
            A plain convolution when no side was pruned.
        """
        conv = self.conv
        weight = runs(conv.weight.detach().to("cpu", torch.float64), 0, conv.groups)
        before, after, bias = self.before, self.after, None
        if isinstance(before, nn.Conv2d) and before.in_channels == before.out_channels:
            first = _blocks(before, conv.groups)
            weight = torch.einsum("gojhw,gji->goihw", weight, first)
            before = nn.Identity()
        if isinstance(after, nn.Conv2d) and after.in_channels == after.out_channels:
            second = _blocks(after, conv.groups)
            weight = torch.einsum("gpo,goihw->gpihw", second, weight)
            bias, after = after.bias, nn.Identity()
        new = _conv_like(conv, conv.in_channels, conv.out_channels, bias=bias is not None or conv.bias is not None)
        new.weight.data.copy_(weight.flatten(0, 1))
        bias = conv.bias if bias is None else bias
        if bias is not None:
            cast(Tensor, new.bias).data.copy_(bias.detach())
        plain = isinstance(before, nn.Identity) and isinstance(after, nn.Identity)
        return new if plain else Pointwise(before, new, after)

    def _matrix(self, selection: Selection, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Channels that stay, and ``[groups, channels of a group, count]``: what becomes of each of them."""
        if selection.sections != self.groups or selection.sections * selection.size != width or count < 1:
            raise ValueError(f"{count} of {selection.sections} x {selection.size} channels, of {self.groups} x {width}")
        kept = torch.from_numpy(selection.kept(count))
        whole = torch.zeros(width, len(kept), dtype=torch.float64)
        whole[kept, torch.arange(len(kept))] = 1
        whole[torch.from_numpy(selection.removed(count))] = torch.from_numpy(selection.compensation(count))
        blocks = runs(runs(whole, 0, self.groups), 2, self.groups)
        matrix = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return kept.to(self.conv.weight.device), matrix

    def _open(self, side: nn.Module, name: str) -> nn.Conv2d:
        if not isinstance(side, nn.Conv2d):
            raise ValueError(f"the {name} side was folded")
        return side


@dataclass(frozen=True)
class PointwiseShape:
    """Widths of one convolution between 1x1 convolutions, as plain data.

    Attributes:
        inside: Inputs of the convolution; None: there is no 1x1 in front of it.
        out: Its outputs; None: there is none behind it.
    """

    inside: int | None
    out: int | None


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
        conv = _conv(module, name)
        before = _identity(conv, conv.in_channels, bias=False)
        after = _identity(conv, conv.out_channels, bias=conv.bias is not None)
        inner = conv
        if conv.bias is not None:
            inner = _conv_like(conv, conv.in_channels, conv.out_channels, bias=False)
            inner.weight.data.copy_(conv.weight.detach())
            cast(Tensor, after.bias).data.copy_(conv.bias.detach())
        module.set_submodule(name, Pointwise(before, inner, after))


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
        inside = conv.in_channels if shape.inside is None else shape.inside
        out = conv.out_channels if shape.out is None else shape.out
        for width, most in ((inside, conv.in_channels), (out, conv.out_channels)):
            if not 0 < width <= most or width % conv.groups:
                raise InputError(f"'{name}' cannot have {width} of {most} channels in {conv.groups} groups")
        before: nn.Module = nn.Identity()
        after: nn.Module = nn.Identity()
        bias = conv.bias is not None
        if shape.inside is not None:
            before = _conv_like(_identity(conv, conv.in_channels, bias=False), conv.in_channels, inside)
        if shape.out is not None:
            after = _conv_like(_identity(conv, conv.out_channels, bias=bias), out, conv.out_channels)
        inner = _conv_like(conv, inside, out, bias=bias and shape.out is None)
        module.set_submodule(name, Pointwise(before, inner, after))


def _blocks(layer: nn.Conv2d, groups: int) -> Tensor:
    """``[groups, outputs, inputs]`` of a 1x1 convolution, on the CPU: not every device knows float64."""
    return runs(layer.weight.detach().to("cpu", torch.float64).flatten(1), 0, groups)


def _conv(module: nn.Module, name: str) -> nn.Conv2d:
    conv = dict(module.named_modules()).get(name)
    if type(conv) is not nn.Conv2d or is_depthwise(conv):
        what = "a depthwise convolution" if isinstance(conv, nn.Conv2d) else "no two-dimensional convolution"
        raise InputError(f"'{name}' is {what}: it cannot stand between 1x1 convolutions")
    return conv


def _identity(conv: nn.Conv2d, channels: int, *, bias: bool) -> nn.Conv2d:
    """A 1x1 convolution with the groups of ``conv`` that changes nothing."""
    layer: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, channels, channels, 1, groups=conv.groups, bias=bias,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    width = channels // conv.groups
    eye = torch.eye(width).repeat(conv.groups, 1)
    layer.weight.data.copy_(eye[:, :, None, None])
    if layer.bias is not None:
        layer.bias.data.zero_()
    layer.train(conv.training)
    return layer


def _conv_like(conv: nn.Conv2d, inputs: int, outputs: int, *, bias: bool | None = None) -> nn.Conv2d:
    """A convolution of other widths; its weights are to be filled in."""
    layer: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, inputs, outputs, conv.kernel_size, stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=conv.groups, bias=(conv.bias is not None) if bias is None else bias,
        padding_mode=conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    layer.train(conv.training)
    return layer
