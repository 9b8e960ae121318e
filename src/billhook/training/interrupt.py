"""SIGINT and SIGTERM, taken at the end of a step instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """Context that notes the first SIGINT or SIGTERM; a second one falls back to the old handler.

    Outside the main thread Python allows no handlers; the context then does nothing.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.pending = number
        self._restore()
