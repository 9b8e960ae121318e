"""Running commands and looking at what they print and leave."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from billhook.cli import run
from billhook.data import open_source


def command(*arguments: str) -> int:
    """The exit code of a command."""
    return run(list(arguments))


def small_prune(model: Path) -> list[str]:
    """A pruning command without ``--out`` that takes well under a second."""
    weights = ["--weights", str(model / "model.safetensors")]
    effort = ["--epochs", "2", "--images-per-class", "40"]
    data = ["--data", "digits", *effort, "--set", "rounds=4"]
    return ["prune", "tinycnn", *weights, *data, "--method", "crisp", "--budget", "sparsity>=80%"]


@dataclass(frozen=True)
class Printed:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as its one JSON document."""
        return json.loads(self.out)

    @property
    def error_lines(self) -> list[str]:
        """Lines of standard error that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


class Cli:
    """Calls commands and takes their output apart."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Printed:
        self.capsys.readouterr()
        code = command(*(str(argument) for argument in arguments))
        captured = self.capsys.readouterr()
        return Printed(code, captured.out, captured.err)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below ``folder``, files with the hash of their content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def digit_image(index: int) -> Image.Image:
    """A test image of the digits."""
    return open_source("digits").splits["test"].pil(index)


def grey(path: Path, value: int, side: int = 8) -> None:
    """A small grey PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(path)
