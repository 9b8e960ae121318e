"""The weights of a step in the order of its kernel, packed when they are first asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.formats import HybridLayer, PackedNetwork
from billhook.runtime.choice import Choice, Facts
from billhook.runtime.fuse import Fused, Step
from billhook.runtime.packing import (
    SparseRows,
    Stream,
    dense_rows,
    hybrid_rows,
    pack_dense,
    pack_depthwise,
    pack_hybrid,
    pack_stream,
)


@dataclass(frozen=True)
class Target:
    """For what weights are packed: lanes of a vector, and whether activations and weights are bf16."""

    lanes: int
    bf16: bool


class ConvWeights:
    """The weights of one convolution.

    Args:
        network: Where they are.
        fused: The steps.
        step: The convolution.
        target: The kernels.
        run: Nothing lies between the pixels that it reads: dense kernels take a row of taps as one run of inputs.
    """

    def __init__(self, network: PackedNetwork, fused: Fused, step: Step, target: Target, run: bool = False) -> None:
        self.network, self.step, self.target, self.run = network, step, target, run
        self.channels = fused.shapes[step.inputs[0]][0]
        self.made = fused.shapes[step.output]
        self.packed = network.packed.get(step.weight)
        self._packs: dict[tuple[str, int], Any] = {}

    @property
    def depthwise(self) -> bool:
        """Whether it has one filter per channel."""
        return self.step.kind == "depthwise"

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """[O, I / groups, kh, kw]."""
        return self.made[0], self.channels // self.step.groups, *self.step.window.kernel

    @property
    def stored(self) -> int:
        """Weights that are there."""
        if self.packed is None:
            return math.prod(self.shape)
        return int(self.packed.layer.values.size)

    @property
    def density(self) -> float:
        """Share of the weights that are there."""
        return self.stored / math.prod(self.shape)

    @property
    def multiplications(self) -> int:
        """Multiply-adds of those that are there."""
        return self.stored * self.made[1] * self.made[2]

    def facts(self, threads: int) -> Facts:
        """What a choice depends on."""
        lanes = self.target.lanes
        grouped = self.step.groups > 1
        layer = self.packed.layer if self.packed else None
        if isinstance(layer, HybridLayer):
            fill = lanes * layer.n / layer.m
        else:
            fill = min(lanes, self.shape[1]) * self.density
        return Facts(
            outputs=self.made[0],
            height=self.made[1],
            width=self.made[2],
            density=self.density,
            fill=fill,
            dense=not grouped,
            sparse=self.packed is not None,
            lanes=lanes,
            bf16=self.target.bf16,
            threads=threads,
        )

    def bias(self, length: int) -> NDArray[np.float32]:
        """What sums begin with, factors taken in, filled up with zeros."""
        bias = np.zeros(length, np.float32)
        bias[: self.made[0]] = self._bias
        return bias

    def pack(self, choice: Choice | None, keep: bool = False) -> Any:
        """Weights for a choice: an array for dense and depthwise kernels, a :class:`Stream` for hybrid ones.

        Args:
            choice: None for depthwise ones, which have none.
            keep: Whether the result is kept for another call.
        """
        key = (
            ("depthwise", 0)
            if choice is None
            else (choice.kernel, choice.vectors if choice.kernel == "dense" else choice.slots)
        )
        if key in self._packs:
            return self._packs[key]
        made: NDArray[Any] | Stream
        if choice is None:
            made = pack_depthwise(self._full, self.target.lanes)
        elif choice.kernel == "dense":
            made = pack_dense(self._full, self.target.lanes, choice.vectors, self.target.bf16, self.run)
        else:
            made = self._stream(choice.slots)
        if keep:
            self._packs[key] = made
        return made

    def forget(self) -> None:
        """Lets go of what was kept."""
        self._packs.clear()
        for name in ("_full", "_bias", "_rows"):
            self.__dict__.pop(name, None)

    def _stream(self, slots: int) -> Stream:
        layer = self.packed.layer if self.packed else None
        if isinstance(layer, HybridLayer) and self.step.groups == 1:
            return pack_hybrid(layer, self.target.lanes, slots, self.target.bf16)
        return pack_stream(self._rows, self.target.lanes, slots, self.target.bf16)

    @cached_property
    def _rows(self) -> SparseRows:
        layer = self.packed.layer if self.packed else None
        if isinstance(layer, HybridLayer) and self.step.groups == 1:
            return hybrid_rows(layer)
        return dense_rows(self._full, self.step.groups)

    @cached_property
    def _full(self) -> NDArray[np.float32]:
        """[O, I / groups, kh, kw], with the factors of the steps around."""
        return self._scaled[0]

    @cached_property
    def _bias(self) -> NDArray[np.float32]:
        if self.step.scalings:
            return self._scaled[1]
        bias = self.network.tensors[self.step.bias] if self.step.bias else np.zeros(self.made[0], np.float32)
        return bias

    @property
    def _scaled(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        step, tensors = self.step, self.network.tensors
        if step.weight:
            weight = self.network.weight(step.weight).reshape(self.shape)
        else:
            weight = np.full(self.shape, 1 / math.prod(step.window.kernel), np.float32)
        bias = tensors[step.bias] if step.bias else np.zeros(self.made[0], np.float32)
        for scaling in step.scalings:
            factor, term = tensors[scaling.weight], tensors[scaling.bias]
            if scaling.side == "inputs":
                bias = bias + (weight.sum((2, 3)) * term).sum(1, dtype=np.float32)
                weight = weight * factor[None, :, None, None]
            else:
                bias = bias * factor + term
                weight = weight * factor[:, None, None, None]
        return weight, bias


def packed_bytes(pack: Any) -> int:
    """Bytes that a pack takes."""
    if isinstance(pack, Stream):
        return sum(part.nbytes for part in (pack.values, pack.index, pack.tap, pack.first))
    return int(pack.nbytes)
