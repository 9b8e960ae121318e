"""Reading and writing safetensors files with numpy alone.

The public layout: 8 bytes with the header's length N (unsigned, little-endian), N bytes of JSON, then the tensors'
bytes, C order, little-endian, without holes. A header read here is untrusted: it is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError, RunError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
METADATA_KEY = "__metadata__"

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}


class _Tensor(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> int:
    """Writes a file that any safetensors reader opens; the same input gives the same bytes.

    Tensors are laid out by falling element size and then by name, so that each begins at a multiple of its element
    size. The file appears under its name only when it is whole: it is written beside it, flushed to disk and renamed.

    Args:
        path: The file; one that exists is replaced.
        tensors: Arrays by name, any shape, of the types F64 F32 F16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL.
        metadata: Text by name; no entry is written when it is empty.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: a name, a type or a metadata value that the layout cannot hold.
        RunError: the file could not be written; nothing is left behind.
    """
    target = Path(path)
    header = _header(tensors, metadata)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    size = len(header)
    try:
        try:
            with open(partial, "xb") as file:
                file.write(header)
                for name in _order(tensors):
                    array = np.asarray(tensors[name])
                    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
                    size += flat.nbytes
                    if flat.size:
                        file.write(flat.view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {target}: {error.strerror or error}", "check the folder and the free disk space"
        ) from error
    return size


def header_bytes(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> int:
    """Bytes before the first tensor in the file that :func:`write_safetensors` would write: length, JSON, padding.

    Raises:
        ValueError: as :func:`write_safetensors`.
    """
    return len(_header(tensors, metadata))


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Reads a whole file after checking its header against its size.

    The memory taken is the file's size (a tensor that a foreign writer left unaligned is copied once more). BF16 has
    no numpy type: it comes back as the uint16 of its bits.

    Returns:
        The tensors by name, in file order, writable and aligned; and the metadata, empty when there is none.

    Raises:
        InputError: the file cannot be read, or is not a valid safetensors file; names the file and the reason.
    """
    where = Path(path)
    try:
        with open(where, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            records, metadata, start = _read_header(where, file.read(8), size, file)
            body = np.empty(size - start, np.uint8)
            if file.readinto(body.data) != body.size:
                raise _invalid(where, "it became shorter while it was read")
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror or error}", "check the path") from error
    tensors: dict[str, NDArray[Any]] = {}
    for record in records:
        octets = body[record.begin : record.end]
        if record.dtype.kind == "b" and octets.size and int(octets.max()) > 1:
            raise _invalid(where, f"tensor {record.name!r} is BOOL but holds bytes other than 0 and 1")
        array = octets.view(record.dtype).reshape(record.shape)
        tensors[record.name] = array if array.flags.aligned else array.copy()
    return tensors, metadata


def load_json(text: str | bytes) -> Any:
    """Parses JSON from an untrusted file; refuses repeated keys, NaN, half characters and deep nesting.

    Raises:
        ValueError: the text is not such a document.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _order(tensors: Mapping[str, NDArray[Any]]) -> list[str]:
    return sorted(tensors, key=lambda name: (-np.asarray(tensors[name]).dtype.itemsize, name))


def _header(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata entry {key!r} is not text by text")
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError("tensor names are text")
    if METADATA_KEY in tensors:
        raise ValueError(f"a tensor cannot be called {METADATA_KEY!r}")
    document: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name in _order(tensors):
        array = np.asarray(tensors[name])
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise ValueError(f"tensor {name!r} has type {array.dtype}, which safetensors cannot hold")
        end = begin + array.nbytes
        document[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    # UnicodeEncodeError, for a lone surrogate in a name, is a ValueError too.
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"the header takes {len(text)} bytes, more than the {MAX_HEADER_BYTES} that readers accept")
    return len(text).to_bytes(8, "little") + text


def _sync_folder(folder: Path) -> None:
    # Not every platform lets a folder be opened; the rename is then as durable as that platform makes it.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_header(where: Path, prefix: bytes, size: int, file: Any) -> tuple[list[_Tensor], dict[str, str], int]:
    if len(prefix) < 8:
        raise _invalid(where, "it is shorter than 8 bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise _invalid(where, f"its header claims {length} bytes, the file has {size}")
    text: bytes = file.read(length)
    if not text.startswith(b"{"):
        raise _invalid(where, "its header is not a JSON object")
    try:
        document = load_json(text)
    except ValueError as error:
        raise _invalid(where, f"its header is not valid JSON: {error}") from error
    metadata = document.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(where, f"{METADATA_KEY} is not a JSON object of text")
    records = [_record(where, name, entry) for name, entry in document.items()]
    records.sort(key=lambda record: (record.begin, record.end))
    reached = 0
    for record in records:
        if record.begin != reached:
            fault = "overlaps the tensor before it" if record.begin < reached else "leaves a hole before it"
            raise _invalid(where, f"tensor {record.name!r} begins at {record.begin}, not {reached}: it {fault}")
        reached = record.end
    if 8 + length + reached != size:
        raise _invalid(where, f"its tensors end at byte {8 + length + reached}, the file at {size}")
    return records, metadata, 8 + length


def _record(where: Path, name: str, entry: Any) -> _Tensor:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _invalid(where, f"tensor {name!r} lacks one of dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _invalid(where, f"tensor {name!r} has the unknown type {kind!r}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _invalid(where, f"tensor {name!r} has a bad shape")
    if not _counts(offsets) or len(offsets) != 2:
        raise _invalid(where, f"tensor {name!r} has bad data_offsets")
    dtype = np.dtype(_DTYPES[kind])
    # numpy multiplies the sizes of an empty array too, leaving the zeros out.
    if math.prod(max(side, 1) for side in shape) * dtype.itemsize >= 1 << 63:
        raise _invalid(where, f"tensor {name!r} has a shape beyond all memory")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _invalid(
            where, f"tensor {name!r} of shape {shape} and type {kind} does not fill bytes {offsets[0]} to {offsets[1]}"
        )
    return _Tensor(name, dtype, tuple(shape), offsets[0], offsets[1])


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    for word in (*result, *result.values()):
        if isinstance(word, str):
            word.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, hence a ValueError
    return result


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _invalid(where: Path, reason: str) -> InputError:
    return InputError(f"{where} is not a valid safetensors file: {reason}", "write it again or fetch it again")
