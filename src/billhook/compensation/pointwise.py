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
from typing import Literal, cast

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
        small = conv_like(self.conv, self.conv.in_channels, len(kept))
        small.weight.data.copy_(self.conv.weight.detach()[kept])
        new_after = conv_like(after, len(kept), after.out_channels)
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
        small = conv_like(self.conv, len(kept), self.conv.out_channels)
        width = self.conv.in_channels // self.groups
        own = runs(self.conv.weight.detach(), 0, self.groups)
        local = runs(kept, 0, self.groups) % width
        small.weight.data.copy_(torch.cat([part[:, index] for part, index in zip(own, local, strict=True)]))
        if self.conv.bias is not None:  # where there is no second 1x1 to carry it
            cast(Tensor, small.bias).data.copy_(self.conv.bias.detach())
        new_before = conv_like(before, before.in_channels, len(kept))
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
        new = conv_like(conv, conv.in_channels, conv.out_channels, bias=bias is not None or conv.bias is not None)
        new.weight.data.copy_(weight.flatten(0, 1))
        bias = conv.bias if bias is None else bias
        if bias is not None:
            cast(Tensor, new.bias).data.copy_(bias.detach())
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
        rows, groups = torch.tensor(out, device=conv.weight.device), conv.groups
        columns = torch.tensor(inside, device=conv.weight.device)
        large = conv_like(conv, inputs, outputs)
        large.load_state_dict({"weight": _spread(conv.weight, rows, columns, outputs, inputs // groups)}
                              | ({} if conv.bias is None else {"bias": conv.bias}))  # fmt: skip
        if isinstance(before, nn.Conv2d):
            every = torch.arange(inputs, device=columns.device)
            first = conv_like(before, inputs, inputs)
            first.weight.data.copy_(_spread(before.weight, columns, every, inputs, inputs // groups))
            before = first
        if isinstance(after, nn.Conv2d):
            every = torch.arange(outputs, device=rows.device)
            second = conv_like(after, outputs, outputs)
            second.weight.data.copy_(_spread(after.weight, every, rows, outputs, outputs // groups))
            if after.bias is not None:
                cast(Tensor, second.bias).data.copy_(after.bias.detach())
            after = second
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

    def _open(self, side: nn.Module, name: str) -> nn.Conv2d:
        if not isinstance(side, nn.Conv2d):
            raise ValueError(f"the {name} side was folded")
        return side


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
    after, inner = _identity(conv, conv.out_channels, bias=conv.bias is not None), conv
    if conv.bias is not None:
        inner = conv_like(conv, conv.in_channels, conv.out_channels, bias=False)
        inner.weight.data.copy_(conv.weight.detach())
        cast(Tensor, after.bias).data.copy_(conv.bias.detach())
    return Pointwise(part.before, inner, after)


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


def one_by_one(conv: nn.Conv2d, inputs: int, outputs: int, *, bias: bool) -> nn.Conv2d:
    """A 1x1 convolution with the groups of ``conv``; its weights are to be filled in."""
    layer: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, inputs, outputs, 1, groups=conv.groups, bias=bias,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    layer.train(conv.training)
    return layer


def _identity(conv: nn.Conv2d, channels: int, *, bias: bool) -> nn.Conv2d:
    """One with as many outputs as inputs that changes nothing."""
    layer = one_by_one(conv, channels, channels, bias=bias)
    width = channels // conv.groups
    eye = torch.eye(width).repeat(conv.groups, 1)
    layer.weight.data.copy_(eye[:, :, None, None])
    if layer.bias is not None:
        layer.bias.data.zero_()
    return layer


def conv_like(conv: nn.Conv2d, inputs: int, outputs: int, *, bias: bool | None = None) -> nn.Conv2d:
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
