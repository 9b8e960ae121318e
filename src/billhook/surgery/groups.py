"""Channel groups: the channels that can only be removed together, and where each of them lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["out", "in", "through"]
"""Which channels of a layer: its outputs, its inputs, or both at once (normalisation, depthwise, a bare parameter)."""


@dataclass(frozen=True)
class Member:
    """Where a group's channels live in one layer.

    Attributes:
        layer: Module name; for a parameter that stands on its own, the parameter's name.
        side: Which of its channels.
        index: ``[channels, r]``: the positions in the layer that each channel of the group owns. r is 1 but where a
            flattened map gives a channel several inputs, or where one tensor is concatenated more than once.
        dim: Of a parameter that stands on its own: the dimension that holds the channels; None for a module.
        after: The member that alone feeds this one, and feeds nothing else, whatever has no channels of its own (an
            activation, pooling, flattening) between them apart; None where
            there is none (a layer that reads a residual stream).
    """

    layer: str
    side: Side
    index: NDArray[np.int64]
    dim: int | None = None
    after: str | None = None

    def positions(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the layer of some of the group's channels, ascending."""
        return np.sort(self.index[channels].ravel())


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that go together.

    Attributes:
        name: The first layer that writes them.
        channels: How many there are.
        members: Every layer that writes, carries or reads them, in the order of the network.
        sections: The channels fall into this many equal runs, each of which must keep equally many (the groups of a
            grouped convolution); 1 where there is no such bond.
        branch: The layers whose output is constant, or that may go, when no channel is left: the inside of a residual
            branch. None where at least one channel (of each section) must stay.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    sections: int = 1
    branch: Branch | None = None

    @property
    def writers(self) -> tuple[Member, ...]:
        """The convolutions, linear layers and channel maps that put the channels out."""
        return tuple(member for member in self.members if member.side == "out")

    @property
    def readers(self) -> tuple[Member, ...]:
        """The layers that take them in."""
        return tuple(member for member in self.members if member.side == "in")

    @property
    def stream(self) -> bool:
        """Whether more than one layer puts them out: they are those of a residual stream."""
        return len(self.writers) > 1


@dataclass(frozen=True)
class Branch:
    """A residual branch that is a constant once a group has no channel left.

    Attributes:
        sources: Layers that read from outside and write into the group; they put nothing out any more.
        inside: Layers between; they do nothing any more.
        ends: The last layers with parameters of their own before the addition; they put their constant out.
    """

    sources: tuple[str, ...]
    inside: tuple[str, ...]
    ends: tuple[str, ...]


@dataclass(frozen=True)
class Grouping:
    """All groups of a network.

    Attributes:
        groups: By name, in the order of the network.
        refused: Layers whose output channels cannot be removed, and why.
        maps: Layers without weights that carry the channels of one group over to another (a padded shortcut): for each
            of their outputs the input that goes there, or -1 where nothing does.
    """

    groups: Mapping[str, ChannelGroup]
    refused: Mapping[str, str] = field(default_factory=dict)
    maps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of_writer(self, layer: str) -> ChannelGroup | None:
        """The group that a layer writes, or None."""
        return self._owners.get(layer)

    @cached_property
    def _owners(self) -> dict[str, ChannelGroup]:
        owners: dict[str, ChannelGroup] = {}
        for group in self.groups.values():
            for member in group.members:
                if member.side != "in":
                    owners.setdefault(member.layer, group)
        return owners

    def fronts(self, reader: str) -> tuple[str, ...]:
        """The layers that carry channels to this one and nowhere else: without it they have nothing to do."""
        found: dict[str, None] = {}
        for group in self.groups.values():
            carriers = {m.layer: m.after for m in group.members if m.side == "through" and m.dim is None}
            for member in group.readers:
                layer = member.after if member.layer == reader else None
                while layer is not None and layer in carriers:
                    found.setdefault(layer)
                    layer = carriers[layer]
        return tuple(found)
