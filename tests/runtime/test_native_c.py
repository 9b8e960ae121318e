"""The C program of examples/c, compiled, linked with the library, and run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.machine import every_kind

from billhook.runtime import native

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=f"no native library: {native.reason()}"),
    pytest.mark.skipif(not shutil.which("cc") or not shutil.which("make"), reason="no C compiler, or no make"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built in a copy: nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("example")
    for name in ("examples/c", "native/include"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("run"))
    library = Path(native.__file__).with_name("_native.so")
    command = ["make", "-C", str(folder / "examples/c"), f"LIBRARY={library}", "CFLAGS=-O1 -Wall -Wextra -Werror"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "examples/c/run"


def test_a_c_program_finds_what_python_finds(program, tmp_path):
    isa = native.best()
    code, shape = every_kind(isa)
    image = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    (tmp_path / "net.bin").write_bytes(code.tobytes())
    image.tofile(tmp_path / "image.f32")
    with native.Net(code, isa) as net:
        expected = net.run(image[None])[0]
    done = subprocess.run([program, tmp_path / "net.bin", tmp_path / "image.f32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, time = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == np.argsort(-expected, kind="stable")[:5].tolist()
    assert np.allclose([float(line.split()[1]) for line in lines], np.sort(expected)[::-1][:5], rtol=1e-5)
    assert time.endswith(" ms")
    grey = subprocess.run([program, tmp_path / "net.bin"], capture_output=True, text=True)
    assert grey.returncode == 0
    assert grey.stdout != done.stdout


def test_a_c_program_says_what_is_wrong(program, tmp_path):
    code, _ = every_kind(native.best())
    (tmp_path / "short.bin").write_bytes(code[:-1].tobytes())
    done = subprocess.run([program, tmp_path / "short.bin"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the header says" in done.stderr
    (tmp_path / "net.bin").write_bytes(code.tobytes())
    (tmp_path / "image.f32").write_bytes(b"1234")
    done = subprocess.run([program, tmp_path / "net.bin", tmp_path / "image.f32"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "floats are needed" in done.stderr
    assert subprocess.run([program, tmp_path / "none"], capture_output=True).returncode == 2
    assert subprocess.run([program], capture_output=True).returncode == 2
