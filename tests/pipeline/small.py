"""Small work, and progress that does something at a certain step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from billhook import CRISP
from billhook.progress import Progress

EFFORT: dict[str, Any] = {"method": CRISP(rounds=4), "epochs": 2, "images_per_class": 40, "control": "none"}
"""Keywords of ``prune`` for a run of a fraction of a second."""


class AtStep(Progress):
    """Calls ``act`` once, after step ``step`` of ``phase``."""

    def __init__(self, step: int, act: Callable[[], object], phase: str = "prune") -> None:
        self.step, self.act, self.phase = step, act, phase

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        """A bar that counts and acts."""
        outer = self

        class Counting:
            def __init__(self) -> None:
                self.done = done

            def advance(self, steps: float) -> None:
                self.done += int(steps)
                if name == outer.phase and self.done == outer.step:
                    outer.act()

        yield Counting()
