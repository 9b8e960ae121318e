"""What a simulated run would be on sparse tensor cores: totals, cycles by layer, energy by level, and the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from billhook.report import heat, plots, words
from billhook.report.read import Json, Run

DENSE, HYBRID = "dense-tc", "crisp-stc"
GAP = 0.18
"""Of a bar's place that stays empty beside it."""

LEVELS = (
    ("dram", "DRAM", 100),
    ("smem", "SMEM", 76),
    ("metadata", "positions", 58),
    ("accumulators", "accumulators", 42),
    ("operands", "operand registers", 28),
    ("macs", "MACs", 14),
)
"""Where energy goes, from far to near: key, title, percentage of the full shade."""


@dataclass(frozen=True)
class DesignRow:
    """One design, as text.

    Attributes:
        name: Short.
        title: What people call it.
        energies: Its energy by level, stacked.
    """

    name: str
    title: str
    cycles: str
    faster: str
    energy: str
    less: str
    delay: str
    utilised: str
    bound_by: str
    energies: Markup


@dataclass(frozen=True)
class LayerLine:
    """One layer, as text."""

    name: str
    product: str
    weights: str
    dense: str
    faster: list[str]
    bound_by: str


@dataclass(frozen=True)
class LayersPart:
    """The run with the zeros that it has.

    Attributes:
        designs: One row each.
        others: Names of the designs beside the dense one.
        chart: Cycles of every layer, dense and hybrid.
        positions: (format, bits, as a multiple of CRISP's).
        lines: The figures of every layer.
    """

    designs: list[DesignRow]
    others: list[str]
    chart: Markup
    positions: list[tuple[str, str, str]]
    lines: list[LayerLine]


@dataclass(frozen=True)
class SweepMap:
    """One heat map of the sweep: what it shows, the picture, its scale."""

    title: str
    picture: Markup
    scale: list[tuple[int, str]]


@dataclass(frozen=True)
class SimulationView:
    """The section.

    Attributes:
        sentence: What came out, in one sentence.
        layers: The run with its own zeros; None when only a sweep was simulated.
        levels: (shade, title) of the energy stacks.
        maps: Of the sweep.
        reached: Sentences on how far to go for a factor.
        longest: Characters of the longest row name of the maps.
        notes: What to know when reading the figures.
    """

    sentence: str
    layers: LayersPart | None
    levels: list[tuple[int, str]]
    maps: list[SweepMap]
    reached: list[str]
    longest: int
    notes: list[str]


def simulation_view(run: Run) -> SimulationView | None:
    """The section; None for a run that was never simulated, or whose figures are not what this version writes."""
    layers, sweep = run.simulation.get("layers"), run.simulation.get("sweep")
    parts = [part for part in (layers, sweep) if isinstance(part, dict)]
    if not parts:
        return None
    try:
        own = _layers(layers) if isinstance(layers, dict) else None
        maps = _maps(sweep) if isinstance(sweep, dict) else []
        reached = [reached_sentence(entry) for entry in sweep["reached"]] if isinstance(sweep, dict) else []
        sentence = _sentence(layers) if isinstance(layers, dict) else ""
        notes = list(dict.fromkeys(f"{note[:1].upper()}{note[1:]}" for part in parts for note in part["notes"]))
    except (KeyError, TypeError, ValueError, StopIteration):
        return None
    longest = max((len(name) for name in _names(sweep)), default=0) if isinstance(sweep, dict) else 0
    return SimulationView(sentence, own, [(shade, title) for _, title, shade in LEVELS], maps, reached, longest, notes)


def _sentence(document: Json) -> str:
    row = _row(document, HYBRID, "total")
    return (
        f"On the model of a tensor core for this pattern ({HYBRID}) the network takes {row['speedup']:.2f} times fewer "
        f"cycles and {row['energy_ratio']:.2f} times less energy than the dense network on a dense tensor core."
    )


def _row(document: Json, design: str, layer: str) -> Json:
    return next(row for row in document["rows"] if row["design"] == design and row["layer"] == layer)


