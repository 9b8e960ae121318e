"""Channel groups that hold: every one was cut on a trial, and the rest of the network stayed as it was.

A dependency graph knows the layers but not what a ``forward`` does between them. A shuffle, or sizes written down as
numbers, would corrupt the network silently; a trial cut shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from billhook.errors import InputError
from billhook.surgery.channels import mask_channels, remove_channels
from billhook.surgery.groups import ChannelGroup, Grouping
from billhook.surgery.planner import plan_channels
from billhook.surgery.trace import trace_groups, trace_trial
from billhook.surgery.twin import twin

TRIAL_SIZE = 32
"""Pixels of the images that cuts are tried on, where the network takes them so small."""

TRIAL_IMAGES = 2
"""What a single image leaves dead behind a ReLU cannot show what happens to it."""

_ALIKE = 1e-4  # a tensor whose values differ by less was never trained, or does next to nothing

ENOUGH = 48
"""Channels that a trial leaves of a wide group, and at least a quarter."""

_GLANCE = 256  # values

TOLERANCE = {torch.float64: 1e-8}
"""Of the largest output. Far less than a wrong index does to it, however little its layer counts; else ROUGH."""

ROUGH = 1e-3


def channel_groups(module: nn.Module, input_size: int | tuple[int, int], channels: int = 3) -> Grouping:
    """The channel groups of a network, each of them tried.

    Args:
        module: The network; left as it is.
        input_size: Height and width of the image in pixels.
        channels: Of the image.

    Returns:
        Groups that can be cut; the layers that cannot, and why.

    Raises:
        InputError: The network cannot take the image, or nothing can be traced.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    try:
        example = next(module.parameters(), torch.zeros(1))
        stirred, images = _cheapest(_stirred(module), example, size, channels)
    except Exception:  # whatever a copy may raise: the tracer has words for it
        trace_groups(module, size, channels)
        raise
    small = (int(images.shape[2]), int(images.shape[3]))
    try:
        grouping = trace_trial(stirred, images[:1])
    except InputError:
        if small == size:
            raise
        grouping = trace_groups(module, size, channels)
    return _Trial(stirred, images, grouping).hold()


def _cheapest(module: nn.Module, example: Tensor, size: tuple[int, int], channels: int) -> tuple[nn.Module, Tensor]:
    """The network in float64 and small images, where it takes both: most networks take smaller ones than theirs."""
    small = (min(size[0], TRIAL_SIZE), min(size[1], TRIAL_SIZE))
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(TRIAL_IMAGES, channels, *size, generator=generator).to(example)
    for dtype in (torch.float64, example.dtype):
        for sides in (small, size):
            part = image[:, :, : sides[0], : sides[1]]
            try:
                with torch.no_grad():
                    module, part = module.to(dtype), part.to(dtype)
                    _output(module, part)
            except Exception:  # whatever a forward may raise
                continue
            return module, part
    return module, image


def _stirred(module: nn.Module) -> nn.Module:
    """A copy in which no tensor is as it was initialised: what is all zeros or ones hides what the channels do.

    In float64, which it is tried in first: one copy instead of two.
    """
    own = {id(t): _doubled(t) for t in (*module.parameters(), *module.buffers()) if type(t) in (Tensor, nn.Parameter)}
    stirred = twin(module, own)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in stirred.modules():
            tensors: list[tuple[str, Tensor]] = list(part.named_parameters(recurse=False))
            if isinstance(part, _NormBase):
                tensors += [(name, t) for name, t in part.named_buffers(recurse=False) if name.startswith("running")]
            for name, tensor in tensors:
                if not (tensor.is_floating_point() and tensor.numel() and _alike(tensor)):
                    continue
                if isinstance(part, _ConvNd | nn.Linear) and name == "weight":
                    new = torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5
                elif name in ("bias", "running_mean"):
                    new = 0.2 * torch.randn(tensor.shape, generator=generator)
                else:
                    new = 0.5 + torch.rand(tensor.shape, generator=generator)
                tensor.copy_(new.to(tensor))
    return stirred


def _doubled(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    copied = tensor.detach().to(dtype, copy=True)
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _alike(tensor: Tensor) -> bool:
    """Whether its values are all but the same; a glance at the first few settles it for most."""
    low, high = tensor.flatten()[:_GLANCE].aminmax()
    if float(high - low) > 2 * _ALIKE:
        return False
    return not float((tensor - tensor.mean()).abs().max()) > _ALIKE


class _Trial:
    def __init__(self, module: nn.Module, image: Tensor, grouping: Grouping) -> None:
        self.module, self.image, self.grouping = module, image, grouping
        self.tolerance = TOLERANCE.get(image.dtype, ROUGH)
        # Where all groups hold, what is left of them is as good to try the branches on, and smaller.
        self.narrow = module

    def hold(self) -> Grouping:
        """The groups that hold."""
        groups = dict(self.grouping.groups)
        refused = dict(self.grouping.refused)
        for group, problem in self._failing(list(groups.values())):
            del groups[group.name]
            refused |= {member.layer: problem for member in group.writers}
        branches = [group for group in groups.values() if group.branch is not None]
        if branches and self._problem(self.narrow, {group.name: np.zeros(0, dtype=np.int64) for group in branches}):
            groups |= {group.name: replace(group, branch=None) for group in branches}
        return replace(self.grouping, groups=groups, refused=refused)

    def _failing(self, groups: Sequence[ChannelGroup]) -> list[tuple[ChannelGroup, str]]:
        """Groups that do not hold, each with what happened; halves are searched while they fail together."""
        if not groups:
            return []
        problem = self._problem(self.module, {group.name: _some(group) for group in groups})
        if problem is None:
            return []
        if len(groups) == 1:
            return [(groups[0], problem)]
        middle = len(groups) // 2
        return self._failing(groups[:middle]) + self._failing(groups[middle:])

    def _problem(self, module: nn.Module, kept: dict[str, NDArray[np.int64]]) -> str | None:
        """What goes wrong when the groups keep these channels; None when nothing does."""
        with torch.no_grad():
            try:
                plan = plan_channels(module, self.grouping, kept)
                expected = _output(mask_channels(module, plan, share=True), self.image)
                small = remove_channels(module, plan, share=True)
                found = _output(small, self.image)
            except Exception as error:  # whatever a forward may raise
                text = str(error).partition("\n")[0]
                return f"the network fails without some of its channels ({text})"
        if found.shape != expected.shape:
            return "the output changes its shape with its channels"
        if not float((found - expected).abs().max()) <= self.tolerance * max(float(expected.abs().max()), 1e-20):
            return "other channels change with them: they are mixed further on"
        if len(kept) == len(self.grouping.groups):
            self.narrow = small
        return None


def _some(group: ChannelGroup) -> NDArray[np.int64]:
    """Some of a group's channels, of every section alike, the same ones each time.

    Three quarters of few, so that something still comes through; of many a quarter, which is less to compute.
    """
    run = group.channels // group.sections
    generator = np.random.default_rng(len(group.members))
    keep = max(1, min((3 * run) // 4, max(ENOUGH, run // 4)))
    parts = [section * run + np.sort(generator.permutation(run)[:keep]) for section in range(group.sections)]
    return np.concatenate(parts).astype(np.int64)


def _output(module: nn.Module, image: Tensor) -> Tensor:
    flags = [(part, part.training) for part in module.modules()]
    try:
        output = module.eval()(image)
    finally:
        for part, training in flags:
            part.training = training
    if not isinstance(output, Tensor):
        output = torch.cat([part.flatten() for part in output if isinstance(part, Tensor)])
    return output
