"""The walls of the house, and what a wheel carries."""

from __future__ import annotations

import ast
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "billhook"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# From the roof down: a room imports rooms of lower rows only. docs/architecture.md says the same in words.
ROWS = [
    ["__main__"],
    ["cli"],
    ["api", "dense"],
    ["accelerator", "bench", "inspection", "pipeline"],
    ["proof"],
    ["control", "delivery", "estimate", "recipe", "rundir"],
    ["methods", "report"],
    ["artifact", "problem"],
    ["compensation", "scores"],
    ["surgery"],
    ["training"],
    ["latency"],
    ["patterns", "cost", "models", "data", "export"],
    ["runtime", "track"],
    ["formats", "progress", "environment", "text"],
    ["errors", "__init__"],
]
ROW = {room: len(ROWS) - number for number, rooms in enumerate(ROWS) for room in rooms}

# Rooms that may know only these of ours, whatever row they stand in.
KNOWS_ONLY = {
    "errors": set(),
    "progress": set(),
    "text": set(),
    "environment": set(),
    "patterns": set(),
    "formats": {"errors"},
    "report": {"errors", "formats"},
    "runtime": {"errors", "formats"},
    "track": {"errors", "progress"},
    "cost": {"errors"},
    "export": {"errors", "formats"},
    "latency": {"errors", "export", "formats", "runtime"},
    "models": {"errors"},
    "data": {"errors"},
    "training": {"data", "errors", "models", "progress"},
    "surgery": {"cost", "errors", "models"},
    "scores": {"data", "errors", "surgery", "training"},
    "compensation": {"errors", "surgery"},
}

# Loaded by name, only when a model spec names them; extras of their own.
ON_REQUEST = {"torchvision", "timm"}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "torch_pruning": "torch-pruning",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; those for type checkers only left out."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module
            if node.module == "billhook":
                yield from (f"billhook.{alias.name}" for alias in node.names)
            else:
                yield node.module
        pending += ast.iter_child_nodes(node)


def room_of(path: Path) -> str:
    return path.relative_to(SRC).with_suffix("").parts[0]


@functools.cache
def arrows() -> dict[str, dict[str, set[str]]]:
    """room → room it imports → files that do."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in sorted(SRC.rglob("*.py")):
        room = room_of(path)
        found.setdefault(room, {})
        for module in imports(path):
            top, _, rest = module.partition(".")
            if top != "billhook":
                continue
            target = rest.partition(".")[0] or "__init__"
            if target != room:
                found[room].setdefault(target, set()).add(str(path.relative_to(SRC)))
    return found


def third_party(paths: Iterator[Path]) -> set[str]:
    tops = {module.partition(".")[0] for path in paths for module in imports(path)}
    return tops - set(sys.stdlib_module_names) - {"billhook"}


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# The walls


def test_every_room_has_its_row():
    assert set(arrows()) == set(ROW)


def test_arrows_point_down():
    up = {
        f"{room} -> {target}": sorted(files)
        for room, targets in arrows().items()
        for target, files in targets.items()
        if target not in ROW or ROW[target] >= ROW[room]
    }
    assert not up


@pytest.mark.parametrize("room", sorted(KNOWS_ONLY))
def test_a_low_room_knows_only_its_own(room):
    assert set(arrows()[room]) <= KNOWS_ONLY[room]


def test_no_circles_between_modules():
    """Within the rooms as well: the modules, each with those that it imports while it is itself imported."""
    names = {}
    for path in SRC.rglob("*.py"):
        parts = ("billhook", *path.relative_to(SRC).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in names else node.module
                # The package itself runs no import of ours; a room's door imports its modules, not the other way.
                if target in names and target != "billhook":
                    graph[name].add(target)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(names)


def test_only_the_entry_point_imports_the_command_line():
    assert [room for room, targets in arrows().items() if "cli" in targets] == ["__main__"]


def test_formats_need_numpy_and_nothing_else():
    assert third_party(SRC.glob("formats/*.py")) == {"numpy"}
    assert not third_party(iter([SRC / "errors.py", SRC / "__init__.py", SRC / "__main__.py"]))


@pytest.mark.parametrize("module", ["billhook", "billhook.formats", "billhook.runtime", "billhook.errors"])
def test_a_device_without_torch_imports_it(module):
    heavy = ["torch", "pydantic", "typer", "PIL", "pyarrow", "sklearn", "accelerate"]
    loaded = in_fresh_python(f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_public_names_load_on_first_use():
    code = (
        "import billhook, sys; assert 'torch' not in sys.modules;"
        "names = [getattr(billhook, n) for n in billhook.__all__]; assert 'torch' in sys.modules;"
        "print(len(names), set(billhook.__all__) <= set(dir(billhook)))"
    )
    import billhook

    assert in_fresh_python(code).split() == [str(len(billhook.__all__)), "True"]


def test_a_public_name_without_the_extra_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\nimport billhook\n"
        "try:\n    billhook.prune\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert in_fresh_python(code).strip() == "billhook.prune needs torch: pip install 'billhook[prune]'"


def test_the_command_without_the_extra_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from billhook.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the command line needs typer: pip install 'billhook[prune]'\n"


def test_an_interrupt_while_modules_are_loaded_is_one_line():
    code = (
        "import sys\nclass Stop:\n    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\nfrom billhook.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"


# The metadata


def requirement(text: str) -> str:
    """The normalised name at the beginning of a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", text)
    assert match
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def test_what_is_imported_is_declared_and_the_other_way_round():
    used = {DISTRIBUTIONS.get(name, name) for name in third_party(SRC.rglob("*.py")) - ON_REQUEST}
    extras = PROJECT["optional-dependencies"]
    declared = {requirement(text) for text in PROJECT["dependencies"] + extras["prune"] + extras["tensorboard"]}
    assert used == declared
    # The ONNX packages are loaded by name where they are installed: to time networks, and to test what was exported.
    assert set(extras) == {"prune", "tensorboard", "dev", "onnx", "bench"} | ON_REQUEST
    assert {requirement(text) for name in ON_REQUEST for text in extras[name]} == ON_REQUEST


