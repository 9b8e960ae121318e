"""Killed, interrupted, out of space: what was finished is kept, and resuming ends where an unbroken run ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import billhook as bh
from billhook.cli import common, run
from billhook.errors import InputError, Interrupted, RunError

from .small import AtStep


def command_line(weights: Path, out: Path, *more: str) -> list[str]:
    """A run of some fifty steps in twelve epochs, eight mask rounds in its first half."""
    given = ["prune", "tinycnn", "--weights", str(weights), "--data", "digits", "--classes", "3,5,8"]
    given += ["--images-per-class", "30"]
    given += ["--method", "crisp", "--set", "rounds=8", "--set", "saliency_images=16", "--budget", "sparsity>=85%"]
    return [*given, "--epochs", "12", "--batch-size", "16", "--control", "none", "--out", str(out), *more]


@pytest.fixture(scope="module")
def watched(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The run that nothing happened to, and how often it asked the disk to keep something."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    count = 0
    real = os.fsync

    def counted(descriptor: int) -> None:
        nonlocal count
        count += 1
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        assert run(command_line(weights, out, "--quiet")) == 0
    return out, count


@pytest.fixture
def unbroken(watched: tuple[Path, int]) -> Path:
    """The run that nothing happened to."""
    return watched[0]


def lines(run_directory: Path) -> list[dict[str, Any]]:
    """History without times."""
    found = [json.loads(line) for line in (run_directory / "history.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("seconds", None)
    return found


def same_run(a: Path, b: Path) -> None:
    """Weights, masks (they lie in the packed weights) and history are the same bytes."""
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert lines(a) == lines(b)
    first, second = (json.loads((run / "summary.json").read_text()) for run in (a, b))
    for volatile in ("seconds", "peak_rss_bytes", "environment"):
        del first[volatile], second[volatile]
    assert first == second
    assert not (a / ".partial").exists()


def journal_meta(out: Path, phase: str = "prune") -> dict[str, Any]:
    """What the journal says about the state that it holds."""
    with safe_open(out / ".partial" / f"{phase}.safetensors", framework="pt") as held:
        meta: dict[str, Any] = json.loads(held.metadata()["state"])
    return meta


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """A real process with the same number of threads."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "billhook", *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll until the condition holds; the process must not end before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 4], ids=["after the first state", "between two later rounds"])
def test_sigkill_then_resume(weights: Path, unbroken: Path, tmp_path: Path, rounds: int) -> None:
    out = tmp_path / "run"
    process = start(command_line(weights, out, "--quiet"))
    journal = out / ".partial" / "prune.safetensors"

    def reached() -> bool:
        return journal.is_file() and journal_meta(out)["plugin"]["round"] >= rounds

    try:
        wait_for(reached, process)
        time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    meta = journal_meta(out)
    assert 0 < meta["plugin"]["round"] < 8
    assert meta["plugin"]["frozen"] is False
    assert not (out / "summary.json").exists()
    assert run(command_line(weights, out, "--quiet", "--resume")) == 0
    same_run(out, unbroken)


