"""Small image trees and parquet folders, made on the fly."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .pictures import picture

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes ``{"train/cat": 3, ...}`` into folders with that many PNG images."""

    def make(counts: dict[str, int], size: tuple[int, int] = (12, 12), root: str = "pets", suffix: str = "png") -> Path:
        for number, (folder, count) in enumerate(counts.items()):
            (tmp_path / root / folder).mkdir(parents=True)
            for index in range(count):
                picture(1000 * number + index, *size).save(tmp_path / root / folder / f"{index:04}.{suffix}")
        return tmp_path / root

    return make


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``{"train-00000-of-00001": [label, ...]}`` as parquet files of PNG images."""

    def make(
        files: dict[str, Sequence[int | None]],
        *,
        names: object = None,
        image: str = "image",
        label: str = "label",
        struct: bool = True,
        root: str = "set",
    ) -> Path:
        folder = tmp_path / root
        for number, (name, labels) in enumerate(files.items()):
            encoded = []
            for index in range(len(labels)):
                buffer = io.BytesIO()
                picture(100 * number + index, 16, 16).save(buffer, "PNG")
                encoded.append(buffer.getvalue())
            rows = [{"bytes": item, "path": None} for item in encoded] if struct else encoded
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
            table = pa.table({image: pa.array(rows, kind), label: pa.array(list(labels), pa.int64())})
            if names is not None:
                features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
                table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
            path = folder / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, row_group_size=3)
        return folder

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips where there is none."""
    folder = os.environ.get("BILLHOOK_DATA")
    if not folder or not Path(folder, "cifar10").is_dir():
        pytest.skip("BILLHOOK_DATA does not name a folder with the real data sets")
    return Path(folder)
