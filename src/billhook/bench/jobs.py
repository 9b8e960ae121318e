"""Work for processes of their own: engines timed in turns, the memory of one, the layers of ours.

Each pair of engines has its own process, so that the threads of two other engines never meet; within it the networks
take turns. What goes there and comes back is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from billhook.errors import RunError
from billhook.latency import Blocks

OURS = "billhook"


@dataclass(frozen=True)
class Subject:
    """One network in one engine.

    Attributes:
        engine: A key of :data:`billhook.latency.ENGINES`.
        network: ``dense`` or ``pruned``; networks of one name compute the same.
        source: A packed file for ``billhook``, a run directory for ``torch``, an ONNX file for all others.
        precision: ``f32``, ``bf16``, or None for what the engine chooses.
        model: For ``torch``: the spec of a run of your own code.
        threads: Other than those that all have in common.
    """

    engine: str
    network: str
    source: str
    precision: str | None = None
    model: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Timed:
    """A subject with its times.

    Attributes:
        engine: As asked.
        network: As asked.
        precision: What the engine says that it computes in.
        blocks: Milliseconds of every run, by turn.
        difference: Largest difference of an output from the same network's in the first engine that was named, over
            the largest output.
        default: The precision is what the engine chooses when nothing is asked of it.
    """

    engine: str
    network: str
    precision: str
    blocks: Blocks
    difference: float
    default: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """(engine, network, precision)."""
        return self.engine, self.network, self.precision


@dataclass(frozen=True)
class Setup:
    """What all that is timed together has in common.

    Attributes:
        shape: Of the input: [N, C, H, W].
        threads: Of every engine.
        blocks: Turns of each subject.
        block_seconds: Of one turn.
        python: Another interpreter, for an engine that needs its own environment.
        path: Where that one finds billhook.
    """

    shape: tuple[int, int, int, int]
    threads: int
    blocks: int = 10
    block_seconds: float = 0.2
    python: str = field(default=sys.executable, compare=False)
    path: str | None = field(default=None, compare=False)


def time_together(subjects: Sequence[Subject], setup: Setup) -> tuple[list[Timed], list[str]]:
    """Time subjects in turns, in one process.

    Args:
        subjects: At most two engines in all. One without a precision is left out where its engine chooses one that is
            among them already.
        setup: Input, threads, turns.

    Returns:
        Times, in the order of ``subjects``; and a line on each subject that its engine could not run.

    Raises:
        RunError: The process failed as a whole.
    """
    found = _in_process("time", subjects, setup)
    return [Timed(**entry) for entry in found["timed"]], list(found["failed"])


def peak_memory(subject: Subject, setup: Setup) -> int | None:
    """Bytes that a process holds at most which opens one subject and runs it; None where that failed.

    Python, numpy and the engine's libraries are part of it.
    """
    try:
        return int(_in_process("memory", [subject], setup)["bytes"])
    except RunError:
        return None


def layers(subject: Subject, setup: Setup) -> dict[str, Any]:
    """What the planner chose for each layer of a network in our runtime, and the time of each.

    Returns:
        ``{"precision", "peak_gflops", "layers": [...]}``, see :func:`billhook.bench.layers.describe`.

    Raises:
        RunError: The process failed.
    """
    found: dict[str, Any] = _in_process("layers", [subject], setup)
    return found


def _in_process(task: str, subjects: Sequence[Subject], setup: Setup) -> Any:
    common = {key: value for key, value in asdict(setup).items() if key not in ("python", "path")}
    return _answer({"task": task, "subjects": [asdict(subject) for subject in subjects]} | common, setup)


def _answer(job: dict[str, Any], setup: Setup) -> Any:
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(setup.threads)}
    if setup.path is not None:
        environment["PYTHONPATH"] = setup.path
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        question.write_text(json.dumps(job))
        command = [setup.python, "-m", "billhook.bench.worker", str(question), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode or not answer.is_file():
            raise RunError(
                f"the process that runs {' and '.join(_engines(job))} failed: {_reason(done)}",
                "leave an engine out with --against",
            )
        return json.loads(answer.read_text())


def _engines(job: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(subject["engine"] for subject in job["subjects"]))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
