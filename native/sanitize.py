"""Builds native/test/test_core.cpp with the library's sources and runs it on programs of every kind.

    python native/sanitize.py [address] [thread] [plain] [arm64]

address: AddressSanitizer and UndefinedBehaviorSanitizer; thread: ThreadSanitizer; these two by default. plain: neither.
arm64: compiled for another machine by aarch64-linux-gnu-g++, or what BILLHOOK_ARM64_CXX names, and run by qemu.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import build  # noqa: E402
import numpy as np  # noqa: E402
from tests.runtime.machine import every_kind  # noqa: E402

from billhook.runtime import native  # noqa: E402

KINDS = {
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-fsanitize=thread"],
    "plain": [],
    "arm64": ["-static"],
}
SEEDS = range(6)
# Maps of a damaged program may overlap, so that its threads race for numbers nobody wants.
DAMAGED = {"address": 1500, "thread": 0, "plain": 3000, "arm64": 100}
# Requests for memory are counted: test_core.cpp.
WRAPPED = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc")]
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def programs(folder: Path, kind: str) -> list[str]:
    """Files with programs for every instruction set that can be run."""
    paths = []
    for isa in (0,) if kind == "arm64" else native.usable():
        for bf16 in (0, 1) if isa == 3 else (0,):
            for seed in SEEDS:
                path = folder / f"seed{seed}{'-bf16' if bf16 else ''}.{isa}.bin"
                program, shape = every_kind(isa, bf16, seed)
                path.write_bytes(program.tobytes())
                images = np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32)
                with native.Net(program, isa) as net:
                    expected = net.run(images)
                path.with_name(f"{path.name}.expected").write_bytes(images.tobytes() + expected.tobytes())
                paths.append(str(path))
    return paths


def compiled(kind: str, folder: Path) -> Path:
    """The test, built with one sanitizer."""
    command, machine = build.compiler(), platform.machine()
    if kind == "arm64":
        command, machine = shlex.split(os.environ.get("BILLHOOK_ARM64_CXX", "aarch64-linux-gnu-g++")), "aarch64"
    sets = build.SETS if build.is_x86(machine) else {"portable": []}
    flags = [*build.FLAGS, *build.QUIET, "-g1", f"-I{HERE / 'include'}", *KINDS[kind]]
    flags += ["-DBILLHOOK_X86"] if build.is_x86(machine) else []
    units = {HERE / "src" / f"kernels_{name}.cpp": extra for name, extra in sets.items()}
    units |= {HERE / "src" / f"{name}.cpp": [] for name in build.COMMON}
    units[HERE / "test" / "test_core.cpp"] = []

    def unit(source: Path) -> str:
        target = str(folder / f"{kind}-{source.stem}.o")
        build.run([*command, *flags, *units[source], "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(unit, units))
    target = folder / f"test_core-{kind}"
    build.run([*command, *flags, *WRAPPED, *objects, "-o", str(target)])
    return target


def asked(arguments: list[str]) -> list[str]:
    """Kinds of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # argparse holds a default against the choices as a whole, so the empty list is one of them.
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    return parser.parse_args(arguments).kinds or ["address", "thread"]


def main() -> int:
    """Returns 0 when nothing was found."""
    kinds = asked(sys.argv[1:])
    environment = os.environ | {
        # A program may ask for a large arena: that it is refused is part of the test.
        "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in kinds:
            emulator = [path for path in map(shutil.which, EMULATORS) if path][:1] if kind == "arm64" else []
            print(f"{kind}: building", flush=True)
            try:
                if kind == "arm64" and not emulator:
                    raise build.NoCompiler(f"none of {', '.join(EMULATORS)} is on the PATH")
                test = compiled(kind, folder)
            except build.NoCompiler as error:
                print(f"{kind}: {error}", file=sys.stderr)
                failed = 1
                continue
            paths = programs(folder, kind)
            print(f"{kind}: {len(paths)} programs", flush=True)
            command = [*emulator, str(test), str(DAMAGED[kind]), *paths]
            failed |= subprocess.run(command, env=environment).returncode
    print("failed" if failed else "nothing found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
