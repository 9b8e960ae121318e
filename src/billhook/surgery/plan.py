"""From channel groups to a plan: what stays in every layer, as plain data, carried out wherever it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from billhook.errors import InputError
from billhook.models import PadShortcut
from billhook.surgery.groups import ChannelGroup, Grouping
from billhook.surgery.tensors import Positions, is_depthwise

Role = Literal["silent", "idle", "constant"]
"""What is left of a layer of a branch that is gone: nothing comes out, nothing happens, or a constant comes out."""


@dataclass(frozen=True)
class LayerCut:
    """What stays of one layer.

    Attributes:
        out: Output channels that stay; None: all.
        inside: Input channels that stay; None: all.
        dim: Of a parameter that stands on its own: the dimension that ``out`` is about.
        gather: The channels of the stream that the layer reads, put in front of it; None: the stream as it comes.
        scatter: For each channel of the stream, the layer's output that goes there, or -1; None: its outputs as they
            are.
        role: Of a layer in a branch that is gone.
    """

    out: Positions | None = None
    inside: Positions | None = None
    dim: int | None = None
    gather: Positions | None = None
    scatter: Positions | None = None
    role: Role | None = None


@dataclass(frozen=True)
class ChannelPlan:
    """What stays of a network, layer by layer; layers that are not named stay as they are."""

    layers: Mapping[str, LayerCut] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            name: {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in vars(cut).items()
                if value is not None
            }
            for name, cut in self.layers.items()
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ChannelPlan:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ValueError: Something else.
        """
        layers = {}
        for name, entry in content.items():
            if not isinstance(entry, Mapping) or not set(entry) <= set(LayerCut.__dataclass_fields__):
                raise ValueError(f"the channels of '{name}' are not understood")
            fields: dict[str, Any] = {}
            for key, value in entry.items():
                if (key == "role" and value in ("silent", "idle", "constant")) or (key == "dim" and type(value) is int):
                    fields[key] = value
                elif key not in ("role", "dim") and isinstance(value, list) and all(type(i) is int for i in value):
                    fields[key] = tuple(value)
                else:
                    raise ValueError(f"'{key}' of '{name}' is not understood")
            layers[str(name)] = LayerCut(**fields)
        return cls(layers)


def plan_channels(
    module: nn.Module,
    grouping: Grouping,
    kept: Mapping[str, Sequence[int] | NDArray[np.int64]],
    own: Mapping[str, Sequence[int] | NDArray[np.int64]] | None = None,
) -> ChannelPlan:
    """The plan that keeps these channels of each group.

    Args:
        module: The network that the groups were found on.
        grouping: Its groups.
        kept: Channels that stay, by group; groups that are not named keep all.
        own: Channels that single layers of a group keep where they differ from layer to layer: what a writer, or the
            normalisation behind it, puts out; what a normalisation in front of a reader lets in. The group then keeps
            the union over its writers, less what no reader lets in, and the layers scatter and gather.

    Raises:
        InputError: Unequal sections of a grouped convolution, or no channel left where the network needs one.
    """
    return _Planner(module, grouping, kept, own or {}).plan()


