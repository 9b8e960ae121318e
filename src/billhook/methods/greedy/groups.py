"""Channel groups as what can be removed: the layers that read them make up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.cost.budget import Budget
from billhook.methods.base import Outcome
from billhook.methods.channel_limits import ChannelLimits
from billhook.methods.channel_paths import Passage, has_path
from billhook.methods.channel_run import Batches, ChannelRun
from billhook.methods.counted import Counted
from billhook.methods.greedy.candidates import Candidate, Candidates, changes
from billhook.methods.greedy.changes import Changes
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.current import Current
from billhook.methods.greedy.layer_errors import LayerErrors
from billhook.methods.kept import Kept


class Groups:
    """The channel groups of a network.

    Args:
        counted: The network.
        budgets: The inequalities; may be none.
        config: Of the method.

    Raises:
        InputError: There are budgets, and no channel that could go.
        UsageError: A budget that the method cannot move.
    """

    def __init__(self, counted: Counted, budgets: Sequence[Budget], config: GreedyConfig) -> None:
        self.counted, self.config = counted, config
        self.limits = ChannelLimits(counted, budgets, config)
        self.looks = config.looks

    def gross(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the network costs: no removal costs anything."""
        return self.limits.cost.many(kept)

    def passes(self, candidates: float) -> float:
        """One of the network, and about one of what reads the groups."""
        return 2.0

    def begin(self, device: torch.device, channels_last: bool, batches: Batches) -> ShrinkingGroups:
        """The network, with zeros where channels were until it is cut."""
        module = self.counted.network.module
        current = Current(module, self.limits.grouping, device, channels_last)
        return ShrinkingGroups(current, Candidates(self.config, current, batches))


class ShrinkingGroups:
    """A network that loses channels of its groups.

    Args:
        current: It, in its old shape.
        candidates: Proposals for it.
    """

    def __init__(self, current: Current, candidates: Candidates) -> None:
        self.current, self.candidates = current, candidates

    @property
    def kept(self) -> Kept:
        """Channels that are left, by group."""
        return self.current.kept

    @property
    def module(self) -> nn.Module:
        """The network as it is now."""
        return self.current.module

    @property
    def numbers(self) -> NDArray[np.int64]:
        """``[groups]``: channels that are left."""
        return self.current.numbers

    def propose(self, wanted: Mapping[str, int]) -> dict[str, Candidate]:
        """What is left of groups when they keep so many channels."""
        return self.candidates.propose(wanted)

    def changes(self, group: str, candidate: Candidate) -> Changes:
        """What the readers of the group would become."""
        return changes(self.current.module, self.current.grouping.groups[group], candidate)

    def leads(self, group: str, candidate: Candidate) -> bool:
        """See :class:`Shrinking`."""
        return has_path(self.current.grouping, self.current.kept | {group: candidate.kept})

    def remove(self, group: str, candidate: Candidate) -> set[str]:
        """Carry a candidate out; returns the groups that share a layer with it, and itself."""
        near = self.current.remove(group, candidate.kept, candidate.maps)
        self.candidates.changed(near, own=group)
        return near

    def lose(self, wanted: Mapping[str, int], in_the_end: Mapping[str, int]) -> bool:
        """Let groups go down to so many channels: one look at the images serves all of them."""
        passage = Passage(self.current.grouping, self.current.kept, in_the_end)
        found = self.candidates.propose(wanted, passage)
        for name, candidate in found.items():
            self.current.remove(name, candidate.kept, candidate.maps)
        self.candidates.changed()
        return any(candidate.short for candidate in found.values())

    def forget(self) -> None:
        """Order all filters anew."""
        self.candidates.changed()

    def layer_errors(self, original: nn.Module, batches: Batches, counted: Mapping[str, Sequence[int]]) -> LayerErrors:
        """Errors of the layers that read the groups."""
        return LayerErrors(original, self.current, batches, counted)

    def small(self) -> nn.Module:
        """The smaller network."""
        return self.current.small()

    def take_back(self, small: nn.Module) -> None:
        """Continue with the weights of a smaller network that was trained."""
        self.current.take_back(small)

    @torch.no_grad()
    def cut(self, run: ChannelRun) -> nn.Module:
        """The smaller network; the run keeps what it needs to bring it back into the old shape."""
        return run.remove(self.current.module, self.current.plan())

    def outcome(self, run: ChannelRun, small: nn.Module) -> Outcome:
        """The smaller network, and one in the old shape that computes the same."""
        return run.outcome(small)

    def tensors(self) -> dict[str, Tensor]:
        """All weights, in the old shape."""
        return self.current.tensors()

    def restore(self, kept: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state."""
        self.current.restore(kept, tensors)
        self.candidates.changed()
