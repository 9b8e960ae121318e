"""Heat maps as inline SVG, and the scales that say what their colours mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from billhook.report import plots

MOST_COLUMNS = 60
LEVELS = 50
"""Shades: neighbours of the same shade become one rectangle, which keeps the page small."""

LONGEST = 18
"""Characters of a row's name that find room beside it."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """What a shade means, in logarithms: from ``low`` (faint) to ``high`` (full).

    Attributes:
        low: At or below it: the faintest shade.
        high: The full shade.
    """

    low: float
    high: float

    FAINT = 0.04
    """Of the faintest shade: a value is never taken for none."""

    @classmethod
    def of(cls, values: Array) -> Scale | None:
        """That of some values; three powers of ten at most, NaN and what is not above zero left out."""
        found = values[np.isfinite(values) & (values > 0)]
        if not found.size:
            return None
        high = float(found.max())
        return cls(max(float(found.min()), high / 1000), high)

    def shade(self, values: Array) -> Array:
        """In [0, 1]; NaN stays NaN."""
        span = math.log(self.high / self.low) if self.high > self.low else 0.0
        inside = np.clip(values, self.low, self.high)
        place = np.log(inside / self.low) / span if span else np.where(np.isnan(inside), np.nan, 1.0)
        return np.asarray(self.FAINT + (1 - self.FAINT) * place, dtype=np.float64)

    def steps(self, number: int = 4) -> list[float]:
        """Values for a legend, from faint to full."""
        if self.high <= self.low:
            return [self.high]
        return [float(value) for value in np.geomspace(self.low, self.high, number)]


def columns(number: int) -> int:
    """How many columns so many rounds or epochs are drawn in."""
    return min(number, MOST_COLUMNS)


def column_of(number: int) -> npt.NDArray[np.intp]:
    """The column of each of so many rounds or epochs, in order."""
    return np.arange(number) * columns(number) // max(number, 1)


def binned(values: Array) -> Array:
    """Means over the columns that are drawn.

    Args:
        values: [rows, rounds]; NaN where nothing is known.

    Returns:
        [rows, columns]; NaN where nothing is known in all the rounds of a column.
    """
    into = column_of(values.shape[1])
    found = np.full((values.shape[0], columns(values.shape[1])), np.nan)
    for column in range(found.shape[1]):
        part = values[:, into == column]
        known = np.isfinite(part)
        some = known.any(axis=1)
        found[some, column] = np.where(known, part, 0.0).sum(axis=1)[some] / known.sum(axis=1)[some]
    return found


def row_height(rows: int) -> int:
    """CSS pixels of a row: the map stays on a screen."""
    return next((high for most, high in ((8, 24), (16, 18), (40, 14), (80, 10)) if rows <= most), max(3, 800 // rows))


def heat_map(
    shades: Array,
    alt: str,
    height: int,
    *,
    rows: Sequence[tuple[float, str]],
    across: Sequence[tuple[float, str]],
    titles: Sequence[str] = (),
    picks: Iterable[tuple[int, int]] = (),
) -> Markup:
    """One heat map.

    Args:
        shades: [rows, columns] in [0, 1], the first row on top; NaN stays empty.
        alt: What is shown, for those who do not see it.
        height: In CSS pixels.
        rows: (position from the top in [0, 1], text) on the left.
        across: (position from the left in [0, 1], text) below.
        titles: What a pointer over each row says.
        picks: (row, column) of cells with a dot.

    Returns:
        Inline SVG; empty without cells.
    """
    if not shades.size:
        return Markup()
    number, wide = shades.shape
    pieces = [Markup('<svg class="chart" role="img" aria-label="{}" height="{}">').format(alt, height)]
    for at, text in rows:
        short = text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"
        label = '<text x="-8" y="{}" dy="0.33em" text-anchor="end">{}</text>'
        pieces.append(Markup(label).format(plots.percent_of(at), short))
    for at, text in across:
        label = '<text x="{}" y="100%" dy="1.6em" text-anchor="middle">{}</text>'
        pieces.append(Markup(label).format(plots.percent_of(at), text))
    box = '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" width="100%" height="100%" shape-rendering="crispEdges">'
    pieces.append(Markup(box).format(wide, number))
    for row in range(number):
        pieces.append(Markup("<g>"))
        if titles:
            pieces.append(Markup("<title>{}</title>").format(titles[row]))
        for start, end, level in _runs(shades[row]):
            cell = '<rect class="heat" x="{}" y="{}" width="{}" height="1" style="--v:{}%"/>'
            pieces.append(Markup(cell).format(start, row, end - start, 100 * level // LEVELS))
        pieces.append(Markup("</g>"))
    pieces.append(Markup("</svg>"))
    for row, column in picks:
        x, y = plots.percent_of((column + 0.5) / wide), plots.percent_of((row + 0.5) / number)
        pieces.append(Markup('<circle class="pick" cx="{}" cy="{}" r="2"/>').format(x, y))
    return Markup().join([*pieces, Markup("</svg>")])


def _runs(shades: Array) -> list[tuple[int, int, int]]:
    """Neighbours of the same shade: (first column, column after the last, level)."""
    found: list[tuple[int, int, int]] = []
    for column, shade in enumerate(shades):
        if math.isnan(shade):
            continue
        level = round(LEVELS * min(1.0, max(0.0, float(shade))))
        if found and found[-1][1] == column and found[-1][2] == level:
            found[-1] = (found[-1][0], column + 1, level)
        else:
            found.append((column, column + 1, level))
    return found


def legend(entries: Iterable[tuple[float, str]]) -> list[tuple[int, str]]:
    """(shade, text) as the page takes them: (percentage of the colour, text)."""
    return [(round(100 * shade), text) for shade, text in entries]
