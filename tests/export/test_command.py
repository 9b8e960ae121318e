"""``billhook export`` on a finished run."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import billhook
from billhook.cli import run as command
from billhook.formats import read_network, read_safetensors, unpack_patterns
from billhook.runtime.reference import run

MODEL = ("--model", "tinycnn")


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def outputs(folder: Path) -> np.ndarray:
    with torch.no_grad():
        return billhook.load(folder, "tinycnn")(images()).numpy()


def test_packed_from_a_process(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments = ["export", str(folder), "--to", "packed", *MODEL, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "billhook", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    path = folder / "packed.safetensors"
    assert json.loads(done.stdout) == {
        "format": "packed", "path": str(path), "bytes": path.stat().st_size, "batch": None,
    }  # fmt: skip
    # The summary has one number more, and nothing else has changed.
    summary = json.loads(before["summary.json"])
    assert summary["pruned"]["bytes_packed"] is None
    summary["pruned"]["bytes_packed"] = path.stat().st_size
    assert json.loads((folder / "summary.json").read_text()) == summary
    rest = {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("summary.json", "packed.safetensors")}
    assert rest == {name: content for name, content in before.items() if name != "summary.json"}

    network = read_network(path)
    assert network.graph.labels == ("3", "5", "8")
    assert network.graph.preprocess is not None
    described = json.loads(before["architecture.json"])["preprocess"]
    assert network.graph.preprocess.size == described["input_size"]
    assert list(network.graph.preprocess.mean) == described["mean"]
    expected = outputs(folder)
    assert np.abs(run(network, images().numpy()) - expected).max() < 1e-4 * np.abs(expected).max()
    trained = unpack_patterns(*read_safetensors(folder / "model.safetensors"))
    packed = unpack_patterns(*read_safetensors(path))
    assert trained
    assert packed.keys() == trained.keys()
    for name, pattern in trained.items():
        assert np.array_equal(packed[name].mask, pattern.mask)
        assert (packed[name].n, packed[name].m, packed[name].block) == (pattern.n, pattern.m, pattern.block)


def test_exported_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["export", str(folder), "--to", "torch-export", *MODEL]) == 0
    path = folder / "model.pt2"
    assert capsys.readouterr().out == f"written {path}, {path.stat().st_size:,} bytes\n"
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    assert np.allclose(program(images()).detach().numpy(), outputs(folder), rtol=1e-4, atol=1e-6)
    assert json.loads((folder / "summary.json").read_text())["pruned"]["bytes_packed"] is None


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)
def test_onnx(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    out = tmp_path / "digits.onnx"
    assert command(["export", str(folder), "--to", "onnx", "--out", str(out), *MODEL, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"format": "onnx", "path": str(out), "bytes": out.stat().st_size, "batch": None}
    assert captured.err == ""
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, 8, 8])
    found = session.run(["logits"], {"image": images().numpy()})[0]
    assert np.allclose(found, outputs(folder), rtol=1e-4, atol=1e-5)
    assert str(Path.cwd()).encode() not in out.read_bytes()


def test_onnx_without_its_packages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    there = {"onnx": object(), "onnxscript": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name] if name in there else find(name))
    assert command(["export", str(folder), "--to", "onnx", *MODEL]) == 2
    assert capsys.readouterr().err == "error: onnxscript is not installed (pip install 'billhook[onnx]')\n"


def test_wrong_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert command(["export", *(str(argument) for argument in arguments)]) == 2
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    to = ("--to", "packed")
    assert fails(folder) == "error: --to is missing (see --help)"
    assert fails(folder, "--to", "pakced") == "error: --to pakced is unknown (did you mean 'packed'?)"
    assert "there is no directory" in fails(tmp_path / "nowhere", *to)
    (tmp_path / "empty").mkdir()
    assert "holds no finished run" in fails(tmp_path / "empty", *to)
    assert "--model SPEC" in fails(folder, *to)
    assert "is a directory" in fails(folder, *to, "--out", tmp_path / "empty", *MODEL)
    assert "there is no directory" in fails(folder, *to, "--out", tmp_path / "nowhere" / "p.safetensors", *MODEL)
    belongs = fails(folder, *to, "--out", folder / "model.safetensors", "--overwrite", *MODEL)
    assert "belongs to the run" in belongs


def test_a_file_that_exists(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "packed.safetensors"
    path.write_bytes(b"mine")
    assert command(["export", str(folder), "--to", "packed", *MODEL]) == 2
    assert path.read_bytes() == b"mine"
    assert "--overwrite" in capsys.readouterr().err
    assert command(["export", str(folder), "--to", "packed", *MODEL, "--overwrite", "--quiet"]) == 0
    assert read_network(path).graph.labels == ("3", "5", "8")


def test_another_place_is_noted_as_well(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "device.safetensors"
    assert command(["export", str(folder), "--to", "packed", "--out", str(out), *MODEL]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["pruned"]["bytes_packed"] == out.stat().st_size
    assert not (folder / "packed.safetensors").exists()
    assert not list(tmp_path.glob(".*"))