def _layers(document: Json) -> LayersPart:
    titles = {str(entry["name"]): str(entry["title"]) for entry in document["designs"]}
    of = {(row["design"], row["layer"]): row for row in document["rows"]}
    most = max(of[name, "total"]["energy_uj"] for name in titles)
    others = [name for name in titles if name != DENSE]
    designs = [_design(name, title, of[name, "total"], most) for name, title in titles.items()]
    lines = [
        LayerLine(
            name=str(layer["name"]),
            product=f"{layer['m']}×{layer['k']}×{layer['n']}" + (f" ×{layer['groups']}" if layer["groups"] > 1 else ""),
            weights=str(layer["pattern"]),
            dense=words.count(of[DENSE, layer["name"]]["cycles"]),
            faster=[f"{of[name, layer['name']]['speedup']:.2f}" for name in others],
            bound_by=str(of[HYBRID, layer["name"]]["bound_by"]),
        )
        for layer in document["layers"]
    ]
    bars = [(line.name, int(of[DENSE, line.name]["cycles"]), int(of[HYBRID, line.name]["cycles"])) for line in lines]
    return LayersPart(designs, others, bar_chart(bars), _positions(document), lines)


def _design(name: str, title: str, row: Json, most: float) -> DesignRow:
    return DesignRow(
        name=name,
        title=title,
        cycles=words.count(row["cycles"]),
        faster=f"{row['speedup']:.2f}×",
        energy=f"{row['energy_uj']:,.1f}",
        less=f"{row['energy_ratio']:.2f}×",
        delay=f"{row['energy_delay']:.3g}",
        utilised=words.percent(row["utilisation"]),
        bound_by=str(row["bound_by"]).replace(" ", words.NBSP),
        energies=stack([(level, row["energy_by_level"][key], shade) for key, level, shade in LEVELS], most),
    )


def _positions(document: Json) -> list[tuple[str, str, str]]:
    bits = document["metadata"]["total"]
    if not bits["crisp"]:
        return []
    names = (("crisp", "CRISP"), ("csr", "CSR"), ("ellpack", "ELLPACK"), ("bitmap", "bitmap"))
    rows = [(title, words.count(bits[key]), f"{bits[key] / bits['crisp']:.2f}×") for key, title in names]
    more = words.count(bits["blocked_ell_values"] - bits["values"])
    ratio = f"{bits['blocked_ell'] / bits['crisp']:.2f}×"
    return [*rows, (f"blocked-ELL, with {more} more values", words.count(bits["blocked_ell"]), ratio)]


def stack(parts: Sequence[tuple[str, float, int]], most: float) -> Markup:
    """A stacked horizontal bar.

    Args:
        parts: (what, amount, shade in percent), from left to right.
        most: The amount that fills the bar's place.
    """
    pieces = [Markup('<svg class="bar" aria-hidden="true" height="14">')]
    at = 0.0
    for what, amount, shade in parts:
        piece = '<g><title>{}: {} µJ</title><rect class="heat" x="{}" width="{}" height="14" style="--v:{}%"/></g>'
        where, wide = plots.percent_of(at / most), plots.percent_of(amount / most)
        pieces.append(Markup(piece).format(what, f"{amount:,.1f}", where, wide, shade))
        at += amount
    return Markup().join([*pieces, Markup("</svg>")])


