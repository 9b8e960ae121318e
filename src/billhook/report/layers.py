"""The layer by layer view: sparsity, and where the work that is left is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from billhook.report import masks, plots, words
from billhook.report.read import Run

MOST_MASKS = 4


@dataclass(frozen=True)
class LayerRow:
    """One layer: its bar and its figures as text.

    Attributes:
        left_dense: The reason when the layer was left dense on purpose; else empty.
        work: The layer's share of the network's remaining effective MACs, or "–".
    """

    name: str
    picture: Markup
    sparsity: str
    nonzero: str
    weights: str
    work: str
    left_dense: str


def per_layer(run: Run) -> list[LayerRow]:
    """Rows in the network's order; empty when ``report_data.npz`` has no weights per layer."""
    names, weights, nonzero = (run.data.get(f"layer_{key}") for key in ("names", "weights", "nonzero"))
    if names is None or weights is None or nonzero is None or not names.size == weights.size == nonzero.size:
        return []
    reasons = {}
    found = run.summary.get("layers_left_dense")
    for entry in found if isinstance(found, list) else []:
        if isinstance(entry, dict):
            reasons[str(entry.get("name"))] = str(entry.get("reason") or "no reason given")
    work = run.data.get("layer_effective_macs")
    shares = None
    if work is not None and work.size == names.size and float(work.sum()) > 0:
        shares = work.astype(np.float64) / float(work.sum())
    rows = []
    for index, name in enumerate(str(name) for name in names):
        total, alive = float(weights[index]), float(nonzero[index])
        sparsity = 1 - alive / total if total > 0 else None
        rows.append(
            LayerRow(
                name=name,
                picture=plots.bar(sparsity or 0.0),
                sparsity=words.percent(sparsity),
                nonzero=words.count(alive),
                weights=words.count(total),
                work="–" if shares is None else words.percent(float(shares[index])),
                left_dense=reasons.get(name, ""),
            )
        )
    return rows


def have_zeros(run: Run) -> bool:
    """Whether any layer has zero weights; not the odd one, nor biases."""
    macs, work = run.data.get("layer_macs"), run.data.get("layer_effective_macs")
    if macs is None or work is None or macs.shape != work.shape:
        return True
    return bool((work < 0.99 * macs).any())


def pictures(run: Run) -> list[masks.MaskPicture]:
    """The hybrid masks that the run kept for the report, at most four, in the network's order."""
    keys = [key for key in run.data if key.startswith("mask/")]
    found = []
    for key in keys[:MOST_MASKS]:
        name = key.removeprefix("mask/")
        picture = masks.mask_picture(name, run.data[key], run.data.get(f"mask_meta/{name}"))
        if picture is not None:
            found.append(picture)
    return found