def test_the_bare_install_is_numpy():
    assert [requirement(text) for text in PROJECT["dependencies"]] == ["numpy"]


def test_every_dependency_is_constrained_and_explained():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {requirement(line) for line in lines if line}
    extras = PROJECT["optional-dependencies"]
    declared = {requirement(text) for text in [*PROJECT["dependencies"], *itertools.chain(*extras.values())]}
    assert pins == declared
    assert "torch==2.13.0" in lines
    assert all("==" in line for line in lines if line)
    page = (ROOT / "docs" / "dependencies.md").read_text().lower()
    assert [name for name in sorted(declared) if f"`{name}`" not in page] == []


def test_versions_agree():
    import billhook

    assert billhook.__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_carries_what_is_not_python(tmp_path):
    """Built by the hook that ``pip install .`` calls, from a copy, so that nothing is left in the tree."""
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tree / "src", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("billhook-*-py3-none-any.whl"))
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        metadata = archive.read(next(n for n in inside if n.endswith("METADATA"))).decode()
        scripts = archive.read(next(n for n in inside if n.endswith("entry_points.txt"))).decode()
    ours = {
        str(Path("billhook") / path.relative_to(SRC))
        for path in SRC.rglob("*")
        if path.suffix in (".py", ".html", ".css", ".typed", ".yaml")
    }
    assert {"billhook/py.typed", "billhook/report/page.html", "billhook/report/page.css"} <= ours <= inside
    assert not [name for name in inside - ours if "dist-info" not in name]
    assert "License-Expression: Apache-2.0" in metadata
    assert "billhook = billhook.__main__:main" in scripts


# The commands of the house


def test_make_has_its_targets():
    for target in ("demo", "test", "test-full", "check"):
        plan = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr
    assert "pytest -n" in plan_of("test")
    assert '-m "not slow"' in plan_of("test")
    assert '-m "not slow"' not in plan_of("test-full")
    assert all(tool in plan_of("check") for tool in ("ruff format --check", "ruff check", "mypy"))
    assert "billhook demo" in plan_of("demo")


def plan_of(target: str, folder: Path = ROOT) -> str:
    return subprocess.run(["make", "--dry-run", target], cwd=folder, capture_output=True, text=True).stdout


def test_make_installs_as_much_as_is_asked_for(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()

    def installs() -> dict[str, str]:
        plans = {target: plan_of(target, folder=tmp_path) for target in ("demo", "test", "test-full", "check")}
        return {target: "".join(re.findall(r'--editable "(.*)"', plan)) for target, plan in plans.items()}

    full = ".[prune,dev,torchvision,timm,bench]"
    assert installs() == {"demo": ".[prune]", "test": ".[prune,dev]", "test-full": full, "check": ".[prune,dev]"}
    stamp = next(word for word in plan_of("test-full", folder=tmp_path).split() if "/.billhook-full-" in word)
    (tmp_path / stamp).touch()
    assert installs() == {"demo": "", "test": "", "test-full": "", "check": ""}
    (tmp_path / stamp).rename(tmp_path / stamp.replace("-full-", "-dev-"))
    assert installs() == {"demo": "", "test": "", "test-full": full, "check": ""}


def test_make_reads_its_constraints_and_its_uv():
    def plan(**more: str) -> str:
        arguments = [f"{key}={value}" for key, value in more.items() if key == "UV"]
        environment = os.environ | {key: value for key, value in more.items() if key != "UV"}
        command = ["make", "--dry-run", "--always-make", *arguments, "test"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    pip = plan(UV="")
    assert "-m venv .venv" in pip
    assert "pip install --quiet --disable-pip-version-check --constraint constraints.txt" in pip
    uv = plan(UV="/opt/uv", PIP_FIND_LINKS="/wheels")
    assert 'UV_FIND_LINKS="/wheels" /opt/uv pip install' in uv
    assert "--constraint constraints.txt" in uv


def test_an_old_python_is_one_clear_line(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-s", f"PYTHON={old}", "test"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first == "error: Python 3.9.1 is too old: billhook needs 3.11 or newer (make PYTHON=python3.12 ...)"
    assert all(line.startswith("make") for line in rest)
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = script.read_text()
    assert "set -euo pipefail" in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    readme = (ROOT / "README.md").read_text()
    assert "make test" in readme
    assert "make demo" in readme
