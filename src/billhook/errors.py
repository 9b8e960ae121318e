"""The one error family of billhook.

Every failure that a user can meet is a ``BillhookError``: a kind (for programs), a message (what and where),
a hint (what to do) and the exit code that the command line ends with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BillhookError(Exception):
    """A failure with a message for people and a kind for programs.

    Args:
        message: What went wrong, and where; one line, no full stop needed.
        hint: What to do about it; empty when there is nothing to say.
    """

    kind = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def as_dict(self) -> dict[str, dict[str, str]]:
        """The document that ``--json`` prints: ``{"error": {"kind", "message", "hint"}}``."""
        return {"error": {"kind": self.kind, "message": self.message, "hint": self.hint}}


class UsageError(BillhookError):
    """A wrong command, flag, name or value. Nothing has been written."""

    kind = "usage"
    exit_code = 2


class InputError(BillhookError):
    """Data, weights or a directory that cannot be used as asked. Nothing has been written."""

    kind = "input"
    exit_code = 2


class InfeasibleError(BillhookError):
    """A budget that the method cannot meet on this network, found before any work. Nothing has been written."""

    kind = "infeasible"
    exit_code = 3


class RunError(BillhookError):
    """A run that failed while working: non-finite loss, a full disk, a dead worker. What was finished is kept."""

    kind = "run"
    exit_code = 1


class Interrupted(BillhookError):
    """SIGINT or SIGTERM: the current step was finished and saved; ``--resume`` continues.

    Args:
        signal_number: 2 (SIGINT) or 15 (SIGTERM); the exit code is 128 + it.
    """

    kind = "interrupted"

    def __init__(self, message: str, hint: str = "", signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


def nearest(word: str, choices: Iterable[object]) -> str:
    """A sentence that helps after a wrong name: the nearest choice, or the list of them."""
    names = [str(choice) for choice in choices]
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.5)
    if close:
        return f"did you mean '{lower[close[0]]}'?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"choose from: {shown}" if names else ""
