"""Parquet files in the Hugging Face image layout."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from billhook.data.decode import looks_intact
from billhook.data.folder import SPLIT_NAMES, TEST_SHARE
from billhook.data.source import EncodedRows, Labels, PartRows, Rows, Source
from billhook.data.splits import with_test
from billhook.errors import InputError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
SPLIT_PREFIX = re.compile(r"(train|validation|valid|val|test)(?![a-z0-9])")


class ParquetRows(EncodedRows):
    """Images that lie encoded in an Arrow column, read from disk on first use and never copied.

    Args:
        files: The parts, in order.
        column: The image column: binary, or a struct with a field ``bytes``.
        labels: int64 [n], over all parts.
    """

    def __init__(self, files: Sequence[Path], column: str, labels: Labels) -> None:
        super().__init__(labels)
        self.files = tuple(files)
        self.column = column
        self._chunks: list[Any] = []
        self._starts: Labels = np.zeros(0, dtype=np.int64)
        self._lock = threading.Lock()

    def encoded(self, index: int) -> memoryview:
        """The encoded bytes, without a copy."""
        self._load()
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        buffer = self._chunks[chunk][index - int(self._starts[chunk])].as_buffer()
        if buffer is None:
            raise OSError(0, "no bytes in the row")
        return memoryview(buffer)

    def name(self, index: int) -> str:
        """The row number within the split, and its first file."""
        return f"{self.files[0].parent.name}/{self.files[0].name} row {index}"

    def digest(self, indices: Sequence[int] | Labels) -> bytes:
        """A hash of row numbers, byte counts and checksums."""
        total = hashlib.sha256()
        for index in indices:
            try:
                data = self.encoded(int(index))
            except OSError:
                data = memoryview(b"")
            total.update(f"{index} {len(data)} {zlib.crc32(data)}\n".encode())
        return total.digest()

    def intact(self, index: int) -> bool:
        """Looks at the first and last bytes."""
        try:
            data = self.encoded(index)
        except OSError:
            return False
        return looks_intact(bytes(data[:12]), bytes(data[-64:]), len(data))

    def _load(self) -> None:
        with self._lock:
            if self._chunks:
                return
            import pyarrow as pa
            import pyarrow.parquet as pq

            chunks = []
            for file in self.files:
                for chunk in pq.read_table(file, columns=[self.column]).column(0).chunks:
                    chunks.append(chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk)
            chunks = [chunk for chunk in chunks if len(chunk)]
            self._starts = np.cumsum([0] + [len(chunk) for chunk in chunks])[:-1].astype(np.int64)
            self._chunks = chunks


def split_of(file: Path) -> str | None:
    """The split that a file belongs to: by its name's prefix, else by its folder's name (the hub's own conversion)."""
    for text in (file.name.lower(), file.parent.name.lower() + "-"):
        match = SPLIT_PREFIX.match(text)
        if match:
            return SPLIT_NAMES[match.group(1)]
    return None


def open_parquet(files: Sequence[Path], root: Path, name: str) -> Source:
    """Open parquet files.

    Args:
        files: All parts of all splits.
        root: Where they lie, for messages.
        name: The source's name.

    Raises:
        InputError: No training split, no image or label column, or labels that do not fit the class names.
    """
    parts: dict[str, list[Path]] = {}
    for file in sorted(files):
        split = split_of(file)
        if split:
            parts.setdefault(split, []).append(file)
    if "train" not in parts:
        raise InputError(f"no train-*.parquet in {root}", "name the files SPLIT-*.parquet: train, validation, test")
    image, label, names = _columns(parts["train"][0])
    splits: dict[str, Rows] = {}
    for split, members in parts.items():
        labels = _labels(members, image, label)
        rows: Rows = ParquetRows(members, image, labels)
        if (labels < 0).any():  # the hub marks withheld test labels with -1
            rows = PartRows(rows, np.flatnonzero(labels >= 0))
        if len(rows):
            splits[split] = rows
    if "train" not in splits:
        raise InputError(f"no labelled training images in {root}", "the label column must hold class numbers")
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    highest = max(int(rows.labels.max()) for rows in splits.values())
    classes = names or tuple(str(index) for index in range(highest + 1))
    if highest >= len(classes):
        raise InputError(
            f"label {highest} in {root}, but the files name only {len(classes)} classes",
            "correct the ClassLabel names in the schema metadata",
        )
    if "test" not in splits:
        splits |= with_test(splits["train"], classes, TEST_SHARE)
    return Source(name, classes, None, splits)


def _columns(file: Path) -> tuple[str, str, tuple[str, ...] | None]:
    """(image column, label column, class names if the metadata has them)."""
    schema = _schema(file)
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise InputError(
            f"no {'image' if image is None else 'label'} column in {file}: it has {', '.join(schema.names)}",
            "the image column is 'image' or 'img', the label column 'label' or 'fine_label'",
        )
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return image, label, None
    if isinstance(names, dict):  # the older form: {"0": "cat", "1": "dog"}
        names = [names[key] for key in sorted(names, key=int)]
    return image, label, tuple(str(name) for name in names)


def _schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {file}: not a parquet file", "download it again") from error


def _labels(files: Sequence[Path], image: str, label: str) -> Labels:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = []
    for file in files:
        schema = _schema(file)
        if image not in schema.names or label not in schema.names:
            raise InputError(f"{file} lacks the column '{image}' or '{label}'", "all parts need the same columns")
        if not pa.types.is_integer(schema.field(label).type):
            raise InputError(f"the column '{label}' of {file} is not of integers", "labels are class numbers from 0")
        columns.append(pq.read_table(file, columns=[label]).column(0).fill_null(-1).to_numpy().astype(np.int64))
    return np.concatenate(columns)
