"""Two processes on one machine: the same saliency as one, and processes that end alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from billhook.scores import mean_absolute_gradient

from .small import TinyNet, data, preprocess, room, seeded

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(arguments: list[str], timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Run something in two processes."""
    return subprocess.run(
        [*LAUNCH, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    done = launch([str(Path(__file__).with_name("rank_script.py")), str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_saliency_equals_one_processs(ranks):
    net = seeded(TinyNet)
    alone = mean_absolute_gradient(net, dict(net.named_parameters()), data().train, preprocess(), room(), micro_batch=5)
    for name, value in alone.items():
        assert torch.equal(ranks[0]["saliency"][name], ranks[1]["saliency"][name])
        assert torch.allclose(ranks[0]["saliency"][name], value, rtol=1e-6, atol=1e-9), name


@pytest.mark.slow
def test_processes_end_bit_identical(ranks):
    assert ranks[0]["state"] == ranks[1]["state"]
    assert ranks[0]["loss"] == ranks[1]["loss"]


@pytest.mark.slow
def test_a_failure_of_one_process_ends_all(ranks):
    for rank in ranks:
        assert "the loss is nan at step 0" in rank["error"]
        assert rank["any"] == [True, False]
    assert [rank["first"] for rank in ranks] == ["ZeroDivisionError", "RunError"]


@pytest.mark.slow
def test_what_the_first_process_found_all_have(ranks):
    assert [rank["from_first"] for rank in ranks] == [{"rank": 0}, {"rank": 0}]


PRUNE = [
    *("prune", "tinycnn", "--data", "digits", "--classes", "1,2,3", "--method", "crisp"),
    *("--budget", "sparsity>=70%", "--epochs", "2", "--images-per-class", "40", "--batch-size", "16", "--json"),
]


@pytest.mark.slow
def test_the_command_line_in_two_processes(tmp_path):
    out = tmp_path / "run"
    done = launch(["-m", "billhook", *PRUNE, "--out", str(out)])
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)  # one document: one process speaks
    assert summary["budget"][0]["met"]
    assert summary["budget"][0]["value"] >= 0.7
    assert summary == json.loads((out / "summary.json").read_text())
    assert not (out / ".partial").exists()
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["phase"] == "prune" and line["event"] == "epoch"]
    assert steps == sorted(set(steps))  # each epoch once
    assert done.stderr.count("prune    epoch   1.00") == 1

    again = launch(["-m", "billhook", *PRUNE, "--out", str(out)])
    assert again.returncode != 0
    assert json.loads(again.stdout)["error"]["kind"] == "input"
    assert summary == json.loads((out / "summary.json").read_text())
