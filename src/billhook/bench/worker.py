"""The process that runs engines: ``python -m billhook.bench.worker JOB ANSWER``, two JSON files.

It imports what its engines need and nothing else: PyTorch only where PyTorch is timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from billhook.bench.jobs import OURS, Subject
from billhook.environment import peak_rss_bytes
from billhook.latency import Engine, in_turns, open_engine

WARM_RUNS = 3
"""After which an engine holds all the memory that it will."""


def main(question: str, answer: str) -> None:
    """Do one job."""
    job = json.loads(Path(question).read_text())
    Path(answer).write_text(json.dumps(TASKS[job["task"]](job)))


def _open(subject: Subject, job: Mapping[str, Any]) -> Engine:
    image = np.random.default_rng(0).standard_normal(job["shape"], np.float32)
    network: Any = Path(subject.source)
    if subject.engine == "torch":
        from billhook.bench.networks import network_of

        network = network_of(subject.source, subject.network, subject.model)
    return open_engine(subject.engine, network, image, subject.threads or job["threads"], subject.precision)


def _subjects(job: Mapping[str, Any]) -> list[Subject]:
    return [Subject(**entry) for entry in job["subjects"]]


def time_all(job: Mapping[str, Any]) -> dict[str, Any]:
    """Open, compare, time in turns."""
    engines: dict[tuple[str, str, str], Engine] = {}
    failed = []
    defaults = set()
    for subject in _subjects(job):
        try:
            engine = _open(subject, job)
            engine.run()
        except Exception as error:
            failed.append(f"{subject.engine} does not run the {subject.network} network: {_one_line(error)}")
            continue
        # What an engine chooses may be what was asked of it already.
        engines.setdefault((subject.engine, subject.network, engine.precision), engine)
        if subject.precision is None:
            defaults.add((subject.engine, subject.network, engine.precision))
    references: dict[str, Any] = {}
    differences = []
    for (_, network, _), engine in engines.items():
        output = np.array(engine.run(), np.float32)
        reference = references.setdefault(network, output)
        differences.append(float(np.abs(output - reference).max() / max(float(np.abs(reference).max()), 1e-30)))
    runs = {str(number): engine.run for number, engine in enumerate(engines.values())}
    times = in_turns(runs, blocks=job["blocks"], block_seconds=job["block_seconds"])
    timed = [
        {
            "engine": name,
            "network": network,
            "precision": precision,
            "blocks": [[round(value, 6) for value in block] for block in times[str(number)]],
            "difference": differences[number],
            "default": (name, network, precision) in defaults,
        }
        for number, (name, network, precision) in enumerate(engines)
    ]
    return {"timed": timed, "failed": failed}


def memory(job: Mapping[str, Any]) -> dict[str, int]:
    """Open one, run it, say what that took."""
    (subject,) = _subjects(job)
    engine = _open(subject, job)
    for _ in range(WARM_RUNS):
        engine.run()
    return {"bytes": _peak()}


def layers(job: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of ours, with times."""
    from billhook.bench.layers import describe

    (subject,) = _subjects(job)
    assert subject.engine == OURS
    engine: Any = _open(subject, job)
    image = np.random.default_rng(0).standard_normal((1, *job["shape"][1:]), np.float32)
    return describe(engine.network, image)


def _peak() -> int:
    """Of this program alone: what ``getrusage`` says counts the process that started this one where it was larger."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return peak_rss_bytes()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


TASKS = {"time": time_all, "memory": memory, "layers": layers}

if __name__ == "__main__":
    main(*sys.argv[1:])
