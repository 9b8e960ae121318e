"""A packed network in one file: its graph, its weights as they are stored, labels and preprocessing; docs/packed.md."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError
from billhook.formats.graph import Graph
from billhook.formats.graph_json import decode_graph, encode_graph
from billhook.formats.rules import Shape, shapes, short
from billhook.formats.safetensors import read_safetensors, write_safetensors
from billhook.formats.state import (
    PACKED_KEY,
    PackedTensor,
    PatternInfo,
    check_tensor,
    pack_state,
    packed_tensors,
    plain_tensors,
    unpack_tensor,
)

NETWORK_KEY = "billhook.network"


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """A network with its weights as they are stored.

    What :func:`read_network` returns is checked: a runtime may rely on every shape, count and position.

    Attributes:
        graph: The operators, labels and preprocessing.
        tensors: The tensors that are stored as they are, by name: float32 or int32, views of the bytes read.
        packed: The packed weights, by name, still packed.
        shapes: The shape of every value, without the batch: (channels, height, width) or (features,).
    """

    graph: Graph
    tensors: Mapping[str, NDArray[Any]]
    packed: Mapping[str, PackedTensor]
    shapes: Mapping[str, Shape]

    @property
    def outputs(self) -> int:
        """Numbers per image that the network ends in."""
        return self.shapes[self.graph.output][0]

    def weight(self, name: str) -> NDArray[Any]:
        """A tensor in its own shape, unpacked where it is packed: made anew then, zeros outside the pattern.

        Raises:
            InputError: there is no such tensor.
        """
        if name in self.tensors:
            return self.tensors[name]
        if name not in self.packed:
            raise InputError(f"there is no tensor {short(name)}", "take the names from the operators' tensors")
        return unpack_tensor(name, self.packed[name])


def write_network(
    path: str | os.PathLike[str],
    graph: Graph,
    tensors: Mapping[str, NDArray[Any]],
    patterns: Mapping[str, PatternInfo],
) -> int:
    """Writes a packed network. The same network gives the same bytes; the file appears when it is whole.

    Args:
        path: The file; one that exists is replaced.
        graph: The network.
        tensors: Every tensor that an operator names and no other: float32, or int32 for the index of a gather.
        patterns: How weights of ``conv`` and ``linear`` are pruned, by name; those that are not here stay dense. What a
            weight holds outside its mask is not stored.

    Returns:
        The size of the file in bytes.

    Raises:
        InputError: a network that a reader would refuse; names the operator and says why.
        RunError: the file could not be written; nothing is left behind.
    """
    try:
        stored, metadata = pack_state({name: np.asarray(tensors[name]) for name in sorted(tensors)}, patterns)
    except ValueError as error:
        raise InputError(f"{path} cannot be written: {error}", "check the patterns of the layers") from error
    with _naming(path):
        metadata[NETWORK_KEY] = encode_graph(graph)
        _network(stored, metadata)
    try:
        return write_safetensors(path, stored, metadata)
    except ValueError as error:
        raise InputError(f"{path} cannot be written: {error}", "names are text, and shorter than this") from error


def read_network(path: str | os.PathLike[str]) -> PackedNetwork:
    """Reads a packed network and checks it, whatever the bytes are.

    The file is read once; no packed weight is unpacked. Time and memory are in proportion to the file.

    Raises:
        InputError: the file cannot be read or is not a sound packed network; names the file, the operator or tensor
            and the reason.
    """
    tensors, metadata = read_safetensors(path)
    if NETWORK_KEY not in metadata:
        raise InputError(
            f"{path} holds no packed network", "billhook export RUN --to packed makes one of a run directory"
        )
    with _naming(path):
        return _network(tensors, metadata)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names the file in what is refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{Path(path)}: {error.message}", error.hint) from error


def _network(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> PackedNetwork:
    for key in metadata:
        if key not in (NETWORK_KEY, PACKED_KEY):
            raise _damaged(f"the metadata entry {short(key)} belongs to no packed network")
    graph = decode_graph(metadata[NETWORK_KEY])
    packed = packed_tensors(tensors, metadata)
    dense = plain_tensors(tensors, packed)
    all_shapes = {name: array.shape for name, array in dense.items()} | {
        name: item.shape for name, item in packed.items()
    }
    values = shapes(graph, all_shapes)
    named = {name for operator in graph.operators for name in operator.tensors.values()}
    for name in all_shapes:
        if name not in named:
            raise _damaged(f"no operator uses tensor {short(name)}")
    for operator in graph.operators:
        for role, name in operator.tensors.items():
            wanted = np.dtype(np.int32 if role == "index" else np.float32)
            if name in dense and dense[name].dtype != wanted:
                raise _damaged(f"operator {short(operator.name)}: its {role} is {dense[name].dtype}, not {wanted}")
            if role == "index":
                _check_index(operator.name, dense[name], values[operator.inputs[0]][0])
    for name, item in packed.items():
        check_tensor(name, item)
    return PackedNetwork(graph, dense, packed, values)


def _check_index(operator: str, index: NDArray[Any], channels: int) -> None:
    low, high = int(index.min()), int(index.max())
    if low < -1 or high >= channels:
        raise _damaged(
            f"operator {short(operator)}: its index goes from {low} to {high}, -1 to {channels - 1} is possible"
        )


def _damaged(reason: str) -> InputError:
    return InputError(reason, "write the file again or fetch it again")
