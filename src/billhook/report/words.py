"""Numbers as people read them. What was never measured reads "not measured", never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MISSING = "not measured"
NBSP = "\u00a0"
MINUS = "\u2212"
MOST_NAMES = 6

QUANTITIES = {
    "sparsity": "sparsity",
    "params": "parameters",
    "macs": "MACs",
    "effective_macs": "effective MACs",
    "channels": "channels",
    "volume": "activation volume",
    "bytes": "file size",
    "latency": "latency",
}
PHASES = {
    "baseline": "baseline",
    "control": "dense fine-tuning (control)",
    "prune": "pruning",
    "fine_tune": "fine-tuning",
    "penalty": "penalty on the scales",
    "gates": "learning gates",
    "total": "total",
}


def number(value: Any) -> float | None:
    """The value as a finite float; None for null, text, booleans, NaN and infinities."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def count(value: Any) -> str:
    """853018 -> ``853,018``."""
    found = number(value)
    return MISSING if found is None else f"{round(found):,}"


def short_count(value: Any) -> str:
    """125485696 -> ``125.5 M``; exact below ten million."""
    found = number(value)
    if found is None:
        return MISSING
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(found) >= size and abs(found) >= 1e7:
            return f"{_decimals(found / size)}{NBSP}{suffix}"
    return count(found)


def size(value: Any) -> str:
    """Bytes in decimal units: 3451984 -> ``3.45 MB``."""
    found = number(value)
    if found is None:
        return MISSING
    for unit, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(found) >= unit:
            return f"{_decimals(found / unit)}{NBSP}{suffix}"
    return f"{round(found)}{NBSP}bytes"


def _decimals(value: float) -> str:
    """Two decimals below ten, one below a thousand."""
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:,.1f}"


def percent(value: Any, digits: int = 1) -> str:
    """0.934 -> ``93.4 %``. A share just below one is never rounded up to 100 %."""
    found = number(value)
    if found is None:
        return MISSING
    text = f"{100 * found:.{digits}f}"
    while found < 1 and float(text) >= 100 and digits < 6:
        digits += 1
        text = f"{100 * found:.{digits}f}"
    return f"{text.replace('-', MINUS)}{NBSP}%"


def points(difference: Any) -> str:
    """A difference of two fractions in percentage points: -0.006 -> ``−0.6 points``."""
    found = number(difference)
    if found is None:
        return MISSING
    text = f"{abs(100 * found):.1f}"
    sign = "" if text == "0.0" else "+" if found > 0 else MINUS
    return f"{sign or '±'}{text}{NBSP}points"


def times(dense: Any, pruned: Any) -> float | None:
    """dense / pruned, or None when it cannot be said."""
    above, below = number(dense), number(pruned)
    return above / below if above and below and above > 0 and below > 0 else None


def ratio(dense: Any, pruned: Any, less: str = "fewer", more: str = "more") -> str:
    """dense against pruned: ``7.9× fewer``, ``1.2× more``, ``unchanged``; empty when either is unknown."""
    found = times(dense, pruned)
    if found is None:
        return ""
    if number(dense) == number(pruned):
        return "unchanged"
    larger = max(found, 1 / found)
    text = f"{larger:.1f}" if larger >= 1.1 else f"{larger:.3f}"
    return f"{text}×{NBSP}{less if found > 1 else more}"


def duration(value: Any) -> str:
    """Seconds: ``3.2 s``, ``11 min 41 s``, ``1 h 05 min``."""
    found = number(value)
    if found is None:
        return MISSING
    if found < 60:
        return f"{found:.1f}{NBSP}s"
    whole = round(found)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min{NBSP}{whole % 60:02d}{NBSP}s"
    return f"{whole // 3600}{NBSP}h{NBSP}{whole % 3600 // 60:02d}{NBSP}min"


def scientific(value: Any) -> str:
    """1.2e-06 -> ``1.2 × 10⁻⁶``; plain between 0.01 and 10,000."""
    found = number(value)
    if found is None:
        return MISSING
    if found == 0 or 0.01 <= abs(found) < 10_000:
        return f"{found:.3g}".replace("-", MINUS)
    mantissa, exponent = f"{found:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.replace('-', MINUS)}{NBSP}×{NBSP}10{raised}"


def in_unit(value: Any, unit: str, quantity: str = "", digits: int = 2) -> str:
    """A budget's bound or value in the unit that was asked: ``ratio``, ``count``, ``bytes`` or ``ms``."""
    if unit == "bytes":
        return size(value)
    if unit == "ms":
        found = number(value)
        return MISSING if found is None else f"{found:.2f}{NBSP}ms"
    if unit == "count":
        return short_count(value)
    text = percent(value, digits)
    return text if quantity == "sparsity" or text == MISSING else f"{text} of dense"


def relation(symbol: str) -> str:
    """``>=`` -> ``≥``, in words' place."""
    return {">=": "≥", "<=": "≤"}.get(symbol, symbol)


def joined(names: Sequence[str]) -> str:
    """``cat, dog and horse``; past six names, their number and the first few."""
    if len(names) > MOST_NAMES:
        return f"{len(names)} classes ({', '.join(names[:3])}, …)"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