def test_a_real_sigterm_ends_with_143(weights: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(command_line(weights, out, "--json"))
    wait_for((out / ".partial" / "prune.safetensors").is_file, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert json.loads(printed)["error"]["kind"] == "interrupted"
    assert run(command_line(weights, out, "--quiet", "--resume")) == 0
    same_run(out, unbroken)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Lets something happen to the next command in this process, after a step."""

    def plan(step: int, act: Callable[[], object], phase: str = "prune") -> None:
        monkeypatch.setattr(common, "make_progress", lambda *flags: AtStep(step, act, phase))

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield plan
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize(
    ("number", "code", "step"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 17), (signal.SIGINT, 130, 30)]
)
def test_signals_finish_the_step_and_save(
    weights: Path,
    unbroken: Path,
    tmp_path: Path,
    at_step: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    step: int,
) -> None:
    out = tmp_path / "run"
    at_step(step, lambda: os.kill(os.getpid(), number))
    assert run(command_line(weights, out)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert f"after step {step} of" in captured.err
    assert "--resume" in captured.err
    assert captured.err.count("\n") == 1
    assert journal_meta(out)["step"] == step
    assert not (out / "summary.json").exists()
    at_step(-1, list)
    assert run(command_line(weights, out)) == 2  # without --resume the unfinished run is safe
    assert "--resume continues it" in capsys.readouterr().err
    assert run(command_line(weights, out, "--resume")) == 0
    same_run(out, unbroken)


def test_interrupted_twice(weights: Path, unbroken: Path, tmp_path: Path, at_step: Callable[..., None]) -> None:
    out = tmp_path / "run"
    for step in (9, 34):
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT))
        resume = ["--resume"] if out.exists() else []
        assert run(command_line(weights, out, *resume)) == 130
    at_step(-1, list)
    assert run(command_line(weights, out, "--resume")) == 0
    same_run(out, unbroken)


def test_the_control_resumes_too(
    weights: Path, tmp_path: Path, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--epochs", "3", "--control", "run", "--quiet"]
    for name, step in (("whole", -1), ("broken", 4)):
        monkeypatch.setenv("BILLHOOK_CACHE", str(tmp_path / f"cache-{name}"))
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT), "control")
        code = run(command_line(weights, tmp_path / name, *given))
        assert code == (0 if step < 0 else 130)
    assert journal_meta(tmp_path / "broken", "control")["step"] == 4
    at_step(-1, list)
    assert run(command_line(weights, tmp_path / "broken", *given, "--resume")) == 0
    same_run(tmp_path / "broken", tmp_path / "whole")


def test_train_resumes(tmp_path: Path, at_step: Callable[..., None]) -> None:
    given = ["train", "tinycnn", "--data", "digits", "--epochs", "3", "--images-per-class", "40"]
    at_step(-1, list)
    assert run([*given, "--out", str(tmp_path / "whole")]) == 0
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM), "train")
    assert run([*given, "--out", str(tmp_path / "broken")]) == 143
    at_step(-1, list)
    assert run([*given, "--out", str(tmp_path / "broken"), "--resume"]) == 0
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken"))
    assert a == b


@pytest.fixture
def unfinished(weights: Path, tmp_path: Path, at_step: Callable[..., None]) -> Path:
    out = tmp_path / "run"
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run(command_line(weights, out)) == 130
    at_step(-1, list)
    return out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--seed", "1"], "seed was 0"),
        (["--epochs", "20"], "train.epochs was 12"),
        (["--set", "block=8"], "method.block"),
        (["--classes", "3,5"], "data.classes"),
    ],
)
def test_another_recipe_does_not_resume(
    weights: Path, unfinished: Path, more: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    assert run(command_line(weights, unfinished, "--resume", *more)) == 2
    message = capsys.readouterr().err
    assert "has another recipe" in message
    assert named in message
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


def test_other_weights_under_the_same_name_do_not_resume(
    weights: Path, tmp_path: Path, at_step: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(weights.read_bytes())
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run(command_line(mine, tmp_path / "run")) == 130
    at_step(-1, list)
    content = bytearray(mine.read_bytes())
    content[-2] ^= 1
    mine.write_bytes(content)
    assert run(command_line(mine, tmp_path / "run", "--resume")) == 2
    assert "weights or images of the unfinished run" in capsys.readouterr().err


def test_overwrite_drops_the_unfinished_run(weights: Path, unbroken: Path, unfinished: Path) -> None:
    assert run(command_line(weights, unfinished, "--overwrite")) == 0
    same_run(unfinished, unbroken)


def test_a_damaged_journal_is_refused(weights: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = unfinished / ".partial" / "prune.safetensors"
    journal.write_bytes(journal.read_bytes()[:1000])
    assert run(command_line(weights, unfinished, "--resume")) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_damaged_marker_is_refused(weights: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (unfinished / ".partial" / "recipe.json").write_text('{"recipe": {"mod')
    assert run(command_line(weights, unfinished, "--resume")) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_a_non_finite_loss_names_step_and_rate_and_keeps_the_state(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    hot = ["--lr", "1e30", "--set", "train.warmup=0", "--set", "train.schedule=constant", "--quiet"]
    assert run(command_line(weights, out, *hot)) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the loss is" in message
    assert "at step 1" in message
    assert "learning rate 1e+30" in message
    assert not (out / "summary.json").exists()
    assert (out / ".partial").is_dir()
    assert run(command_line(weights, out, *hot, "--resume")) == 1  # the same again, not something worse


def test_a_last_step_that_destroys_the_network_is_noticed(weights: Path, tmp_path: Path) -> None:
    """One step only: its loss was finite, and no other follows."""
    given: dict[str, Any] = {"weights": weights, "budget": "sparsity>=80%", "epochs": 1, "images_per_class": 8}
    wild = {"lr": 1e30, "warmup": 0, "batch_size": 64, "schedule": "constant"}
    with pytest.raises(RunError, match="not finite"):
        bh.prune("tinycnn", "digits", **given, train=wild, control="none", out=tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    train = ["train", "tinycnn", "--data", "digits", "--images-per-class", "8", "--epochs", "1", "--preset", "finetune"]
    wild_flags = ["--lr", "1e30", "--set", "warmup=0", "--set", "schedule=constant", "--quiet"]
    assert run([*train, *wild_flags, "--out", str(tmp_path / "dense")]) == 1
    assert not (tmp_path / "dense" / "summary.json").exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_a_full_disk(
    weights: Path,
    watched: tuple[Path, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
) -> None:
    """From the journal's first file to the last of the run directory: exit 1, one line, and --resume finishes."""
    calls, real = 0, os.fsync
    unbroken, flushes = watched
    limit = min(int(share * flushes), flushes - 1)

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    out = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full)
    assert run(command_line(weights, out, "--quiet")) == 1
    monkeypatch.setattr(os, "fsync", real)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "No space left on device" in message
    assert "space" in message.rpartition("(")[2]
    assert not [path.name for path in out.rglob("*") if path.suffix in (".tmp", ".partial") and path.is_file()]
    assert not (out / "summary.json").exists()
    if not (out / ".partial" / "recipe.json").exists():
        assert share == 0.0
        return
    assert run(command_line(weights, out, "--quiet", "--resume")) == 0
    same_run(out, unbroken)


def test_an_output_that_cannot_be_made(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(command_line(weights, tmp_path / "file" / "run", "--quiet")) == 1
    assert "cannot write in" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_the_python_api_raises_what_the_command_line_prints(weights: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"weights": weights, "budget": "sparsity>=80%", "epochs": 2, "images_per_class": 40}
    given |= {"control": "none", "out": tmp_path / "run"}
    with pytest.raises(Interrupted):
        bh.prune("tinycnn", "digits", **given, progress=AtStep(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(InputError, match="unfinished run"):
        bh.prune("tinycnn", "digits", **given)
    assert bh.prune("tinycnn", "digits", **given, resume=True).met
    with pytest.raises(InputError, match="finished"):
        bh.prune("tinycnn", "digits", **given, resume=True)


def test_the_learning_rate_may_change_on_the_way(unfinished: Path, weights: Path) -> None:
    """What the message after a non-finite loss advises: a lower rate, and on from the last good state."""
    assert (
        run(command_line(weights, unfinished, "--quiet", "--resume", "--lr", "0.004", "--set", "train.clip=1.0")) == 0
    )
    assert "lr: 0.004" in (unfinished / "recipe.yaml").read_text()
    rates = [line["lr"] for line in lines(unfinished) if line["event"] == "epoch"]
    assert all(rate <= 0.004 for rate in rates[-8:])