def bar_chart(bars: Sequence[tuple[str, int, int]]) -> Markup:
    """One bar per layer, from input to output: the cycles that are left, in front of those of the dense machine.

    Args:
        bars: (name, cycles dense, cycles hybrid).

    Returns:
        Inline SVG; empty without layers.
    """
    if not bars:
        return Markup()
    number, highest = len(bars), max(max(before, after) for _, before, after in bars)
    top = plots.ticks(0.0, highest, 4)[-1]
    before, after = sum(bar[1] for bar in bars), sum(bar[2] for bar in bars)
    alt = f"Cycles of {number} layers, dense and hybrid: {before} and {after} in all"
    pieces = [Markup('<svg class="chart" role="img" aria-label="{}" height="220">').format(alt)]
    for tick in plots.ticks(0.0, highest, 4):
        at = plots.percent_of(1 - tick / top)
        pieces.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(at))
        label = '<text x="-8" y="{}" dy="0.33em" text-anchor="end">{}</text>'
        pieces.append(Markup(label).format(at, _short(tick)))
    for index, (name, dense, hybrid) in enumerate(bars):
        left, wide = plots.percent_of((index + GAP / 2) / number), plots.percent_of((1 - GAP) / number)
        title = f"{name}: {dense:,} cycles dense, {hybrid:,} on {HYBRID}"
        pieces.append(Markup("<g><title>{}</title>").format(title))
        for style, cycles in (("was", dense), ("pruned", hybrid)):
            high = cycles / top
            rect = '<rect class="{}" x="{}" width="{}" y="{}" height="{}"/>'
            pieces.append(Markup(rect).format(style, left, wide, plots.percent_of(1 - high), plots.percent_of(high)))
        pieces.append(Markup("</g>"))
    for index in plots.places(number):
        where = plots.percent_of((index + 0.5) / number)
        label = '<text x="{}" y="100%" dy="1.6em" text-anchor="middle">{}</text>'
        pieces.append(Markup(label).format(where, index + 1))
    return Markup().join([*pieces, Markup("</svg>")])


def _short(cycles: float) -> str:
    return f"{cycles / 1e6:g} M" if cycles >= 1e6 else f"{cycles / 1e3:g} k" if cycles >= 1e3 else f"{cycles:g}"


def _maps(document: Json) -> list[SweepMap]:
    rows = [row for row in document["rows"] if row["design"] == HYBRID]
    found = []
    for key, title in (("speedup", "Times fewer cycles"), ("energy_ratio", "Times less energy")):
        picture, scale = _map(rows, key, f"{title} than dense, by pattern and share of pruned blocks")
        found.append(SweepMap(f"{title} than dense ({HYBRID})", picture, scale))
    return found


def _names(document: Json) -> list[str]:
    rows = [row for row in document["rows"] if row["design"] == HYBRID]
    return list(dict.fromkeys(f"{row['nm']}, B = {row['block']}" for row in rows))


def _map(rows: Sequence[Mapping[str, float]], key: str, alt: str) -> tuple[Markup, list[tuple[int, str]]]:
    names = list(dict.fromkeys(f"{row['nm']}, B = {row['block']}" for row in rows))
    shares = sorted({row["block_sparsity"] for row in rows})
    values = np.full((len(names), len(shares)), np.nan)
    for row in rows:
        values[names.index(f"{row['nm']}, B = {row['block']}"), shares.index(row["block_sparsity"])] = row[key]
    scale = heat.Scale.of(values)
    if scale is None:
        return Markup(), []
    titles = [f"{name}: " + ", ".join(f"{value:.2f}" for value in values[index]) for index, name in enumerate(names)]
    picture = heat.heat_map(
        scale.shade(values),
        alt,
        heat.row_height(len(names)) * len(names),
        rows=[((index + 0.5) / len(names), name) for index, name in enumerate(names)],
        across=[((index + 0.5) / len(shares), f"{100 * share:.3g} %") for index, share in enumerate(shares)],
        titles=titles,
    )
    steps = np.array(scale.steps())
    return picture, heat.legend(
        (float(shade), f"{value:.3g}") for shade, value in zip(scale.shade(steps), steps, strict=True)
    )


def reached_sentence(entry: Json) -> str:
    """What it takes to get to a factor, or that nothing gets there."""
    where = "The network" if entry["scope"] == "network" else f"One layer ({entry['layer']})"
    pattern = (
        f"{entry['nm']} with B = {entry['block']} and {100 * entry['block_sparsity']:.3g} % of the blocks pruned "
        f"({words.percent(entry['sparsity'])} zeros)"
    )
    goal = f"{entry['times']:g}× in {entry['metric']}"
    if entry["met"]:
        return f"{where} reaches {goal} from {pattern}."
    return f"{goal} is not reached: {where[:1].lower()}{where[1:]} gets to {entry['value']:.2f}× with {pattern}."
