"""Sides of single convolutions as what can be removed: the 1x1 convolutions around them make up for it, as published.

Outer widths never change, so every convolution can lose outputs and inputs whatever the rest of the network does. A 1x1
convolution is put in when its side first loses a channel; before that it would be an identity.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from billhook.compensation import insert_pointwise, pointwise_layers, prunable_convolutions, shape_pointwise
from billhook.cost import LayerCost, count
from billhook.cost.budget import Budget
from billhook.errors import InputError
from billhook.methods.ceilings import Ceilings
from billhook.methods.channel_run import Batches
from billhook.methods.counted import Counted
from billhook.methods.floor import Floor
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.pointwise_cost import PointwiseCost
from billhook.methods.greedy.shrinking_sides import SIDES, ShrinkingSides, kept_shapes, side_names
from billhook.methods.group_limits import GroupLimits
from billhook.methods.kept import Kept
from billhook.surgery import ChannelGroup, Grouping, Member
from billhook.surgery.tensors import is_depthwise


class SideLimits(GroupLimits):
    """Which convolutions can lose inputs and outputs, and what the budgets count on them; groups are sides.

    Args:
        counted: The network.
        budgets: The inequalities; may be none.
        config: Of the method.

    Raises:
        InputError: There are budgets, and no convolution that could lose anything.
        UsageError: A budget that the method cannot move.
    """

    def find_groups(self) -> Grouping:
        """Inputs and outputs of each convolution; the groups of a convolution keep equally many."""
        module = self.counted.network.module
        if pointwise_layers(module):
            raise InputError(
                "it was pruned with 1x1 convolutions around its layers already", "prune the network that it came from"
            )
        refused = self._refused()
        groups = {}
        for layer in self.counted.cost.layers:
            if layer.macs and layer.name not in refused:
                widths = (layer.weight_shape[1] * layer.groups, layer.weight_shape[0])
                for name, side, width in zip(side_names(layer.name), SIDES, widths, strict=True):
                    member = Member(layer.name, side, np.arange(width)[:, None])
                    groups[name] = ChannelGroup(name, width, (member,), layer.groups)
        return Grouping(groups, refused)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The convolutions, in the order of the network."""
        return tuple(dict.fromkeys(group.members[0].layer for group in self.grouping.groups.values()))

    @cached_property
    def cost(self) -> PointwiseCost:
        """What the network costs with fewer inputs and outputs; worked out when it is asked for."""
        counted = self.counted
        with torch.no_grad():
            around = copy.deepcopy(counted.network.module)
            insert_pointwise(around, self.layers)
            opened = count(around, counted.cost.input_size)
        sides = {layer: side_names(layer) for layer in self.layers}
        return PointwiseCost(counted.delivered, opened, sides, counted.file_bytes({}))

    def milliseconds(self, kept: Kept) -> float:
        """On this machine, when the sides keep these channels."""
        small = copy.deepcopy(self.counted.network.module)
        shape_pointwise(small, kept_shapes(self.grouping, kept))
        for part in pointwise_layers(small).values():
            for parameter in part.parameters():
                parameter.data.zero_()  # no denormal numbers from memory that nobody has written to
        return self.clock.of(small)

    @property
    def floor(self) -> Floor:
        """What holds from the start asks for nothing: then nothing goes, where anything else might cost more."""
        cost, counted = self.cost, self.counted
        met = not self.clocked and Ceilings.of(self.budgets, cost, counted.dense).met(cost.many(cost.channels))
        return replace(super().floor, least=1.0) if met else super().floor

    def _refused(self) -> dict[str, str]:
        """Layers that lose nothing, and why."""
        module = self.counted.network.module
        parts = dict(module.named_modules())
        published = set(prunable_convolutions(module))
        shared = _shared(module)
        found = {}
        for layer in self.counted.cost.layers:
            if not layer.macs:
                continue
            part = parts[layer.name]
            if type(part) is not nn.Conv2d:
                found[layer.name] = "it is no two-dimensional convolution"
            elif layer.name == self.counted.head:
                found[layer.name] = "it is the classifier"
            elif is_depthwise(part):
                found[layer.name] = "a depthwise convolution has nothing to lose between its outer widths"
            elif max(part.kernel_size) == 1:
                found[layer.name] = "a 1x1 convolution with others around it saves nothing"
            elif layer.name not in published:
                found[layer.name] = "the first convolution stays as it is"
            elif layer.name in shared or _often(layer):
                found[layer.name] = "it is used in more than one place"
        return found


class Sides:
    """The inputs and outputs of a network's convolutions.

    Args:
        counted: The network.
        budgets: The inequalities; may be none.
        config: Of the method.

    Raises:
        InputError: There are budgets, and no convolution that could lose anything.
        UsageError: A budget that the method cannot move.
    """

    looks = False
    """Weights say it all."""

    def __init__(self, counted: Counted, budgets: Sequence[Budget], config: GreedyConfig) -> None:
        self.config = config
        self.limits = SideLimits(counted, budgets, config)

    def gross(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs with all 1x1 convolutions there, as published: else no side would be the first to lose a channel."""
        return self.limits.cost.gross(kept)

    def passes(self, candidates: float) -> float:
        """One of the network, and one of each candidate's convolution."""
        return 1 + candidates / max(1, len(self.limits.layers))

    def begin(self, device: torch.device, channels_last: bool, batches: Batches) -> ShrinkingSides:
        """The network; calibration images are not needed."""
        module = self.limits.counted.network.module
        grouping, enlarged = self.limits.grouping, self.limits.cost.enlarged()
        return ShrinkingSides(module, grouping, self.config.selector, device, channels_last, enlarged)


def _shared(module: nn.Module) -> set[str]:
    """Convolutions that stand in the network, or whose weights do, more than once."""
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _often(layer: LayerCost) -> bool:
    channels, height, width = layer.output_shape
    return layer.volume != channels * height * width
