"""The native library, through ctypes: which instruction sets there are, and a program that runs.

``BILLHOOK_NATIVE=0`` in the environment leaves it unused; ``BILLHOOK_ISA`` names a lower instruction set than the best.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError, RunError, UsageError, nearest
from billhook.runtime.program import aligned, header_of

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
"""Instruction sets, each one able to do what those before it can."""

_HINT = "a C++ compiler on the PATH builds it when billhook is installed; or: python native/build.py"
_FAILURES = {
    -1: "wrong arguments",
    -2: "the program does not say how bytes are normalised",
    -3: "it is running already",
}
_FAILURES[-4] = "its threads could not be started again after a fork"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    if os.environ.get("BILLHOOK_NATIVE") == "0":
        return None, "BILLHOOK_NATIVE=0"
    path = Path(__file__).with_name("_native.so")
    if not path.exists():
        return None, "it was not built"
    try:
        loaded = ctypes.CDLL(str(path))
        _declare(loaded)
    except (OSError, AttributeError) as error:
        return None, str(error)
    return loaded, ""


def _declare(loaded: ctypes.CDLL) -> None:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("bh_best", number, []),
        ("bh_lanes", number, [number]),
        ("bh_compiled", number, []),
        ("bh_open", pointer, [pointer, size, number, number, ctypes.c_char_p, size]),
        ("bh_close", None, [pointer]),
        ("bh_run", number, [pointer, pointer, number, number, number, pointer]),
        ("bh_profile", number, [pointer, pointer, number, number, number, pointer, pointer]),
        ("bh_arena", pointer, [pointer]),
        ("bh_steps", number, [pointer, number, number]),
        ("bh_peak", ctypes.c_double, [number, number]),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments


def available() -> bool:
    """Whether the native library can be used."""
    return _load()[0] is not None


def reason() -> str:
    """Why it cannot; empty when it can."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        RunError: It is not there, or cannot be loaded.
    """
    loaded, why = _load()
    if loaded is None:
        raise RunError(f"billhook's native library cannot be used: {why}", _HINT)
    return loaded


def best() -> int:
    """The best instruction set that this CPU can run, or the lower one that ``BILLHOOK_ISA`` names; an index into ISAS.

    Raises:
        UsageError: ``BILLHOOK_ISA`` names none.
        RunError: There is no library.
    """
    stated = os.environ.get("BILLHOOK_ISA")
    if stated and stated not in ISAS:
        raise UsageError(f"BILLHOOK_ISA is {stated!r}", nearest(stated, ISAS))
    return int(library().bh_best())


def usable() -> list[int]:
    """The instruction sets that were compiled in and that this CPU can run, the lowest first; indices into ISAS."""
    compiled, limit = int(library().bh_compiled()), best()
    return [isa for isa in range(len(ISAS)) if compiled >> isa & 1 and isa <= limit]


def lanes(isa: int) -> int:
    """Numbers of a vector: 16 with AVX-512, 8 otherwise."""
    return int(library().bh_lanes(isa))


def peak(isa: int, bf16: bool = False) -> float:
    """Multiply-adds per second that one core does in registers: the roof that speeds are compared with.

    Takes about a twentieth of a second.
    """
    return 1e9 * float(library().bh_peak(isa, int(bf16)))


class Net:
    """An opened program. Calls from several Python threads take turns; each releases Python's lock while it runs.

    Args:
        program: uint8, as :func:`billhook.runtime.program.write_program` makes it or a file holds it.
        isa: Index into ISAS; None: :func:`best`.
        threads: That share the work of each image.

    Raises:
        InputError: The program does not hold together, is for other vectors, or the instruction set or the number of
            threads is impossible here; the line says which step.
        UsageError: Arguments of other types.
        RunError: There is no library.
    """

    def __init__(self, program: NDArray[np.uint8], isa: int | None = None, threads: int = 1) -> None:
        self._handle: int | None = None
        self._library, self._lock = library(), threading.Lock()
        self.isa = best() if isa is None else isa
        if threads < 1:
            raise UsageError(f"threads is {threads}", "give a whole number from 1 on")
        if program.dtype != np.uint8 or program.ndim != 1:
            raise UsageError(f"a program is uint8 [bytes], this is {program.dtype} {list(program.shape)}")
        if program.ctypes.data % 64 or not program.flags.c_contiguous:
            copy = aligned(program.size)
            copy[:] = program
            program = copy
        # The library reads it until it is closed.
        self._program = program
        self.threads = threads
        line = ctypes.create_string_buffer(256)
        handle = self._library.bh_open(program.ctypes.data, program.size, self.isa, threads, line, len(line))
        if not handle:
            raise InputError(f"the program cannot be opened: {line.value.decode(errors='replace')}")
        self._handle = handle
        header = header_of(program)
        self.shape = int(header["channels"]), int(header["height"]), int(header["width"])
        """(channels, height, width) of an image."""
        self.outputs = int(header["outputs"])
        """Numbers per image."""
        self.steps_count = int(header["steps"])
        self._arena_bytes = int(header["arena"])

    def run(
        self,
        images: NDArray[Any],
        out: NDArray[np.float32] | None = None,
        layout: Literal["NCHW", "NHWC"] = "NCHW",
    ) -> NDArray[np.float32]:
        """Runs images, one after the other.

        Args:
            images: float32, normalised, or uint8 ``[N, C, H, W]``; with ``layout="NHWC"``, ``[N, H, W, C]``.
            out: Where results go, float32 ``[N, outputs]``, contiguous; None: a new array.
            layout: Order of the axes.

        Returns:
            ``out``.

        Raises:
            UsageError: Wrong shapes or types.
            RunError: The net is closed, or cannot run these images.
        """
        images, code = self._images(images, layout)
        if out is None:
            out = np.zeros((len(images), self.outputs), np.float32)
        elif out.dtype != np.float32 or out.shape != (len(images), self.outputs) or not out.flags.c_contiguous:
            raise UsageError(
                f"out is {out.dtype} {list(out.shape)}", f"float32 [{len(images)}, {self.outputs}], contiguous"
            )
        arguments = images.ctypes.data, code, int(layout == "NHWC"), len(images), out.ctypes.data
        with self._lock:
            self._check(self._library.bh_run(self._open(), *arguments))
        return out

    def profile(self, image: NDArray[Any], repeats: int = 20) -> NDArray[np.float64]:
        """Seconds of every step, the shortest of ``repeats`` runs.

        Args:
            image: One image, ``[C, H, W]`` or ``[1, C, H, W]``.
            repeats: How often the network runs.
        """
        batch, code = self._images(image if image.ndim == 4 else image[None], "NCHW")
        if len(batch) != 1 or repeats < 1:
            raise UsageError(f"{len(batch)} images, {repeats} repeats", "one image, once or more")
        seconds = np.zeros(self.steps_count)
        out = np.zeros(self.outputs, np.float32)
        arguments = batch.ctypes.data, code, 0, repeats, out.ctypes.data, seconds.ctypes.data
        with self._lock:
            self._check(self._library.bh_profile(self._open(), *arguments))
        return seconds

    def steps(self, start: int, stop: int) -> None:
        """Runs steps ``start`` to ``stop - 1`` on what lies in the arena; none of them may load or store."""
        with self._lock:
            self._check(self._library.bh_steps(self._open(), start, stop))

    @property
    def arena(self) -> NDArray[np.uint8]:
        """The memory of all maps, uint8. It is gone when the net is closed."""
        memory = (ctypes.c_uint8 * self._arena_bytes).from_address(self._library.bh_arena(self._open()))
        memory._net = self  # type: ignore[attr-defined]  # whoever holds the array keeps the net open
        return np.ctypeslib.as_array(memory)

    def close(self) -> None:
        """Ends its threads and frees its memory. A second time does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._library.bh_close(handle)

    def __enter__(self) -> Net:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the end of the interpreter threads may be gone already; the system frees what is left.
        if getattr(self, "_handle", None) is not None and not sys.is_finalizing():
            self.close()

    def _open(self) -> int:
        if self._handle is None:
            raise RunError("the net is closed")
        return self._handle

    def _images(self, images: NDArray[Any], layout: str) -> tuple[NDArray[Any], int]:
        if layout not in ("NCHW", "NHWC"):
            raise UsageError(f"unknown layout {layout!r}", "NCHW or NHWC")
        channels, height, width = self.shape
        wanted = (channels, height, width) if layout == "NCHW" else (height, width, channels)
        if images.ndim != 4 or images.shape[1:] != wanted:
            raise UsageError(f"images are {list(images.shape)}", f"[N, {', '.join(map(str, wanted))}] is needed")
        if images.dtype not in (np.float32, np.uint8):
            raise UsageError(f"images are {images.dtype}", "float32 or uint8 is needed")
        return np.ascontiguousarray(images), int(images.dtype == np.uint8)

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise RunError(f"the native library cannot run this: {_FAILURES.get(code, code)}")
