"""The honest baseline: the dense network fine-tuned on the same images with the same schedule.

It does not depend on the method or the budget, so one control serves every run that shares its weights, data, classes,
recipe and seed: it is cached under those.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from billhook import artifact
from billhook.errors import InputError
from billhook.formats import read_npz, read_safetensors, write_safetensors
from billhook.methods import Setting
from billhook.models import load_into
from billhook.problem import Run
from billhook.progress import Progress
from billhook.training.checkpoint import Journal
from billhook.training.evaluate import Evaluation
from billhook.training.loop import fit

FILE = "control.safetensors"


@dataclass
class Control:
    """The fine-tuned dense network, or nothing (``--control none``).

    Attributes:
        module: With the full head; None when there is no control.
        history: Its epochs.
        seconds: What it cost when it was trained.
        cached: It was found, not trained.
        evaluation: Its accuracy on the test images, where that is known already (``--control DIR``).
    """

    module: nn.Module | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    cached: bool = False
    evaluation: Evaluation | None = None

    def summary(self, result: Evaluation | None) -> dict[str, Any] | None:
        """The entry ``dense_finetuned`` of ``summary.json``."""
        if result is None:
            return None
        return {"top1_full": result.top1_full, "top1_kept": result.top1_kept, "cached": self.cached}


def cache_directory() -> Path:
    """``$BILLHOOK_CACHE``, else ``$XDG_CACHE_HOME/billhook``, else ``~/.cache/billhook``."""
    if os.environ.get("BILLHOOK_CACHE"):
        return Path(os.environ["BILLHOOK_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "billhook"


def given_control(setting: Setting, run: Run) -> Control | None:
    """The control that needs no training: none at all, or another run's; None when it is to be trained.

    Raises:
        InputError: ``--control DIR`` names a directory whose control was made from something else.
    """
    if run.control == "none":
        return Control()
    return None if run.control == "run" else _from_run(Path(run.control), control_key(setting))


def dense_finetuned(setting: Setting, journal: Journal, progress: Progress) -> Control:
    """Train the control, or take it from the cache."""
    key = control_key(setting)
    cached = cache_directory() / "controls" / key / FILE
    found = _read(cached, setting, key)
    # Another run may write it at this moment: all processes take it, or none.
    if not setting.room.any(found is None) and found is not None:
        progress.say("the fine-tuned dense control is in the cache")
        return found
    problem = setting.problem
    module = copy.deepcopy(problem.network.module)
    task = problem.task(module, "control", problem.steps, journal=journal, progress=progress)
    history = fit(task, setting.room)
    seconds = float(history[-1]["seconds"]) if history else 0.0
    control = Control(artifact.deliverable(task.module), history, seconds)
    if setting.room.is_main:
        _write(cached, control, key, progress)
    return control


def control_key(setting: Setting, ignore: Collection[str] = ()) -> str:
    """Hash of everything that the control depends on, less the fields of the training recipe in ``ignore``."""
    problem = setting.problem
    parts = {
        "weights": problem.network.weights_hash,
        "spec": problem.network.spec,
        "parameters": artifact.state_hash(problem.network.module),
        "data": problem.data.fingerprint,
        "kept": list(problem.data.kept),
        "preprocess": problem.preprocess.as_dict(),
        "train": problem.train.model_dump(
            mode="json", exclude={"distil", "distil_weight", "distil_features", "temperature", *ignore}
        ),
        "epochs": problem.epochs,
        "seed": problem.seed,
        "precision": setting.room.precision,
        "version": 1,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _from_run(directory: Path, key: str) -> Control:
    """The accuracy of another run's control, when it is the control of this problem too."""
    hashes = artifact.read_json(directory / artifact.ARCHITECTURE).get("hashes")
    figures = artifact.read_json(directory / artifact.SUMMARY).get("dense_finetuned")
    if not figures or not isinstance(hashes, dict) or hashes.get("control") != key:
        raise InputError(
            f"{directory} holds no control for this problem",
            "it must share weights, data, classes, training recipe and seed; leave --control away to train one",
        )
    try:
        confusion = read_npz(directory / artifact.REPORT_DATA)["confusion_control"]
        evaluation = Evaluation(figures["top1_full"], figures["top1_kept"], confusion, int(confusion.sum()))
    except (KeyError, TypeError) as error:
        raise InputError(f"the control in {directory} is damaged: {error!r}", "leave --control away") from error
    return Control(evaluation=evaluation, cached=True)


def _store(path: Path, control: Control, key: str) -> None:
    assert control.module is not None
    meta = {"key": key, "history": json.dumps(control.history), "seconds": str(control.seconds)}
    write_safetensors(path, artifact.state_arrays(control.module), meta)


def _write(path: Path, control: Control, key: str, progress: Progress) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _store(path, control, key)
    except Exception as error:
        # A cache that cannot be written costs time later, not this run.
        progress.say(f"note: the control could not be cached in {path.parent}: {error}")


def _read(path: Path, setting: Setting, key: str) -> Control | None:
    if not path.is_file():
        return None
    try:
        arrays, metadata = read_safetensors(path)
        if metadata.get("key") != key:
            return None
        module = copy.deepcopy(setting.problem.network.module)
        load_into(module, artifact.as_tensors(arrays), str(path))
        history, seconds = json.loads(metadata["history"]), float(metadata["seconds"])
    except (InputError, KeyError, ValueError):
        return None
    return Control(artifact.deliverable(module), history, seconds, cached=True)
