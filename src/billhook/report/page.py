"""The page: a run directory in, one HTML file with everything inline out."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from billhook.errors import RunError
from billhook.report import bench, channels, classes, feature_maps, gates, layers, plots, rounds, simulation, tables
from billhook.report.read import Run, read_run

NAME = "report.html"
LONGEST = 20


def _breakable(name: str) -> Markup:
    """A dotted layer name; a long one may break after its dots, so that it is never clipped."""
    if len(name) <= LONGEST:
        return Markup('<span class="whole">{}</span>').format(name)
    return Markup(".<wbr>").join(name.split("."))


@functools.cache
def _template() -> jinja2.Template:
    """Reading it takes longer than filling it in: once per process, however many runs that carries out."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("billhook", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html")


def _context(run: Run) -> dict[str, Any]:
    removed = channels.channel_view(run)
    pictures = layers.pictures(run)
    return {
        "headline": tables.headline(run),
        "trained": tables.trained(run),
        "comparison": tables.comparison(run),
        "has_control": isinstance(run.summary.get("dense_finetuned"), dict),
        "budgets": tables.budget_table(run),
        "curves": plots.curves(run.history),
        "most_rows": tables.MOST_ROWS,
        "history": tables.history_rows(run),
        "rounds": tables.mask_rows(run),
        "unreadable": run.unreadable,
        "bench": bench.bench_view(run),
        "simulation": simulation.simulation_view(run),
        "gates": gates.gate_view(run),
        "search": rounds.search_view(run),
        "maps": feature_maps.map_pictures(run),
        "channels": removed,
        # Where channels went and no weight is zero there is nothing to say of zeros.
        "show_layers": removed is None or layers.have_zeros(run),
        "show_masks": removed is None or bool(pictures),
        "removals": tables.removal_rows(run),
        "layers": layers.per_layer(run),
        "classes": classes.per_class(run),
        "confusion": classes.confusion(run),
        "masks": pictures,
        "left_dense": tables.left_dense(run),
        "equivalence": tables.equivalence(run),
        "phases": [(name, text, plots.bar(share, "control")) for name, text, share in tables.phases(run)],
        "facts": tables.facts(run),
        "labels": tables.label_map(run),
        "recipe": run.recipe,
        "version": run.summary.get("billhook") or "",
    }


def write_report(directory: str | Path) -> Path:
    """Writes ``report.html`` into a run directory, from what the directory holds.

    The same directory gives the same bytes. The page loads nothing from anywhere.

    Args:
        directory: A run directory; ``summary.json`` must be there, every other file may be missing.

    Returns:
        The page.

    Raises:
        InputError: The directory holds no run, or a damaged file.
        RunError: The page cannot be written.
    """
    directory = Path(directory)
    run = read_run(directory)
    # the style sheet is ours: it goes in as it is
    css = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    text = _template().render(css=css, **_context(run)) + "\n"
    page = directory / NAME
    unfinished = directory / f".{NAME}.{os.getpid()}.tmp"
    try:
        unfinished.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        os.replace(unfinished, page)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{page} cannot be written: {error.strerror}", "make room or check the permissions") from error
    return page
