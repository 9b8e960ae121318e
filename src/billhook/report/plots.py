"""Figures as inline SVG that keeps its text size at any width and takes its colours from the page.

Positions are percentages of an SVG without a viewBox, so that a phone gets the same type as a desk; only the curves
live in a stretched inner viewBox, with strokes that do not scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from billhook.report import words
from billhook.report.read import Json

MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """One line of a chart: the style class, its name in the legend, and points (x, y) in data units."""

    style: str
    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """Accuracy and sparsity over the epochs.

    Attributes:
        measure: What the accuracy is, for the axis.
        accuracy: The chart, empty when no accuracy was recorded.
        sparsity: The chart, empty when no sparsity was recorded.
        legend: (style class, name) of the lines drawn.
    """

    measure: str
    accuracy: Markup
    sparsity: Markup
    legend: list[tuple[str, str]]


def percent_of(value: float) -> str:
    """A coordinate: a fraction of the width or height as ``12.34%``."""
    return f"{100 * value:.2f}%"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values that span [low, high], about ``about`` of them."""
    raw = max(high - low, 1e-9) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def timeline(history: Sequence[Json]) -> tuple[list[Json], list[Json], float | None]:
    """The history as (control entries, pruning entries, epoch at which fine-tuning starts), ``x`` added to each.

    Fine-tuning goes on from where pruning ended, also where a phase counts its epochs from nought.
    """
    control: list[Json] = []
    pruning: list[Json] = []
    offset, last, phase, start = 0.0, 0.0, "", None
    for entry in history:
        epoch = words.number(entry.get("epoch"))
        if epoch is None:
            continue
        if entry.get("phase") == "control":
            control.append({**entry, "x": epoch})
            continue
        if phase and entry.get("phase") != phase and epoch + offset < last - 1e-9:
            offset = last
        if start is None and phase == "prune" and entry.get("phase") == "fine_tune":
            start = last
        phase = str(entry.get("phase", ""))
        last = max(last, epoch + offset)
        pruning.append({**entry, "x": epoch + offset})
    return control, pruning, start


def _series(entries: Iterable[Json], key: str) -> list[tuple[float, float]]:
    """Points of one quantity; a resumed run's later line replaces an earlier one of the same epoch."""
    found: dict[float, float] = {}
    for entry in entries:
        value = words.number(entry.get(key))
        if value is not None:
            found[entry["x"]] = value
    points = sorted(found.items())
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride < 2 else sorted({*points[::stride], points[-1]})


def curves(history: Sequence[Json]) -> Curves:
    """Accuracy over the epochs (control dashed, pruned solid), and the planned sparsity with the mask rounds.

    Dashed vertical lines mark where fine-tuning starts, and where channels were removed.
    """
    control, pruning, start = timeline(history)
    epochs = [entry for entry in pruning if entry.get("event") == "epoch"]
    masks = [entry for entry in pruning if entry.get("event") == "mask"]
    right = max((entry["x"] for entry in [*control, *pruning]), default=0.0)
    across = ticks(0.0, right or 1.0, 6)
    span = (0.0, max(right, 1e-9))
    removals = [entry["x"] for entry in pruning if entry.get("event") == "channels"]
    marks = [(x, "" if number else "channels removed") for number, x in enumerate(removals)]
    if start is not None:
        marks.append((start, "fine-tuning"))

    measure, drawn = _accuracy(control, epochs)
    accuracy = chart(drawn, span, across, marks, f"{measure} over the epochs", 260) if drawn else Markup()

    line = _series([*epochs, *masks], "sparsity")
    sparsity = Markup()
    if line:
        rounds = [entry["x"] for entry in masks]
        alt = "sparsity of the delivered network, as planned, over the epochs"
        sparsity = chart([Curve("pruned", "", line)], span, across, [], alt, 110, rounds, floor=0.0)
    return Curves(measure, accuracy, sparsity, [(curve.style, curve.name) for curve in drawn])


def _accuracy(control: list[Json], epochs: list[Json]) -> tuple[str, list[Curve]]:
    """The best accuracy that was recorded: (what it is, its curves)."""
    trained = bool(epochs) and all(entry.get("phase") == "train" for entry in epochs)
    for key, measure in (
        ("val_top1_kept", "validation top-1, kept classes"),
        ("val_top1_full", "validation top-1, full head"),
        ("train_top1", "training top-1"),
    ):
        drawn = [
            Curve("control", "dense, fine-tuned (control)", _series(control, key)),
            Curve("pruned", "dense" if trained else "pruned", _series(epochs, key)),
        ]
        drawn = [curve for curve in drawn if curve.points]
        if drawn:
            return measure, drawn
    return "", []


