"""The two ways to run a network: the native library with a plan, or numpy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError, RunError, UsageError
from billhook.formats import PackedNetwork
from billhook.runtime import native, planner, reference
from billhook.runtime.compile import Compiled, Compiler, Precision, scaling
from billhook.runtime.layout import Options

REPEATS = (5, 50)
"""Runs of which a planner takes each step's shortest time: at least, at most."""
PROFILED = 0.05
"""Seconds of a profile, as far as that many runs allow."""

Layout = Literal["NCHW", "NHWC"]
Row = dict[str, Any]


class Runner(Protocol):
    """What runs a network."""

    isa: str
    precision: Precision
    threads: int

    def run(self, images: NDArray[Any], layout: Layout) -> NDArray[np.float32]:
        """Images, checked, float32 or uint8, contiguous, at least one."""
        ...

    def steps(self) -> list[Row]:
        """What it does, step by step."""
        ...

    def profile(self, image: NDArray[np.float32], repeats: int) -> list[Row]:
        """The same with times."""
        ...

    def program(self) -> NDArray[np.uint8]:
        """The program that it runs."""
        ...


class Native:
    """A program of the native library.

    Args:
        network: The network.
        file: Where it was read; a plan is kept beside it.
        threads: That share an image.
        precision: Of activations and weights.
        plan: ``auto``, ``default``, or the path of a plan.
        isa: Name of an instruction set; None: the best one.
        options: Of the layout.

    Raises:
        UsageError: The instruction set is unknown, not there, or does not have the precision.
        InputError: The plan cannot be used, or the network asks for more than native kernels take; names the file.
    """

    def __init__(
        self,
        network: PackedNetwork,
        file: Path,
        threads: int,
        precision: Precision,
        plan: str | Path,
        isa: str | None,
        options: Options | None,
    ) -> None:
        self.threads = threads
        number = _instruction_set(isa, precision)
        self.isa, self.precision = native.ISAS[number], precision
        self._number, self._image = number, example(network.graph.shape)
        self._file = file
        with _naming(file):
            compiler = Compiler(network, native.lanes(number), precision, threads, options)
        self._plan = self._planned(compiler, file, plan)
        self._compiled = compiler.compile(self._plan.choices)
        self._net = self._open(self._compiled)

    def run(self, images: NDArray[Any], layout: Layout) -> NDArray[np.float32]:
        """See :class:`Runner`."""
        return self._net.run(images, layout=layout)

    def steps(self) -> list[Row]:
        """See :class:`Runner`; times are those of the plan."""
        times = self._plan.seconds
        return rows(self._compiled, [times.get(task.name) if task.choice else None for task in self._compiled.tasks])

    def profile(self, image: NDArray[np.float32], repeats: int) -> list[Row]:
        """See :class:`Runner`."""
        return rows(self._compiled, self._net.profile(image, repeats).tolist())

    def program(self) -> NDArray[np.uint8]:
        """See :class:`Runner`."""
        return self._compiled.program

    def _open(self, compiled: Compiled) -> native.Net:
        with _naming(self._file):
            return native.Net(compiled.program, self._number, self.threads)

    def _planned(self, compiler: Compiler, file: Path, plan: str | Path) -> planner.Plan:
        if plan == "default":
            return planner.Plan(compiler.guesses())
        if plan != "auto":
            return planner.read_stated(Path(plan), compiler)
        library = Path(str(native.library()._name)).stat()
        key = planner.Key(
            cpu=planner.cpu_name(),
            isa=self.isa,
            precision=self.precision,
            threads=self.threads,
            library=f"{library.st_size} {library.st_mtime_ns}",
            file=planner.fingerprint(file),
        )
        kept = planner.read(file, key, compiler)
        if kept is not None:
            return kept

        def profile(compiled: Compiled) -> NDArray[np.float64]:
            with self._open(compiled) as net:
                once = net.profile(self._image, 2).sum()
                least, most = REPEATS
                return net.profile(self._image, int(min(most, max(least, PROFILED / once))))

        return planner.write(file, key, planner.measure(compiler, profile))


class Numpy:
    """The reference, where there is no library."""

    isa = "numpy"
    precision: Precision = "f32"
    threads = 1

    def __init__(self, network: PackedNetwork) -> None:
        self._network = network
        self._weights = {name: network.weight(name) for name in (*network.tensors, *network.packed)}

    def run(self, images: NDArray[Any], layout: Layout) -> NDArray[np.float32]:
        """See :class:`Runner`."""
        images = images if layout == "NCHW" else np.moveaxis(images, -1, 1)
        if images.dtype == np.uint8:
            scaled = scaling(self._network.graph)
            assert scaled is not None
            factor, term = (part[:, None, None] for part in scaled)
            images = images * factor + term
        # One after the other: a batch would hold all of its activations at once.
        results = [reference.run(self._network, image[None], self._weights) for image in images]
        return np.concatenate(results)

    def steps(self) -> list[Row]:
        """Operators; there is no program."""
        shapes = self._network.shapes
        return [_row(op.name, op.kind, list(shapes[op.output]), how="numpy") for op in self._network.graph.operators]

    def profile(self, image: NDArray[np.float32], repeats: int) -> list[Row]:
        """Raises RunError."""
        raise _missing()

    def program(self) -> NDArray[np.uint8]:
        """Raises RunError."""
        raise _missing()


def rows(compiled: Compiled, seconds: list[float | None]) -> list[Row]:
    """Tasks and their times as plain values."""
    return [
        _row(
            task.name,
            task.kind,
            list(task.shape),
            density=task.density,
            multiplications=task.multiplications,
            efficiency=task.efficiency,
            choice=task.choice.as_dict() if task.choice else None,
            seconds=time,
            how=str(task.choice or ""),
        )
        for task, time in zip(compiled.tasks, seconds, strict=True)
    ]


def example(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """An image of random numbers: zeros would be a little faster."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _row(name: str, kind: str, shape: list[int], how: str, **more: Any) -> Row:
    row: Row = {"name": name, "kind": kind, "shape": shape, "density": 1.0, "multiplications": 0, "efficiency": 1.0}
    return row | {"choice": None, "seconds": None} | more | {"how": how}


def _instruction_set(isa: str | None, precision: Precision) -> int:
    usable = native.usable()
    number = native.best() if isa is None else native.ISAS.index(isa)
    if number not in usable:
        raise UsageError(
            f"{native.ISAS[number]} cannot be used here", "there are " + ", ".join(native.ISAS[i] for i in usable)
        )
    if precision == "bf16" and not _has_bf16(number):
        raise UsageError(
            f"bf16 needs a CPU with AVX512_BF16, this one runs {native.ISAS[number]}", "take precision='f32'"
        )
    return number


def _has_bf16(isa: int) -> bool:
    return native.ISAS[isa] == "avx512_bf16"


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Names the network's file in what is refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error.message}", error.hint) from error


def _missing() -> RunError:
    return RunError(f"billhook's native library cannot be used: {native.reason()}", "numpy runs no programs")
