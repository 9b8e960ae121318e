"""Building the library: with a compiler that only pretends, without one, by pip's hooks; and for another machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PRETENDER = """#!/bin/sh
# Writes what it was told into what it was asked for.
out= previous=
for argument in "$@"; do
    [ "$previous" = -o ] && out="$argument"
    previous="$argument"
done
[ -n "$out" ] && echo "$@" > "$out"
echo "$@" >> "$0.log"
exit 0
"""


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"native_{name}_under_test", ROOT / "native" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_build() -> ModuleType:
    return load_script("build")


@pytest.fixture
def pretender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes no time; what it was called with is in its log."""
    path = tmp_path / "pretender"
    path.write_text(PRETENDER)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def calls(pretender: Path) -> list[str]:
    log = Path(f"{pretender}.log")
    return log.read_text().splitlines() if log.exists() else []


def test_each_instruction_set_has_flags_of_its_own(pretender, tmp_path):
    build = load_build()
    assert build.build(tmp_path / "x86.so", machine="x86_64")
    units = {Path(match[1]).stem: line for line in calls(pretender) if (match := re.search(r"-c (\S+)", line))}
    del units["empty"]  # which flags it knows
    sources = {path.stem for path in (ROOT / "native" / "src").glob("*.cpp")}
    assert set(units) == sources, "every source is compiled"
    for name, line in units.items():
        assert ("-mavx2" in line) == (name in ("kernels_avx2", "kernels_avx512", "kernels_avx512_bf16"))
        assert ("-mavx512f" in line) == (name in ("kernels_avx512", "kernels_avx512_bf16"))
        assert ("-mavx512bf16" in line) == (name == "kernels_avx512_bf16")
        assert "-DBILLHOOK_X86" in line
    Path(f"{pretender}.log").unlink()
    assert build.build(tmp_path / "arm.so", machine="aarch64")
    lines = [line for line in calls(pretender) if " -c " in line and "empty.cpp" not in line]
    assert len(lines) == len(sources) - 3
    assert not any("-mavx" in line or "BILLHOOK_X86" in line for line in lines)


def test_what_is_up_to_date_is_not_built_again(pretender, tmp_path, monkeypatch):
    build = load_build()
    target = tmp_path / "out" / "_native.so"
    # A library carries the text that it is known by; the pretender writes what it was told to link instead.
    monkeypatch.setattr(
        build, "run", lambda command: Path(command[-1]).write_text(build.fingerprint([str(pretender)], "x"))
    )
    assert build.build(target, machine="x")
    assert not build.build(target, machine="x")
    assert build.build(target, machine="y")
    assert build.build(target, machine="x", force=True)
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-O1"])
    assert build.build(target, machine="x")
    assert [path.name for path in target.parent.iterdir()] == ["_native.so"]


def test_a_failing_compiler_leaves_nothing(tmp_path, monkeypatch):
    build = load_build()
    for command in ("false", "/nowhere/c++"):
        monkeypatch.setenv("CXX", command)
        with pytest.raises(build.NoCompiler):
            build.build(tmp_path / "_native.so")
    assert not list(tmp_path.iterdir())


def test_the_script_says_that_there_is_no_compiler(tmp_path):
    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(ROOT / "native" / "build.py"),
            "--output",
            str(tmp_path / "_native.so"),
            *arguments,
        ]
        environment = os.environ | {"CXX": "/nowhere/c++"}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = script()
    assert done.returncode == 0
    assert done.stderr.startswith("native kernels were not built, numpy will be used: /nowhere/c++")
    assert script("--require").returncode == 1


def tree(tmp_path: Path) -> Path:
    """What a fresh clone has, and no library."""
    clone = tmp_path / "clone"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("src", "native"):
        shutil.copytree(ROOT / name, clone / name, ignore=skip)
    for name in ("setup.py", "MANIFEST.in", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    return clone


def hook(clone: Path, name: str, **environment: str) -> tuple[Path, str]:
    """Calls a hook of the build backend, as pip does; the file that it made, and all that was printed."""
    out = clone / "dist"
    code = f"from setuptools import build_meta; print(build_meta.{name}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1], done.stdout + done.stderr


LIBRARY = "billhook/runtime/_native.so"


def test_a_wheel_holds_the_library_and_fits_every_python(pretender, tmp_path):
    wheel, _ = hook(tree(tmp_path), "build_wheel")
    assert re.fullmatch(r"billhook-.*-py3-none-(?!any).*\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith(".so")] == [LIBRARY]
    assert not [name for name in names if name.endswith((".cpp", ".h"))]


def test_a_wheel_without_a_compiler_is_pure_and_says_why(tmp_path):
    wheel, said = hook(tree(tmp_path), "build_wheel", CXX="/nowhere/c++")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "native kernels were not built, numpy will be used" in said
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY not in archive.namelist()
        assert "billhook/runtime/native.py" in archive.namelist()


def test_an_editable_installation_puts_the_library_in_place(pretender, tmp_path):
    clone = tree(tmp_path)
    hook(clone, "build_editable")
    assert (clone / "src" / LIBRARY).exists()
    (clone / "src" / LIBRARY).unlink()
    hook(clone, "build_editable", CXX="/nowhere/c++")
    assert not (clone / "src" / LIBRARY).exists()


def test_a_source_distribution_holds_the_sources(tmp_path):
    archive, _ = hook(tree(tmp_path), "build_sdist")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {
        str(path.relative_to(ROOT)) for path in (ROOT / "native").rglob("*") if path.suffix in (".cpp", ".h", ".py")
    }
    assert wanted | {"setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith(".so")]


EMULATED = bool(shutil.which("aarch64-linux-gnu-g++") or os.environ.get("BILLHOOK_ARM64_CXX")) and bool(
    shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
)


@pytest.mark.slow
@pytest.mark.skipif(not EMULATED, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 (qemu-user) on the PATH")
def test_arm64_under_emulation():
    """The library's own test, compiled for arm64 and run by an emulator on programs for vectors of eight lanes."""
    command = [sys.executable, str(ROOT / "native" / "sanitize.py"), "arm64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 programs, 0 failures" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_library_by_itself():
    """Programs of every kind, whole and damaged, in threads and after a fork; a run asks for no memory."""
    command = [sys.executable, str(ROOT / "native" / "sanitize.py"), "plain"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "programs, 0 failures" in done.stdout


def test_what_the_sanitizers_are_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    asked = load_script("sanitize").asked
    assert asked([]) == ["address", "thread"]
    assert asked(["plain", "arm64"]) == ["plain", "arm64"]
    with pytest.raises(SystemExit):
        asked(["memory"])
