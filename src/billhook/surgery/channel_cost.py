"""What a network costs with fewer channels, without making it: layer costs as products of outputs and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from billhook.cost import Cost, LayerCost
from billhook.surgery.groups import Grouping, Member

QUANTITIES = ("params", "nonzero", "macs", "effective_macs", "channels", "volume", "bytes")
"""What is counted, in the order of the columns of :meth:`ChannelCost.many`."""

LATENCY = "latency"
"""Comes after :data:`QUANTITIES` where the layers' milliseconds were measured."""

_BYTES = 4  # of one fp32 value
_STATISTICS = 2  # running mean and variance: stored, but no parameters
_OWN = ("params", "macs", "channels", "volume", "values", LATENCY)  # computed; the others follow from them
_AS = {"nonzero": "params", "effective_macs": "macs", "bytes": "values"}
_COLUMNS = [_OWN.index(_AS.get(name, name)) for name in (*QUANTITIES, LATENCY)]
_PARAMS, _FILE, _TIME = _OWN.index("params"), QUANTITIES.index("bytes"), _OWN.index(LATENCY)
_BOTH = np.array([_PARAMS, _OWN.index("values")])  # a parameter is also a stored value


@dataclass
class _Row:
    """One layer: it costs ``product`` per output and input of one of its groups, ``output`` per output, and ``fixed``.

    The triples and pairs below are the coefficients of :data:`_OWN`.
    """

    outputs: int
    inputs: float = 1.0
    groups: int = 1
    product: tuple[float, ...] = (0.0,) * len(_OWN)
    output: tuple[float, ...] = (0.0,) * len(_OWN)
    fixed: float = 0.0  # parameters that stay while the layer does
    constant: float = 0.0  # parameters per output when nothing but a constant is left of it


@dataclass(frozen=True)
class Times:
    """Milliseconds of a network by the widths of its layers.

    Attributes:
        layers: By layer: what it takes for each output and input of one of its groups (arithmetic), for each output
            (reading and writing maps), and while it stands.
        rest: Of all else.
    """

    layers: Mapping[str, tuple[float, float, float]]
    rest: float


@dataclass(frozen=True)
class Coefficients:
    """What :class:`ChannelCost` computes with, for those who need its derivatives.

    A layer with ``o`` outputs that each read ``i`` inputs costs ``o * i * product + o * output + fixed`` while it
    stands, and ``o * constant`` where nothing but the constant of a branch is left of it; the network costs the sum of
    its layers, and ``elsewhere``. Quantities are in the order of :attr:`ChannelCost.quantities`.

    Attributes:
        layers: Names of the layers.
        outputs: ``[layers]``: all of them.
        inputs: ``[layers]``: all of them, over all groups of a convolution.
        groups: ``[layers]``: what inputs are divided by.
        product: ``[layers, quantities]``.
        output: ``[layers, quantities]``.
        fixed: ``[layers, quantities]``.
        constant: ``[layers, quantities]``.
        elsewhere: ``[quantities]``.
    """

    layers: tuple[str, ...]
    outputs: NDArray[np.float64]
    inputs: NDArray[np.float64]
    groups: NDArray[np.float64]
    product: NDArray[np.float64]
    output: NDArray[np.float64]
    fixed: NDArray[np.float64]
    constant: NDArray[np.float64]
    elsewhere: NDArray[np.float64]


