"""What a network costs: counting it, and the arithmetic of budgets."""

from billhook.cost.count import Cost, LayerCost, count

__all__ = ["Cost", "LayerCost", "count"]
