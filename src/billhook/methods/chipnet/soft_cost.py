"""What a network costs as a function of its gates: differentiable where they are soft, exact where they are 0 or 1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from billhook.methods.chipnet.places import ALWAYS, NOTHING, Layout, Stream
from billhook.surgery.channel_cost import ChannelCost
from billhook.surgery.groups import ChannelGroup, Grouping


class SoftCost:
    """The algebra of :class:`ChannelCost` on sums of gates.

    A layer has as many outputs as the sum of its gates, and reads as many inputs as the stream is wide. Where the
    layers of a stream have gates of their own, a channel of it is as open as the most open gate that writes it (the
    element-wise maximum of the authors' later counters), or that a normalisation reads it by, for that makes something
    of a zero too; and no more open than the most open gate that reads it. So 0 and 1 give what surgery leaves.

    Args:
        cost: What the network costs with fewer channels.
        layout: Its gates.

    Raises:
        ValueError: The gates are those of other groups.
    """

    def __init__(self, cost: ChannelCost, layout: Layout) -> None:
        if tuple(layout.grouping.groups) != cost.names:
            raise ValueError("the cost is that of other channel groups")
        self.cost, self.layout = cost, layout
        self._streams = {stream.group.name: stream for stream in layout.streams}
        # Widths: one of each vector, then one of each stream.
        vectors, self._base = layout.vectors, len(layout.vectors)
        self._place = {name: number for number, name in enumerate(cost.coefficients().layers)}
        widths = self._base + len(layout.streams)
        out, into = np.zeros((widths, len(self._place))), np.zeros((widths, len(self._place)))
        self._ends: list[tuple[int, int, int]] = []  # of a branch: layer, its own width, that of the stream
        full = np.zeros(widths)
        # A group is as wide as its only vector, or as its stream; without gates it keeps its width.
        self._width_of = {vector.group: number for number, vector in enumerate(vectors) if vector.shared}
        self._width_of |= {stream.group.name: self._base + number for number, stream in enumerate(layout.streams)}
        branches = [group.branch for group in layout.grouping.groups.values() if group.branch is not None]
        ends = {end for branch in branches for end in branch.ends}
        for group in layout.grouping.groups.values():
            if group.name not in self._width_of:
                continue
            whole = self._width_of[group.name]
            own = self._own_widths(group)
            for number in {whole, *own.values()}:
                full[number] = group.channels
            for member in group.members:
                layer = self._place.get(member.layer)
                if layer is None:
                    continue
                number = own.get((member.layer, member.side == "in"), whole)
                (into if member.side == "in" else out)[number, layer] += member.index.shape[1]
                if number != whole and member.layer in ends and member.side != "in":
                    self._ends.append((layer, number, whole))
        self._arrays: dict[str, NDArray[np.float64]] = {"out": out, "into": into, "full": full}
        coefficients = cost.coefficients()
        for name in ("outputs", "inputs", "groups", "product", "output", "fixed", "constant", "elsewhere"):
            self._arrays[name] = getattr(coefficients, name)
        self._tensors: dict[torch.device, dict[str, Tensor]] = {}

    def totals(self, values: Tensor, *, branches: bool = True) -> Tensor:
        """``[quantities]``: the cost, in the order of ``channel_cost.QUANTITIES``; float64 where the device has it.

        Args:
            values: ``[gates]``, between 0 and 1.
            branches: A branch whose group is shut entirely costs what surgery leaves of it. Without, the cost is a
                polynomial of the gates (and of maxima), and nothing has to be brought back from the device.
        """
        rows = self._on(values.device)
        values = values.to(rows["full"].dtype)
        widths = self._widths(values)
        missing = rows["full"] - widths
        outputs = rows["outputs"] - missing @ rows["out"]
        inputs = (rows["inputs"] - missing @ rows["into"]) / rows["groups"]
        layers = (outputs * inputs)[:, None] * rows["product"] + outputs[:, None] * rows["output"] + rows["fixed"]
        if branches:
            layers = self._without_branches(layers, outputs, widths)
        return layers.sum(0) + rows["elsewhere"]

    def hard(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """``[quantities]``: the cost of the network that keeps the open gates' channels; exact."""
        with torch.no_grad():
            return self.totals(torch.from_numpy(np.asarray(mask, dtype=np.float64))).numpy()

    def dead(self, mask: NDArray[np.bool_]) -> set[str]:
        """Groups without a channel: shut entirely, behind a writer that writes nothing any more, or read by nobody."""
        with torch.no_grad():
            kept = self._kept(self._widths(torch.from_numpy(np.asarray(mask, dtype=np.float64))))
        seeds = {name for name, channels in zip(self.cost.names, kept.tolist(), strict=True) if not channels}
        return with_unread(self.layout.grouping, seeds)

    # ------------------------------------------------------------------ widths
    def _own_widths(self, group: ChannelGroup) -> dict[tuple[str, bool], int]:
        """By layer and whether it reads: the vector whose gates say how many channels of a stream it has."""
        stream = self._streams.get(group.name)
        own: dict[tuple[str, bool], int] = {}
        for writer in stream.writers if stream is not None else ():
            if writer.vector is not None:
                own |= {(layer, False): writer.vector for layer in writer.chain}
        for reader in stream.readers if stream is not None else ():
            if reader.vector is not None:
                own |= {(layer, False): reader.vector for layer in reader.fronts}
                own[reader.layer, True] = reader.vector
        return own

    def _widths(self, values: Tensor) -> Tensor:
        """``[vectors + streams]``: how many channels there are."""
        pieces = torch.split(values, list(self.layout.sizes))
        if not self._streams:
            return torch.stack([piece.sum() for piece in pieces]) if pieces else values.new_zeros(0)
        open_ = {v.group: piece for v, piece in zip(self.layout.vectors, pieces, strict=True) if v.shared}
        widths = [piece.sum() for piece in pieces]
        for stream in self.layout.streams:  # what a map of channels passes on comes earlier
            whole = open_[stream.group.name] = _union(stream, pieces, open_)
            gated = [writer.vector for writer in stream.writers] + [reader.vector for reader in stream.readers]
            if any(reader.vector is not None for reader in stream.readers):
                for number in gated:
                    if number is not None:
                        widths[number] = torch.minimum(whole, pieces[number]).sum()
        widths += [open_[stream.group.name].sum() for stream in self.layout.streams]
        return torch.stack(widths)

    def _kept(self, widths: Tensor) -> NDArray[np.int64]:
        """``[groups]``: 0 where nothing is left, else at least 1."""
        open_ = (widths > 0).cpu().numpy()
        kept = np.ones(len(self.cost.names), dtype=np.int64)
        for name, number in self._width_of.items():
            kept[self.cost.index[name]] = open_[number]
        for stream in self.layout.streams:
            if not kept[self.cost.index[stream.group.name]]:
                continue
            for writer in stream.writers:
                if writer.vector is not None and writer.inner is not None and not open_[writer.vector]:
                    kept[self.cost.index[writer.inner]] = 0
        return kept

    def _without_branches(self, layers: Tensor, outputs: Tensor, widths: Tensor) -> Tensor:
        kept = self._kept(widths.detach())
        if kept.all():
            return layers
        there, constant = (torch.from_numpy(part).to(layers.device)[:, None] for part in self.cost.standing(kept))
        outputs = outputs.clone()
        for layer, own, whole in self._ends:
            # The constant of a branch without channels of its own is one of zeros, as wide as the stream.
            if not widths[own] > 0:
                outputs[layer] = outputs[layer] + widths[whole] - widths[own]
        zero = torch.zeros_like(layers)
        left = outputs[:, None] * self._on(layers.device)["constant"]
        return torch.where(there, layers, zero) + torch.where(constant, left, zero)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._tensors:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's devices have no doubles
            self._tensors[device] = {
                name: torch.from_numpy(array).to(device=device, dtype=dtype) for name, array in self._arrays.items()
            }
        return self._tensors[device]


def _union(stream: Stream, pieces: tuple[Tensor, ...], open_: Mapping[str, Tensor]) -> Tensor:
    """``[channels]``: how open each channel of a stream is."""
    written: list[Tensor] = []
    for writer in stream.writers:
        if writer.vector is not None:
            written.append(pieces[writer.vector])
        elif writer.source is not None:
            former = open_[writer.former] if writer.former is not None else pieces[0].new_zeros(0)
            row = torch.cat([former, former.new_tensor([1.0, 0.0])])
            ends = {ALWAYS: len(former), NOTHING: len(former) + 1}
            source = np.array([ends.get(channel, channel) for channel in writer.source.tolist()], dtype=np.int64)
            written.append(row[torch.from_numpy(source).to(row.device)])
    reading = [pieces[reader.vector] for reader in stream.readers if reader.vector is not None]
    whole = torch.stack(written + reading).amax(0)
    if reading and len(reading) == len(stream.readers):
        whole = torch.minimum(whole, torch.stack(reading).amax(0))
    return whole


def with_unread(grouping: Grouping, dead: set[str]) -> set[str]:
    """Groups that are dead, and those whose channels nobody reads any more without them."""
    dead = set(dead)
    while True:
        silent = {member.layer for name in dead for member in grouping.groups[name].members}
        more = {
            name
            for name, group in grouping.groups.items()
            if name not in dead
            and group.readers
            and all(member.layer in silent for member in group.readers)
            and all(member.dim is None for member in group.members)
        }
        if not more:
            return dead
        dead |= more