def chart(
    drawn: list[Curve],
    span: tuple[float, float],
    across: list[float],
    marks: list[tuple[float, str]],
    alt: str,
    height: int,
    rounds: Sequence[float] = (),
    floor: float | None = None,
) -> Markup:
    """One chart of shares over the epochs.

    Args:
        drawn: At least one curve, none without points.
        span: First and last epoch of the axis.
        across: Ticks of that axis.
        marks: (epoch, text) of dashed vertical lines.
        alt: What is shown, for those who do not see it; the ends of the curves are added.
        height: In CSS pixels.
        rounds: Epochs of short ticks on the axis.
        floor: Lowest share of the axis; None: that of the curves.

    Returns:
        Inline SVG.
    """
    values = [y for curve in drawn for _, y in curve.points]
    low = min(values) if floor is None else floor
    high = max(max(values), low + 0.05)
    if max(values) <= 1 < high:  # nothing is above 100 %: the room is left below
        low, high = min(low, 0.95), 1.0
    up = ticks(low, high, 5 if height > 150 else 2)
    bottom, top = up[0], up[-1]

    def x(value: float) -> float:
        return (value - span[0]) / (span[1] - span[0])

    def y(value: float) -> float:
        return 1 - (value - bottom) / (top - bottom)

    digits = 0 if all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in up) else 1
    ends = "; ".join(
        f"{curve.name or 'sparsity'} from {words.percent(curve.points[0][1])} to {words.percent(curve.points[-1][1])}"
        for curve in drawn
    )
    pieces = [Markup('<svg class="chart" role="img" aria-label="{}: {}" height="{}">').format(alt, ends, height)]
    for tick in up:
        at = percent_of(y(tick))
        pieces.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(at))
        text = words.percent(tick, digits)
        pieces.append(Markup('<text x="-8" y="{}" dy="0.33em" text-anchor="end">{}</text>').format(at, text))
    for tick in across:
        if tick <= span[1] * (1 + 1e-9):
            where = percent_of(x(tick))
            pieces.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="100%" y2="100%"/>').format(where))
            pieces.append(
                Markup('<text x="{}" y="100%" dy="1.6em" text-anchor="middle">{}</text>').format(where, f"{tick:g}")
            )
    for value, name in marks:
        at = percent_of(x(value))
        pieces.append(Markup('<line class="mark" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(at))
        # past the middle the label goes to the left of its line, so that it is never clipped
        side, anchor = ("-5", "end") if x(value) > 0.6 else ("5", "start")
        pieces.append(
            Markup('<text class="small" x="{}" y="100%" dx="{}" dy="-0.6em" text-anchor="{}">{}</text>').format(
                at, side, anchor, name
            )
        )
    for value in rounds:
        at = percent_of(x(value))
        pieces.append(Markup('<line class="tick" x1="{0}" x2="{0}" y1="100%" y2="92%"/>').format(at))
    pieces.append(Markup('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">'))
    for curve in drawn:
        path = " ".join(f"{1000 * x(px):.1f},{1000 * y(py):.1f}" for px, py in curve.points)
        pieces.append(Markup('<polyline class="line {}" points="{}"/>').format(curve.style, path))
    pieces.append(Markup("</svg>"))
    for curve in drawn:
        ends_only = curve.points if len(curve.points) <= 40 and height > 150 else curve.points[-1:]
        for px, py in ends_only:
            pieces.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"/>').format(
                    curve.style, percent_of(x(px)), percent_of(y(py)), 3 if height > 150 else 2.5
                )
            )
    return Markup().join([*pieces, Markup("</svg>")])


def places(number: int, most: int = 20) -> list[int]:
    """Positions in [0, number) that get a label: all of a few, else every fifth, tenth, twentieth, ...

    Args:
        number: How many there are.
        most: So many labels find room.
    """
    if number <= most:
        return list(range(number))
    step = next(step for step in (5, 10, 20, 50, 100, math.inf) if number / step <= 0.7 * most)
    return [0] if step == math.inf else [0, *(place - 1 for place in range(int(step), number + 1, int(step)))]


def bar(share: float, style: str = "pruned") -> Markup:
    """A horizontal bar on its track; the figure beside it in the table says the same in text."""
    wide = percent_of(min(1.0, max(0.0, share)))
    return Markup(
        '<svg class="bar" aria-hidden="true" height="12"><rect class="track" width="100%" height="12" rx="2"/>'
        '<rect class="{}" width="{}" height="12" rx="2"/></svg>'
    ).format(style, wide)


def dots(values: Sequence[tuple[str, float | None]], low: float) -> Markup:
    """One row of a dot plot: (style class, fraction) on an axis from ``low`` to 1, joined by a line."""
    at = [(style, (value - low) / (1 - low)) for style, value in values if value is not None]
    pieces = [Markup('<svg class="dots" aria-hidden="true" height="18">')]
    pieces.append(Markup('<line class="grid" x1="0" x2="100%" y1="9" y2="9"/>'))
    if at:
        left, right = min(x for _, x in at), max(x for _, x in at)
        pieces.append(
            Markup('<line class="join" x1="{}" x2="{}" y1="9" y2="9"/>').format(percent_of(left), percent_of(right))
        )
    for style, x in at:
        pieces.append(Markup('<circle class="dot {}" cx="{}" cy="9" r="5"/>').format(style, percent_of(x)))
    return Markup().join([*pieces, Markup("</svg>")])


def dots_axis(low: float) -> Markup:
    """The axis above a dot plot's rows."""
    pieces = [Markup('<svg class="dots" aria-hidden="true" height="18">')]
    for tick in ticks(low, 1.0, 2 if low else 4):
        if tick < low:
            continue
        pieces.append(
            Markup('<text class="small" x="{}" y="13" text-anchor="middle">{}</text>').format(
                percent_of((tick - low) / (1 - low)), words.percent(tick, 0)
            )
        )
    return Markup().join([*pieces, Markup("</svg>")])
