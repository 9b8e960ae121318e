"""Budgets: inequalities that a delivered network has to meet.

``sparsity>=90%``, ``macs<=30%``, ``params<=300k``, ``bytes<=4MB``, ``latency<=12ms``. A percentage is of the dense
network; sparsity is a share of the parameters of the network before pruning with the head as delivered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from billhook.errors import UsageError, nearest

QUANTITIES = ("sparsity", "params", "macs", "effective_macs", "channels", "volume", "bytes", "latency")
Unit = Literal["ratio", "count", "bytes", "ms"]

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_TIME = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_FORM = re.compile(r"\s*([a-zA-Z_]+)\s*(<=|>=|=<|=>|<|>|==?)\s*([0-9.eE+-]+?)\s*([a-zA-Z%]*)\s*")


@dataclass(frozen=True)
class Budget:
    """One inequality.

    Attributes:
        quantity: One of :data:`QUANTITIES`.
        bound: In ``unit``; a ratio is a fraction of one.
        unit: ``ratio`` (of dense), ``count``, ``bytes`` or ``ms``.
    """

    quantity: str
    bound: float
    unit: Unit

    @property
    def relation(self) -> str:
        """``>=`` for sparsity, ``<=`` for everything else."""
        return ">=" if self.quantity == "sparsity" else "<="

    @property
    def _key(self) -> str:
        """Its name among a network's totals."""
        return "latency_ms" if self.quantity == "latency" else self.quantity

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"sparsity>=90%"``.

        Raises:
            UsageError: Unknown quantity, wrong relation, or a bound that does not fit the quantity.
        """
        found = _FORM.fullmatch(text)
        if not found:
            raise UsageError(f"the budget '{text}' is not of the form QUANTITY OP BOUND", 'such as "sparsity>=90%"')
        quantity, relation, digits, suffix = found[1].lower(), found[2], found[3], found[4]
        if quantity not in QUANTITIES:
            raise UsageError(f"unknown budget quantity '{found[1]}'", nearest(quantity, QUANTITIES))
        wanted = ">=" if quantity == "sparsity" else "<="
        if relation != wanted:
            raise UsageError(f"the budget '{text}' must read {quantity}{wanted}BOUND")
        try:
            number = float(digits)
        except ValueError:
            raise UsageError(f"'{digits}' in the budget '{text}' is not a number") from None
        bound, unit = _read_bound(quantity, number, suffix, text)
        if not 0 < bound < math.inf or (unit == "ratio" and bound > 1) or (quantity == "sparsity" and bound >= 1):
            raise UsageError(f"the bound of '{text}' is out of range", "a percentage lies between 0 and 100")
        if unit in ("count", "bytes") and bound < 1:
            raise UsageError(f"the bound of '{text}' is less than one", f"a share is a percentage: {100 * bound:g}%")
        return cls(quantity, bound, unit)

    def __str__(self) -> str:
        if self.unit == "ratio":
            return f"{self.quantity}{self.relation}{100 * self.bound:.10g}%"
        suffix = {"count": "", "bytes": "B", "ms": "ms"}[self.unit]
        return f"{self.quantity}{self.relation}{self.bound:.10g}{suffix}"

    def absolute(self, dense: Mapping[str, Any]) -> float:
        """The bound in absolute units, given the dense network's totals. Not for sparsity."""
        return self.bound * float(dense[self._key]) if self.unit == "ratio" else self.bound

    def report(self, dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of ``summary.json``: what was asked, what came out, and whether it is met.

        Args:
            dense: Totals of the dense network.
            pruned: Totals of the delivered network, with ``sparsity`` and ``zeros``.
        """
        if self.quantity == "sparsity":
            value, absolute = float(pruned["sparsity"]), float(pruned["zeros"])
            met = value >= self.bound - 1e-12
        else:
            absolute = float(pruned[self._key])
            value = absolute / float(dense[self._key]) if self.unit == "ratio" else absolute
            met = value <= self.bound * (1.02 if self.quantity == "latency" else 1.0) + 1e-12
        return {
            "quantity": self.quantity,
            "relation": self.relation,
            "bound": self.bound,
            "value": value,
            "unit": self.unit,
            "value_absolute": int(absolute) if self.quantity != "latency" else absolute,
            "met": met,
        }


def _read_bound(quantity: str, number: float, suffix: str, text: str) -> tuple[float, Unit]:
    if suffix == "%":
        return round(number / 100, 12), "ratio"  # 99.9 / 100 is not 0.999
    lower = suffix.lower()
    if quantity == "sparsity":
        if not suffix and number < 1:
            return number, "ratio"
        raise UsageError(f"the sparsity of '{text}' must be a percentage", "such as sparsity>=90%")
    if quantity == "latency":
        if lower in _TIME:
            return number * _TIME[lower], "ms"
        raise UsageError(f"the latency of '{text}' needs a unit", "such as latency<=12ms, or a percentage of dense")
    if quantity == "bytes":
        if lower in _BYTES:
            return number * _BYTES[lower], "bytes"
        if lower in _SCALE:
            return number * _SCALE[lower], "bytes"
        raise UsageError(f"unknown unit '{suffix}' in the budget '{text}'", "kB, MB, GB, KiB, MiB, GiB or %")
    if lower in _SCALE:
        return number * _SCALE[lower], "count"
    raise UsageError(f"unknown unit '{suffix}' in the budget '{text}'", "k, M, G or %")


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read several budgets, each quantity once.

    Raises:
        UsageError: None given, a quantity twice, or one that cannot be read.
    """
    if not texts:
        raise UsageError("no budget given", 'such as --budget "sparsity>=90%"')
    budgets = tuple(Budget.parse(text) for text in texts)
    names = [budget.quantity for budget in budgets]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"the budget names {', '.join(sorted(twice))} twice")
    return budgets
