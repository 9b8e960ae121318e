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

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from billhook.compensation.matrices import input_slices, output_filters, runs
from billhook.compensation.selection import Selection

Side = Literal["in", "out"]
"""Of a convolution: where its inputs come in, or its outputs go out."""


class Pointwise(nn.Module):
    """A convolution with a 1x1 convolution in front of it and another behind it.

    The 1x1 convolutions of a grouped convolution have its groups: no group sees more of the input than before, and both
    fold back exactly.

    Args:
        before: The first; an identity when that side was folded.
        conv: The convolution; without a bias where there is a second 1x1.
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

    def rows(self, side: Side) -> Tensor:
        """``[groups, channels of a group, features]``: what a selection of outputs, or of inputs, is about.

        Filters or input slices, as the weights are now.
        """
        return input_slices(self.conv) if side == "in" else output_filters(self.conv)

    def without(self, side: Side, selection: Selection, count: int) -> Pointwise:
        """A smaller one that keeps ``count`` channels of each group; the 1x1 of that side makes up for the others.

        It shares what did not change, the 1x1 of the other side, with this one, which stays as it is.

        Args:
            side: Whose channels go: inputs of the convolution, or its outputs.
            selection: Of the :meth:`rows` of that side.
            count: Of each group, at least 1.

        Raises:
            ValueError: A selection of something else, nothing left, or a side that was folded.
        """
        conv, inputs = self.conv, side == "in"
        near = self.before if inputs else self.after
        if not isinstance(near, nn.Conv2d):
            raise ValueError(f"the {side}put side was folded")
        kept, matrix = self._matrix(selection, count, conv.in_channels if inputs else conv.out_channels)
        weight = conv.weight.detach()
        if inputs:
            local = runs(kept, 0, self.groups) % (conv.in_channels // self.groups)
            own = runs(weight, 0, self.groups)
            weight = torch.cat([part[:, index] for part, index in zip(own, local, strict=True)])
            mixed = matrix.mT @ _blocks(near, self.groups)
        else:
            weight = weight[kept]
            mixed = _blocks(near, self.groups) @ matrix  # columns of G are channels of one group
        small = conv_with(conv, weight, conv.bias)
        near = conv_with(near, mixed.flatten(0, 1)[:, :, None, None], near.bias)
        return Pointwise(near, small, self.after) if inputs else Pointwise(self.before, small, near)

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
        new = conv_with(conv, weight.flatten(0, 1), conv.bias if bias is None else bias)
        plain = isinstance(before, nn.Identity) and isinstance(after, nn.Identity)
        return new if plain else Pointwise(before, new, after)

    def widened(self, inside: Sequence[int], out: Sequence[int]) -> Pointwise:
        """The same in full width: zeros where something was removed.

        Args:
            inside: Inputs of the full convolution that are left, ascending, equally many of each group.
            out: Outputs of the same kind.

        Returns:
            One whose 1x1 convolutions have as many channels on either side, and which computes what this one does.
        """
        before, conv, after = self.before, self.conv, self.after
        inputs = before.in_channels if isinstance(before, nn.Conv2d) else conv.in_channels
        outputs = after.out_channels if isinstance(after, nn.Conv2d) else conv.out_channels
        groups, device = conv.groups, conv.weight.device
        rows, columns = torch.tensor(out, device=device), torch.tensor(inside, device=device)
        large = conv_with(conv, _spread(conv.weight, rows, columns, outputs, inputs // groups), conv.bias)
        if isinstance(before, nn.Conv2d):
            every = torch.arange(inputs, device=device)
            before = conv_with(before, _spread(before.weight, columns, every, inputs, inputs // groups), None)
        if isinstance(after, nn.Conv2d):
            every = torch.arange(outputs, device=device)
            after = conv_with(after, _spread(after.weight, every, rows, outputs, outputs // groups), after.bias)
        return Pointwise(before, large, after)

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


def opened(layer: nn.Conv2d | Pointwise, side: Side) -> Pointwise:
    """A convolution with a 1x1 convolution on one side: the one that is there, or an identity.

    Args:
        layer: As it is; it is left so, and shares what did not change.
        side: Which of the two.
    """
    part = layer if isinstance(layer, Pointwise) else Pointwise(nn.Identity(), layer, nn.Identity())
    conv = part.conv
    if isinstance(part.before if side == "in" else part.after, nn.Conv2d):
        return part
    if side == "in":
        return Pointwise(_identity(conv, conv.in_channels, bias=False), conv, part.after)
    after = _identity(conv, conv.out_channels, bias=conv.bias is not None)
    if conv.bias is None:
        return Pointwise(part.before, conv, after)
    cast(Tensor, after.bias).data.copy_(conv.bias.detach())
    return Pointwise(part.before, conv_with(conv, conv.weight, None), after)


def _blocks(layer: nn.Conv2d, groups: int) -> Tensor:
    """``[groups, outputs, inputs]`` of a 1x1 convolution, on the CPU: not every device knows float64."""
    return runs(layer.weight.detach().to("cpu", torch.float64).flatten(1), 0, groups)


def _spread(weight: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """``[height, width, ...]``: the weight of a smaller grouped layer in the shape of the larger one, zeros elsewhere.

    Args:
        weight: ``[outputs, inputs of a group, ...]``.
        rows: Outputs of the larger layer that its rows stand for, ascending.
        columns: Inputs of the larger layer, over all groups.
        height: Outputs of the larger layer.
        width: Inputs of one group of it.
    """
    large = weight.new_zeros(height, width, *weight.shape[2:])
    per = columns.numel() // weight.shape[1]  # groups
    for outputs, inputs, part in zip(rows.chunk(per), columns.chunk(per), weight.detach().chunk(per), strict=True):
        large[outputs[:, None], (inputs % width)[None]] = part
    return large


def _identity(conv: nn.Conv2d, channels: int, *, bias: bool) -> nn.Conv2d:
    """One with as many outputs as inputs that changes nothing."""
    layer = one_by_one(conv, channels, channels, bias=bias)
    width = channels // conv.groups
    eye = torch.eye(width).repeat(conv.groups, 1)
    layer.weight.data.copy_(eye[:, :, None, None])
    if layer.bias is not None:
        layer.bias.data.zero_()
    return layer


def one_by_one(conv: nn.Conv2d, inputs: int, outputs: int, *, bias: bool) -> nn.Conv2d:
    """A 1x1 convolution with the groups of ``conv``; its weights are to be filled in."""
    return _empty(conv, inputs, outputs, bias, kernel_size=1)


def conv_like(conv: nn.Conv2d, inputs: int, outputs: int, *, bias: bool) -> nn.Conv2d:
    """A convolution of other widths; its weights are to be filled in."""
    return _empty(
        conv, inputs, outputs, bias, kernel_size=conv.kernel_size, stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, padding_mode=conv.padding_mode,
    )  # fmt: skip


def _empty(conv: nn.Conv2d, inputs: int, outputs: int, bias: bool, **geometry: Any) -> nn.Conv2d:
    layer: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, inputs, outputs, groups=conv.groups, bias=bias, device=conv.weight.device, dtype=conv.weight.dtype,
        **geometry,
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    layer.train(conv.training)
    return layer


def conv_with(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution of the widths of a weight, which it copies.

    Args:
        conv: What else it is like.
        weight: ``[outputs, inputs of a group, kh, kw]``.
        bias: ``[outputs]``.
    """
    layer = conv_like(conv, weight.shape[1] * conv.groups, weight.shape[0], bias=bias is not None)
    layer.weight.data.copy_(weight.detach())
    if layer.bias is not None and bias is not None:
        layer.bias.data.copy_(bias.detach())
    return layer
