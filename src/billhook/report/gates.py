"""How ChipNet's gates closed: their values, what soft and hard gates get right, and what they leave of the budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from billhook.report import heat, plots, words
from billhook.report.read import Json, Run

SOFT, HARD, ALLOWED = "gates as they are (soft)", "gates made 0 or 1 (hard)", "allowed"
MOST_ROWS = 300


@dataclass(frozen=True)
class Share:
    """One budget: what it is called, and what soft and hard gates leave over the epochs."""

    name: str
    chart: Markup


@dataclass(frozen=True)
class GateView:
    """The section on gates.

    Attributes:
        sentence: How far the gates closed.
        weight: When the budget's weight rose; empty when it never did.
        histogram: Heat map, a column per look: which share of the gates has which value.
        scale: Its colours.
        binned: Whether a column stands for several looks.
        accuracy: Of soft and hard gates; empty when there were no validation images.
        shares: One chart per budget.
        rises: Whether ticks in those charts mark where the budget's weight rose.
        legend: (style class, name) of the lines.
        rows: The figures behind it as text: epoch, accuracy soft and hard, shares, gates open and between.
        names: What the shares in the rows are of.
    """

    sentence: str
    weight: str
    histogram: Markup
    scale: list[tuple[int, str]]
    binned: bool
    accuracy: Markup
    shares: list[Share]
    rises: bool
    legend: list[tuple[str, str]]
    rows: list[list[str]]
    names: list[str]


@dataclass(frozen=True)
class _Look:
    """One look at the hard network, every figure checked; ``epoch`` is where it was taken."""

    epoch: float
    line: Json
    histogram: list[float]
    soft: list[float]
    hard: list[float]
    allowed: list[float]


def gate_view(run: Run) -> GateView | None:
    """The section; None for a run that learnt no gates."""
    lines = [entry for entry in run.history if entry.get("phase") == "gates"]
    per_step = _epochs_per_step(lines)
    looks = _looks(lines, per_step)
    if not looks:
        return None
    right = looks[-1].epoch
    epochs: dict[float, Json] = {}
    for entry in lines:
        at = words.number(entry.get("epoch"))
        if entry.get("event") == "epoch" and at is not None:
            epochs[at] = entry
    rises = [entry for entry in lines if entry.get("event") == "budget_weight" and _step(entry) is not None]
    names = _names(run, len(looks[0].soft))
    histogram, scale = _histogram(looks)
    return GateView(
        sentence=_sentence(looks),
        weight=_weight(rises, per_step),
        histogram=histogram,
        scale=scale,
        binned=len(looks) > heat.MOST_COLUMNS,
        accuracy=_accuracy(looks, epochs, right),
        shares=[
            Share(name, _share(name, looks, index, right, [per_step * (_step(entry) or 0.0) for entry in rises]))
            for index, name in enumerate(names)
        ],
        rises=bool(rises),
        legend=[("control", SOFT), ("pruned", HARD)],
        rows=_rows(looks, epochs),
        names=names,
    )


# ---------------------------------------------------------------------- what the history says
def _step(entry: Json) -> float | None:
    step = words.number(entry.get("step"))
    return step if step is not None and step > 0 else None


def _epochs_per_step(lines: list[Json]) -> float:
    """From the last epoch that says both; a look in place of an epoch where none does."""
    for entry in reversed(lines):
        step, epoch = _step(entry), words.number(entry.get("epoch"))
        if entry.get("event") == "epoch" and step is not None and epoch is not None and epoch > 0:
            return epoch / step
    steps = sorted({step for entry in lines if entry.get("event") == "gates" and (step := _step(entry)) is not None})
    return len(steps) / steps[-1] if steps else 1.0


def _numbers(value: object) -> list[float] | None:
    """A list of numbers, at least one; None for anything else."""
    if not isinstance(value, list):
        return None
    found = [number for entry in value if (number := words.number(entry)) is not None]
    return found if found and len(found) == len(value) else None


def _looks(lines: list[Json], per_step: float) -> list[_Look]:
    """Whole lines in order, a later one instead of an earlier one of the same step; those like the last one."""
    found: dict[float, _Look] = {}
    for entry in lines:
        step = _step(entry)
        if entry.get("event") != "gates" or step is None:
            continue
        read = [_numbers(entry.get(key)) for key in ("histogram", "soft_share", "hard_share", "allowed")]
        whole = [numbers for numbers in read if numbers is not None]
        if len(whole) < 4 or len({len(part) for part in whole[1:]}) > 1 or min(whole[0]) < 0 or not sum(whole[0]):
            continue
        epoch = round(step * per_step, 6)
        found[step] = _Look(epoch, entry, *whole)
    looks = [found[step] for step in sorted(found)]
    return [
        look
        for look in looks
        if len(look.histogram) == len(looks[-1].histogram) and len(look.soft) == len(looks[-1].soft)
    ]


def _names(run: Run, number: int) -> list[str]:
    """Of the budgets that gates are learnt for: a latency is stood in for by MACs, which come last."""
    entries = run.summary.get("budget")
    found = [entry.get("quantity") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    names = [words.QUANTITIES.get(str(name), str(name)) for name in found if name != "latency"][:number]
    if len(names) == number - 1 and "latency" in found:
        names.append("latency, in MACs")
    return names if len(names) == number else [f"budget {place}" for place in range(1, number + 1)]


# ---------------------------------------------------------------------- words
def _sentence(looks: list[_Look]) -> str:
    first, last = (words.number(look.line.get("between")) for look in (looks[0], looks[-1]))
    gates = sum(looks[-1].histogram)
    text = f"The network has {words.count(gates)} gates."
    if last is not None:
        text += f" When they had been learnt, {words.percent(last)} of them were still between 0.05 and 0.95"
        text += f" ({words.percent(first)} at the first look)." if first is not None and len(looks) > 1 else "."
    kept = _kept(looks)
    left = words.number(kept.line.get("open")) if kept is not None else None
    if kept is not None and left is not None:
        text += f" The network that went on is that of epoch {kept.epoch:.3g}, where {words.count(left)} stay open."
    return text


def _kept(looks: list[_Look]) -> _Look | None:
    return next((look for look in reversed(looks) if look.line.get("best") is True), None)


def _weight(rises: list[Json], per_step: float) -> str:
    if not rises:
        return ""
    before, after = words.number(rises[0].get("before")), words.number(rises[-1].get("after"))
    times = "once" if len(rises) == 1 else f"{len(rises)} times"
    text = f"The budget was not going to be met in time: its weight in the loss rose {times}"
    if before is not None and after is not None:
        text += f", from {before:.4g} to {after:.4g}"
    ends = [f"{per_step * (_step(entry) or 0.0):.2g}" for entry in (rises[0], rises[-1])]
    return text + (f", in epoch {ends[0]}." if len(set(ends)) == 1 else f", between epochs {ends[0]} and {ends[1]}.")


def _rows(looks: list[_Look], epochs: dict[float, Json]) -> list[list[str]]:
    rows = []
    for look in looks[-MOST_ROWS:]:
        soft = _soft(look, epochs)
        shares = [f"{words.percent(a)} / {words.percent(b)}" for a, b in zip(look.soft, look.hard, strict=True)]
        between = words.percent(look.line.get("between"))
        accuracy = [words.percent(soft), words.percent(look.line.get("hard_top1_kept"))]
        cells = [f"{look.epoch:.3g}", *accuracy, *shares, words.count(look.line.get("open")), between]
        rows.append(["–" if cell == words.MISSING else cell for cell in cells])
    return rows


def _soft(look: _Look, epochs: dict[float, Json]) -> float | None:
    """The accuracy of the soft network at the time of a look."""
    near = min(epochs, key=lambda epoch: abs(epoch - look.epoch), default=None)
    if near is None or abs(near - look.epoch) > 1e-3 * max(1.0, look.epoch):
        return None
    return words.number(epochs[near].get("val_top1_kept"))


# ---------------------------------------------------------------------- pictures
def _histogram(looks: list[_Look]) -> tuple[Markup, list[tuple[int, str]]]:
    counts = np.array([look.histogram for look in looks], dtype=np.float64).T
    shares = heat.binned(counts / counts.sum(axis=0))[::-1]  # 1 is on top
    bins, high = shares.shape[0], max(float(shares.max()), 1e-9)
    ends = [f"{words.percent(float(counts[index, -1] / counts[:, -1].sum()))}" for index in (0, -1)]
    titles = [f"gates between {(bins - row - 1) / bins:.2g} and {(bins - row) / bins:.2g}" for row in range(bins)]
    picture = heat.heat_map(
        # The square root lifts the few gates on their way from those that have arrived.
        np.sqrt(shares / high),
        f"Values of the gates over {len(looks)} looks; at the end {ends[0]} of them are in the lowest "
        f"of {bins} bins and {ends[1]} in the highest",
        240,
        rows=[(1 - value, f"{value:g}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
        across=_across(looks),
        titles=titles,
    )
    steps = [0.0, 0.25, 0.5, 0.75, 1.0]
    return picture, heat.legend((step, words.percent(high * step**2, 1 if 0 < high * step**2 < 0.1 else 0))
                                for step in steps)  # fmt: skip


def _across(looks: list[_Look]) -> list[tuple[float, str]]:
    return [((place + 0.5) / len(looks), f"{looks[place].epoch:.3g}") for place in plots.places(len(looks))]


def _ticks(right: float) -> list[float]:
    return plots.ticks(0.0, right or 1.0, 6)


def _accuracy(looks: list[_Look], epochs: dict[float, Json], right: float) -> Markup:
    soft = [
        (at, value) for at in sorted(epochs) if (value := words.number(epochs[at].get("val_top1_kept"))) is not None
    ]
    hard = [
        (look.epoch, value)
        for look in looks
        if (value := words.number(look.line.get("hard_top1_kept"))) is not None
    ]  # fmt: skip
    drawn = [curve for curve in (plots.Curve("control", SOFT, soft), plots.Curve("pruned", HARD, hard)) if curve.points]
    if not drawn:
        return Markup()
    kept = _kept(looks)
    marks = [(kept.epoch, "went on")] if kept is not None else []
    end = max(right, *(curve.points[-1][0] for curve in drawn))
    return plots.chart(drawn, (0.0, end), _ticks(end), marks, "Validation top-1 while gates are learnt", 200)


def _share(name: str, looks: list[_Look], index: int, right: float, rises: list[float]) -> Markup:
    drawn = [
        plots.Curve("allowed", ALLOWED, [(0.0, looks[0].allowed[index]), (right, looks[-1].allowed[index])]),
        plots.Curve("control", SOFT, [(look.epoch, look.soft[index]) for look in looks]),
        plots.Curve("pruned", HARD, [(look.epoch, look.hard[index]) for look in looks]),
    ]
    alt = f"What gates leave, counted for the budget of {name}"
    inside = [at for at in rises if at <= right]
    return plots.chart(drawn, (0.0, right), _ticks(right), [], alt, 200, inside, floor=0.0)
