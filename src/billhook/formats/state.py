"""A model's state in the file: packed layers as value and position arrays, all other tensors as they are."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError
from billhook.formats.bitmap import bitmap_mask, check_bitmap, decode_bitmap, encode_bitmap
from billhook.formats.hybrid import (
    HybridLayer,
    PackedLayerError,
    checked_positions,
    decode_hybrid,
    encode_hybrid,
    hybrid_mask,
)
from billhook.formats.safetensors import header_bytes, load_json

PACKED_KEY = "billhook.packed"
PACKED_VERSION = 1
# A weight may be far larger than its packed form. A file of a few bytes must still not ask for all memory: this many
# weights (512 MiB as float32) are granted to any file, beyond it each stored value buys 1024 more.
FREE_WEIGHTS = 1 << 27
WEIGHTS_PER_VALUE = 1024

_PARTS = {"hybrid": ("values", "offsets", "columns"), "unstructured": ("values", "bitmap")}
_KEYS = {"hybrid": {"pattern", "shape", "n", "m", "block", "kept"}, "unstructured": {"pattern", "shape"}}


@dataclass(frozen=True, eq=False)
class PatternInfo:
    """How a layer is pruned.

    Args:
        kind: ``hybrid`` (N:M, blocks, or both) or ``unstructured``; the latter ignores ``n``, ``m`` and ``block``.
        n: Weights kept of every ``m`` consecutive input channels of a tap; n = m = 1 without N:M.
        block: Side of a block; 0 without blocks.
        mask: bool, True where a weight is kept; [O, I, kh, kw] or [O, I], as the weight.
    """

    kind: Literal["hybrid", "unstructured"]
    n: int
    m: int
    block: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BitmapLayer:
    """A packed unstructured layer.

    Args:
        values: float32 [nnz], in the order of W2 (output, tap, input; input fastest).
        bitmap: uint8 [ceil(O * K / 8)], one bit per weight, least significant first, same order.
    """

    values: NDArray[np.float32]
    bitmap: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """One packed weight of a file: its shape ([O, I, kh, kw] or [O, I]) and its packed form."""

    shape: tuple[int, ...]
    layer: HybridLayer | BitmapLayer


def pack_state(
    state: Mapping[str, NDArray[Any]], patterns: Mapping[str, PatternInfo]
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Packs the pruned layers of a state for :func:`billhook.formats.write_safetensors`.

    Args:
        state: Arrays by name; packed ones are float32 [O, I, kh, kw] or [O, I].
        patterns: The pruned layers. Their masks decide: what a weight holds outside its mask is not stored.

    Returns:
        The tensors of the file, and its metadata: one entry, or none when no layer is packed.

    Raises:
        ValueError: a pattern that names no tensor, does not fit its weight or contradicts its mask; a name taken twice;
            names the layer.
    """
    tensors: dict[str, NDArray[Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name in patterns:
        if name not in state:
            raise ValueError(f"there is no tensor {name!r} to pack")
    for name, array in state.items():
        pattern = patterns.get(name)
        parts = {name: array}
        if pattern is not None:
            try:
                parts, layers[name] = _pack(name, array, pattern)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        for part, stored in parts.items():
            if part in tensors:
                raise ValueError(f"two tensors would be called {part!r}")
            tensors[part] = stored
    if not layers:
        return tensors, {}
    if not _affordable((layer["shape"] for layer in layers.values()), (tensors[f"{name}.values"] for name in layers)):
        raise ValueError("the layers keep too few of their weights for a reader to trust the file; prune less")
    return tensors, {PACKED_KEY: json.dumps({"version": PACKED_VERSION, "layers": layers}, separators=(",", ":"))}


def packed_tensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, PackedTensor]:
    """The packed layers of a file, still packed: what a runtime needs that never makes the dense weight.

    Sizes and order of the arrays are checked when a layer is decoded; names, types and numbers are checked here.

    Raises:
        InputError: the metadata is not what this version writes, or a tensor that it names is missing or mistyped.
    """
    if PACKED_KEY not in metadata:
        return {}
    try:
        document = load_json(metadata[PACKED_KEY])
    except ValueError as error:
        raise _damaged(f"metadata {PACKED_KEY!r} is not valid JSON: {error}") from error
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise _damaged(f"metadata {PACKED_KEY!r} states no version")
    if document["version"] != PACKED_VERSION:
        raise InputError(
            f"the packed layers have version {document['version']}, this billhook reads {PACKED_VERSION}",
            "install the version of billhook that wrote the file, or a later one",
        )
    layers = document.get("layers")
    if not isinstance(layers, dict):
        raise _damaged(f"metadata {PACKED_KEY!r} lists no layers")
    packed = {name: _parse(name, entry, tensors) for name, entry in layers.items()}
    if not _affordable((item.shape for item in packed.values()), (item.layer.values for item in packed.values())):
        raise _damaged("the packed layers claim far more weights than the stored values can justify")
    return packed


def unpack_state(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Undoes :func:`pack_state` on what was read from a file, checking everything.

    Args:
        tensors: As :func:`billhook.formats.read_safetensors` returns them; not modified, and shared where not packed.
        metadata: Of the same file.

    Returns:
        The state: tensors that are not packed first, then the packed ones, dense, in their own shape, C order.

    Raises:
        InputError: a packed layer is damaged; names the tensor.
    """
    packed = packed_tensors(tensors, metadata)
    return plain_tensors(tensors, packed) | {name: unpack_tensor(name, item) for name, item in packed.items()}


def plain_tensors(tensors: Mapping[str, NDArray[Any]], packed: Mapping[str, PackedTensor]) -> dict[str, NDArray[Any]]:
    """The tensors of a file that are no part of its packed layers."""
    taken = {
        f"{name}.{part}"
        for name, item in packed.items()
        for part in _PARTS["hybrid" if isinstance(item.layer, HybridLayer) else "unstructured"]
    }
    return {name: array for name, array in tensors.items() if name not in taken}


def unpack_tensor(name: str, item: PackedTensor) -> NDArray[np.float32]:
    """One packed weight, dense, in its own shape, C order.

    Raises:
        InputError: it is damaged; names the tensor.
    """
    with _naming(name):
        if isinstance(item.layer, HybridLayer):
            weight = decode_hybrid(item.layer)
        else:
            weight = decode_bitmap(item.layer.values, item.layer.bitmap, _matrix_shape(item.shape))
        return _from_matrix(weight, item.shape)


def check_tensor(name: str, item: PackedTensor) -> None:
    """Raise InputError, naming the tensor, when a packed weight is damaged; its dense form is not made."""
    with _naming(name):
        if isinstance(item.layer, HybridLayer):
            checked_positions(item.layer)
        else:
            check_bitmap(item.layer.values, item.layer.bitmap, item.shape)


def unpack_patterns(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, PatternInfo]:
    """The patterns, with their masks, of the packed layers of a file.

    Raises:
        InputError: a packed layer is damaged; names the tensor.
    """
    patterns: dict[str, PatternInfo] = {}
    for name, item in packed_tensors(tensors, metadata).items():
        layer = item.layer
        with _naming(name):
            if isinstance(layer, HybridLayer):
                mask = _from_matrix(hybrid_mask(layer), item.shape)
                patterns[name] = PatternInfo("hybrid", layer.n, layer.m, layer.block, mask)
            else:
                mask = _from_matrix(bitmap_mask(layer.bitmap, _matrix_shape(item.shape)), item.shape)
                patterns[name] = PatternInfo("unstructured", 1, 1, 0, mask)
    return patterns


def size_report(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, int]:
    """Where the bytes of the file go that holds these tensors and this metadata.

    Returns:
        Bytes: ``values``, ``offsets``, ``columns`` and ``bitmap`` of the packed layers, ``dense`` for all other
        tensors, ``header`` for the length, the JSON and its padding, ``total`` for the file on disk (their sum).
        Bits: ``padding_bits``, the unused ones inside ``offsets``, ``columns`` and ``bitmap``.

    Raises:
        InputError: the metadata does not fit the tensors.
    """
    packed = packed_tensors(tensors, metadata)
    report = dict.fromkeys(("values", "offsets", "columns", "bitmap"), 0)
    padding = 0
    for item in packed.values():
        layer = item.layer
        report["values"] += layer.values.nbytes
        if isinstance(layer, HybridLayer):
            geometry = layer.geometry
            report["offsets"] += layer.offsets.nbytes
            report["columns"] += layer.columns.nbytes
            padding += -(layer.values.size * geometry.offset_width) % 8
            padding += -(geometry.column_count(layer.kept) * geometry.column_width) % 8
        else:
            report["bitmap"] += layer.bitmap.nbytes
            padding += -math.prod(item.shape) % 8
    report["dense"] = sum(array.nbytes for array in plain_tensors(tensors, packed).values())
    report["header"] = header_bytes(tensors, metadata)
    report["total"] = sum(report.values())
    report["padding_bits"] = padding
    return report


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns a packed layer's ValueError into an InputError that names the tensor."""
    try:
        yield
    except PackedLayerError as error:
        raise _damaged(f"tensor '{name}.{error.part}': {error.reason}") from error
    except ValueError as error:
        raise _damaged(f"packed layer {name!r}: {error}") from error


def _pack(name: str, array: NDArray[Any], pattern: PatternInfo) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if not 2 <= array.ndim <= 5 or pattern.mask.shape != array.shape:
        raise ValueError(f"weight {list(array.shape)} and mask {list(pattern.mask.shape)} must agree, as [O, I, ...]")
    weight, mask = _to_matrix(array), _to_matrix(pattern.mask)
    entry: dict[str, Any] = {"pattern": pattern.kind, "shape": list(array.shape)}
    if pattern.kind == "unstructured":
        values, bitmap = encode_bitmap(weight, mask)
        return {f"{name}.values": values, f"{name}.bitmap": bitmap}, entry
    if pattern.kind != "hybrid":
        raise ValueError(f"unknown pattern {pattern.kind!r}")
    layer = encode_hybrid(weight, mask, pattern.n, pattern.m, pattern.block)
    entry |= {"n": layer.n, "m": layer.m, "block": layer.block, "kept": layer.kept}
    return {f"{name}.{part}": getattr(layer, part) for part in _PARTS["hybrid"]}, entry


def _parse(name: str, entry: Any, tensors: Mapping[str, NDArray[Any]]) -> PackedTensor:
    kind = entry.get("pattern") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in _PARTS or entry.keys() != _KEYS[kind]:
        raise _damaged(f"packed layer {name!r} is not described as hybrid or unstructured")
    shape = entry["shape"]
    numbers = [value for key, value in entry.items() if key not in ("pattern", "shape")]
    if not isinstance(shape, list) or not all(type(value) is int and value >= 0 for value in shape + numbers):
        raise _damaged(f"packed layer {name!r} has a number that is no count")
    if not 2 <= len(shape) <= 5 or name in tensors:
        fault = "is stored both packed and dense" if name in tensors else f"has the shape {shape}"
        raise _damaged(f"packed layer {name!r} {fault}")
    parts: dict[str, NDArray[Any]] = {}
    for part in _PARTS[kind]:
        array = tensors.get(f"{name}.{part}")
        wanted = np.dtype(np.float32 if part == "values" else np.uint8)
        if array is None or array.dtype != wanted or array.ndim != 1:
            found = "is missing" if array is None else f"is {array.dtype} {list(array.shape)}"
            raise _damaged(f"tensor '{name}.{part}' {found}, one-dimensional {wanted} is expected")
        parts[part] = array
    if kind == "unstructured":
        return PackedTensor(tuple(shape), BitmapLayer(parts["values"], parts["bitmap"]))
    rows, taps, inputs = _matrix_shape(shape)
    layer = HybridLayer(rows, taps, inputs, entry["n"], entry["m"], entry["block"], entry["kept"], **parts)
    with _naming(name):
        _ = layer.geometry
    return PackedTensor(tuple(shape), layer)


def _affordable(shapes: Iterable[Iterable[int]], values: Iterable[NDArray[Any]]) -> bool:
    # A zero side must not hide a huge one from numpy, hence max(side, 1).
    weights = sum(math.prod(max(side, 1) for side in shape) for shape in shapes)
    return weights <= FREE_WEIGHTS + WEIGHTS_PER_VALUE * sum(array.size for array in values)


def _matrix_shape(shape: Iterable[int]) -> tuple[int, int, int]:
    rows, inputs, *kernel = shape
    return rows, math.prod(kernel), inputs


def _to_matrix(array: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(array, 1, -1).reshape(_matrix_shape(array.shape))


def _from_matrix(matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    rows, inputs, *kernel = shape
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(rows, *kernel, inputs), -1, 1))


def _damaged(reason: str) -> InputError:
    return InputError(reason, "the file is damaged: write it again or fetch it again")
