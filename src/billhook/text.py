"""Plain text that is read in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: list[list[str]], header: list[str]) -> str:
    """A plain table: first column left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def feasibility(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of what is asked and how far the method could go, before anything is trained.

    Args:
        rows: As plans give them: ``quantity``, ``dense``, ``smallest``, ``asked``, ``feasible``.
    """
    cells = [
        [
            str(row["quantity"]),
            *(_amount(float(row[key]), str(row["quantity"])) for key in ("dense", "smallest", "asked")),
            "yes" if row["feasible"] else "no",
        ]
        for row in rows
    ]
    return table(cells, ["quantity", "dense", "reachable", "asked", "feasible"])


def _amount(number: float, quantity: str) -> str:
    if quantity == "latency":
        return f"{number:.3g} ms"
    return f"{100 * number:.2f} %" if abs(number) <= 1 else f"{number:,.0f}"
