"""What a greedy plan asks of that which it removes: channel groups, or the sides of single convolutions.

Both are *groups* to the search: something with a name that keeps a number of channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.methods.base import Outcome
from billhook.methods.channel_run import Batches, ChannelRun
from billhook.methods.greedy.changes import Changes
from billhook.methods.group_limits import GroupLimits
from billhook.methods.kept import Kept

Loss = tuple[float, float]
"""An error now, and with the candidate."""


class Candidate(Protocol):
    """A group without some of its channels."""

    @property
    def kept(self) -> NDArray[np.int64]:
        """Channels that would be left, ascending."""
        ...

    @property
    def short(self) -> bool:
        """Whether its compensation rests on too few images."""
        ...


class Errors(Protocol):
    """What candidates cost."""

    @property
    def power(self) -> int:
        """2 where errors are ratios of squares."""
        ...

    def measure(self, candidates: Mapping[str, Changes]) -> dict[str, Loss]:
        """By group: the error now, and with the candidate."""
        ...


class Shrinking(Protocol):
    """A network that loses a few channels at a time. Candidates that it takes are its own."""

    @property
    def kept(self) -> Kept:
        """What is left of each group."""
        ...

    @property
    def module(self) -> nn.Module:
        """The network as it is now."""
        ...

    @property
    def numbers(self) -> NDArray[np.int64]:
        """``[groups]``: channels that are left."""
        ...

    def propose(self, wanted: Mapping[str, int]) -> Mapping[str, Candidate]:
        """What is left of groups when they keep so many channels; nothing is changed."""
        ...

    def changes(self, group: str, candidate: Any) -> Changes:
        """What a candidate would change in :attr:`module`."""
        ...

    def leads(self, group: str, candidate: Any) -> bool:
        """Whether the network with a candidate still has a path from the image to its outputs."""
        ...

    def remove(self, group: str, candidate: Any) -> set[str]:
        """Carry a candidate out; returns the groups whose candidates no longer hold."""
        ...

    def lose(self, wanted: Mapping[str, int], in_the_end: Mapping[str, int]) -> bool:
        """Let groups go down to so many channels, in this order, and leave a path for when all have gone as far as
        they will; returns whether one was short of images."""
        ...

    def forget(self) -> None:
        """Propose from the weights as they are now, whatever was worked out before."""
        ...

    def layer_errors(self, original: nn.Module, batches: Batches, counted: Mapping[str, Sequence[int]]) -> Errors:
        """Errors of candidates at the layers next to them, on the same images each time; of layers in ``counted`` those
        outputs count, of others all."""
        ...

    def small(self) -> nn.Module:
        """The smaller network."""
        ...

    def take_back(self, small: nn.Module) -> None:
        """Continue with the weights of a smaller network that was trained."""
        ...

    def cut(self, run: ChannelRun) -> nn.Module:
        """The smaller network, at the end of the search."""
        ...

    def outcome(self, run: ChannelRun, small: nn.Module) -> Outcome:
        """What the method hands back, given the network of :meth:`cut` as it was trained."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All weights."""
        ...

    def restore(self, kept: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state: what :attr:`kept` and :meth:`tensors` were."""
        ...


class Removable(Protocol):
    """What can go of a network, before anything does."""

    @property
    def limits(self) -> GroupLimits:
        """The groups, and how far budgets can be met."""
        ...

    @property
    def looks(self) -> bool:
        """Whether calibration images are needed for a proposal."""
        ...

    def gross(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[..., quantities]``: costs that savings are told from; they fall with every removal."""
        ...

    def passes(self, candidates: float) -> float:
        """Passes of the network that :meth:`Shrinking.layer_errors` of so many candidates come to."""
        ...

    def begin(self, device: torch.device, channels_last: bool, batches: Batches) -> Shrinking:
        """The network, to be made smaller; ``batches`` are calibration images."""
        ...
