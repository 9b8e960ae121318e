"""From channel groups to a plan: what stays in every layer when these channels stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from billhook.errors import InputError
from billhook.models import PadShortcut
from billhook.surgery.check import is_wirable
from billhook.surgery.groups import ChannelGroup, Grouping, Member
from billhook.surgery.plan import ChannelPlan, LayerCut
from billhook.surgery.tensors import Positions, is_depthwise, layer_channels

Channels = Sequence[int] | NDArray[np.int64]
_Mask = NDArray[np.bool_]


def plan_channels(
    module: nn.Module,
    grouping: Grouping,
    kept: Mapping[str, Channels],
    own: Mapping[str, Channels] | None = None,
) -> ChannelPlan:
    """The plan that keeps these channels of each group.

    With ``own`` it keeps what independent gates leave, exactly: multiplying what the named layers put out by zeros and
    ones gives what the smaller network gives. A writer's gate stands behind its last layer (its normalisation where it
    has one, else the writer itself), a reader's behind the normalisation that reads the stream. Behind gates within a
    branch, activations are taken to map zero to zero. A stream keeps the channels that some layer writes, or some
    normalisation makes a constant of, and that some reader lets in; layers with fewer scatter and gather. A residual
    branch whose writer keeps nothing goes.

    Args:
        module: The network that the groups were found on.
        grouping: Its groups.
        kept: Channels that stay, by group; groups that are not named keep all.
        own: Channels that single layers of a group keep where they differ from layer to layer, by layer.

    Raises:
        InputError: Unequal sections of a grouped convolution, no channel left where the network needs one, a channel
            or a layer that is not there, or a layer that cannot have channels of its own.
        TypeError: A mask in the place of positions.
    """
    return _Planner(module, grouping, kept, own or {}).plan()


class _Planner:
    def __init__(
        self, module: nn.Module, grouping: Grouping, kept: Mapping[str, Channels], own: Mapping[str, Channels]
    ) -> None:
        self.parts = dict(module.named_modules())
        self.grouping, self.groups = grouping, grouping.groups
        self.kept: dict[str, NDArray[np.int64]] = {}
        for name, channels in kept.items():
            if name not in self.groups:
                raise InputError(f"there is no channel group '{name}'")
            self.kept[name] = _positions(name, channels, self.groups[name].channels)
        self.own: dict[str, NDArray[np.int64]] = {}
        carried = {m.layer for group in self.groups.values() for m in group.members if _has_own(m)}
        for name, channels in own.items():
            if name not in carried:
                raise InputError(f"no channel group is put out by '{name}'")
            self.own[name] = _positions(name, channels, layer_channels(self.parts[name], "out"))
        self.used: set[str] = set()
        self.differing = {
            name: group
            for name, group in self.groups.items()
            if any(m.layer in self.own and _has_own(m) for m in group.members)
        }

    def plan(self) -> ChannelPlan:
        dead, zero = self._settle()
        cuts = self._common(dead)
        self._differ(cuts, dead)
        for layer in self.own:
            if layer not in self.used:
                raise InputError(
                    f"'{layer}' cannot keep channels of its own",
                    "it must be the last layer of one writer, or stand in front of one reader",
                )
        for name in sorted(dead):
            self._silence(self.groups[name], zero, cuts)
        loose = {name: cut for name, cut in cuts.items() if name not in self.parts}
        return ChannelPlan({name: cuts[name] for name in self.parts if name in cuts} | loose)

    def _common(self, dead: set[str]) -> dict[str, LayerCut]:
        """What all layers of the groups keep."""
        sides: dict[str, dict[str, _Mask]] = {}
        cuts: dict[str, LayerCut] = {}
        for name, channels in self.kept.items():
            group = self.groups[name]
            if len(channels) == group.channels or name in dead:
                continue
            _check_sections(group, channels)
            gone = np.setdiff1d(np.arange(group.channels), channels)
            for member in group.members:
                if member.dim is not None:
                    cuts[member.layer] = LayerCut(_tuple(member.positions(channels)), dim=member.dim)
                    continue
                part = self.parts[member.layer]
                for side in ("out", "in") if member.side == "through" else (member.side,):
                    whole = np.ones(layer_channels(part, side), dtype=bool)
                    sides.setdefault(member.layer, {}).setdefault(side, whole)[member.positions(gone)] = False
        for layer, by_side in sides.items():
            part = self.parts[layer]
            inside = None if isinstance(part, _NormBase | nn.PReLU) or is_depthwise(part) else by_side.get("in")
            cuts[layer] = LayerCut(_where(by_side.get("out")), _where(inside))
        return cuts

    # ------------------------------------------------------------------ groups without channels
    def _settle(self) -> tuple[set[str], set[str]]:
        """Streams keep the union of their layers'. Returns groups that are gone, and ends whose constant is zero."""
        zero: set[str] = set()
        for group in self.differing.values():
            self._unite(group, zero)
        dead = {name for name, channels in self.kept.items() if not len(channels)}
        for name in sorted(dead):
            if self.groups[name].branch is None:
                raise InputError(
                    f"no channel of '{name}' would be left, and the network needs one",
                    "only the inside of a residual branch may go entirely",
                )
        while True:
            # With them go the groups whose channels nobody reads any more.
            silent = self._layers(dead)
            more = {
                name
                for name, group in self.groups.items()
                if name not in dead
                and group.readers
                and all(m.layer in silent for m in group.readers)
                and all(m.dim is None for m in group.members)
            }
            if not more:
                return dead, zero
            dead |= more

    def _layers(self, names: set[str]) -> set[str]:
        return {m.layer for name in names for m in self.groups[name].members}

    def _unite(self, group: ChannelGroup, zero: set[str]) -> None:
        """What a group keeps when its layers differ."""
        written, read, constant = (np.zeros(group.channels, dtype=bool) for _ in range(3))
        chained: set[str] = set()
        for writer in group.writers:
            chain = self._chain(group, writer.layer)
            chained.update(chain)
            written |= self._of(group, chain) & self._passed(group, writer)
        for reader in group.readers:
            fronts = self._fronts(group, reader.layer)
            chained.update(fronts)
            lets_in = self._of(group, fronts[1:])
            read |= lets_in
            # A normalisation makes something of zeros too.
            constant |= lets_in & (len(fronts) > 1)
        if any(m.layer not in chained for m in group.members if m.side == "through"):
            constant[:] = True
        stays = (written | constant) & read & _mask(self.kept.get(group.name), group.channels)
        self.kept[group.name] = np.flatnonzero(stays)
        if not stays.any():
            return
        for writer in group.writers:
            chain = self._chain(group, writer.layer)
            if not self.own.keys() & set(chain) or (self._of(group, chain) & stays).any():
                continue
            inner = self._inner(writer.layer)
            if inner is None or inner.branch is None:
                raise InputError(
                    f"no channel of '{writer.layer}' would be left, and the network needs one",
                    "only the end of a residual branch may go entirely",
                )
            self.kept[inner.name] = np.zeros(0, dtype=np.int64)
            zero.update(inner.branch.ends)

    def _passed(self, group: ChannelGroup, writer: Member) -> _Mask:
        """Channels that a writer can put anything into: a map of channels has only what it reads."""
        part = self.parts[writer.layer]
        if not isinstance(part, PadShortcut):
            return np.ones(group.channels, dtype=bool)
        there = np.ones(part.inputs, dtype=bool)
        for former in self.groups.values():
            for member in former.readers:
                if member.layer == writer.layer:
                    there[member.positions(np.flatnonzero(~_mask(self.kept.get(former.name), former.channels)))] = False
        source = np.array(part.source())
        return np.asarray(np.where(source < 0, False, there[source])[writer.index[:, 0]])

    def _chain(self, group: ChannelGroup, writer: str) -> list[str]:
        """A writer and what hangs on it alone."""
        chain = [writer]
        while True:
            more = [
                m.layer for m in group.members if m.side == "through" and m.after == chain[-1] and m.layer not in chain
            ]
            if not more:
                return chain
            chain += more

    def _fronts(self, group: ChannelGroup, reader: str) -> list[str]:
        """A reader and what stands in front of it alone, up to the stream; nothing when a writer does."""
        feeders = {m.layer: m.after for m in group.members if m.side == "through"}
        fronts = [reader]
        before = next(m.after for m in group.readers if m.layer == reader)
        while before is not None and before in feeders:
            fronts.append(before)
            before = feeders[before]
        # A chain that begins at a writer is that writer's own, not one that reads a stream.
        return fronts if before is None else []

    def _of(self, group: ChannelGroup, layers: Sequence[str]) -> _Mask:
        """Channels of the group that the layers of one chain keep."""
        mask = np.ones(group.channels, dtype=bool)
        for member in group.members:
            if member.layer in layers and member.layer in self.own and _has_own(member):
                mask &= np.isin(member.index, self.own[member.layer]).all(axis=1)
                self.used.add(member.layer)
        return mask

    def _inner(self, writer: str) -> ChannelGroup | None:
        """The group that only this writer reads, when it may go."""
        for group in self.groups.values():
            if group.branch is not None and [m.layer for m in group.readers] == [writer]:
                return group
        return None

    def _silence(self, group: ChannelGroup, zero: set[str], cuts: dict[str, LayerCut]) -> None:
        empty = not len(self.kept.get(group.name, (0,)))
        ends = group.branch.ends if group.branch is not None and empty else ()
        through = tuple(m.layer for m in group.members if m.side == "through")
        for writer in group.writers:
            cuts[writer.layer] = LayerCut(role="silent")
            for layer in self.grouping.fronts(writer.layer):
                cuts[layer] = LayerCut(role="idle")
        for layer in group.branch.inside if group.branch is not None and ends else through:
            if layer not in ends:
                cuts[layer] = LayerCut(role="idle")
        for layer in ends:
            cut = cuts.get(layer, LayerCut())
            # Without an affine part there is nothing to be constant with: the plan says zero by keeping no input.
            cuts[layer] = LayerCut(cut.out, () if layer in zero else None, scatter=cut.scatter, role="constant")

    # ------------------------------------------------------------------ layers of a stream that differ
    def _differ(self, cuts: dict[str, LayerCut], dead: set[str]) -> None:
        silent = self._layers(dead)
        for name, group in self.differing.items():
            if name in dead:
                continue
            stream = self.kept[name]
            for writer in group.writers:
                chain = self._chain(group, writer.layer)
                mine = np.flatnonzero(self._of(group, chain)[stream])
                # One with nothing left ends a branch that is gone.
                if 0 < len(mine) < len(stream):
                    self._narrow(group, chain, "out", stream[mine], cuts)
                    place = {channel: number for number, channel in enumerate(mine.tolist())}
                    self._wire(chain[-1], cuts, scatter=tuple(place.get(c, -1) for c in range(len(stream))))
            for reader in group.readers:
                fronts = self._fronts(group, reader.layer)
                mine = np.flatnonzero(self._of(group, fronts[1:])[stream])
                if len(mine) == len(stream) or reader.layer in silent:
                    continue
                if not len(mine):
                    raise InputError(f"nothing would be left for '{reader.layer}' to read")
                self._narrow(group, fronts, "in", stream[mine], cuts)
                self._wire(fronts[-1], cuts, gather=_tuple(mine))

    def _narrow(
        self, group: ChannelGroup, layers: Sequence[str], side: str, mine: NDArray[np.int64], cuts: dict[str, LayerCut]
    ) -> None:
        """Cut a chain down to its own channels; ``side`` is that of its first layer, the others carry them through."""
        for layer in layers:
            side_here = side if layer == layers[0] else "through"
            member = next(m for m in group.members if m.layer == layer and m.side == side_here)
            part = self.parts[layer]
            size = layer_channels(part, "in" if side_here == "in" else "out")
            if isinstance(part, PadShortcut) or not np.array_equal(member.index.ravel(), np.arange(size)):
                raise InputError(f"'{layer}' cannot keep channels of its own")
            positions = _tuple(member.positions(mine))
            cuts[layer] = _with(cuts.get(layer, LayerCut()), **{"inside" if side_here == "in" else "out": positions})

    def _wire(self, layer: str, cuts: dict[str, LayerCut], **maps: Positions) -> None:
        if not is_wirable(self.parts[layer]):
            raise InputError(
                f"'{layer}' cannot keep channels of its own", "only layers that work on images scatter and gather"
            )
        cuts[layer] = _with(cuts[layer], **maps)


