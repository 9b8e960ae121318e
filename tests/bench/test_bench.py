"""A run benched: what goes to other processes and comes back, what is written, what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from billhook import artifact
from billhook.bench import jobs
from billhook.bench.jobs import OURS, Setup, Subject, peak_memory, time_together
from billhook.bench.networks import network_of, networks_of
from billhook.bench.story import bench
from billhook.cli.bench import describe
from billhook.delivery import export_run
from billhook.errors import InputError, RunError, UsageError
from billhook.formats import read_network
from billhook.latency import installed as is_installed
from billhook.latency import open_engine
from billhook.latency.engines import write_onnx
from billhook.runtime import native, reference

from .test_rows import CONTRACT

QUICK = {"seconds": 0.02, "threads": 1, "memory": False}
SETUP = Setup((1, 3, 8, 8), 1, 2, 0.001)


def engine_or_skip(name: str) -> str:
    if name == OURS and not native.available():
        pytest.skip("the native library is not built")
    if name not in (OURS, "torch") and not (is_installed("onnx") and is_installed(name)):
        pytest.skip(f"{name} is not installed")
    return name


# Networks and engines


def test_both_networks_have_the_head_as_delivered(made: Path) -> None:
    networks = networks_of(made)
    assert networks.shape == (3, 8, 8)
    assert list(networks.modules) == ["dense", "pruned"]
    zeros = {
        name: sum(int((p == 0).sum()) for p in module.parameters() if p.dim() > 1)
        for name, module in networks.modules.items()
    }
    assert zeros["pruned"] > 50_000 > 100 > zeros["dense"]
    shapes = [[p.shape for p in module.parameters()] for module in networks.modules.values()]
    assert shapes[0] == shapes[1]


def test_each_network_alone_is_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in networks_of(made).modules.items():
        alone = network_of(made, name).state_dict()
        assert all(torch.equal(alone[key], value) for key, value in module.state_dict().items())
    # What a process holds is measured: the dense network's must not have been through the other's weights.
    monkeypatch.setattr(artifact, "load_network", None)
    network_of(made, "dense")


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino", OURS])
@pytest.mark.parametrize("batch", [1, 3])
def test_engines_agree(made: Path, tmp_path: Path, engine: str, batch: int) -> None:
    networks = networks_of(made)
    module, shape = networks.modules["pruned"], (batch, *networks.shape)
    packed = tmp_path / "packed.safetensors"
    export_run(made, "packed", packed)
    sources = {"torch": module, OURS: packed}
    source = sources.get(engine_or_skip(engine)) or write_onnx(module, shape, tmp_path / "model.onnx")
    image = np.random.default_rng(1).standard_normal(shape, np.float32)
    opened = open_engine(engine, source, image, 1, "f32")
    assert opened.precision == "f32"
    expected = reference.run(read_network(packed), image)
    for _ in range(2):
        np.testing.assert_allclose(opened.run(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no engine 'onxruntime'"):
        open_engine("onxruntime", tmp_path, np.zeros((1, 3, 8, 8), np.float32), 1)


# Other processes


def test_a_worker_without_pytorch_networks_holds_no_pytorch() -> None:
    code = "import billhook.bench.worker, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.usefixtures("here")
def test_times_come_back_in_order(made: Path) -> None:
    subjects = [Subject("torch", network, str(made), "f32") for network in ("pruned", "dense")]
    timed, failed = time_together(subjects, SETUP)
    assert [entry.key for entry in timed] == [("torch", "pruned", "f32"), ("torch", "dense", "f32")]
    assert not failed
    assert all(len(entry.blocks) == 2 and min(map(min, entry.blocks)) > 0 for entry in timed)
    assert [entry.difference for entry in timed] == [0.0, 0.0]


@pytest.mark.usefixtures("here")
def test_one_that_cannot_run_is_named_and_left_out(made: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    engine = engine_or_skip("onnxruntime")
    subjects = [Subject(engine, "dense", str(broken), "f32"), Subject("torch", "dense", str(made), "f32")]
    timed, (failed,) = time_together(subjects, SETUP)
    assert [entry.engine for entry in timed] == ["torch"]
    assert failed.startswith("onnxruntime does not run the dense network: ")


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    gone = Subject("billhook", "dense", str(tmp_path / "missing"), "f32")
    with pytest.raises(RunError, match=r"the process that runs billhook failed: .*missing") as caught:
        jobs._in_process("memory", [gone], SETUP)
    assert "\n" not in caught.value.message
    assert peak_memory(gone, SETUP) is None


def test_memory_is_that_of_the_process_alone(made: Path, tmp_path: Path) -> None:
    """A process is started by one that holds far more."""
    engine = engine_or_skip("onnxruntime")
    source = write_onnx(networks_of(made).modules["dense"], (1, 3, 8, 8), tmp_path / "model.onnx")
    subject = Subject(engine, "dense", str(source), "f32")
    ballast = np.ones(400_000_000, np.uint8)
    found = peak_memory(subject, SETUP)
    assert found is not None
    assert 20_000_000 < found < 300_000_000 < ballast.nbytes


# A whole bench


@pytest.mark.usefixtures("here")
def test_a_bench_is_written_into_the_run(run_directory: Path) -> None:
    document = bench(run_directory, against=["torch"], **QUICK)
    assert json.loads((run_directory / "bench.json").read_text()) == json.loads(json.dumps(document))
    keys = {(row["engine"], row["network"]) for row in document["rows"]}
    assert {("torch", "dense"), ("torch", "pruned")} <= keys
    assert all(set(row) >= CONTRACT for row in document["rows"])
    assert {row["ratio_to_dense_onnxruntime"] for row in document["rows"]} == {None}
    summary = json.loads((run_directory / "summary.json").read_text())
    latency = summary["pruned"]["latency"]
    assert summary["pruned"]["latency_ms"] == latency["pruned"]["p50_ms"]
    assert summary["dense"]["latency_ms"] == latency["dense"]["p50_ms"]
    assert latency["pruned"]["engine"] == latency["dense"]["engine"]
    assert summary["pruned"]["bytes_packed"] == (run_directory / "packed.safetensors").stat().st_size
    assert len(read_network(run_directory / "packed.safetensors").graph.labels) == 3
    assert 'id="bench"' in (run_directory / "report.html").read_text()
    bytes_of = {(row["engine"], row["network"]): row["file_bytes"] for row in document["rows"]}
    assert bytes_of["torch", "pruned"] == summary["pruned"]["bytes"]
    assert bytes_of["torch", "dense"] == pytest.approx(summary["dense"]["bytes"], rel=0.05)


@pytest.mark.usefixtures("here")
def test_ratios_are_to_onnx_runtime(run_directory: Path) -> None:
    document = bench(run_directory, against=[engine_or_skip("onnxruntime")], batch=2, **QUICK)
    rows = {(row["engine"], row["network"], row["precision"]): row for row in document["rows"]}
    base = rows["onnxruntime", "dense", "f32"]
    assert base["ratio_to_dense_onnxruntime"] == 1.0
    for row in rows.values():
        assert row["ratio_to_dense_onnxruntime"] == pytest.approx(base["p50_ms"] / row["p50_ms"])
        assert row["ratio_low"] <= row["ratio_to_dense_onnxruntime"] <= row["ratio_high"]
        assert (row["batch"], row["threads"]) == (2, 1)
        assert row["max_difference"] < (1e-4 if row["precision"] == "f32" else 0.1)
    # A batch is not what a budget in milliseconds speaks of.
    assert json.loads((run_directory / "summary.json").read_text())["pruned"]["latency_ms"] is None


@pytest.mark.usefixtures("here")
def test_the_precision_that_an_engine_chooses_is_named_so(run_directory: Path) -> None:
    document = bench(run_directory, against=[engine_or_skip("openvino")], **QUICK)
    own = [row for row in document["rows"] if row["default"]]
    assert {(row["engine"], row["network"]) for row in own} == {("openvino", "dense"), ("openvino", "pruned")}
    assert f"openvino {own[0]['precision']} (default)" in describe(document)


@pytest.mark.usefixtures("here")
def test_ours_is_there_in_both_networks(run_directory: Path) -> None:
    engine_or_skip(OURS)
    document = bench(run_directory, against=[engine_or_skip("onnxruntime")], per_layer=True, **QUICK)
    ours = {(row["network"], row["precision"]) for row in document["rows"] if row["engine"] == OURS}
    assert {("dense", "f32"), ("pruned", "f32")} <= ours
    assert {entry["network"] for entry in document["comparisons"]} == {"dense", "pruned"}
    entry = next(e for e in document["layers"] if (e["network"], e["precision"]) == ("pruned", "f32"))
    convolutions = [layer for layer in entry["layers"] if layer["macs"]]
    assert len(convolutions) >= 4
    assert all(layer["ms"] > 0 and layer["gflops"] > 0 and layer["share_of_peak"] > 0 for layer in convolutions)
    summary = json.loads((run_directory / "summary.json").read_text())
    assert summary["pruned"]["latency"]["pruned"]["engine"] == OURS


@pytest.mark.usefixtures("here")
def test_a_run_that_was_asked_for_a_latency_keeps_its_own(run_directory: Path) -> None:
    path = run_directory / "summary.json"
    summary = json.loads(path.read_text())
    summary["budget"].append({"quantity": "latency", "relation": "<=", "bound": 5.0, "value": 4.0, "unit": "ms",
                              "value_absolute": 4.0, "met": True})  # fmt: skip
    summary["pruned"]["latency_ms"] = 4.0
    path.write_text(json.dumps(summary))
    bench(run_directory, against=["torch"], **QUICK)
    assert json.loads(path.read_text())["pruned"]["latency_ms"] == 4.0


@pytest.mark.usefixtures("here")
def test_what_is_not_installed_is_left_out_with_a_note(run_directory: Path, installed) -> None:
    installed("torch")
    document = bench(run_directory, **QUICK)
    assert {row["engine"] for row in document["rows"]} <= {"torch", OURS}
    assert any(note.startswith("openvino is left out: onnx and openvino not installed") for note in document["notes"])


@pytest.mark.usefixtures("here")
def test_what_was_named_must_be_there(run_directory: Path, installed) -> None:
    installed("torch", "onnx")
    with pytest.raises(UsageError, match="openvino not installed") as caught:
        bench(run_directory, against=["openvino"], **QUICK)
    assert "billhook[bench]" in caught.value.hint
    assert not (run_directory / "bench.json").exists()
    with pytest.raises(UsageError, match="--against tensorflow is unknown"):
        bench(run_directory, against=["tensorflow"], **QUICK)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"threads": 0}, *({"seconds": s} for s in (0.0, math.nan, math.inf))])
@pytest.mark.usefixtures("here")
def test_numbers_that_make_no_sense(run_directory: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="not above zero"):
        bench(run_directory, **{**QUICK, **wrong})


@pytest.mark.usefixtures("here")
def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        bench(tmp_path, **QUICK)


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:billhook's native library")
def test_numpy_runs_ours_where_nothing_was_compiled(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "it was not built"))
    document = bench(run_directory, against=["torch"], per_layer=True, **QUICK)
    ours = [(row["network"], row["precision"]) for row in document["rows"] if row["engine"] == OURS]
    assert ours == [("dense", "f32"), ("pruned", "f32")]
    assert (
        "billhook takes the slow path, numpy: the native library is not there (it was not built)" in document["notes"]
    )
    assert document["layers"] == []


@pytest.mark.usefixtures("here")
def test_a_trained_network_has_dense_rows_alone(tmp_path: Path) -> None:
    from billhook.cli import run

    train = ["train", "tinycnn", "--data", "digits", "--epochs", "0.2", "--quiet", "--out", str(tmp_path / "dense")]
    assert run(train) == 0
    document = bench(tmp_path / "dense", against=["torch"], **QUICK)
    assert {row["network"] for row in document["rows"]} == {"dense"}
    summary = json.loads((tmp_path / "dense" / "summary.json").read_text())
    assert summary["pruned"] is None
    assert summary["dense"]["latency_ms"] > 0
    sizes = {row["engine"]: row["file_bytes"] for row in document["rows"]}
    assert sizes["torch"] == summary["dense"]["bytes"]


# The command


def test_the_command_prints_one_json_document(run_directory: Path) -> None:
    engine = engine_or_skip("onnxruntime")
    command = [sys.executable, "-m", "billhook", "bench", str(run_directory), "--against", engine, "--threads", "1",
               "--seconds", "0.02", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    found = [row for row in document["rows"] if row["engine"] == engine]
    assert len(found) == 2
    assert all(row["peak_memory_bytes"] > 20_000_000 for row in found)
    assert "timing billhook against onnxruntime" in done.stderr


@pytest.mark.usefixtures("here")
def test_the_command_prints_a_table(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from billhook.cli import run

    arguments = ["bench", str(run_directory), "--against", "torch", "--threads", "1", "--seconds", "0.02", "--quiet"]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert "pruned  torch f32" in printed.out
    assert "1 image at a time, 1 thread; milliseconds" in printed.out
    assert "no ratios" in printed.out
    assert not printed.err


def test_a_wrong_engine_is_one_line_and_code_2(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from billhook.cli import run

    assert run(["bench", str(run_directory), "--against", "onnxruntim"]) == 2
    assert capsys.readouterr().err == ("error: --against onnxruntim is unknown (did you mean 'onnxruntime'?)\n")