class _Planner:
    def __init__(
        self,
        module: nn.Module,
        grouping: Grouping,
        kept: Mapping[str, Sequence[int] | NDArray[np.int64]],
        own: Mapping[str, Sequence[int] | NDArray[np.int64]],
    ) -> None:
        self.parts = dict(module.named_modules())
        self.grouping = grouping
        self.kept = {name: np.unique(np.asarray(channels, dtype=np.int64)) for name, channels in kept.items()}
        self.own = {name: np.unique(np.asarray(channels, dtype=np.int64)) for name, channels in own.items()}
        unknown = [name for name in self.kept if name not in grouping.groups]
        if unknown:
            raise InputError(f"there is no channel group '{unknown[0]}'")

    def plan(self) -> ChannelPlan:
        dead, zero = self._settle()
        kept = self.kept
        sides: dict[str, dict[str, NDArray[np.bool_]]] = {}
        cuts: dict[str, LayerCut] = {}
        for name, group in self.grouping.groups.items():
            if name not in kept or len(kept[name]) == group.channels or name in dead:
                continue
            self._check(group, kept[name])
            gone = np.setdiff1d(np.arange(group.channels), kept[name])
            for member in group.members:
                if member.dim is not None:
                    cuts[member.layer] = LayerCut(_tuple(member.positions(kept[name])), dim=member.dim)
                    continue
                part = self.parts[member.layer]
                for side in ("out", "in") if member.side == "through" else (member.side,):
                    left = sides.setdefault(member.layer, {}).setdefault(
                        side, np.ones(layer_channels(part, side), dtype=bool)
                    )
                    left[member.positions(gone)] = False
        for layer, by_side in sides.items():
            part = self.parts[layer]
            out, inside = by_side.get("out"), by_side.get("in")
            if isinstance(part, _NormBase | nn.PReLU) or is_depthwise(part):
                inside = None
            cuts[layer] = LayerCut(_where(out), _where(inside))
        self._differ(cuts)
        for name in dead:
            self._silence(self.grouping.groups[name], zero, cuts)
        return ChannelPlan({name: cuts[name] for name in self.parts if name in cuts} | _loose(cuts, self.parts))

    # ------------------------------------------------------------------ groups without channels
    def _settle(self) -> tuple[set[str], set[str]]:
        """Streams keep the union of their layers'. Returns groups that are gone, and ends whose constant is zero."""
        zero: set[str] = set()
        for group in self.grouping.groups.values():
            if any(m.layer in self.own for m in group.members):
                self._unite(group, zero)
        dead = {name for name, channels in self.kept.items() if not len(channels)}
        for name in sorted(dead):
            if self.grouping.groups[name].branch is None:
                raise InputError(
                    f"no channel of '{name}' would be left, and the network needs one",
                    "only the inside of a residual branch may go entirely",
                )
        return self._orphans(dead), zero

    def _orphans(self, dead: set[str]) -> set[str]:
        """With groups that are gone: those whose channels nobody reads any more."""
        dead = set(dead)
        while True:
            silent = {m.layer for name in dead for m in self.grouping.groups[name].members}
            more = {
                name
                for name, group in self.grouping.groups.items()
                if name not in dead
                and group.readers
                and all(m.layer in silent for m in group.readers)
                and all(m.dim is None for m in group.members)
            }
            if not more:
                return dead
            dead |= more

    def _unite(self, group: ChannelGroup, zero: set[str]) -> None:
        """What a group keeps when its layers differ."""
        written = np.zeros(group.channels, dtype=bool)
        for writer in group.writers:
            channels = self._of(group, self._chain(group, writer.layer))
            if channels is not None and not len(channels) and len(group.writers) > 1:
                inner = self._inner(writer.layer)
                if inner is not None:
                    self.kept[inner.name] = np.zeros(0, dtype=np.int64)
                    zero.update(inner.branch.ends if inner.branch else ())
            written |= _mask(channels, group.channels)
        read = np.zeros(group.channels, dtype=bool)
        for reader in group.readers:
            read |= _mask(self._of(group, self._fronts(group, reader.layer)), group.channels)
        limit = _mask(self.kept.get(group.name), group.channels)
        self.kept[group.name] = np.flatnonzero(written & read & limit)

    def _chain(self, group: ChannelGroup, writer: str) -> list[str]:
        """A writer and what hangs on it alone."""
        chain = [writer]
        chain += [m.layer for m in group.members if m.side == "through" and m.after in chain]
        return chain

    def _fronts(self, group: ChannelGroup, reader: str) -> list[str]:
        """What stands in front of a reader alone, up to the stream."""
        by_name = {m.layer: m for m in group.members if m.side != "out"}
        fronts: list[str] = []
        layer: str | None = reader
        while layer is not None and layer in by_name:
            fronts.append(layer)
            layer = by_name[layer].after
        # A chain that begins at a writer is that writer's own, not one that reads a stream.
        return fronts if layer is None else []

    def _of(self, group: ChannelGroup, layers: Iterable[str]) -> NDArray[np.int64] | None:
        """Channels of the group that the layers of one chain keep; None: all."""
        masks = [self._own(group, layer) for layer in layers if layer in self.own]
        return None if not masks else np.flatnonzero(np.logical_and.reduce(masks))

    def _own(self, group: ChannelGroup, layer: str) -> NDArray[np.bool_]:
        member = next(m for m in group.members if m.layer == layer and m.side != "in")
        return np.asarray(np.isin(member.index, self.own[layer]).all(axis=1))

    def _inner(self, writer: str) -> ChannelGroup | None:
        """The group that only this writer reads, when it may go."""
        for group in self.grouping.groups.values():
            if group.branch is not None and [m.layer for m in group.readers] == [writer]:
                return group
        return None

    def _silence(self, group: ChannelGroup, zero: set[str], cuts: dict[str, LayerCut]) -> None:
        ends = group.branch.ends if group.branch is not None and not len(self.kept.get(group.name, (0,))) else ()
        inside = (
            group.branch.inside
            if group.branch is not None and ends
            else tuple(m.layer for m in group.members if m.side == "through")
        )
        for writer in group.writers:
            cuts[writer.layer] = LayerCut(role="silent")
        for layer in inside:
            if layer not in ends:
                cuts[layer] = LayerCut(role="idle")
        for layer in ends:
            cut = cuts.get(layer, LayerCut())
            # Without an affine part there is nothing to be constant with: the plan says zero by keeping no input.
            cuts[layer] = LayerCut(cut.out, () if layer in zero else None, role="constant")

    # ------------------------------------------------------------------ layers of a stream that differ
    def _differ(self, cuts: dict[str, LayerCut]) -> None:
        for group in self.grouping.groups.values():
            stream = self.kept.get(group.name)
            if stream is None or not any(m.layer in self.own for m in group.members):
                continue
            for writer in group.writers:
                chain = self._chain(group, writer.layer)
                channels = self._of(group, chain)
                if channels is None or not len(channels):
                    continue
                mine = np.intersect1d(channels, stream)
                if len(mine) == len(stream):
                    continue
                self._narrow(group, chain, mine, cuts)
                place = {channel: number for number, channel in enumerate(mine.tolist())}
                last = chain[-1]
                cuts[last] = _with(cuts[last], scatter=tuple(place.get(channel, -1) for channel in stream.tolist()))
            for reader in group.readers:
                fronts = self._fronts(group, reader.layer)
                channels = self._of(group, fronts)
                if channels is None:
                    continue
                mine = np.intersect1d(channels, stream)
                if len(mine) == len(stream):
                    continue
                if not len(mine):
                    raise InputError(f"nothing would be left for '{reader.layer}' to read")
                self._narrow(group, fronts, mine, cuts)
                first = fronts[-1]
                cuts[first] = _with(cuts[first], gather=_tuple(np.searchsorted(stream, mine)))

    def _narrow(
        self, group: ChannelGroup, layers: Iterable[str], mine: NDArray[np.int64], cuts: dict[str, LayerCut]
    ) -> None:
        for layer in layers:
            member = next(
                m for m in group.members if m.layer == layer and (m.side != "in" or layer == next(iter(layers)))
            )
            part, cut = self.parts[layer], cuts.get(layer, LayerCut())
            if (
                isinstance(part, PadShortcut)
                or member.index.shape[1] != 1
                or member.index.size != layer_channels(part, "in" if member.side == "in" else "out")
            ):
                raise InputError(f"'{layer}' cannot keep channels of its own")
            positions = _tuple(member.positions(mine))
            cuts[layer] = _with(cut, inside=positions) if member.side == "in" else _with(cut, out=positions)

    def _check(self, group: ChannelGroup, channels: NDArray[np.int64]) -> None:
        if len(channels) and not 0 <= channels[0] <= channels[-1] < group.channels:
            raise InputError(f"'{group.name}' has {group.channels} channels, not {int(channels[-1]) + 1}")
        run = group.channels // group.sections
        counts = np.bincount(channels // run, minlength=group.sections)
        if group.sections > 1 and len(set(counts.tolist())) > 1:
            raise InputError(f"each of the {group.sections} groups of '{group.name}' must keep equally many channels")


def layer_channels(part: nn.Module, side: str) -> int:
    if isinstance(part, PadShortcut):
        return part.inputs if side == "in" else len(part.source())
    names = ("in_channels", "in_features") if side == "in" else ("out_channels", "out_features")
    for name in (*names, "num_features", "num_parameters"):
        if hasattr(part, name):
            return int(getattr(part, name))
    raise TypeError(f"a {type(part).__name__} has no channels that can be removed")


def _mask(channels: NDArray[np.int64] | None, total: int) -> NDArray[np.bool_]:
    if channels is None:
        return np.ones(total, dtype=bool)
    mask = np.zeros(total, dtype=bool)
    mask[channels] = True
    return mask


def _with(cut: LayerCut, **changes: Any) -> LayerCut:
    return LayerCut(**(vars(cut) | changes))


def _where(left: NDArray[np.bool_] | None) -> Positions | None:
    return None if left is None or left.all() else _tuple(np.flatnonzero(left))


def _tuple(positions: NDArray[np.int64]) -> Positions:
    return tuple(int(position) for position in positions)


def _loose(cuts: Mapping[str, LayerCut], parts: Mapping[str, nn.Module]) -> dict[str, LayerCut]:
    """Cuts of parameters that stand on their own."""
    return {name: cut for name, cut in cuts.items() if name not in parts}
