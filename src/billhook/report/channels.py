"""What a run that removed channels left of every layer: one chart of the convolutions, and the figures behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from billhook.report import plots, words
from billhook.report.read import Run

GAP = 0.18
"""Of a bar's place that stays empty beside it."""


@dataclass(frozen=True)
class ChannelRow:
    """One layer, as text; "before" is the dense network as it came.

    Attributes:
        channels: Output channels, kept and before; "–" for a linear layer.
        gone: Nothing of the layer is left: its residual branch went entirely.
    """

    name: str
    channels: str
    macs_before: str
    macs: str
    params_before: str
    params: str
    gone: bool


@dataclass(frozen=True)
class ChannelView:
    """The section on channels.

    Attributes:
        sentence: How many of all output channels stayed, and how many layers went entirely.
        chart: Output channels of every convolution before and after.
        rows: All layers with a weight matrix, in the network's order.
    """

    sentence: str
    chart: Markup
    rows: list[ChannelRow]


def channel_view(run: Run) -> ChannelView | None:
    """The section; None for a run that removed no channels, or one that kept no figures about them."""
    keys = ("names", "dense", "kept", "dense_macs", "macs", "dense_params", "params")
    found = [run.data.get(f"channels/{key}") for key in keys]
    held = [array for array in found if array is not None]
    if len(held) < len(keys) or len({array.shape for array in held}) > 1 or held[0].ndim != 1 or not held[0].size:
        return None
    names = [str(name) for name in held[0]]
    dense, kept, dense_macs, macs, dense_params, params = ([int(value) for value in array] for array in held[1:])
    rows = [
        ChannelRow(
            name=name,
            channels=f"{kept[index]:,} of {dense[index]:,}" if dense[index] else "–",
            macs_before=words.short_count(dense_macs[index]),
            macs=words.short_count(macs[index]),
            params_before=words.count(dense_params[index]),
            params=words.count(params[index]),
            gone=macs[index] == 0,
        )
        for index, name in enumerate(names)
    ]
    convolutions = [(names[index], dense[index], kept[index]) for index in range(len(names)) if dense[index]]
    return ChannelView(_sentence(convolutions, rows), chart(convolutions), rows)


def _sentence(convolutions: Sequence[tuple[str, int, int]], rows: Sequence[ChannelRow]) -> str:
    before, after = sum(dense for _, dense, _ in convolutions), sum(kept for _, _, kept in convolutions)
    text = f"{after:,} of the {before:,} output channels of all convolutions are left"
    text += f" ({words.percent(after / before)})." if before else "."
    gone = sum(row.gone for row in rows)
    if gone:
        text += f" {gone} layer{'s are' if gone > 1 else ' is'} gone entirely, with a residual branch."
    return text


def chart(convolutions: Sequence[tuple[str, int, int]]) -> Markup:
    """One bar per convolution, from input to output: what is left, in front of what there was.

    Args:
        convolutions: (name, channels before, channels after).

    Returns:
        Inline SVG; empty without convolutions.
    """
    if not convolutions:
        return Markup()
    before, after = sum(dense for _, dense, _ in convolutions), sum(kept for _, _, kept in convolutions)
    up = [tick for tick in plots.ticks(0.0, max(entry[1] for entry in convolutions), 4) if tick == int(tick)]
    top, number = up[-1], len(convolutions)
    alt = f"Output channels of {number} convolutions, before and after: {before} and {after} in all"
    pieces = [Markup('<svg class="chart" role="img" aria-label="{}" height="220">').format(alt)]
    for tick in up:
        at = plots.percent_of(1 - tick / top)
        pieces.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(at))
        pieces.append(
            Markup('<text x="-8" y="{}" dy="0.33em" text-anchor="end">{}</text>').format(at, words.count(tick))
        )
    for index, (name, dense, kept) in enumerate(convolutions):
        left, wide = plots.percent_of((index + GAP / 2) / number), plots.percent_of((1 - GAP) / number)
        pieces.append(Markup("<g><title>{}: {} of {} channels</title>").format(name, f"{kept:,}", f"{dense:,}"))
        for style, channels in (("was", dense), ("pruned", kept)):
            high = channels / top
            pieces.append(
                Markup('<rect class="{}" x="{}" width="{}" y="{}" height="{}"/>').format(
                    style, left, wide, plots.percent_of(1 - high), plots.percent_of(high)
                )
            )
        pieces.append(Markup("</g>"))
    for index in plots.places(number):
        where = plots.percent_of((index + 0.5) / number)
        pieces.append(
            Markup('<text x="{}" y="100%" dy="1.6em" text-anchor="middle">{}</text>').format(where, index + 1)
        )
    return Markup().join([*pieces, Markup("</svg>")])
