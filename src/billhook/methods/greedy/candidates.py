"""What a channel group would lose next, and how the layers that read it would make up for that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.compensation import (
    Moments,
    ReaderMap,
    collect_moments,
    fp_backward,
    fp_omp,
    group_filters,
    select_by_activations,
    taken_up,
)
from billhook.compensation.gram import Scaled, first_best
from billhook.compensation.moments import compensable
from billhook.compensation.next_layer_network import FOLDS, in_parts, no_maps, reader_maps
from billhook.errors import UsageError
from billhook.methods.channel_paths import Passage, first_of
from billhook.methods.channel_run import Batches
from billhook.methods.greedy.changes import Changes
from billhook.methods.greedy.config import GreedyConfig
from billhook.methods.greedy.current import Current
from billhook.surgery import ChannelGroup


@dataclass(frozen=True)
class Candidate:
    """A group without some of its channels.

    Attributes:
        group: Its name.
        kept: Channels that would be left, ascending.
        maps: What its readers would take up.
    """

    group: str
    kept: NDArray[np.int64]
    maps: tuple[ReaderMap, ...]

    @property
    def short(self) -> bool:
        """Whether a map rests on fewer samples than it has channels."""
        return any(fitted.short for fitted in self.maps)


class Candidates:
    """Proposes candidates for the network as it is.

    Filters are ordered once, and the order serves for removal after removal: a group's own removals change the layers
    that read it, not its filters (unless a layer reads what it writes). It is found anew once those may have changed
    (:meth:`changed`).

    Args:
        config: How filters are chosen and made up for.
        current: The network.
        batches: Calibration images.
    """

    def __init__(self, config: GreedyConfig, current: Current, batches: Batches) -> None:
        self.config, self.current, self.batches = config, current, batches
        self._orders: dict[str, NDArray[np.int64]] = {}

    def changed(self, groups: Iterable[str] | None = None, own: str | None = None) -> None:
        """Forget orders that rest on weights of before.

        Args:
            groups: Groups with a layer that changed; None: all.
            own: The one that lost channels.
        """
        for name in list(self._orders if groups is None else groups):
            if name != own or self.config.score == "activations" or _reads_itself(self.current.grouping.groups[name]):
                self._orders.pop(name, None)

    def propose(self, wanted: Mapping[str, int], passage: Passage | None = None) -> dict[str, Candidate]:
        """What is left of groups when they keep so many channels.

        Args:
            wanted: Channels that are to be left, by group.
            passage: Leaves a path when all of them are carried out; None: each is for itself.
        """
        found = {}
        for part in self._parts(wanted):
            moments = self._moments(part) if self.config.looks else {}
            for name in part:
                readers = moments.get(name, {})
                order = self.order(name, readers)
                group = self.current.grouping.groups[name]
                number = wanted[name]
                kept = first_of(order, number) if passage is None else passage.settle(name, order, number)
                found[name] = Candidate(name, kept, self._maps(group, kept, readers))
        return found

    def orders(self) -> dict[str, NDArray[np.int64]]:
        """``[sections, channels]`` of each group: channels in the order of their importance."""
        found = {}
        for part in self._parts(self.current.grouping.groups):
            moments = self._moments(part) if self.config.score == "activations" else {}
            found.update({name: self.order(name, moments.get(name, {})) for name in part})
        return found

    def order(self, name: str, readers: Mapping[str, Moments]) -> NDArray[np.int64]:
        """``[sections, channels that are left]``: the most important first."""
        if name not in self._orders:
            group, kept = self.current.grouping.groups[name], self.current.kept[name]
            local = self._local_order(group, kept, readers)
            per = kept.reshape(group.sections, -1)
            self._orders[name] = np.take_along_axis(per, local, axis=1)
        return self._orders[name]

    def _local_order(
        self, group: ChannelGroup, kept: NDArray[np.int64], readers: Mapping[str, Moments]
    ) -> NDArray[np.int64]:
        module, config = self.current.module, self.config
        per = len(kept) // group.sections
        if config.score == "activations" and readers:
            small = narrowed_group(group, kept)
            some = {layer: narrowed(moments, kept) for layer, moments in readers.items()}
            order = select_by_activations(module, small, some).order
        else:
            try:
                filters = group_filters(module, group)
            except UsageError:  # nobody writes them with weights, so nothing says which matters more
                return np.tile(np.arange(per), (group.sections, 1))
            rows = filters.flatten(0, 1)[torch.from_numpy(kept)].reshape(group.sections, per, -1)
            if config.name == "lrf":
                return lrf_order(rows)
            order = (fp_omp if config.selector == "omp" else fp_backward)(rows).order
        return order % per

    def _moments(self, groups: list[str]) -> dict[str, dict[str, Moments]]:
        current = self.current
        return collect_moments(current.module, current.grouping, self.batches(), groups, folds=FOLDS)

    def _parts(self, names: Iterable[str]) -> Iterator[list[str]]:
        return in_parts(self.current.module, self.current.grouping, list(names))

    def _maps(
        self, group: ChannelGroup, kept: NDArray[np.int64], readers: Mapping[str, Moments]
    ) -> tuple[ReaderMap, ...]:
        if self.config.compensation == "none":
            return no_maps(self.current.module, group, kept)
        return reader_maps(kept, readers)


def _reads_itself(group: ChannelGroup) -> bool:
    return bool({member.layer for member in group.readers} & {member.layer for member in group.writers})


def lrf_order(filters: Tensor) -> NDArray[np.int64]:
    """``[sections, n]``: the filters of each section, those that stay longest first, after LRF (Joo et al. 2021).

    The filter nearest to the span of the others goes, at a squared distance of ``1 / (G^-1)_kk`` with ``G`` the Gram
    matrix; then the nearest of those that are left to the span of those that are left, and so on. Duplicates go first.

    Args:
        filters: ``[sections, n, features]``.
    """
    orders = []
    for section in filters:
        scaled = Scaled.of(section @ section.T)
        unit = scaled.gram.clone()
        unit.diagonal().add_(RIDGE)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(unit))
        left = torch.arange(len(unit))
        gone: list[int] = []
        while len(left):
            cost = scaled.scale[left].square() / inverse.diagonal()
            place = first_best(cost, left, largest=False)
            gone.append(int(left[place]))
            column = inverse[:, place]
            inverse = inverse - column[:, None] * column[None] / column[place]
            stay = torch.arange(len(left)) != place
            inverse, left = inverse[stay][:, stay], left[stay]
        orders.append(gone[::-1])
    return np.array(orders, dtype=np.int64)


RIDGE = 1e-9
"""On Gram matrices of filters at unit length, so that those with duplicates have an inverse."""


def narrowed_group(group: ChannelGroup, kept: NDArray[np.int64]) -> ChannelGroup:
    """The channels of a group that are left, as a group; sections keep equally many."""
    members = tuple(replace(member, index=member.index[kept]) for member in group.members)
    return replace(group, channels=len(kept), members=members)


def narrowed(moments: Moments, kept: NDArray[np.int64]) -> Moments:
    """Moments of the channels that are left; blocks keep equally many."""
    size = moments.channels // moments.blocks
    local = torch.from_numpy(kept.reshape(moments.blocks, -1) % size)
    second = torch.stack([moments.second[:, n][:, local[n]][:, :, local[n]] for n in range(moments.blocks)], dim=1)
    first = torch.stack([moments.first[:, n][:, local[n]] for n in range(moments.blocks)], dim=1)
    member = replace(moments.member, index=moments.member.index[kept])
    return replace(moments, member=member, second=second, first=first)


def changes(module: nn.Module, group: ChannelGroup, candidate: Candidate) -> Changes:
    """What has to change for the network to compute what it would without the channels; nothing is changed yet.

    Args:
        module: The network.
        group: The group that loses channels.
        candidate: What is left of it.
    """
    weighted = {member.layer for member in compensable(module, group)}
    found = Changes(taken_up(module, group, candidate.maps))
    gone = np.setdiff1d(np.arange(group.channels), candidate.kept)
    for member in group.readers:
        if member.layer not in weighted and member.dim is None:
            found.cleared[member.layer] = torch.from_numpy(member.positions(gone))
    return found
