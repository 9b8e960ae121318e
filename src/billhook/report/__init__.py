"""One self-contained HTML page from what a run directory holds."""

from __future__ import annotations

from billhook.report.page import write_report

__all__ = ["write_report"]
