"""How a convolution is run: which kernel, which tile, which order. What is a good guess, and what is worth timing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

DENSE_ABOVE = 0.55
"""Share of weights kept above which all of them are multiplied: the sparse kernel reaches two thirds of the speed."""
DENSE_TRIED_ABOVE = 0.3
SLOTS = (1, 2, 4)
VECTORS = (1, 2, 4)
_DENSE_WIDEST = {1: 16, 2: 14, 4: 6}
WIDEST = 16
"""Pixels of the widest tile; maps are cut into equal tiles up to this."""


@dataclass(frozen=True)
class Choice:
    """One way to run a convolution; the fields are those of ``bh_step``.

    Attributes:
        kernel: ``dense`` multiplies all weights, ``hybrid`` a stream of those that are not zero.
        tile: Pixels of a row that are summed at a time, at most.
        rows: Rows of a tile.
        vectors: Vectors of outputs of a tile (``dense``).
        slots: Non-zeros (bf16: pairs) per output of an item of the stream (``hybrid``).
        order: 0: outputs inside, pixels outside; 1: the other way round.
        split: Threads share 0 rows, 1 outputs.
    """

    kernel: Literal["dense", "hybrid"]
    tile: int = WIDEST
    rows: int = 1
    vectors: int = 1
    slots: int = 1
    order: int = 0
    split: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Choice:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: The values describe no choice.
        """
        if not isinstance(values, dict) or values.keys() != {field.name for field in fields(cls)}:
            raise ValueError("a choice has the keys " + ", ".join(field.name for field in fields(cls)))
        numbers = {key: value for key, value in values.items() if key != "kernel"}
        allowed = {"slots": SLOTS, "vectors": VECTORS, "order": (0, 1), "split": (0, 1)}
        if values["kernel"] not in ("dense", "hybrid") or not all(
            type(number) is int and number in allowed.get(key, range(1, WIDEST + 1)) for key, number in numbers.items()
        ):
            raise ValueError(f"there is no way to run a convolution like {values}")
        return cls(**values)

    def __str__(self) -> str:
        tile = f"{self.rows}x{self.tile}" if self.rows > 1 else str(self.tile)
        inner = f"vectors {self.vectors}" if self.kernel == "dense" else f"slots {self.slots}"
        order = "pixels inside" if self.order else "outputs inside"
        return f"{self.kernel}, tile {tile}, {inner}, {order}, threads share {'outputs' if self.split else 'rows'}"


@dataclass(frozen=True)
class Facts:
    """What a guess is made from.

    Attributes:
        outputs: Output channels.
        height: Of the output.
        width: Of the output.
        density: Share of the weights that are there.
        fill: Non-zeros per output of L inputs of one tap, where there are any, on average.
        dense: Whether the dense kernel can run it: a convolution without groups.
        sparse: Whether a stream of non-zeros may be shorter than all weights.
        lanes: L.
        bf16: Whether weights are bf16, two to a slot.
        threads: Of the run.
    """

    outputs: int
    height: int
    width: int
    density: float
    fill: float
    dense: bool
    sparse: bool
    lanes: int
    bf16: bool
    threads: int


def guess(facts: Facts) -> Choice:
    """The choice where nothing was measured."""
    dense = facts.dense and (not facts.sparse or facts.density > DENSE_ABOVE)
    groups = -(-facts.outputs // facts.lanes)
    rows, tile = _tiles(facts)[0]
    narrow = facts.height * facts.width <= 49
    # Shares of outputs read all inputs, half of which another core has just made: rows, where there are enough of them.
    split = int(facts.threads > 1 and facts.height < 4 * facts.threads)
    common = Choice("dense" if dense else "hybrid", tile, rows, order=int(narrow), split=split)
    if dense:
        vectors = max(
            v for v in VECTORS if v <= (4 if facts.height * facts.width == 1 else 2) and (v == 1 or v <= groups)
        )
        return replace(common, vectors=vectors)
    return replace(common, slots=_slots(facts))


def kernels(facts: Facts) -> list[Choice]:
    """Kernels and tiles that are worth timing, the guess first: from there one thing is changed at a time."""
    first = guess(facts)
    found = [first]
    if facts.sparse or not facts.dense:
        hybrid = first if first.kernel == "hybrid" else replace(first, kernel="hybrid", vectors=1, slots=_slots(facts))
        each = facts.fill / 2 if facts.bf16 else facts.fill
        found += [replace(hybrid, slots=slots) for slots in SLOTS if slots == 1 or slots < 2 * each]
        found += [replace(hybrid, rows=rows, tile=tile) for rows, tile in _tiles(facts)]
    if facts.dense and facts.height * facts.width > 1 and (not facts.sparse or facts.density > DENSE_TRIED_ABOVE):
        groups = -(-facts.outputs // facts.lanes)
        found += [
            replace(first, kernel="dense", slots=1, vectors=vectors, rows=rows, tile=tile)
            for vectors in VECTORS
            if vectors == 1 or vectors <= groups
            for rows, tile in _tiles(facts)
            if facts.lanes == 8 or rows * tile <= _DENSE_WIDEST[vectors] or (rows, tile) == _tiles(facts)[0]
        ]
    return _distinct(found)


def orders(choice: Choice, facts: Facts) -> list[Choice]:
    """The same kernel in other orders, its own first."""
    found = [choice]
    for split in (0, 1) if facts.threads > 1 else (choice.split,):
        for order in (0, 1) if facts.height * facts.width > 1 else (choice.order,):
            found.append(replace(choice, order=order, split=split))
    return _distinct(found)


def _slots(facts: Facts) -> int:
    """As many as an item's outputs fill, at most four; bf16 has two weights in each."""
    wanted = facts.fill / 2 if facts.bf16 else facts.fill
    return next((slots for slots in SLOTS if slots >= wanted), SLOTS[-1])


def _tiles(facts: Facts) -> list[tuple[int, int]]:
    """(rows, tile), the best guess first. Kernels of several rows are there for a few widths."""
    width, wide = facts.width, facts.lanes == 16
    narrow = [(2, 7), (2, 8), (4, 4)] if wide else [(2, 4)]
    several = [(rows, tile) for rows, tile in narrow if width % tile == 0 and facts.height >= rows]
    if width <= 2 and facts.height >= 4 and wide:
        several += [(4, 2)] if width == 2 else []
    one = [(1, WIDEST)] + ([(1, 8)] if wide and width > 8 else [])
    # Narrow maps fill a tile with several rows only.
    return several + one if width <= 8 else one + several


def _distinct(choices: Iterable[Choice]) -> list[Choice]:
    return list(dict.fromkeys(choices))
