"""Builds the runtime's shared library with whatever C++ compiler there is; needs nothing but Python.

Run as a script it builds in place (src/billhook/runtime/), and does nothing when what is there was made of the same
sources. setup.py calls :func:`build`. CXX names another compiler, also one that builds for another machine:
``CXX="zig c++ -target aarch64-linux-gnu" python native/build.py --machine aarch64 --output FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
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
NAME = "_native.so"
IN_PLACE = HERE.parent / "src" / "billhook" / "runtime" / NAME

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-fno-math-errno", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"]
# Without an undefined operand AVX-512's intrinsics cannot be written down, and GCC 12 warns about it.
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
SETS = {"portable": [], "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
COMMON = ["check", "dispatch", "net", "threads"]


class NoCompiler(RuntimeError):
    """There is no C++ compiler, or it cannot compile this."""


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, or the first of c++, g++, clang++ that is there."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NoCompiler("no C++ compiler: neither c++ nor g++ nor clang++ is on the PATH, and CXX names none")


def is_x86(machine: str) -> bool:
    """Whether a machine, named as ``platform.machine()`` names it, has the x86-64 instruction sets."""
    return machine.lower() in ("x86_64", "amd64") and sys.maxsize > 2**32


def fingerprint(command: list[str], machine: str) -> str:
    """What a library was made of: it carries this text, so that an old one is known as such."""
    digest = hashlib.sha256(repr((command, machine, FLAGS, SETS)).encode())
    for path in sorted([*(HERE / "src").iterdir(), *(HERE / "include").iterdir()]):
        digest.update(path.name.encode() + path.read_bytes())
    return f"billhook-native-{digest.hexdigest()[:32]}"


def accepts(command: list[str], flags: list[str]) -> bool:
    """Whether the compiler knows all of these flags."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cpp"
        source.write_text("int x;\n")
        words = [*command, "-Werror", *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        return subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def run(command: list[str]) -> None:
    """Runs one command of the compiler. Raises NoCompiler with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise NoCompiler(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NoCompiler(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


def build(output: Path, *, machine: str | None = None, force: bool = False, jobs: int | None = None) -> bool:
    """Compiles the library into ``output``.

    Args:
        machine: What it is for; None: this machine.
        force: Build although ``output`` is made of the same sources already.
        jobs: Compilers at a time; None: one per core.

    Returns:
        Whether anything was built.

    Raises:
        NoCompiler: no compiler, or one that fails; says what it said. Nothing was written.
    """
    command = compiler()
    machine = machine or platform.machine()
    key = fingerprint(command, machine)
    if not force and output.exists() and key.encode() in output.read_bytes():
        return False
    if not shutil.which(command[0]):
        raise NoCompiler(f"{command[0]} is not on the PATH")
    sets = dict(SETS) if is_x86(machine) else {"portable": []}
    defines = [f'-DBILLHOOK_FINGERPRINT="{key}"', f"-I{HERE / 'include'}"]
    if is_x86(machine):
        defines.append("-DBILLHOOK_X86")
        if not accepts(command, sets["avx512_bf16"]):
            del sets["avx512_bf16"]
            defines.append("-DBILLHOOK_NO_BF16")
    with tempfile.TemporaryDirectory() as folder:
        # The long ones first.
        units = {f"kernels_{name}": flags for name, flags in reversed(sets.items())} | {name: [] for name in COMMON}
        quiet = [flag for flag in QUIET if accepts(command, [flag])]

        def unit(name: str) -> str:
            target = str(Path(folder) / f"{name}.o")
            source = str(HERE / "src" / f"{name}.cpp")
            run([*command, *FLAGS, *quiet, *defines, *units[name], "-c", source, "-o", target])
            return target

        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            objects = list(pool.map(unit, units))
        made = Path(folder) / output.name
        # Nothing of the C++ library is used, so a machine that has none can load it.
        link = ["-shared", "-pthread"] + ([] if sys.platform == "darwin" else ["-s", "-Wl,--as-needed"])
        run([*command, *link, *objects, "-o", str(made)])
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside it first: whoever has the old one open keeps it, nobody sees half of the new one.
        beside = output.with_name(f".{output.name}.{os.getpid()}")
        shutil.copyfile(made, beside)
        os.replace(beside, output)
    return True


def main() -> int:
    """Builds in place; a machine without a compiler is told and is no failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=IN_PLACE)
    parser.add_argument("--machine", help="what it is for, as `uname -m` says; this machine by default")
    parser.add_argument("--force", action="store_true", help="build although nothing has changed")
    parser.add_argument("--require", action="store_true", help="fail where there is no compiler")
    options = parser.parse_args()
    try:
        built = build(options.output, machine=options.machine, force=options.force)
    except NoCompiler as error:
        print(f"native kernels were not built, numpy will be used: {error}", file=sys.stderr)
        return 1 if options.require else 0
    print(f"{options.output.name}: {'built' if built else 'up to date'}, {options.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
