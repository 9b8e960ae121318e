"""What a run directory holds, read once and tolerantly: only ``summary.json`` has to be there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from billhook.errors import InputError
from billhook.formats import load_json, read_npz

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run directory in memory.

    Attributes:
        summary: ``summary.json``.
        recipe: ``recipe.yaml`` as it stands, or None.
        history: The readable lines of ``history.jsonl``, in order.
        unreadable: How many lines of ``history.jsonl`` were not JSON objects (a torn last line, say).
        architecture: ``architecture.json``, empty when absent.
        data: The arrays of ``report_data.npz``, empty when absent.
        bench: ``bench.json``, empty when absent.
        simulation: ``simulation.json``, empty when absent.
    """

    summary: Json
    recipe: str | None
    history: list[Json]
    unreadable: int
    architecture: Json
    data: dict[str, npt.NDArray[Any]]
    bench: Json = field(default_factory=dict)
    simulation: Json = field(default_factory=dict)


def read_run(directory: Path) -> Run:
    """Reads the directory.

    Raises:
        InputError: The directory holds no run, or one of its files is damaged.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory", "name the directory that a run wrote with --out")
    if not (directory / "summary.json").is_file():
        raise InputError(
            f"{directory} holds no finished run: summary.json is missing",
            "finish the run with --resume, or name another directory",
        )
    history, unreadable = _history(directory / "history.jsonl")
    return Run(
        summary=_json(directory / "summary.json"),
        recipe=_text(directory / "recipe.yaml"),
        history=history,
        unreadable=unreadable,
        architecture=_json(directory / "architecture.json") if (directory / "architecture.json").is_file() else {},
        data=read_npz(directory / "report_data.npz") if (directory / "report_data.npz").is_file() else {},
        bench=_json(directory / "bench.json") if (directory / "bench.json").is_file() else {},
        simulation=_json(directory / "simulation.json") if (directory / "simulation.json").is_file() else {},
    )


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "write the run again with --overwrite") from error


def _json(path: Path) -> Json:
    try:
        found = load_json(_text(path) or "")
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", "write the run again with --overwrite") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object", "write the run again with --overwrite")
    return found


def _history(path: Path) -> tuple[list[Json], int]:
    entries: list[Json] = []
    unreadable = 0
    for line in (_text(path) or "").splitlines():
        if not line.strip():
            continue
        try:
            entry = load_json(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            unreadable += 1
    return entries, unreadable


def part(summary: Json, key: str) -> Json:
    """The object under ``key``; empty when it is absent or null."""
    found = summary.get(key)
    return found if isinstance(found, dict) else {}
