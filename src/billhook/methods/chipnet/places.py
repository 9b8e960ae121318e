"""Where gates stand: one vector of gates per channel group, or one per layer that writes or reads a residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from billhook.methods.floor import LOWEST, Floor
from billhook.models import PadShortcut
from billhook.surgery import ChannelGroup, Grouping, Member
from billhook.surgery.check import is_wirable
from billhook.surgery.tensors import layer_channels

Coupling = Literal["group", "independent"]
"""One gate per channel of a group, or one per channel of each layer that writes or reads it."""

NOTHING, ALWAYS = -1, -2
"""In :attr:`Writer.source`: a channel that is zero, and one that no group can remove."""


@dataclass(frozen=True)
class Place:
    """One tensor that is multiplied by gates.

    Attributes:
        name: A layer, whose outputs are multiplied, or a parameter that stands on its own.
        index: ``[channels, r]``: the positions that each gate of the vector multiplies.
        size: How many positions there are.
        dim: Of a parameter: the dimension that holds them; None for a layer.
    """

    name: str
    index: NDArray[np.int64]
    size: int
    dim: int | None = None


@dataclass(frozen=True)
class GateVector:
    """One vector of gates.

    Attributes:
        name: Of its group; of its place where the group has several vectors.
        group: Whose channels it opens and closes.
        channels: How many gates.
        places: What they multiply; all of them at once.
        sections: As many equal runs of it keep equally many gates open.
        shared: It is the only one of its group.
    """

    name: str
    group: str
    channels: int
    places: tuple[Place, ...]
    sections: int = 1
    shared: bool = True


@dataclass(frozen=True)
class Writer:
    """A layer that writes a stream.

    Attributes:
        layer: Its name.
        chain: It and the layers that hang on it alone.
        vector: Number of its gates; None for a map of channels, which has none.
        former: The group that a map of channels reads.
        source: ``[channels]``: of a map of channels, the channel of ``former`` that each one is, NOTHING or ALWAYS.
        inner: The group inside its branch, which goes when this layer writes nothing any more;
            None where it must write.
    """

    layer: str
    chain: tuple[str, ...]
    vector: int | None
    former: str | None = None
    source: NDArray[np.int64] | None = None
    inner: str | None = None


@dataclass(frozen=True)
class Reader:
    """A layer that reads a stream.

    Attributes:
        layer: Its name.
        fronts: The layers that stand between the stream and this one alone, a normalisation among them.
        vector: Number of the gates behind them; None where it reads the stream as it comes.
    """

    layer: str
    fronts: tuple[str, ...]
    vector: int | None


@dataclass(frozen=True)
class Stream:
    """A group whose layers have gates of their own: the network keeps the union of what they leave open."""

    group: ChannelGroup
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class Layout:
    """All gates of a network, in one row.

    Attributes:
        grouping: The groups.
        coupling: As asked for.
        vectors: In the order of the network.
        streams: Groups with several vectors; earlier ones first.
    """

    grouping: Grouping
    coupling: Coupling
    vectors: tuple[GateVector, ...]
    streams: tuple[Stream, ...]

    def __deepcopy__(self, memo: dict[int, object]) -> Layout:
        return self  # nothing in it changes, and copies of a network are many

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Gates of each vector."""
        return tuple(vector.channels for vector in self.vectors)

    @property
    def total(self) -> int:
        """Gates in all."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each vector lies in the row."""
        ends = np.cumsum((0, *self.sizes)).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Numbers of the vectors, by name."""
        return {vector.name: number for number, vector in enumerate(self.vectors)}

    def split(self, row: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """A row, by the names of the vectors."""
        return {vector.name: row[part] for vector, part in zip(self.vectors, self.slices, strict=True)}

    def join(self, parts: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic]:
        """The row of all vectors.

        Raises:
            ValueError: A vector is missing, or has another length.
        """
        for vector in self.vectors:
            if np.shape(parts.get(vector.name, ())) != (vector.channels,):
                raise ValueError(f"'{vector.name}' needs {vector.channels} gates")
        return np.concatenate([np.asarray(parts[vector.name]) for vector in self.vectors] or [np.zeros(0)])


def lay_out(module: nn.Module, grouping: Grouping, coupling: Coupling = "group", floor: Floor = LOWEST) -> Layout:
    """Find the places for gates.

    A writer's gates stand behind the last layer that hangs on it alone (its normalisation where it has one), a reader's
    behind the normalisation between it and the stream. A closed gate then leaves nothing of its channel.

    With ``independent``, each of these places has its own gates, where surgery can give layers of a stream channels of
    their own. Other groups share one vector (concatenations, sections of grouped convolutions, a normalisation that
    several layers read). A map of channels has no gates then: it passes what the former stream left.

    Args:
        module: The network.
        grouping: Its groups.
        coupling: Whether the places of a group share their gates.
        floor: Groups that it leaves whole have no gates; coupled gates only.
    """
    parts = dict(module.named_modules())
    vectors: list[GateVector] = []
    streams: list[Stream] = []
    for group in grouping.groups.values():
        if floor.whole(group):
            continue
        stream = _stream(parts, grouping, group, len(vectors)) if coupling == "independent" else None
        if stream is None:
            places = (*_places(parts, group), *_bare(module, group))
            vectors.append(GateVector(group.name, group.name, group.channels, places, group.sections))
            continue
        streams.append(stream)
        for chain in [w.chain for w in stream.writers if w.vector is not None] + [
            r.fronts for r in stream.readers if r.vector is not None
        ]:
            place = _end(parts, group, chain)
            assert place is not None  # else it had no vector
            vectors.append(GateVector(place.name, group.name, group.channels, (place,), shared=False))
    return Layout(grouping, coupling, tuple(vectors), tuple(streams))


# ---------------------------------------------------------------------- chains
def _chain(group: ChannelGroup, start: str) -> tuple[str, ...]:
    """A layer and what hangs on it alone."""
    followers = {m.after: m.layer for m in group.members if m.side == "through" and m.after is not None}
    chain = [start]
    while (after := followers.get(chain[-1])) is not None and after not in chain:
        chain.append(after)
    return tuple(chain)


def _fronts(group: ChannelGroup, reader: Member) -> tuple[str, ...]:
    """What stands between the stream and a reader alone, from the stream on; nothing where it is a writer's own."""
    feeders = {m.layer: m.after for m in group.members if m.side == "through"}
    fronts: list[str] = []
    before = reader.after
    while before is not None and before in feeders:
        fronts.append(before)
        before = feeders[before]
    return tuple(reversed(fronts)) if before is None else ()


