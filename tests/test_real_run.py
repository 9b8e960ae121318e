"""Short runs on real images and real weights, through the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

from billhook.cli import run
from billhook.formats import read_safetensors, unpack_patterns
from billhook.patterns import NM, HybridPattern, check_hybrid, to_matrix

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def root() -> Path:
    where = os.environ.get("BILLHOOK_DATA")
    if not where or not (Path(where) / "cifar10").is_dir():
        pytest.skip("BILLHOOK_DATA does not name a folder with cifar10/, imagenette-mini/ and weights/")
    return Path(where)


@pytest.fixture(scope="module")
def few(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the real images: of Imagenette five of each class, of CIFAR-10 a thousand of either table."""
    folder = tmp_path_factory.mktemp("few")
    for split in ("train", "val"):
        for source in sorted((root / "imagenette-mini" / split).iterdir()):
            place = folder / "imagenette-mini" / split / source.name
            place.mkdir(parents=True)
            for image in sorted(source.iterdir())[:5]:
                shutil.copy(image, place)
    (folder / "cifar10").mkdir()
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        table = parquet.read_table(root / "cifar10" / name)
        parquet.write_table(table.take(list(range(0, len(table), len(table) // 1000))), folder / "cifar10" / name)
    return folder


@pytest.mark.parametrize(
    ("part", "images", "full", "kept"),
    [("few", 50, 0.76, 0.96), pytest.param("root", 500, 0.696, 0.972, marks=pytest.mark.slow)],
)
def test_mobilenet_on_imagenette(
    request: pytest.FixtureRequest,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    images: int,
    full: float,
    kept: float,
) -> None:
    """The measured accuracy of the shipped weights, with a label file that maps 10 folders into 1000 outputs."""
    data = request.getfixturevalue(part) / "imagenette-mini"
    arguments = ["evaluate", "mobilenet_v2,padding=tf", "--data", str(data), "--json"]
    arguments += ["--weights", str(root / "weights" / "imagenet_mobilenet_v2_tfqat.safetensors")]
    arguments += ["--labels", str(root / "imagenet_classes.json")]
    assert run(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == images
    # One of the few images, or three of all of them, for another order of floating-point sums.
    slack = 0.021 if images == 50 else 0.006
    assert result["top1_full"] == pytest.approx(full, abs=slack)
    assert result["top1_kept"] == pytest.approx(kept, abs=slack)
    assert len(result["classes"]) == 10
    assert sum(map(sum, result["confusion"])) == images


@pytest.mark.parametrize(
    ("part", "trained_on", "tested_on"),
    [("few", 300, 299), pytest.param("root", 900, 3000, marks=pytest.mark.slow)],
)
def test_prune_cifar(
    request: pytest.FixtureRequest,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    trained_on: int,
    tested_on: int,
) -> None:
    """A small run from real weights: the pattern holds in the file, and the network still knows its classes."""
    data = str(request.getfixturevalue(part) / "cifar10")
    out = tmp_path / "pets"
    arguments = ["prune", "resnet20", "--weights", str(root / "weights" / "cifar10_resnet20.safetensors")]
    arguments += ["--data", data, "--classes", "cat,dog,horse", "--method", "crisp"]
    arguments += ["--set", "nm=2:4", "--set", "block=16", "--budget", "sparsity>=70%"]
    arguments += [
        "--limit-train",
        str(trained_on),
        "--epochs",
        "3",
        "--seed",
        "0",
        "--out",
        str(out),
        "--json",
        "--quiet",
    ]
    assert run(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["budget"][0]["met"]
    assert 0.70 <= summary["pruned"]["sparsity"] < 0.702
    assert summary["dense"]["top1_kept"] > 0.9
    assert summary["dense_finetuned"]["top1_kept"] > 0.8
    assert summary["pruned"]["top1_kept"] > 0.6
    assert summary["images"]["test"] == tested_on
    patterns = unpack_patterns(*read_safetensors(out / "model.safetensors"))
    assert len(patterns) == 18
    import torch

    for info in patterns.values():
        check_hybrid(to_matrix(torch.from_numpy(info.mask)), HybridPattern(NM(2, 4), 16))
    assert run(["evaluate", str(out), "--data", data, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["top1_kept"] == pytest.approx(summary["pruned"]["top1_kept"], abs=1e-9)
    assert again["top1_full"] is None


def test_mobilenet_is_pruned_with_its_dense_layers_named(
    root: Path, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Depthwise layers stay dense and are named; three of a thousand outputs are kept through the label file."""
    arguments = ["prune", "mobilenet_v2,padding=tf", "--data", str(few / "imagenette-mini"), "--dry-run", "--json"]
    arguments += ["--weights", str(root / "weights" / "imagenet_mobilenet_v2_tfqat.safetensors")]
    arguments += ["--labels", str(root / "imagenet_classes.json"), "--classes", "tench,church,n03888257"]
    arguments += ["--method", "crisp", "--budget", "sparsity>=80%", "--batch-size", "4"]
    assert run(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    reasons = {entry["name"]: entry["reason"] for entry in plan["layers_left_dense"]}
    assert reasons["features.0.0"] == "first convolution"
    assert "depthwise" in reasons["features.2.conv.1.0"]
    assert plan["feasible"][0]["feasible"]
