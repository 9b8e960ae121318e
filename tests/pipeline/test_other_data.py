"""A run meets data whose classes come in another order, or that have more of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import billhook as bh
from billhook.api import classify, measure
from billhook.cli import run
from billhook.data import open_source
from billhook.errors import InputError

from .small import EFFORT

ANIMALS = {"ant": 0, "bee": 1, "cat": 3, "dog": 6}
"""Four digits under other names."""


def pictures(digit: int, split: str, count: int) -> list[Image.Image]:
    """Images of one digit."""
    rows = open_source("digits").splits[split]
    return [rows.pil(int(index)) for index in np.flatnonzero(rows.labels == digit)[:count]]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of the four animals."""
    root = tmp_path_factory.mktemp("data") / "zoo"
    for name, digit in ANIMALS.items():
        for split, count in (("train", 60), ("test", 20)):
            (root / split / name).mkdir(parents=True)
            for number, image in enumerate(pictures(digit, split, count)):
                image.save(root / split / name / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as parquet, the classes in another order, with a stranger in their middle."""
    names = ["dog", "cat", "wolf", "ant", "bee"]
    root = tmp_path_factory.mktemp("data") / "parquet"
    root.mkdir()
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    for split, count in (("train", 60), ("test", 20)):
        rows: list[dict[str, Any]] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            for image in pictures(ANIMALS.get(name, 8), split, count):
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                rows.append({"bytes": buffer.getvalue(), "path": None})
                labels.append(label)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def dense(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    train = ["train", "tinycnn", "--data", str(zoo), "--epochs", "8", "--batch-size", "32", "--quiet"]
    assert run([*train, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module", params=["slice", "full"])
def kept(request: pytest.FixtureRequest, zoo: Path, dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps two of the animals, with either head."""
    out = tmp_path_factory.mktemp("runs") / "kept"
    given: dict[str, Any] = {"weights": dense / "model.safetensors", "classes": ["dog", "bee"], "head": request.param}
    bh.prune("tinycnn", str(zoo), budget="sparsity>=70%", out=out, **given, **(EFFORT | {"epochs": 8}))
    return out


def test_another_order_and_more_classes(kept: Path, zoo: Path, shuffled: Path) -> None:
    home, abroad = measure(str(kept), str(zoo)), measure(str(kept), str(shuffled))
    assert home["classes"] == ["bee", "dog"]
    assert home["images"] == abroad["images"] == 40
    assert abroad == home
    assert home["top1_kept"] > 0.6
    summary = json.loads((kept / "summary.json").read_text())
    assert home["top1_kept"] == summary["pruned"]["top1_kept"]


def test_the_dense_run_meets_the_other_order(dense: Path, zoo: Path, shuffled: Path) -> None:
    names = ["ant", "bee", "cat", "dog"]
    home, abroad = measure(str(dense), str(zoo)), measure(str(dense), str(shuffled))
    assert home["classes"] == abroad["classes"] == names
    assert abroad == home
    assert home["top1_kept"] > 0.6
    some = measure(str(dense), str(shuffled), classes=["dog", "ant"])
    assert some["classes"] == ["ant", "dog"]


def test_names_in_another_case_are_the_same_classes(kept: Path, shuffled: Path) -> None:
    assert measure(str(kept), str(shuffled), classes=["Dog", "BEE"]) == measure(str(kept), str(shuffled))


def test_a_label_file_with_ids(zoo: Path, dense: Path, tmp_path: Path) -> None:
    """Folders are ids, the labels give them names: both are understood, before and after slicing."""
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([[name, f"the {name}"] for name in ANIMALS]))
    given: dict[str, Any] = {"weights": dense / "model.safetensors", "classes": ["the dog", "bee"], "labels": labels}
    out = tmp_path / "run"
    result = bh.prune("tinycnn", str(zoo), budget="sparsity>=70%", out=out, **given, **EFFORT)
    assert result.summary["classes"] == ["the bee", "the dog"]
    whole = measure(str(out), str(zoo))
    assert whole["top1_kept"] == result.summary["pruned"]["top1_kept"]
    for one in ("dog", "the dog"):
        assert measure(str(out), str(zoo), classes=[one])["classes"] == ["the dog"]


def test_predict_names_the_class(kept: Path, zoo: Path) -> None:
    files = sorted((zoo / "test" / "dog").iterdir())[:10] + sorted((zoo / "test" / "bee").iterdir())[:10]
    rows = classify(kept, files)
    right = sum(row["label"] == file.parent.name for row, file in zip(rows, files, strict=True))
    assert right > 12
    assert all(0 < row["probability"] <= 1 for row in rows)


def test_data_without_a_kept_class(kept: Path) -> None:
    with pytest.raises(InputError, match="bee"):
        measure(str(kept), "digits")


def test_pruning_a_run_further_on_other_data(kept: Path, shuffled: Path) -> None:
    result = bh.prune(str(kept), str(shuffled), classes=["bee", "dog"], budget="sparsity>=85%", **EFFORT)
    assert result.met
    assert result.summary["classes"] == ["bee", "dog"]
    with torch.no_grad():
        assert result.model(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
