"""Words that come from off-chip memory, when the on-chip one holds as much as it can of what is used again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operand:
    """One operand of a product.

    Attributes:
        data: Words of values.
        stored: Words of values and positions together.
        uses: How often all of it passes through the array.
        beside: Words of positions that fit in an array of their own, beside the values.
    """

    data: float
    stored: float
    uses: int
    beside: float = 0.0

    def held(self, capacity: float, part: int = 1) -> tuple[float, float]:
        """How much of one of ``part`` equal parts fits: (stored words, capacity that they take)."""
        room = max(self.data, self.stored - self.beside) / part
        if not room:
            return self.stored / part, 0.0
        share = min(1.0, capacity / room)
        return share * self.stored / part, share * room


def loads(weights: Operand, activations: Operand, capacity: float) -> float:
    """The fewest stored words that are read from off-chip memory.

    The product is made tile by tile, all of K at a time. Either loop may be the outer one: with output positions
    outside, one of ``weights.uses`` parts of the activations serves ``activations.uses`` tiles before the next part
    comes, and the weights are used again for every part; with output channels outside it is the other way round.
    What is held on chip is loaded once per use of the outer loop, the rest every time. Both operands compete for the
    capacity, and either may be served first.

    Fewer words or fewer positions never need more loads: whatever is held of the larger operand, the same share of
    the smaller one fits as well.
    """
    return min(
        _nested(inner=weights, outer=activations, capacity=capacity),
        _nested(inner=activations, outer=weights, capacity=capacity),
    )


def _nested(inner: Operand, outer: Operand, capacity: float) -> float:
    """Loads with the parts of ``outer`` in the outer loop: one part per use of ``inner``."""
    parts = inner.uses
    best = float("inf")
    for first in (True, False):
        if first:
            whole, taken = inner.held(capacity)
            part, _ = outer.held(capacity - taken, parts)
        else:
            part, taken = outer.held(capacity, parts)
            whole, _ = inner.held(capacity - taken)
        again = inner.uses * inner.stored - (inner.uses - 1) * whole
        streamed = outer.uses * outer.stored - parts * (outer.uses - 1) * part
        best = min(best, again + streamed)
    return best