def _end(parts: Mapping[str, nn.Module], group: ChannelGroup, chain: Sequence[str]) -> Place | None:
    """The last layer of a chain that does not leave zeros zero by itself, as a PReLU does."""
    by_name = {m.layer: m for m in group.members if m.side != "in"}
    for layer in reversed(chain):
        if not isinstance(parts.get(layer), nn.PReLU):
            return Place(layer, by_name[layer].index, layer_channels(parts[layer], "out"))
    return None


def _places(parts: Mapping[str, nn.Module], group: ChannelGroup) -> list[Place]:
    """Every place of a group: after them nothing of a closed channel is left, for whoever reads it."""
    through = [m for m in group.members if m.side == "through" and m.dim is None]
    carriers = {m.layer for m in through}
    starts = [m.layer for m in group.writers]
    starts += [m.layer for m in through if m.after is None or m.after not in {*carriers, *starts}]
    ends = [_end(parts, group, _chain(group, start)) for start in starts]
    return [place for place in ends if place is not None]


def _bare(module: nn.Module, group: ChannelGroup) -> list[Place]:
    """Parameters that stand on their own: whether they multiply a channel or are added to it, with it they go."""
    members = [(m, m.dim) for m in group.members if m.dim is not None]
    return [Place(m.layer, m.index, module.get_parameter(m.layer).shape[dim], dim) for m, dim in members]


# ---------------------------------------------------------------------- streams
def _stream(parts: Mapping[str, nn.Module], grouping: Grouping, group: ChannelGroup, first: int) -> Stream | None:
    """A group whose layers can have channels of their own; None where they cannot, or where there is but one place."""
    if group.sections > 1 or any(m.dim is not None for m in group.members):
        return None
    writers: list[Writer] = []
    readers: list[Reader] = []
    number = first
    for member in group.writers:
        chain = _chain(group, member.layer)
        if isinstance(parts[member.layer], PadShortcut):
            writer = _map(parts, grouping, group, member) if len(chain) == 1 else None
            if writer is None:
                return None
            writers.append(writer)
            continue
        if not _own(parts, group, chain, "out") or not is_wirable(parts[chain[-1]]):
            return None
        writers.append(Writer(member.layer, chain, number, inner=_inner(grouping, member.layer)))
        number += 1
    for member in group.readers:
        fronts = _fronts(group, member)
        gated = bool(fronts)
        if gated and not (
            _end(parts, group, fronts) is not None
            and is_wirable(parts[fronts[0]])
            and _own(parts, group, (*fronts, member.layer), "in")
        ):
            return None
        readers.append(Reader(member.layer, fronts, number if gated else None))
        number += gated
    covered = {layer for w in writers for layer in w.chain} | {layer for r in readers for layer in r.fronts}
    if number - first < 2 or any(m.layer not in covered for m in group.members if m.side == "through"):
        return None
    return Stream(group, tuple(writers), tuple(readers))


def _own(parts: Mapping[str, nn.Module], group: ChannelGroup, chain: Sequence[str], side: str) -> bool:
    """Every layer of a chain has the channels of the group, all of them in order, and no others."""
    for layer in chain:
        sides = ("in",) if side == "in" and layer == chain[-1] else ("out", "through")
        member = next((m for m in group.members if m.layer == layer and m.side in sides), None)
        if member is None:
            return False
        size = layer_channels(parts[layer], "in" if sides == ("in",) else "out")
        if not np.array_equal(member.index.ravel(), np.arange(size)):
            return False
    return True


def _inner(grouping: Grouping, writer: str) -> str | None:
    """The group that only this writer reads, when it may go."""
    for group in grouping.groups.values():
        if group.branch is not None and [m.layer for m in group.readers] == [writer]:
            return group.name
    return None


def _map(parts: Mapping[str, nn.Module], grouping: Grouping, group: ChannelGroup, member: Member) -> Writer | None:
    """A map of channels: what it writes is what the group before has left."""
    part = parts[member.layer]
    assert isinstance(part, PadShortcut)
    position = np.array(part.source(), dtype=np.int64)[member.index[:, 0]]
    source = np.where(position < 0, NOTHING, ALWAYS)
    former: str | None = None
    for other in grouping.groups.values():
        for reader in (m for m in other.readers if m.layer == member.layer):
            if former is not None or reader.index.shape[1] != 1 or other.name == group.name:
                return None
            former = other.name
            owner = np.full(part.inputs, ALWAYS, dtype=np.int64)
            owner[reader.index[:, 0]] = np.arange(other.channels)
            source = np.where(position < 0, NOTHING, owner[np.maximum(position, 0)])
    order = list(grouping.groups)
    if former is not None and order.index(former) > order.index(group.name):
        return None
    return Writer(member.layer, (member.layer,), None, former, source)
