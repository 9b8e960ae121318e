"""ChipNet's losses on gates: crispness, and the square of how far the network is from its budget (2102.07156)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from billhook.cost.budget import Budget
from billhook.errors import UsageError
from billhook.methods.ceilings import Ceilings
from billhook.methods.chipnet.soft_cost import SoftCost

Crispness = Literal["mean", "sum"]
"""Over all gates: the published code averages; the paper's norms are sums."""


def crispness(soft: Tensor, gates: Tensor, form: Crispness = "mean") -> Tensor:
    """``(z - z~)^2`` over all gates: zero only where every gate is 0 or 1.

    Args:
        soft: ``[gates]``: z~, the logistic of psi.
        gates: ``[gates]``: z, its Heaviside.
        form: Averaged or summed.
    """
    distances = (gates - soft).square()
    return distances.mean() if form == "mean" else distances.sum()


def soft_round(gates: Tensor, steepness: float) -> Tensor:
    """``1 / (1 + exp(-s * (z - 0.5)))``: what counts of a gate in the budget, and nowhere else."""
    return torch.sigmoid(steepness * (gates - 0.5))


class BudgetLoss:
    """``(V - V0)^2``: V is the share of a quantity that the gates leave, V0 the share that the budget allows.

    Shares are of the network with all gates open. One budget pulls from both sides, as published: below it, gates open
    again. Of several, only the one that is furthest from being met (or nearest to being missed) pulls upwards, for the
    others are inequalities; every one that is missed pushes down.

    Args:
        cost: What the network costs as a function of its gates.
        budgets: The inequalities, at least one.
        dense: Totals of the dense network, which percentages are of.

    Attributes:
        allowed: V0 of each budget.

    Raises:
        UsageError: No budget, or one on latency.
    """

    def __init__(self, cost: SoftCost, budgets: Sequence[Budget], dense: Mapping[str, float]) -> None:
        if not budgets:
            raise UsageError("no budget given", 'such as --budget "macs<=50%"')
        self.cost = cost
        ceilings = Ceilings.of(budgets, cost.cost, dense)
        whole = cost.cost.many(cost.cost.channels)[ceilings.columns]
        self.columns, self.whole = ceilings.columns, whole.tolist()
        self.allowed = np.minimum(1, ceilings.limits / whole).tolist()

    def shares(self, values: Tensor, *, branches: bool = False) -> Tensor:
        """``[budgets]``: V.

        Args:
            values: ``[gates]``, between 0 and 1.
            branches: Count what is left of branches that are shut entirely, as :meth:`SoftCost.totals` can.
        """
        totals = self.cost.totals(values, branches=branches)
        return totals[self.columns] / totals.new_tensor(self.whole)

    def __call__(self, gates: Tensor, steepness: float) -> Tensor:
        """The loss.

        Args:
            gates: ``[gates]``: z.
            steepness: Of :func:`soft_round`.
        """
        excess = self.excess(soft_round(gates, steepness))
        missed = excess.clamp(min=0).square().sum()
        return missed + excess.max().clamp(max=0).square()

    def excess(self, values: Tensor, *, branches: bool = False) -> Tensor:
        """``[budgets]``: ``V - V0``, above zero where a budget is missed."""
        shares = self.shares(values, branches=branches)
        return shares - shares.new_tensor(self.allowed)
