"""What a long run shows of itself, on standard error, so that standard output stays for results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol


class Bar(Protocol):
    """Counts steps."""

    def advance(self, steps: float) -> None:
        """Move on by ``steps``."""
        ...


class _Silent:
    def advance(self, steps: float) -> None:
        del steps


class Progress:
    """Says nothing; the command line brings :class:`RichProgress`."""

    def say(self, text: str) -> None:
        """A sentence for the reader."""

    def line(self, entry: dict[str, Any]) -> None:
        """One history line (an epoch or a mask update)."""

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar over ``total`` steps, ``done`` of them behind us."""
        del name, total, done
        yield _Silent()


class RichProgress(Progress):
    """Sentences and bars on standard error; bars only on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self._bar: Any = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def line(self, entry: dict[str, Any]) -> None:
        if entry.get("event") == "budget_weight":
            self.say(
                f"{entry.get('phase', ''):8} the budget is not going to be met: its weight rises "
                f"from {entry['before']:.4g} to {entry['after']:.4g}"
            )
        if entry.get("event") != "epoch":
            return
        parts = [f"{entry.get('phase', ''):8} epoch {entry['epoch']:6.2f}", f"loss {entry['loss']:.4f}"]
        if "val_top1_kept" in entry:
            parts.append(f"validation {100 * entry['val_top1_kept']:.2f} %")
        if "sparsity" in entry:
            parts.append(f"sparsity {100 * entry['sparsity']:.2f} %")
        parts.append(f"{entry['seconds']:.0f} s")
        self.say("  ".join(parts))

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield _Silent()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(name, total=total, completed=done)

            class _Shown:
                def advance(self, steps: float) -> None:
                    bars.advance(task, steps)

            yield _Shown()
