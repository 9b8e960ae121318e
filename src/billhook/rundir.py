"""The run directory: claimed before work, journalled during it, finished in one go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from billhook import artifact
from billhook.errors import InputError, RunError
from billhook.formats import write_safetensors
from billhook.methods.base import HistoryWriter

MAY_CHANGE = ("lr", "clip")
"""Fields of the training recipe that may differ when a run resumes: what one turns after a loss that was not finite."""


@dataclass(frozen=True)
class RunDirectory:
    """A place for one run.

    Attributes:
        directory: Where it lies, or None for a run in memory only.
    """

    directory: Path | None

    @property
    def partial(self) -> Path | None:
        """The journal of the run under way."""
        return None if self.directory is None else self.directory / artifact.PARTIAL

    @property
    def finished(self) -> bool:
        """Whether the directory holds a finished run."""
        return self.directory is not None and (self.directory / artifact.SUMMARY).is_file()

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse a directory that holds something else; writes nothing.

        Raises:
            InputError: It holds another run (or other files) and neither flag says what to do.
        """
        if self.directory is None or not self.directory.exists():
            if resume:
                raise InputError(f"there is nothing to resume in {self.directory}", "leave --resume away")
            return
        if not self.directory.is_dir():
            raise InputError(f"{self.directory} is a file", "give another --out")
        if overwrite:
            return
        partial = self.partial is not None and self.partial.is_dir()
        if resume:
            if not partial and not self.finished:
                raise InputError(f"there is nothing to resume in {self.directory}", "leave --resume away")
            return
        if not any(self.directory.iterdir()):
            return
        if partial:
            raise InputError(f"{self.directory} holds an unfinished run", "--resume continues it, --overwrite drops it")
        raise InputError(f"{self.directory} is not empty", "give another --out, or --overwrite")

    def claim(
        self,
        recipe: Mapping[str, Any] | None = None,
        inputs: str = "",
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Take the directory: remember the recipe and a hash of what it works on, so that only the same run resumes.

        Raises:
            InputError: See :meth:`check`; or the recipe or the inputs differ from the unfinished run's.
            RunError: The directory cannot be made.
        """
        self.check(resume=resume, overwrite=overwrite)
        if self.directory is None:
            return
        marker = None if self.partial is None else self.partial / "recipe.json"
        try:
            if overwrite and self.directory.exists():
                self._clear()
            self.directory.mkdir(parents=True, exist_ok=True)
            if recipe is None or marker is None:
                return
            asked = json.loads(json.dumps({"recipe": recipe, "inputs": inputs}))
            if resume and marker.is_file():
                self._same(artifact.read_json(marker), asked)
            marker.parent.mkdir(exist_ok=True)
            artifact.write_json(marker, asked)
        except OSError as error:
            raise RunError(f"cannot write in {self.directory}: {error.strerror or error}") from error

    def history_writer(self, before: list[dict[str, Any]]) -> HistoryWriter:
        """A function that writes ``history.jsonl`` as the run goes, after the lines in ``before``."""

        def write(history: list[dict[str, Any]]) -> None:
            if self.directory is not None:
                artifact.write_history(self.directory / artifact.HISTORY, before + history)

        return write

    def keep(self, documents: Mapping[str, Any]) -> None:
        """Write JSON files that must be there when the run goes on after an interruption.

        Raises:
            RunError: The disk is full or not writable.
        """
        if self.directory is not None:
            for name, content in documents.items():
                artifact.write_json(self.directory / name, content)

    def finish(
        self, module: nn.Module, files: artifact.Contents, summary: dict[str, Any], history: list[dict[str, Any]]
    ) -> Path:
        """Write everything; ``summary.json`` last, since it marks the run as finished."""
        from billhook.report import write_report

        assert self.directory is not None
        place = self.directory
        artifact.write_model(place, module, files.patterns, files.described)
        artifact.write_atomically(place / artifact.RECIPE, files.recipe.encode())
        artifact.write_history(place / artifact.HISTORY, history)
        artifact.write_arrays(place / artifact.REPORT_DATA, files.report_data)
        for name, (tensors, metadata) in files.more.items():
            write_safetensors(place / name, tensors, metadata)
        self.keep(files.documents)
        artifact.write_json(place / artifact.SUMMARY, summary)
        write_report(place)
        if self.partial is not None and self.partial.is_dir():
            shutil.rmtree(self.partial)
        return place

    def _same(self, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        old, new = _fixed(before.get("recipe") or {}), _fixed(asked["recipe"])
        if old != new:
            raise InputError(
                f"the unfinished run in {self.directory} has another recipe",
                f"repeat its command ({_difference(old, new)}), or --overwrite",
            )
        if before.get("inputs") != asked["inputs"]:
            raise InputError(
                f"the weights or images of the unfinished run in {self.directory} have changed",
                "give it those it began with, or --overwrite",
            )

    def _clear(self) -> None:
        """Remove what a run writes, and nothing else."""
        assert self.directory is not None
        for name in artifact.FILES:
            (self.directory / name).unlink(missing_ok=True)
        if self.partial is not None and self.partial.is_dir():
            shutil.rmtree(self.partial)


def _fixed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that may not change on the way."""
    train = recipe.get("train")
    if not isinstance(train, Mapping):
        return dict(recipe)
    return dict(recipe) | {"train": {key: value for key, value in train.items() if key not in MAY_CHANGE}}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The first recipe entry that differs, as ``key: old``."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return _difference(before, after, f"{prefix}{key}.")
        return f"{prefix}{key} was {before}"
    return "same"
