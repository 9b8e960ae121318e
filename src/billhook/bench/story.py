"""``billhook bench``: the networks of a run in every engine that is there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from billhook import artifact
from billhook.bench import jobs
from billhook.bench.jobs import OURS, Setup, Subject
from billhook.bench.networks import Networks, networks_of
from billhook.bench.rows import BASE, Key, Measured, comparisons, rows
from billhook.bench.summary import fill
from billhook.delivery import FILES, export_run
from billhook.environment import describe_environment
from billhook.errors import InputError, RunError, UsageError, nearest
from billhook.export import export_packed
from billhook.latency import installed
from billhook.latency.engines import write_onnx
from billhook.progress import Progress
from billhook.report import write_report
from billhook.runtime import native

AGAINST = ("onnxruntime", "openvino", "torch")
"""Engines that ours is timed against, where they are installed."""

NEEDS = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "torch": ("torch",)}
BLOCKS = 10
SECONDS = 2.0
MOST_SECONDS = 86400.0


def bench(
    directory: str | Path,
    *,
    against: Sequence[str] | None = None,
    per_layer: bool = False,
    batch: int = 1,
    threads: int | None = None,
    model: str | None = None,
    seconds: float = SECONDS,
    memory: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the dense and the pruned network of a run in our runtime and in other engines; write it into the run.

    ``bench.json`` and ``report.html`` are written, ``packed.safetensors`` where it is missing, and the milliseconds go
    into ``summary.json``.

    Args:
        directory: A finished run.
        against: Of :data:`AGAINST`; None: those that are installed.
        per_layer: Also what the planner chose for each layer, and each layer's time.
        batch: Images at once.
        threads: Of every engine; None: all cores.
        model: The spec of a run of your own code.
        seconds: Of timing, for each row in each process, in ten turns.
        memory: Also the peak memory of each engine, in a process of its own.

    Returns:
        ``{"rows": [...], "comparisons": [...], "layers": [...], "notes": [...], ...}``; docs/bench.md describes it.

    Raises:
        UsageError: An engine that does not exist or is not installed; a number that makes no sense.
        InputError: No run, or a damaged one.
        RunError: Nothing could be timed, or the results cannot be written.
    """
    chosen, notes = engines(against)
    # NaN and infinity are neither.
    if batch < 1 or not 0 < seconds <= MOST_SECONDS or (threads is not None and threads < 1):
        raise UsageError(
            f"batch {batch}, threads {threads}, seconds {seconds}: not above zero, or more than a day", "see --help"
        )
    directory, progress = Path(directory), progress or Progress()
    networks = networks_of(directory, model)
    threads = threads or all_cores()
    setup = Setup((batch, *networks.shape), threads, BLOCKS, seconds / BLOCKS)
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = _Work(directory, Path(folder), networks, setup, model, progress, notes)
        measured = work.measure(chosen, memory)
        if per_layer:
            document["layers"] = work.layers(measured)
    if BASE not in measured.homes():
        notes.append("without ONNX Runtime there are no ratios to the dense network in it")
    document = {
        "rows": rows(measured, batch, threads),
        "comparisons": comparisons(measured.pairs),
        **document,
        "notes": notes,
        "input": list(setup.shape),
        "seconds_per_row": seconds,
        "environment": describe_environment(),
    }
    artifact.write_json(directory / artifact.BENCH, document)
    fill(directory, document)
    write_report(directory)
    return document


