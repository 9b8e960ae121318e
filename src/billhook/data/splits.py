"""Seeded, stratified draws. Each class is shuffled on its own, so what is drawn of one does not hang on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from billhook.data.source import Labels, PartRows, Rows


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a function of the parts, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def apportion(total: int, counts: Sequence[int]) -> list[int]:
    """Share ``total`` in proportion to ``counts``: largest remainders, ties to the lower index, never above a count."""
    available = sum(counts)
    total = min(total, available)
    if total <= 0:
        return [0] * len(counts)
    shares = [total * count // available for count in counts]
    remainders = [total * count % available for count in counts]
    for index in sorted(range(len(counts)), key=lambda i: (-remainders[i], i))[: total - sum(shares)]:
        shares[index] += 1
    return shares


def split_off(
    rows: Labels, labels: Labels, names: Sequence[str], fraction: float, *, seed: int, tag: str
) -> tuple[Labels, Labels]:
    """Split a stratified part off.

    At least one image per class where the class has two or more, and never all of them.

    Args:
        rows: Row numbers, int64 [n].
        labels: Their classes, int64 [n], index into ``names``.
        names: Class names.
        fraction: Share of the part, of all rows.
        seed: Randomness.
        tag: Keeps draws for different purposes apart.

    Returns:
        (rest, part), each ascending.
    """
    groups = [rows[labels == label] for label in range(len(names))]
    shares = apportion(int(fraction * len(rows) + 0.5), [len(group) for group in groups])
    chosen: list[Labels] = []
    for name, group, share in zip(names, groups, shares, strict=True):
        share = min(max(share, 1), max(len(group) - 1, 0))
        chosen.append(shuffled(group, seed, tag, name)[:share])
    part = np.sort(np.concatenate(chosen)) if chosen else rows[:0]
    return np.setdiff1d(rows, part), part


def with_test(rows: Rows, names: Sequence[str], share: float) -> dict[str, Rows]:
    """Train and test parts of rows without a test split; fixed seed, so that no run trains on another's test images."""
    rest, part = split_off(np.arange(len(rows)), rows.labels, names, share, seed=0, tag="test")
    return {"train": PartRows(rows, rest), "test": PartRows(rows, part)}


def cap(
    rows: Labels,
    labels: Labels,
    names: Sequence[str],
    *,
    limit: int | None,
    per_class: int | None,
    seed: int,
) -> Labels:
    """Draw at most ``per_class`` rows of each class and ``limit`` in all, in proportion to what each class has.

    Every class that has images keeps at least one when ``limit`` allows it. Returns ascending row numbers.
    """
    if limit is None and per_class is None:
        return np.sort(rows)
    groups = [rows[labels == label] for label in range(len(names))]
    counts = [len(group) if per_class is None else min(len(group), per_class) for group in groups]
    if limit is not None and limit < sum(counts):
        shares = apportion(limit, counts)
        for index, count in enumerate(counts):
            largest = max(range(len(shares)), key=lambda i: shares[i])
            if count and not shares[index] and shares[largest] > 1:
                shares[index] += 1
                shares[largest] -= 1
        counts = shares
    drawn = [shuffled(g, seed, "cap", name)[:count] for name, g, count in zip(names, groups, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def shuffled(rows: Labels, *key: object) -> Labels:
    """The rows in an order that is a function of the key."""
    return rows[np.random.Generator(np.random.PCG64(seed_of(*key))).permutation(len(rows))]
