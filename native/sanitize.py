"""Builds native/test/test_core.cpp with the library's sources under sanitizers and runs it on programs of every kind.

    python native/sanitize.py [address] [thread] [plain]

address: AddressSanitizer and UndefinedBehaviorSanitizer; thread: ThreadSanitizer; plain: neither. Both by default.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import build  # noqa: E402
from tests.runtime.machine import every_kind  # noqa: E402

from billhook.runtime import native  # noqa: E402

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
    "plain": [],
}
SEEDS = range(6)
# Maps of a damaged program may overlap, so that its threads race for numbers nobody wants.
DAMAGED = {"address": 1500, "thread": 0, "plain": 3000}


def programs(folder: Path) -> list[str]:
    """Files with programs for every instruction set that this CPU can run."""
    paths = []
    for isa in native.usable():
        for bf16 in (0, 1) if isa == 3 else (0,):
            for seed in SEEDS:
                path = folder / f"seed{seed}{'-bf16' if bf16 else ''}.{isa}.bin"
                path.write_bytes(every_kind(isa, bf16, seed)[0].tobytes())
                paths.append(str(path))
    return paths


def compiled(kind: str, folder: Path) -> Path:
    """The test, built with one sanitizer."""
    command, machine = build.compiler(), platform.machine()
    sets = build.SETS if build.is_x86(machine) else {"portable": []}
    flags = [*build.FLAGS, *build.QUIET, "-O1", "-g1", f"-I{HERE / 'include'}", *SANITIZERS[kind]]
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
    build.run([*command, *flags, *objects, "-o", str(target)])
    return target


def main() -> int:
    """Returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*SANITIZERS, []], default=["address", "thread"])
    options = parser.parse_args()
    environment = os.environ | {
        # A program may ask for a large arena: that it is refused is part of the test.
        "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = programs(folder)
        for kind in options.kinds:
            print(f"{kind}: building", flush=True)
            try:
                test = compiled(kind, folder)
            except build.NoCompiler as error:
                print(f"{kind}: {error}", file=sys.stderr)
                failed = 1
                continue
            print(f"{kind}: {len(paths)} programs", flush=True)
            failed |= subprocess.run([str(test), str(DAMAGED[kind]), *paths], env=environment).returncode
    print("sanitizers:", "failed" if failed else "nothing found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
