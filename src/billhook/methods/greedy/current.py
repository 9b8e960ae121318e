"""The network while it loses channels: in its old shape, with zeros where channels were, until it is cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.compensation import ReaderMap, absorb
from billhook.methods.kept import Kept
from billhook.models import load_into, place
from billhook.surgery import ChannelPlan, Grouping, expand_channels, mask_channels, plan_channels, remove_channels


class Current:
    """A network that loses channels.

    It keeps its shape, so that channel groups are found once; it computes what the smaller network would.

    Args:
        dense: The network with all channels; left as it is.
        grouping: Its channel groups.
        device: Where it lies.
        channels_last: Its memory layout.

    Attributes:
        kept: What is left of each group.
    """

    def __init__(self, dense: nn.Module, grouping: Grouping, device: torch.device, channels_last: bool = True) -> None:
        self.dense, self.grouping = dense, grouping
        self._device, self._layout = device, channels_last
        self._module = place(copy.deepcopy(dense), device, channels_last)
        self._bare = False
        self.kept: Kept = {name: np.arange(group.channels) for name, group in grouping.groups.items()}
        self._near = _neighbours(grouping)

    @property
    def module(self) -> nn.Module:
        """The network as it is now."""
        if self._bare:
            self._module, self._bare = mask_channels(self._module, self.plan()), False
        return self._module

    @property
    def numbers(self) -> NDArray[np.int64]:
        """``[groups]``: channels that are left."""
        return np.array([len(channels) for channels in self.kept.values()], dtype=np.int64)

    def plan(self) -> ChannelPlan:
        """What is left, as a plan for the dense network."""
        return plan_channels(self.dense, self.grouping, self.kept)

    def remove(self, group: str, kept: NDArray[np.int64], maps: Sequence[ReaderMap]) -> set[str]:
        """Let a group lose channels, and its readers make up for them.

        Returns:
            Groups with a layer that changed: its own, and all that share a layer with it.
        """
        absorb(self._module, self.grouping.groups[group], maps)
        self.kept[group] = np.sort(kept)
        self._bare = True  # zeros are put in when somebody looks
        return self._near[group]

    def small(self) -> nn.Module:
        """The smaller network."""
        return remove_channels(self.module, self.plan())

    def take_back(self, small: nn.Module) -> None:
        """Continue with the weights of a smaller network that was trained."""
        trained = expand_channels(small, self.module, self.plan())
        self._module = place(trained, self._device, self._layout)

    # ------------------------------------------------------------------ state
    def tensors(self) -> dict[str, Tensor]:
        """All weights, in the old shape."""
        return dict(self.module.state_dict())

    def restore(self, kept: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state: what :attr:`kept` and :meth:`tensors` were."""
        self.kept = {name: np.asarray(kept[name], dtype=np.int64) for name in self.grouping.groups}
        masked = mask_channels(self.dense, self.plan())
        load_into(masked, tensors, "the search so far")
        self._module, self._bare = place(masked, self._device, self._layout), False


def _neighbours(grouping: Grouping) -> dict[str, set[str]]:
    layers = {name: {member.layer for member in group.members} for name, group in grouping.groups.items()}
    return {name: {other for other in layers if layers[name] & layers[other]} for name in layers}
