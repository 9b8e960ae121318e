"""What a weight-sparsity budget counts, in weights of the delivered network: zeros, effective MACs, bytes on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from billhook.cost import Cost
from billhook.cost.budget import Budget
from billhook.errors import InfeasibleError, UsageError
from billhook.methods.targets import Target

QUANTITIES = ("sparsity", "effective_macs", "bytes")
"""What pruning single weights can move."""

TOLERANCE = 0.001
"""Overshoot that does not matter, as a share of the dense quantity (0.1 point of sparsity)."""

TOLERANCE_OF_BOUND = 0.01
"""The same as a share of the bound, for all quantities but sparsity (1 %)."""

ROUNDING_BYTES = 2
"""A packed layer's offsets and columns both end in a byte that may be part empty."""


class Accounting:
    """The arithmetic of one run's budgets.

    Args:
        budgets: The inequalities; one on latency is not counted here.
        targets: Layers that take the pattern.
        start: Weights that each target keeps before the budget is looked at (all of them, or what N:M leaves).
        dense: Totals of the dense network: ``macs``, ``effective_macs``, ``bytes``.
        delivered: Cost of the dense network with the head as delivered.
        bytes_per_weight: Stored bytes of one surviving weight (value and offset).
        start_bytes: File size when every target keeps ``start``; called only for a ``bytes`` budget.
        bytes_per_block: Stored bytes of one kept block column index.

    Raises:
        UsageError: A budget that pruning weights cannot move.
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        targets: Sequence[Target],
        start: Mapping[str, int],
        dense: Mapping[str, float],
        delivered: Cost,
        *,
        method: str,
        bytes_per_weight: float,
        start_bytes: Callable[[], int],
        bytes_per_block: Callable[[Target], float] = lambda target: 0.0,
    ) -> None:
        for budget in budgets:
            if budget.quantity not in QUANTITIES:
                raise UsageError(
                    f"the method '{method}' cannot move {budget.quantity}: it removes weights, not channels",
                    "ask for sparsity, effective_macs or bytes",
                )
        self.budgets, self.targets = tuple(budgets), list(targets)
        self.dense, self.delivered = dense, delivered
        self.bytes_per_weight, self.bytes_per_block = bytes_per_weight, bytes_per_block
        self.start = dict(start)
        self._start_bytes = start_bytes() if any(b.quantity == "bytes" for b in self.budgets) else 0
        self.tolerance = np.array([self._tolerance(budget) for budget in self.budgets])

    # ------------------------------------------------------------------ counting
    def zeros_of(self, kept: Mapping[str, int]) -> int:
        """Weights closed when every target keeps ``kept[name]``."""
        return sum(t.weights - kept[t.name] for t in self.targets)

    def sparsity_of(self, kept: Mapping[str, int]) -> float:
        """Sparsity of the delivered network (over all its parameters)."""
        return self.zeros_of(kept) / self.delivered.params

    def sparsity(self, masks: Mapping[str, Tensor]) -> float:
        """Sparsity of the delivered network under masks in the parameters' shapes."""
        closed = sum(int((~t.matrix(masks[t.parameter])).sum()) for t in self.targets if t.parameter in masks)
        return closed / self.delivered.params

    def need(self, kept: Mapping[str, int] | None = None) -> NDArray[np.float64]:
        """``[Q]``: what still has to be saved of each quantity when the targets keep ``kept`` (default: ``start``)."""
        kept = self.start if kept is None else kept
        return np.array([self._need(budget, kept) for budget in self.budgets], dtype=np.float64)

    def cost(self, target: Target, weights: NDArray[np.int64], blocks: int = 0) -> NDArray[np.float64]:
        """``[n, Q]``: what removing ``weights[i]`` weights (and ``blocks`` block indices) of a layer saves."""
        per_weight = {"sparsity": 1.0, "effective_macs": float(target.positions), "bytes": self.bytes_per_weight}
        fixed = {"bytes": blocks * self.bytes_per_block(target)}
        saved = np.zeros((len(weights), len(self.budgets)))
        for column, budget in enumerate(self.budgets):
            saved[:, column] = weights * per_weight[budget.quantity] + fixed.get(budget.quantity, 0.0)
        return saved

    def check(self, floor: Mapping[str, int], what: str) -> None:
        """Refuse budgets below what the method must leave.

        Args:
            floor: Weights that each target keeps at the very least.
            what: Names that limit for the message.

        Raises:
            InfeasibleError: With the best that can be reached.
        """
        missing = self.need(floor)
        for budget, lacking in zip(self.budgets, missing, strict=True):
            if lacking > 1e-9:
                raise InfeasibleError(
                    f"{budget} cannot be reached: {what} leaves {self._reached(budget, lacking)}",
                    "ask for less, use a finer pattern, or prune channels first",
                )

    def feasibility(self, floor: Mapping[str, int]) -> list[dict[str, object]]:
        """One row per budget: dense, smallest reachable, asked, feasible."""
        rows: list[dict[str, object]] = []
        largest = max(self.targets, key=lambda t: floor[t.name]).name if self.targets else ""
        for budget, lacking in zip(self.budgets, self.need(floor), strict=True):
            if budget.quantity == "sparsity":
                dense, smallest, asked = 0.0, self.sparsity_of(floor), budget.bound
            else:
                dense, asked = float(self.dense[budget.quantity]), budget.absolute(self.dense)
                smallest = asked + float(lacking)
            rows.append(
                {
                    "quantity": budget.quantity,
                    "dense": dense,
                    "smallest": smallest,
                    "asked": asked,
                    "binding_layer": largest,
                    "feasible": bool(lacking <= 1e-9),
                }
            )
        return rows

    # ------------------------------------------------------------------ one quantity
    def _tolerance(self, budget: Budget) -> float:
        if budget.quantity == "sparsity":
            return TOLERANCE * self.delivered.params
        return min(TOLERANCE * float(self.dense[budget.quantity]), TOLERANCE_OF_BOUND * budget.absolute(self.dense))

    def _need(self, budget: Budget, kept: Mapping[str, int]) -> float:
        if budget.quantity == "sparsity":
            return float(np.ceil(budget.bound * self.delivered.params - 1e-9)) - self.zeros_of(kept)
        if budget.quantity == "effective_macs":
            macs = self.delivered.macs - sum((t.weights - kept[t.name]) * t.positions for t in self.targets)
            return macs - budget.absolute(self.dense)
        gone = sum(self.start[t.name] - kept[t.name] for t in self.targets)
        excess = self._start_bytes - budget.absolute(self.dense)
        rounding = ROUNDING_BYTES * len(self.targets) if excess > 0 else 0
        return excess + rounding - gone * self.bytes_per_weight

    def _reached(self, budget: Budget, lacking: float) -> str:
        if budget.quantity == "sparsity":
            return f"{100 * (budget.bound - lacking / self.delivered.params):.2f} % sparsity"
        if budget.unit == "ratio":
            return f"{100 * (budget.bound + lacking / float(self.dense[budget.quantity])):.2f} % of dense"
        unit = "bytes" if budget.unit == "bytes" else budget.quantity
        return f"{budget.bound + lacking:,.0f} {unit}"
