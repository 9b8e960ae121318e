"""What a user of the runtime holds: a packed network that takes arrays or images and gives numbers or labels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError, RunError, UsageError, nearest
from billhook.formats import PackedNetwork, read_network
from billhook.runtime import native
from billhook.runtime.compile import Precision, scaling
from billhook.runtime.layout import Options
from billhook.runtime.runner import Native, Numpy, Runner, example

FILE = "packed.safetensors"
PRECISIONS = ("auto", "f32", "bf16")


class SlowRuntimeWarning(UserWarning):
    """The native library is missing: numpy does its work, many times slower."""


class Steps(list[dict[str, Any]]):
    """The steps of a network, one dictionary each; as text, a table."""

    def __str__(self) -> str:
        rows = [("step", "kind", "shape", "kept", "us", "GF/s", "how")]
        for step in self:
            seconds, work = step["seconds"], 2 * step["multiplications"]
            rows.append(
                (
                    step["name"],
                    step["kind"],
                    "x".join(map(str, step["shape"])),
                    f"{100 * step['density']:.1f} %" if work else "",
                    f"{1e6 * seconds:.0f}" if seconds else "",
                    f"{work / seconds / 1e9:.0f}" if seconds and work else "",
                    step["how"],
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        numbers = ("kept", "us", "GF/s")
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if name in numbers else cell.ljust(width)
                for cell, name, width in zip(row, rows[0], widths, strict=False)
            ]
            lines.append("  ".join((*cells, row[-1])).rstrip())
        return "\n".join(lines)


class Network:
    """A packed network, ready to run. Made by :func:`load`; calls from several threads take turns.

    Attributes:
        labels: Of the outputs; empty when the file has none.
        shape: Of one image: (channels, height, width).
        outputs: Numbers per image.
        precision: ``f32`` or ``bf16``: of activations and weights. Sums are always float32.
        threads: That share the work of one image.
        isa: Instruction set: avx512_bf16, avx512, avx2, portable; ``numpy`` without the native library.
        plan: The steps of the program and how each is run: name, kind, shape, choice, useful multiply-adds, and, where
            a planner measured it, seconds. As text, a table.
    """

    def __init__(self, network: PackedNetwork, runner: Runner) -> None:
        # Not the whole network: its weights are in the runner, and the file's bytes may go.
        self._graph, self._runner = network.graph, runner
        self.labels: tuple[str, ...] = network.graph.labels
        self.shape: tuple[int, int, int] = network.graph.shape
        self.outputs: int = network.outputs
        self.precision, self.threads = runner.precision, runner.threads
        self.isa: str = runner.isa
        self.plan = Steps(runner.steps())

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"<billhook network: {shape} to {self.outputs}, {self.precision}, {self.isa}, threads {self.threads}>"

    def __call__(self, x: Any, layout: Literal["NCHW", "NHWC"] = "NCHW") -> NDArray[np.float32]:
        """Runs images through the network, one after the other, so that what they become stays in the caches.

        Args:
            x: Floats that are normalised already, or uint8 that is normalised here. [N, C, H, W], or one image without
                the N; with ``layout="NHWC"``, [N, H, W, C]. N may be any number.
            layout: Order of the axes of ``x``.

        Returns:
            float32 [N, outputs]; [outputs] for one image without the N.

        Raises:
            UsageError: ``x`` has another shape or type.
        """
        if layout not in ("NCHW", "NHWC"):
            raise UsageError(f"unknown layout {layout!r}", nearest(str(layout), ("NCHW", "NHWC")))
        try:
            x = np.asarray(x)
        except (TypeError, ValueError) as error:
            raise UsageError(f"this {type(x).__name__} is no array: {error}", "give numbers of one shape") from error
        channels, height, width = self.shape
        shape = self.shape if layout == "NCHW" else (height, width, channels)
        if x.shape[-3:] != shape or x.ndim not in (3, 4):
            wanted = ", ".join(map(str, shape))
            raise UsageError(
                f"the network takes [N, {wanted}] or [{wanted}], this is {list(x.shape)}",
                _axes_hint(x, self.shape, layout),
            )
        if x.dtype == np.uint8:
            if scaling(self._graph) is None:
                raise UsageError("the file does not say how bytes are normalised", "give floats, normalised")
        elif x.dtype.kind == "f":
            x = x.astype(np.float32, copy=False)
        else:
            raise UsageError(f"images are floats, normalised, or uint8; this is {x.dtype}", "convert them")
        batch = np.ascontiguousarray(x if x.ndim == 4 else x[None])
        result = self._runner.run(batch, layout) if len(batch) else np.zeros((0, self.outputs), np.float32)
        return result if x.ndim == 4 else result[0]

    def predict(self, image: Any, top: int = 5) -> list[tuple[str, float]]:
        """The most probable labels of one image.

        Args:
            image: A path, the bytes of an image file, a Pillow image or uint8 [H, W, 3] of any size, scaled and cut as
                the file says; or a normalised float array [C, H, W].
            top: How many labels.

        Returns:
            (label, probability), the most probable first. Without labels in the file, the number of the output.

        Raises:
            InputError: The image cannot be read.
            UsageError: ``image`` is of no such kind, the file has no preprocessing, or Pillow is missing.
        """
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            values = self(image[0] if image.ndim == 4 and len(image) == 1 else image)
        else:
            preprocess = self._graph.preprocess
            if preprocess is None:
                raise UsageError("the file does not say how images are scaled", "give a normalised float array")
            from billhook.runtime.picture import pixels

            values = self(pixels(image, preprocess, self.shape[0]), layout="NHWC")
        if values.ndim != 1:
            raise UsageError(f"one image at a time, this is {len(values)}", "call the network with all of them")
        probabilities = values.astype(np.float64)
        if not self._ends_in_softmax:
            powers = np.exp(probabilities - probabilities.max())
            probabilities = powers / powers.sum()
        best = np.argsort(-probabilities, kind="stable")[: max(0, top)]
        return [(self.labels[i] if self.labels else str(i), float(probabilities[i])) for i in best]

    def profile(self, image: Any = None, repeats: int = 20) -> Steps:
        """The steps with their times.

        Args:
            image: One normalised image; None: random numbers.
            repeats: Runs of which the shortest time of each step is taken.

        Raises:
            RunError: The native library is missing.
        """
        given = example(self.shape) if image is None else np.asarray(image, np.float32)
        return Steps(self._runner.profile(given, repeats))

    def save_program(self, path: str | os.PathLike[str]) -> None:
        """Writes the program that this network runs, for C and C++ programs, and for this instruction set.

        Raises:
            RunError: The native library is missing, or the file cannot be written.
        """
        program = self._runner.program()
        try:
            Path(path).write_bytes(program.tobytes())
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}", "check the folder") from error

    @property
    def _ends_in_softmax(self) -> bool:
        graph = self._graph
        return any(op.output == graph.output and op.kind == "softmax" for op in graph.operators)


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    precision: Literal["auto", "f32", "bf16"] = "auto",
    plan: str | os.PathLike[str] = "auto",
    isa: str | None = None,
    options: Options | None = None,
) -> Network:
    """Opens a packed network.

    Args:
        path: A packed file, or a run directory that holds one.
        threads: That share the work of one image; None: as many as this process may use cores.
        precision: ``f32``; ``bf16``: twice as fast where the CPU multiplies it, about three digits; ``auto``: f32.
        plan: ``auto``: the kernels that a planner found on this machine; the first load measures them, which takes
            seconds, and keeps them beside the file. ``default``: a good guess, nothing measured or written. Else a
            plan's path.
        isa: A lower instruction set than the best one: portable, avx2, avx512. ``BILLHOOK_ISA`` in the environment does
            the same.
        options: Of the memory layout, for measurements.

    Raises:
        InputError: There is no such file, it is damaged, or the plan cannot be used.
        UsageError: An argument out of range.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", nearest(str(precision), PRECISIONS))
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UsageError(f"threads is {threads!r}", "give a whole number from 1 on")
    if isa is not None and isa not in native.ISAS:
        raise UsageError(f"unknown instruction set {isa!r}", nearest(str(isa), native.ISAS))
    for what, value in (("path", path), ("plan", plan)):
        if not isinstance(value, str | os.PathLike) or "\0" in os.fspath(value):
            raise UsageError(f"{what} is {value!r}", "give the path of a file" + ", auto or default" * (what == "plan"))
    file = _file(Path(path))
    network = read_network(file)
    if not native.available():
        warnings.warn(
            f"billhook's native library cannot be used ({native.reason()}): the network runs in numpy, slowly, in f32",
            SlowRuntimeWarning,
            stacklevel=2,
        )
        return Network(network, Numpy(network))
    chosen: Precision = "bf16" if precision == "bf16" else "f32"
    kept = plan if plan in ("auto", "default") else Path(plan)
    return Network(network, Native(network, file, threads or _cores(), chosen, kept, isa, options))


def _file(path: Path) -> Path:
    """The packed file: ``path``, or what lies in the run directory."""
    if not path.is_dir():
        return path
    file = path / FILE
    if file.is_file():
        return file
    if (path / "model.safetensors").is_file():
        raise InputError(f"{path} holds no {FILE}", f"make it: billhook export {path} --to packed")
    raise InputError(f"{path} is no run directory", f"give a run directory or a {FILE}")


def _cores() -> int:
    """As many as this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _axes_hint(x: NDArray[Any], shape: tuple[int, int, int], layout: str) -> str:
    channels, height, width = shape
    other = (height, width, channels) if layout == "NCHW" else shape
    if x.ndim in (3, 4) and x.shape[-3:] == other:
        return f'say layout="{"NHWC" if layout == "NCHW" else "NCHW"}"'
    return "scale and cut the images first; predict does it"