def engines(against: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Which engines ours is timed against, and a line on each that is not there.

    Raises:
        UsageError: One that was named does not exist or is not installed.
    """
    chosen, notes = [], []
    for name in AGAINST if against is None else dict.fromkeys(against):
        if name not in NEEDS:
            raise UsageError(f"--against {name} is unknown", nearest(name, AGAINST))
        missing = [package for package in NEEDS[name] if not installed(package)]
        if not missing:
            chosen.append(name)
        elif against is None:
            notes.append(f"{name} is left out: {' and '.join(missing)} not installed (pip install 'billhook[bench]')")
        else:
            raise UsageError(
                f"--against {name}: {' and '.join(missing)} not installed", "pip install 'billhook[bench]'"
            )
    return chosen, notes


class _Work:
    """The files of one call, made when they are first asked for."""

    def __init__(
        self,
        directory: Path,
        folder: Path,
        networks: Networks,
        setup: Setup,
        model: str | None,
        progress: Progress,
        notes: list[str],
    ) -> None:
        self.directory, self.folder, self.networks, self.setup = directory, folder, networks, setup
        self.model, self.progress, self.notes = model, progress, notes
        self.packed = self._packed()
        if self.packed and not native.available():
            notes.append(f"{OURS} takes the slow path, numpy: the native library is not there ({native.reason()})")

    def measure(self, others: Sequence[str], memory: bool) -> Measured:
        """Times, bytes and, where it is asked for, memory.

        Raises:
            RunError: Nothing could be timed.
        """
        measured = Measured()
        for other in others or [""]:
            self.progress.say(f"timing {OURS}{' against ' + other if other else ''}")
            measured.pairs[other], failed = jobs.time_together(self.pair(other), self.setup)
            self.notes += [text for text in failed if text not in self.notes]
        if not any(measured.pairs.values()):
            raise RunError("no engine runs the network", "; ".join(self.notes))
        if memory:
            self.progress.say("measuring memory")
        for key in measured.homes():
            subject = self.subject(key)
            measured.bytes[key] = self.bytes(subject)
            peak = jobs.peak_memory(subject, self.setup) if memory else None
            if peak is not None:
                measured.memory[key] = peak
        return measured

    def layers(self, measured: Measured) -> list[dict[str, Any]]:
        """The layers of ours, in every precision that was timed; numpy has none."""
        if not native.available():
            return []
        keys = [key for key in measured.homes() if key[0] == OURS]
        return [{"network": key[1]} | jobs.layers(self.subject(key), self.setup) for key in keys]

    def pair(self, other: str) -> list[Subject]:
        """What is timed in one process: the other engine first, since it is what ours is compared with."""
        result = []
        for network in self.networks.modules:
            if other:
                result.append(self.subject((other, network, "f32")))
            if other == "openvino":
                result.append(self.subject((other, network, "")))
            if network in self.packed:
                result += [self.subject((OURS, network, precision)) for precision in our_precisions()]
        return result

    def subject(self, key: Key) -> Subject:
        """A network in an engine; the precision "" stands for the engine's own choice."""
        engine, network, precision = key
        if engine == "torch":
            return Subject(engine, network, str(self.directory), precision or None, self.model)
        source = self.packed[network] if engine == OURS else self._onnx(network)
        return Subject(engine, network, str(source), precision or None)

    def bytes(self, subject: Subject) -> int:
        """Of the file that holds the network; PyTorch reads the run's."""
        if subject.engine != "torch":
            return os.path.getsize(subject.source)
        if subject.network == self.networks.delivered:
            return os.path.getsize(self.directory / artifact.WEIGHTS)
        return artifact.file_bytes(artifact.state_arrays(self.networks.modules[subject.network]), {})

    def _onnx(self, network: str) -> Path:
        path = self.folder / f"{network}.onnx"
        return path if path.is_file() else write_onnx(self.networks.modules[network], self.setup.shape, path)

    def _packed(self) -> dict[str, Path]:
        """Packed files by network; none where an operator is unknown to them, which is said once."""
        found: dict[str, Path] = {}
        for network, module in self.networks.modules.items():
            try:
                if network == self.networks.delivered:
                    path = self.directory / FILES["packed"]
                    if not path.is_file():
                        self.progress.say(f"writing {path}")
                        export_run(self.directory, "packed", model=self.model)
                else:
                    path = self.folder / FILES["packed"]
                    export_packed(module, path, input_shape=self.networks.shape)
                found[network] = path
            except InputError as error:
                self.notes.append(f"{OURS} does not run the {network} network: {error.message}")
        return found


def our_precisions() -> list[str]:
    """What our runtime computes in here: bf16 only where the CPU multiplies it."""
    fast = native.available() and native.ISAS[native.best()] == "avx512_bf16"
    return ["f32", "bf16"] if fast else ["f32"]


def all_cores() -> int:
    """Of the machine, or those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
