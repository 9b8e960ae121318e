"""The class by class view: accuracy before and after, and what the pruned network takes for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from billhook.report import masks, plots, words
from billhook.report.read import Run

MOST_ROWS = 20


@dataclass(frozen=True)
class ClassRow:
    """One class: the dot plot's row and the figures as text."""

    name: str
    picture: Markup
    dense: str
    control: str
    pruned: str
    change: str
    fell: bool


@dataclass(frozen=True)
class Classes:
    """Accuracy per class.

    Attributes:
        axis: The dot plot's axis.
        largest: The rows drawn: every class in order, or the largest changes first.
        every: All classes in order, when ``largest`` does not show them all; else empty.
        against: What the change is measured against.
        shown: Style class and name of the series there are.
    """

    axis: Markup
    largest: list[ClassRow]
    every: list[ClassRow]
    against: str
    shown: list[tuple[str, str]]


@dataclass(frozen=True)
class Confusion:
    """The pruned network's confusion: a table of (count, share of its row) for few classes, a picture for many.

    Attributes:
        names: The classes in order.
        rows: Per true class [(count, share)], empty when a picture stands in.
        picture: The data URI, or empty.
        side: The picture's side in CSS pixels.
        worst: The most frequent confusions: (true, taken for, images, share of the true class).
    """

    names: list[str]
    rows: list[tuple[str, list[tuple[str, float]]]]
    picture: str
    side: int
    worst: list[tuple[str, str, str, str]]


def _names(run: Run, number: int) -> list[str]:
    found = run.data.get("class_names")
    if found is not None and found.size == number:
        return [str(name) for name in found.reshape(-1)]
    listed = run.summary.get("classes")
    if isinstance(listed, list) and len(listed) == number:
        return [str(name) for name in listed]
    return [f"class {index}" for index in range(number)]


def per_class(run: Run) -> Classes | None:
    """The rows, or None when ``report_data.npz`` has no accuracy per class for the pruned network."""
    pruned = run.data.get("per_class_pruned")
    if pruned is None or pruned.size == 0 or pruned.dtype.kind not in "fiu":
        return None
    number = pruned.size
    held = {"pruned": _floats(pruned)}
    for style in ("dense", "control"):
        found = run.data.get(f"per_class_{style}")
        if found is not None and found.size == number and found.dtype.kind in "fiu" and np.isfinite(found).any():
            held[style] = _floats(found)
    against = "control" if "control" in held else "dense" if "dense" in held else ""
    finite = [value for values in held.values() for value in values if value is not None]
    low = min(0.9, np.floor(10 * min(finite, default=0.0) + 1e-9) / 10)
    rows, sizes = [], []
    for index, name in enumerate(_names(run, number)):
        values = {style: held[style][index] if style in held else None for style in ("dense", "control", "pruned")}
        after, before = values["pruned"], values.get(against)
        change = after - before if after is not None and before is not None else None
        sizes.append(abs(change) if change is not None else -1.0)
        rows.append(
            ClassRow(
                name=name,
                picture=plots.dots(list(values.items()), float(low)),
                dense=words.percent(values["dense"]),
                control=words.percent(values["control"]),
                pruned=words.percent(values["pruned"]),
                change="–" if change is None else words.points(change),
                fell=change is not None and change < -0.05,
            )
        )
    drawn = rows
    if number > MOST_ROWS:
        drawn = [rows[index] for index in sorted(range(number), key=lambda at: (-sizes[at], at))[:MOST_ROWS]]
    titles = {"dense": "dense, as it came", "control": "dense, fine-tuned (control)", "pruned": "pruned"}
    return Classes(
        axis=plots.dots_axis(float(low)),
        largest=drawn,
        every=rows if drawn is not rows else [],
        against=titles.get(against, ""),
        shown=[(style, title) for style, title in titles.items() if style in held],
    )


def _floats(values: npt.NDArray[Any]) -> list[float | None]:
    return [words.number(float(value)) for value in values.reshape(-1)]


def confusion(run: Run) -> Confusion | None:
    """The matrix, or None when there is none or it is not square."""
    found = run.data.get("confusion_pruned")
    if found is None or found.ndim != 2 or found.shape[0] != found.shape[1] or found.size == 0:
        return None
    number = found.shape[0]
    names = _names(run, number)
    counts = np.nan_to_num(found.astype(np.float64))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = [(row, column) for row in range(number) for column in range(number) if row != column]
    wrong = sorted((at for at in wrong if counts[at] > 0), key=lambda at: (-counts[at], at))[:10]
    worst = [
        (names[row], names[column], words.count(counts[row, column]), words.percent(shares[row, column]))
        for row, column in wrong
    ]
    if number > MOST_ROWS:
        picture, side = masks.heat_picture(shares)
        return Confusion(names, [], picture, side, worst)
    rows = [
        (names[row], [(f"{counts[row, column]:.0f}", float(shares[row, column])) for column in range(number)])
        for row in range(number)
    ]
    return Confusion(names, rows, "", 0, worst)