class ChannelCost:
    """The cost of a network as a function of how many channels each group keeps; exact.

    A layer's outputs are its own less those that groups have lost, and so are its inputs; several groups may own parts
    of a layer (concatenation). A grouped convolution reads the same share of inputs in each of its groups, so its
    groups keep equally many (:attr:`ChannelGroup.sections`). Positions of a ``through`` member are outputs of the
    layer, also those of a depthwise convolution with several outputs per channel. Weights count whether zero or not.

    A group with a ``branch`` that keeps no channel takes its branch along: sources, the layers inside and the readers
    cost nothing, and nothing is left of the ends but their constant, one value per output channel; one without a bias
    puts out zeros and costs nothing. Groups that nobody reads any more go with them, and so do layers that stood in
    front of the sources alone. Parameters whose share per channel cannot be told stay as they are, so what is said here
    is never less than the truth.

    Args:
        cost: Of the dense network with the head as it will be delivered.
        grouping: Its channel groups.
        dense_file_bytes: Size of that network's file.
        shapes: Of all tensors of the state dictionary. Without them a BatchNorm is taken to store its statistics, and
            a module with a parameter that stands on its own to have no other.
        times: Of its layers, by which it also tells milliseconds.

    Attributes:
        quantities: :data:`QUANTITIES`, and the latency where there are times.

    Raises:
        ValueError: A member that its layer cannot have, or the end of a branch that was never counted.
    """

    def __init__(
        self,
        cost: Cost,
        grouping: Grouping,
        dense_file_bytes: int,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        times: Times | None = None,
    ) -> None:
        self.cost, self.grouping = cost, grouping
        self.quantities: tuple[str, ...] = QUANTITIES if times is None else (*QUANTITIES, LATENCY)
        self._columns = _COLUMNS[: len(self.quantities)]
        self.names = tuple(grouping.groups)
        self.index = {name: number for number, name in enumerate(self.names)}
        self.channels = np.array([group.channels for group in grouping.groups.values()], dtype=np.int64)
        rows = _rows(cost, grouping, shapes)
        self.layers = tuple(rows)
        place = {layer: number for number, layer in enumerate(rows)}
        self._outputs = np.array([row.outputs for row in rows.values()], dtype=np.float64)
        self._inputs = np.array([row.inputs for row in rows.values()], dtype=np.float64)
        self._groups = np.array([row.groups for row in rows.values()], dtype=np.float64)
        self._product = np.array([row.product for row in rows.values()], dtype=np.float64).reshape(-1, len(_OWN))
        self._output = np.array([row.output for row in rows.values()], dtype=np.float64).reshape(-1, len(_OWN))
        self._constant = np.array([row.constant for row in rows.values()], dtype=np.float64)
        fixed = np.array([row.fixed for row in rows.values()], dtype=np.float64)
        self._fixed = np.zeros_like(self._output)
        self._fixed[:, _BOTH] = fixed[:, None]
        for layer, parts in (times.layers if times is not None else {}).items():
            if layer in place:
                number = place[layer]
                self._product[number, _TIME], self._output[number, _TIME], self._fixed[number, _TIME] = parts
        # [groups, layers]: what a layer loses with one channel of a group.
        self._out_loss = np.zeros((len(self.names), len(rows)))
        self._in_loss = np.zeros_like(self._out_loss)
        self._gone = np.zeros_like(self._out_loss)
        self._ends = np.zeros_like(self._out_loss)
        self._members = np.zeros_like(self._out_loss)
        self._readers = np.zeros_like(self._out_loss)
        for number, group in enumerate(grouping.groups.values()):
            for member in group.members:
                if member.layer in place:
                    loss = self._in_loss if member.side == "in" else self._out_loss
                    loss[number, place[member.layer]] += member.index.shape[1]
                    self._members[number, place[member.layer]] = 1
                    self._readers[number, place[member.layer]] += member.side == "in"
            ends = set(group.branch.ends) if group.branch is not None else set()
            inner = (*group.branch.sources, *group.branch.inside) if group.branch is not None else ()
            # A group goes without a branch of its own when nobody reads it: then its readers are gone already.
            gone = {*inner, *(m.layer for m in group.members if (m.side == "in") == (group.branch is not None))}
            gone.update(layer for writer in group.writers for layer in grouping.fronts(writer.layer))
            for layer, position in place.items():
                self._ends[number, position] = layer in ends
                self._gone[number, position] = layer not in ends and (layer in gone or layer.rpartition(".")[0] in gone)
        self._idle = self._readers.any(1) & np.array(
            [all(member.dim is None for member in group.members) for group in grouping.groups.values()], dtype=bool
        )
        self._branches = np.array([group.branch is not None for group in grouping.groups.values()], dtype=bool)
        whole = self._layers(self.channels)
        self._elsewhere = np.zeros(len(_OWN))  # parameters of modules that never run
        self._elsewhere[_BOTH] = cost.params - whole[:, _PARAMS].sum()
        self._elsewhere[_TIME] = 0.0 if times is None else times.rest
        self._file = float(dense_file_bytes) - _BYTES * (whole.sum(0) + self._elsewhere)[_BOTH[1]]

    def vector(self, kept: Mapping[str, int]) -> NDArray[np.int64]:
        """``[groups]``: channels that each group keeps; all of them where it is not named.

        Raises:
            ValueError: A group that is not there, or more channels than it has.
        """
        vector = self.channels.copy()
        for name, channels in kept.items():
            number = self.index.get(name)
            if number is None:
                raise ValueError(f"there is no channel group '{name}'")
            if not 0 <= channels <= self.channels[number]:
                raise ValueError(f"group '{name}' has {self.channels[number]} channels and cannot keep {channels}")
            vector[number] = channels
        return vector

    def many(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of many choices at once.

        Args:
            kept: ``[..., groups]``: channels that each group keeps.

        Returns:
            ``[..., quantities]``, in the order of :attr:`quantities`.
        """
        outputs, inputs = self._sides(kept)
        pairs = outputs * inputs
        own = pairs @ self._product + outputs @ self._output + self._fixed.sum(0)
        closed = self._closed(kept)
        if closed is not None:
            open_, end = closed
            own = (pairs * open_) @ self._product + (outputs * open_) @ self._output + open_ @ self._fixed
            own[..., _BOTH] += ((outputs * end) @ self._constant)[..., None]
        own += self._elsewhere
        totals = cast(NDArray[np.float64], own[..., self._columns])
        totals[..., _FILE] = self._file + _BYTES * totals[..., _FILE]
        return totals

    def totals(self, kept: Mapping[str, int]) -> dict[str, float]:
        """Cost of the network once each group keeps that many channels.

        Args:
            kept: By group; groups that are not named keep all.

        Returns:
            ``params``, ``nonzero`` (the same), ``macs``, ``effective_macs`` (the same), ``channels``, ``volume``, and
            ``bytes`` of the file, which may come out a little smaller: its header names shapes of fewer digits; and
            ``latency`` in milliseconds where there are times.

        Raises:
            ValueError: A group that is not there, or more channels than it has.
        """
        return dict(zip(self.quantities, self.many(self.vector(kept)).tolist(), strict=True))

    def saving(self, group: str, channels: int, kept: Mapping[str, int]) -> dict[str, float]:
        """What removing that many more channels of one group saves of every quantity.

        Raises:
            ValueError: A group that is not there, or one that keeps fewer channels than that.
        """
        before = self.vector(kept)
        left = int(before[self.index[group]]) - channels if group in self.index else 0
        after = self.vector({**kept, group: left})
        one, two = self.many(np.stack([before, after]))
        return dict(zip(self.quantities, (one - two).tolist(), strict=True))

    def largest(self, kept: Mapping[str, int], quantity: str) -> str:
        """The layer that has the most of a quantity; empty when there is none."""
        share = self._layers(self.vector(kept))[:, self._columns[self.quantities.index(quantity)]]
        return self.layers[int(share.argmax())] if len(share) else ""

    def coefficients(self) -> Coefficients:
        """Copies of the arrays that costs are computed from."""
        scale = np.ones(len(self.quantities))
        scale[_FILE] = _BYTES
        constant = np.zeros_like(self._fixed)
        constant[:, _BOTH] = self._constant[:, None]
        elsewhere = scale * self._elsewhere[self._columns]
        elsewhere[_FILE] += self._file
        product, output, fixed, constant = (
            scale * rows[:, self._columns] for rows in (self._product, self._output, self._fixed, constant)
        )
        sides = self._outputs.copy(), self._inputs.copy(), self._groups.copy()
        return Coefficients(self.layers, *sides, product, output, fixed, constant, elsewhere)

    def standing(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """``[..., layers]``: which layers are there, and which are down to the constant of a branch that has gone.

        Args:
            kept: ``[..., groups]``: channels that each group keeps.
        """
        closed = self._closed(kept)
        if closed is None:
            whole = np.ones((*kept.shape[:-1], len(self.layers)), dtype=bool)
            return whole, ~whole
        return closed[0] > 0, closed[1] > 0

    # ------------------------------------------------------------------ one layer each
    def _sides(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``[..., layers]``: outputs, and inputs that each of them reads."""
        removed = (self.channels - kept).astype(np.float64)
        return self._outputs - removed @ self._out_loss, (self._inputs - removed @ self._in_loss) / self._groups

    def _closed(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """``[..., layers]``: one for layers that are there, and for ends of branches that are not; None: all there."""
        dead = (kept == 0) & self._branches
        if not dead.any():
            return None
        cut = dead.astype(np.float64) @ self._ends > 0
        while True:
            there = (dead.astype(np.float64) @ self._members == 0).astype(np.float64)
            more = dead | ((there @ self._readers.T == 0) & self._idle)
            if np.array_equal(more, dead):
                break
            dead = more
        gone = dead.astype(np.float64) @ self._gone > 0
        return (~(gone | cut)).astype(np.float64), (cut & ~gone).astype(np.float64)

    def _layers(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[layers, len(_OWN)]``."""
        outputs, inputs = self._sides(kept)
        own = (outputs * inputs)[:, None] * self._product + outputs[:, None] * self._output + self._fixed
        closed = self._closed(kept)
        if closed is not None:
            open_, end = closed
            own *= open_[:, None]
            own[:, _BOTH] += (outputs * end * self._constant)[:, None]
        return own


# ---------------------------------------------------------------------- what a layer costs
def _rows(cost: Cost, grouping: Grouping, shapes: Mapping[str, tuple[int, ...]] | None) -> dict[str, _Row]:
    members: dict[str, list[Member]] = {}
    for group in grouping.groups.values():
        for member in group.members:
            members.setdefault(member.layer, []).append(member)
    counted = {layer.name: layer for layer in cost.layers}
    bare = {name: found for name, found in members.items() if found[0].dim is not None}
    alone: dict[str, _Row] = {}
    taken: dict[str, int] = {}
    for name, found in bare.items():
        owner = name.rpartition(".")[0]
        values = _bare_values(name, owner, bare, counted, shapes)
        if not values:
            continue
        taken[owner] = taken.get(owner, 0) + values
        last = 1 + max(int(member.index.max(initial=-1)) for member in found)
        channels = shapes[name][cast(int, found[0].dim)] if shapes else last
        alone[name] = _per_channel(values, channels, last, 0)
    rows: dict[str, _Row] = {}
    for layer in cost.layers:
        found = members.get(layer.name, [])
        if layer.channels or layer.kind == "linear":
            rows[layer.name] = _matrix_row(layer, found)
        else:
            rows[layer.name] = _channelwise_row(layer, found, taken.get(layer.name, 0), shapes)
    rows |= alone
    ends = {end for group in grouping.groups.values() if group.branch is not None for end in group.branch.ends}
    for name in (*members, *ends):
        if name in rows:
            continue
        # Without parameters of its own; a BatchNorm may still store its statistics, or end a branch.
        last = 1 + max((int(m.index.max(initial=-1)) for m in members.get(name, []) if m.side != "in"), default=-1)
        if name in ends and last < 1:
            raise ValueError(
                f"the end '{name}' of a branch was not counted, and no group says how many channels it has"
            )
        stored = _statistics(name, shapes) if shapes else 0
        constant = float(name in ends and (stored > 0 or not shapes))
        rows[name] = _Row(last, output=(0.0, 0.0, 0.0, 0.0, float(stored), 0.0), constant=constant)
    return rows


def _bare_values(
    name: str,
    owner: str,
    bare: Mapping[str, list[Member]],
    counted: Mapping[str, LayerCost],
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> int:
    """Values of a parameter that stands on its own; 0 where that is not known."""
    if owner not in counted:
        return 0
    if shapes:
        return prod(shapes[name])
    single = sum(other.rpartition(".")[0] == owner for other in bare) == 1
    return counted[owner].params if single else 0


def _matrix_row(layer: LayerCost, found: list[Member]) -> _Row:
    """A convolution or a linear layer: every weight joins one output to one input of its group."""
    shape, groups = layer.weight_shape, layer.groups
    transposed = layer.kind == "transposed"
    outputs, inputs = (shape[1] * groups, shape[0]) if transposed else (shape[0], shape[1] * groups)
    if any(member.side == "through" for member in found) and groups != inputs:
        raise ValueError(f"channels do not go through '{layer.name}': it is no depthwise convolution")
    weights, pairs = prod(shape), outputs * inputs / groups
    taps = weights / pairs
    own = layer.params >= weights  # else an earlier layer shares the weight
    rest = layer.params - weights * own
    bias = float(rest == outputs)
    return _Row(
        outputs,
        float(inputs),
        groups,
        product=(taps * own, layer.macs / pairs, 0.0, 0.0, taps * own, 0.0),
        output=(bias, 0.0, layer.channels / outputs, layer.volume / outputs, bias, 0.0),
        fixed=rest - bias * outputs,
        constant=bias,
    )


def _channelwise_row(
    layer: LayerCost, found: list[Member], taken: int, shapes: Mapping[str, tuple[int, ...]] | None
) -> _Row:
    """A layer with the same number of parameters for each channel: normalisation, PReLU."""
    single = len(layer.weight_shape) == 1
    channels = layer.weight_shape[0] if single else layer.output_shape[0]
    last = 1 + max((int(member.index.max(initial=-1)) for member in found), default=-1)
    stored = _statistics(layer.name, shapes) if shapes else _STATISTICS * (layer.kind == "batchnorm")
    return _per_channel(layer.params - taken, channels, last, stored)


def _per_channel(values: int, channels: int, last: int, stored: int) -> _Row:
    if not channels or values % channels or last > channels:
        return _Row(max(channels, last), fixed=float(values), constant=float(stored > 0))
    each = float(values // channels)
    return _Row(channels, output=(each, 0.0, 0.0, 0.0, each + stored, 0.0), constant=float(stored > 0))


def _statistics(layer: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(f"{layer}.{name}" in shapes for name in ("running_mean", "running_var"))