def _has_own(member: Member) -> bool:
    return member.side != "in" and member.dim is None


def _positions(name: str, channels: Channels, total: int) -> NDArray[np.int64]:
    given = np.asarray(channels)
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"the channels of '{name}' are given as {given.dtype}, not as positions")
    positions = np.unique(given.astype(np.int64))
    for position in positions[[0, -1]] if len(positions) else ():
        if not 0 <= position < total:
            raise InputError(f"'{name}' has {total} channels and no channel {position}")
    return positions


def _check_sections(group: ChannelGroup, channels: NDArray[np.int64]) -> None:
    counts = np.bincount(channels // (group.channels // group.sections), minlength=group.sections)
    if len(set(counts.tolist())) > 1:
        raise InputError(f"each of the {group.sections} groups of '{group.name}' must keep equally many channels")


def _mask(channels: NDArray[np.int64] | None, total: int) -> _Mask:
    mask = np.zeros(total, dtype=bool)
    mask[slice(None) if channels is None else channels] = True
    return mask


def _with(cut: LayerCut, **changes: Any) -> LayerCut:
    return LayerCut(**(vars(cut) | changes))


def _where(left: _Mask | None) -> Positions | None:
    return None if left is None or left.all() else _tuple(np.flatnonzero(left))


def _tuple(positions: NDArray[np.int64]) -> Positions:
    return tuple(positions.tolist())
