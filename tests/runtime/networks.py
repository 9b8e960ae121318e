"""Small packed networks, built line by line, with weights drawn by a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.formats import PackedNetwork, PatternInfo, pack_state, packed_tensors, rules
from billhook.formats.graph import Graph, Operator, Preprocess
from billhook.formats.rules import shapes
from billhook.formats.state import plain_tensors


def hybrid_mask(
    rng: np.random.Generator, shape: tuple[int, ...], n: int, m: int, block: int, kept: float
) -> NDArray[np.bool_]:
    """A random mask of N:M inside kept blocks, in the shape of the weight."""
    outputs, inputs, *kernel = shape
    taps = math.prod(kernel)
    mask = np.zeros((outputs, taps, inputs), bool)
    across = -(-inputs // block) if block else 1
    columns = taps * across
    count = max(1, round(kept * columns))
    for top in range(0, outputs, block or outputs):
        for column in rng.choice(columns, count if block else columns, replace=False):
            tap, first = column // across, (column % across) * block
            mask[top : top + (block or outputs), tap, first : first + (block or inputs)] = True
    order = np.argsort(rng.random((outputs, taps, inputs // m, m)), -1)
    mask &= (order < n).reshape(outputs, taps, inputs)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(outputs, *kernel, inputs), -1, 1))


class Building:
    """A network that grows by one operator per call; every call returns the value it makes."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        self.shape = shape
        self.input = "x"
        self.operators: list[Operator] = []
        self.tensors: dict[str, NDArray[Any]] = {}
        self.patterns: dict[str, PatternInfo] = {}
        self.rng = np.random.default_rng(seed)

    def add(
        self,
        kind: str,
        inputs: str | Sequence[str],
        name: str = "",
        tensors: dict[str, Any] | None = None,
        **settings: Any,
    ) -> str:
        name = name or f"{kind}{len(self.operators)}"
        named = {}
        for role, array in (tensors or {}).items():
            named[role] = f"{name}.{role}"
            self.tensors[named[role]] = array
        inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        self.operators.append(Operator(kind, name, inputs, f"{name}:out", settings, named))
        return f"{name}:out"

    def channels(self, value: str) -> int:
        return self.shapes()[value][0]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        # Graphs that are not finished have values that nobody reads: each of them is read once here.
        found = {self.input: self.shape}
        sizes = {name: array.shape for name, array in self.tensors.items()}
        for operator in self.operators:
            found[operator.output] = rules._infer(operator, found, sizes)
        return found

    def normal(self, *shape: int, fan: int = 1) -> NDArray[np.float32]:
        return (self.rng.standard_normal(shape) / math.sqrt(fan)).astype(np.float32)

    def conv(
        self,
        value: str,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int, int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        name: str = "",
        sparse: tuple[int, int, int, float] | None = None,
        unstructured: float | None = None,
    ) -> str:
        """``sparse``: N, M, block, share of kept blocks; ``unstructured``: share of kept weights."""
        name = name or f"conv{len(self.operators)}"
        kernel, stride, dilation = (two(pair) for pair in (kernel, stride, dilation))
        padding = (padding,) * 4 if isinstance(padding, int) else padding
        inputs = self.channels(value) // groups
        weight = self.normal(outputs, inputs, *kernel, fan=inputs * math.prod(kernel))
        self.prune(f"{name}.weight", weight, sparse, unstructured)
        tensors = {"weight": weight} | ({"bias": self.normal(outputs)} if bias else {})
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return self.add("conv", value, name, tensors, **settings)

    def linear(
        self, value: str, outputs: int, bias: bool = True, name: str = "", sparse: Any = None, unstructured: Any = None
    ) -> str:
        name = name or f"linear{len(self.operators)}"
        inputs = self.channels(value)
        weight = self.normal(outputs, inputs, fan=inputs)
        self.prune(f"{name}.weight", weight, sparse, unstructured)
        return self.add("linear", value, name, {"weight": weight} | ({"bias": self.normal(outputs)} if bias else {}))

    def prune(self, name: str, weight: NDArray[Any], sparse: Any, unstructured: Any) -> None:
        if sparse:
            n, m, block, kept = sparse
            self.patterns[name] = PatternInfo(
                "hybrid", n, m, block, hybrid_mask(self.rng, weight.shape, n, m, block, kept)
            )
        elif unstructured is not None:
            self.patterns[name] = PatternInfo("unstructured", 1, 1, 0, self.rng.random(weight.shape) < unstructured)

    def scale(self, value: str, name: str = "") -> str:
        channels = self.channels(value)
        return self.add("scale", value, name, {"weight": self.normal(channels), "bias": self.normal(channels)})

    def gather(self, value: str, index: Sequence[int], stride: int | tuple[int, int] = 1) -> str:
        return self.add("gather", value, "", {"index": np.array(index, np.int32)}, stride=two(stride))

    def pool(
        self, kind: str, value: str, kernel: Any, stride: Any, padding: Any = 0, ceil: bool = False, **more: Any
    ) -> str:
        padding = (padding,) * 4 if isinstance(padding, int) else padding
        return self.add(
            kind, value, "", None, kernel=two(kernel), stride=two(stride), padding=padding, ceil=ceil, **more
        )

    def head(self, value: str, outputs: int = 5) -> str:
        return self.linear(self.add("flatten", self.add("globalavgpool", value)), outputs)

    def build(self, output: str, preprocess: Preprocess | None = None, labels: tuple[str, ...] = ()) -> PackedNetwork:
        graph = Graph(self.input, self.shape, tuple(self.operators), output, preprocess, labels)
        stored, metadata = pack_state(self.tensors, self.patterns)
        packed = packed_tensors(stored, metadata)
        plain = plain_tensors(stored, packed)
        sizes = {name: array.shape for name, array in plain.items()} | {
            name: item.shape for name, item in packed.items()
        }
        return PackedNetwork(graph, plain, packed, shapes(graph, sizes))


def two(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
