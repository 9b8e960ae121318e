"""``--track tensorboard``: the history lines as scalars, while the run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from billhook.errors import UsageError, nearest
from billhook.progress import Bar, Progress

TRACKERS = ("tensorboard",)


class Tracked(Progress):
    """Passes everything on and writes every history line's numbers to event files.

    Args:
        inner: What the user sees.
        directory: Made at the first line, when the run has claimed its place.
    """

    def __init__(self, inner: Progress, directory: Path) -> None:
        self.inner, self.directory = inner, directory
        self._writer: Any = None

    def say(self, text: str) -> None:
        self.inner.say(text)

    def line(self, entry: dict[str, Any]) -> None:
        self.inner.line(entry)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory))
        for key, value in entry.items():
            if isinstance(value, int | float) and key not in ("step", "epoch"):
                self._writer.add_scalar(f"{entry['phase']}/{key}", value, entry["step"])
        self._writer.flush()

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        with self.inner.bar(name, total, done) as shown:
            yield shown


def tracked(progress: Progress, tracker: str | None, out: str | Path | None) -> Progress:
    """Wrap a progress when the user asked for a tracker.

    Raises:
        UsageError: An unknown tracker, or one that is not installed.
    """
    if tracker is None:
        return progress
    if tracker not in TRACKERS:
        raise UsageError(f"unknown tracker '{tracker}'", nearest(tracker, TRACKERS))
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UsageError("tensorboard is not installed", "pip install 'billhook[tensorboard]'") from None
    return Tracked(progress, Path(out or ".") / "tensorboard")
