"""The report's tables as plain rows of text; the template only lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from billhook.report import words
from billhook.report.read import Json, Run, part
from billhook.report.words import MISSING, NBSP

MOST_ROWS = 300


@dataclass(frozen=True)
class Cell:
    """A figure, what it says against the dense network, and the exact figure for the tooltip."""

    text: str
    note: str = ""
    exact: str = ""

    @property
    def missing(self) -> bool:
        """Whether nothing was measured."""
        return self.text == MISSING


@dataclass(frozen=True)
class Figure:
    """One of the big figures at the top."""

    label: str
    value: str
    note: str
    good: bool = True


@dataclass(frozen=True)
class Headline:
    """The result: what was done, how it came out, and the figures that say so."""

    title: str
    sentence: str
    met: bool | None
    figures: list[Figure]


def _names(run: Run) -> list[str]:
    classes = run.summary.get("classes")
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _kept(names: list[str]) -> str:
    """``classes cat and dog``; ``100 classes (apple, bear, bee, …)``."""
    text = words.joined(names)
    return f"class {text}" if len(names) == 1 else text if len(names) > words.MOST_NAMES else f"classes {text}"


def trained(run: Run) -> bool:
    """Whether the directory is of ``billhook train``: a dense network, and nothing to hold it against."""
    return run.summary.get("method") == "dense" and not part(run.summary, "pruned")


def _kept_top1(run: Run) -> tuple[float | None, float | None, str]:
    """The delivered network's top-1, the one to hold it against, and the latter's name."""
    if trained(run):
        return words.number(part(run.summary, "dense").get("top1_kept")), None, ""
    delivered = words.number(part(run.summary, "pruned").get("top1_kept"))
    control = words.number(part(run.summary, "dense_finetuned").get("top1_kept"))
    if control is not None:
        return delivered, control, "the dense network fine-tuned in the same way"
    dense = words.number(part(run.summary, "dense").get("top1_kept"))
    return delivered, dense, "the dense network as it came"


def _budgets(run: Run) -> list[Json]:
    found = run.summary.get("budget")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _asked(entry: Json) -> str:
    quantity = str(entry.get("quantity", ""))
    bound = words.in_unit(entry.get("bound"), str(entry.get("unit", "")), quantity, digits=1)
    return f"{words.relation(str(entry.get('relation', '')))}{NBSP}{bound.replace(f'.0{NBSP}%', f'{NBSP}%')}"


def headline(run: Run) -> Headline:
    """What the run came to, in plain words."""
    summary, dense, pruned = run.summary, part(run.summary, "dense"), part(run.summary, "pruned")
    model, data = str(summary.get("model") or "a network"), str(summary.get("data") or "unnamed data")
    method = str(summary.get("method") or "an unnamed method")
    names = _names(run)
    sentences = [f"{model} on {data}" + (f", {_kept(names)}" if names else "")]
    sentences[0] += ", trained." if trained(run) else f", pruned with {method}."

    budgets = _budgets(run)
    met = all(entry.get("met") is True for entry in budgets) if budgets else None
    for entry in budgets:
        quantity = str(entry.get("quantity", ""))
        # a miss may be a hair: show it
        digits = 1 if entry.get("met") is True else 2
        value = words.in_unit(entry.get("value"), str(entry.get("unit", "")), quantity, digits)
        verdict = "met" if entry.get("met") is True else "missed"
        name = words.QUANTITIES.get(quantity, quantity)
        sentences.append(f"The budget of {name} {_asked(entry)} is {verdict} ({value}).")

    delivered, reference, who = _kept_top1(run)
    if delivered is None:
        sentences.append("Its accuracy was not measured.")
    else:
        text = f"It gets {words.percent(delivered)} of the test images right"
        if reference is not None:
            gap = delivered - reference
            side = "above" if gap > 0 else "below"
            level = abs(100 * gap) < 0.05
            distance = "level with" if level else f"{words.points(abs(gap)).lstrip('+')} {side}"
            text += f", {distance} {who} ({words.percent(reference)})"
        sentences.append(text + ".")
    shrink = words.ratio(dense.get("bytes"), pruned.get("bytes"), "smaller", "larger")
    if shrink:
        sentences.append(
            "Its file is as large as before." if shrink == "unchanged" else f"Its file is {shrink} than before."
        )

    return Headline(f"{model} on {data}", " ".join(sentences), met, _figures(run, budgets))


def _figures(run: Run, budgets: list[Json]) -> list[Figure]:
    dense, pruned = part(run.summary, "dense"), part(run.summary, "pruned")
    delivered, reference, _ = _kept_top1(run)
    against = "against the control" if part(run.summary, "dense_finetuned") else "against dense"
    gap = f"{words.points(delivered - reference)} {against}" if delivered is not None and reference is not None else ""
    figures = [Figure("Top-1, kept classes", words.percent(delivered), gap)]
    if trained(run):
        return [
            *figures,
            Figure("MACs", words.short_count(dense.get("macs")), ""),
            Figure("File", words.size(dense.get("bytes")), ""),
        ]
    for entry in budgets[:2]:
        quantity, unit = str(entry.get("quantity", "")), str(entry.get("unit", ""))
        name = words.QUANTITIES.get(quantity, quantity)
        value = words.percent(entry.get("value")) if unit == "ratio" else words.in_unit(entry.get("value"), unit)
        met = entry.get("met") is True
        figures.append(Figure(_first_upper(name), value, f"asked {_asked(entry)}: {'met' if met else 'missed'}", met))
    for label, key, shown in (("Effective MACs", "effective_macs", words.short_count), ("File", "bytes", words.size)):
        factor = words.times(dense.get(key), pruned.get(key))
        span = "" if pruned.get(key) is None else f"{shown(dense.get(key))} → {shown(pruned.get(key))}"
        if factor is None:
            figures.append(Figure(label, MISSING, span))
        else:
            less = "fewer" if key == "effective_macs" else "smaller"
            value = f"{factor:.1f}×" if factor >= 10 or factor < 1 else f"{factor:.2g}×"
            figures.append(Figure(f"{label}, times {less}", value, span))
    return figures


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


# label, key, formatter, word for less, word for more
_ROWS: list[tuple[str, str, Callable[[Any], str], str, str]] = [
    ("Parameters", "params", words.count, "fewer", "more"),
    ("Non-zero parameters", "nonzero", words.count, "fewer", "more"),
    ("MACs", "macs", words.short_count, "fewer", "more"),
    ("Effective MACs", "effective_macs", words.short_count, "fewer", "more"),
    ("Channels", "channels", words.count, "fewer", "more"),
    ("Model file", "bytes", words.size, "smaller", "larger"),
    ("Packed file", "bytes_packed", words.size, "smaller", "larger"),
    ("Latency (p50)", "latency_ms", lambda value: words.in_unit(value, "ms"), "faster", "slower"),
]


def comparison(run: Run) -> list[tuple[str, list[Cell]]]:
    """Rows of (label, [dense, dense fine-tuned, pruned]); of a trained network only the first of the three."""
    dense, control, pruned = (part(run.summary, key) for key in ("dense", "dense_finetuned", "pruned"))
    rows: list[tuple[str, list[Cell]]] = []
    for label, key in (("Top-1, full head", "top1_full"), ("Top-1, kept classes", "top1_kept")):
        base = words.number(dense.get(key))
        cells = [Cell(words.percent(base))]
        for column in (control, pruned):
            value = words.number(column.get(key))
            note = "" if value is None or base is None else words.points(value - base)
            cells.append(Cell(words.percent(value), note))
        rows.append((label, cells))
    for label, key, shown, less, more in _ROWS:
        if key == "latency_ms" and pruned.get(key) is None:
            continue
        # the dense network is never packed: its packed file is compared with the plain one
        base_key = "bytes" if key == "bytes_packed" else key
        base_text = "–" if key == "bytes_packed" else shown(dense.get(key))
        same = "as dense" if control and key != "bytes_packed" else "–" if control else MISSING
        rows.append(
            (
                label,
                [
                    Cell(base_text, exact=_exact(dense.get(key))),
                    Cell(shown(control[key]) if control.get(key) is not None else same),
                    Cell(
                        shown(pruned.get(key)),
                        words.ratio(dense.get(base_key), pruned.get(key), less, more),
                        _exact(pruned.get(key)),
                    ),
                ],
            )
        )
    enlarged = part(run.summary, "enlarged")
    for label, key, shown, less, more in _ROWS:
        # reductions as a paper states them whose method adds layers first
        if key in ("params", "macs") and enlarged.get(key) is not None:
            left = Cell(shown(pruned.get(key)), words.ratio(enlarged[key], pruned.get(key), less, more))
            whole = Cell(shown(enlarged[key]), exact=_exact(enlarged[key]))
            rows.append((f"{label}, of the network with all its 1×1 convolutions", [whole, Cell("–"), left]))
    if trained(run):
        return [(label, cells[:1]) for label, cells in rows if label != "Packed file"]
    return rows


def _exact(value: Any) -> str:
    found = words.number(value)
    return "" if found is None or abs(found) < 1e3 else f"{found:,.0f}"


def budget_table(run: Run) -> list[tuple[str, str, str, str, bool]]:
    """Rows of (quantity, asked, reached, absolute value, met)."""
    rows = []
    for entry in _budgets(run):
        quantity, unit = str(entry.get("quantity", "")), str(entry.get("unit", ""))
        reached = words.in_unit(entry.get("value"), unit, quantity)
        absolute = _absolute(quantity, entry.get("value_absolute"))
        rows.append(
            (words.QUANTITIES.get(quantity, quantity), _asked(entry), reached, absolute, entry.get("met") is True)
        )
    return rows


def _absolute(quantity: str, value: Any) -> str:
    if quantity == "bytes":
        return words.size(value)
    if quantity == "latency":
        return words.in_unit(value, "ms")
    text = words.count(value)
    return text if text == MISSING or quantity != "sparsity" else f"{text} zeros"


def left_dense(run: Run) -> list[tuple[str, list[str]]]:
    """Rows of (reason, layers), the commonest reason first."""
    grouped: dict[str, list[str]] = {}
    found = run.summary.get("layers_left_dense")
    for entry in found if isinstance(found, list) else []:
        if isinstance(entry, dict):
            grouped.setdefault(str(entry.get("reason") or "no reason given"), []).append(str(entry.get("name", "?")))
    return sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0]))


def equivalence(run: Run) -> str:
    """What the delivered network's output differs by from the last masked one's."""
    found = part(run.summary, "equivalence")
    difference, scale = words.number(found.get("max_abs_difference")), words.number(found.get("scale"))
    if difference is None:
        return "Whether the delivered network computes what the last masked one did was not measured."
    if difference == 0:
        return "The delivered network, read back from disk, gives exactly the masked network's outputs on test images."
    text = (
        "The delivered network, read back from disk, differs from the last masked one by at most "
        f"{words.scientific(difference)} on test images"
    )
    if scale:
        text += f", on outputs of up to {words.scientific(scale)} ({words.scientific(difference / scale)} of that)"
    return text + "."


def phases(run: Run) -> list[tuple[str, str, float]]:
    """Rows of (phase, time, share of the total in [0, 1]); the total last."""
    found = part(run.summary, "seconds")
    total = words.number(found.get("total"))
    rows = []
    for key in sorted(found, key=lambda name: list(words.PHASES).index(name) if name in words.PHASES else -1):
        seconds = words.number(found[key])
        share = min(1.0, max(0.0, seconds / total)) if seconds is not None and total else 0.0
        rows.append((words.PHASES.get(key, key.replace("_", " ")), words.duration(seconds), share))
    return rows


def facts(run: Run) -> list[tuple[str, str]]:
    """Environment, versions, hashes and input: rows of (name, value)."""
    peak = words.number(run.summary.get("peak_rss_bytes"))
    rows = _flat({key: run.summary.get(key) for key in ("billhook", "method", "seed", "epochs")})
    # a process of no size does not exist: 0 stands for a peak that nobody took
    rows.append(("peak memory", words.size(peak or None)))
    rows += _flat(part(run.summary, "environment"))
    for key, value in run.architecture.items():
        if isinstance(value, dict) and ("version" in key or "hash" in key or "sha" in key):
            rows += [(f"{name} ({_spaced(key)})", text) for name, text in _flat(value)]
        elif isinstance(value, str | int | float) or (key in {"mean", "std", "input_size"} and value is not None):
            rows += _flat({key: value})
    return rows


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def _flat(found: Json, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in found.items():
        name = f"{prefix}{_spaced(str(key))}"
        if isinstance(value, dict):
            rows += _flat(value, f"{name}: ")
        elif isinstance(value, list):
            rows.append((name, ", ".join(str(item) for item in value)))
        else:
            rows.append((name, "not recorded" if value is None else str(value)))
    return rows


def label_map(run: Run) -> list[tuple[str, str]]:
    """Rows of (output, class), from the architecture's label map or the kept classes' order."""
    for key, value in run.architecture.items():
        if "label" in key and isinstance(value, dict):
            return [(str(output), str(name)) for output, name in value.items()]
        if "label" in key and isinstance(value, list):
            return [(str(output), _label(entry)) for output, entry in enumerate(value)]
    return [(str(output), name) for output, name in enumerate(_names(run))]


def _label(entry: Any) -> str:
    return " · ".join(str(piece) for piece in entry) if isinstance(entry, list) else str(entry)


def history_rows(run: Run) -> list[list[str]]:
    """The epochs behind the curves as text, at most ``MOST_ROWS`` of them (the last ones)."""
    # After the last removal of channels nothing is pruned any more, whatever the phase is called.
    names = words.PHASES | ({"prune": words.PHASES["fine_tune"]} if _removals(run) else {})
    rows = []
    for entry in [entry for entry in run.history if entry.get("event") == "epoch"][-MOST_ROWS:]:
        epoch, loss = words.number(entry.get("epoch")), words.number(entry.get("loss"))
        phase = str(entry.get("phase", ""))
        rows.append(
            [
                "control" if phase == "control" else names.get(phase, phase.replace("-", " ")),
                "–" if epoch is None else f"{epoch:.2f}",
                "–" if loss is None else f"{loss:.3f}",
                _dash(words.percent(entry.get("train_top1"))),
                _dash(words.percent(entry.get("val_top1_kept"))),
                _dash(words.percent(entry.get("val_top1_full"))),
                _dash(words.percent(entry.get("sparsity"))),
                _dash(words.scientific(entry.get("lr"))),
            ]
        )
    return rows


def mask_rows(run: Run) -> list[list[str]]:
    """The mask updates: round, epoch, sparsity, share of mask bits changed, weights that came back."""
    rows = []
    for entry in run.history:
        if entry.get("event") == "mask":
            epoch = words.number(entry.get("epoch"))
            rows.append(
                [
                    _dash(words.count(entry.get("round"))),
                    "–" if epoch is None else f"{epoch:.2f}",
                    _dash(words.percent(entry.get("sparsity"))),
                    _dash(words.percent(entry.get("changed"), 2)),
                    _dash(words.count(entry.get("returned"))),
                ]
            )
    return rows


def removal_rows(run: Run) -> list[list[str]]:
    """The removals of channels: round, then parameters, MACs and channels of what was left."""
    return [
        [_dash(show(entry.get(key))) for key, show in (("round", words.count), ("params", words.count),
                                                       ("macs", words.short_count), ("channels", words.count))]
        for entry in _removals(run)
    ]  # fmt: skip


def _removals(run: Run) -> list[Json]:
    return [entry for entry in run.history if entry.get("event") == "channels"]


def _dash(text: str) -> str:
    return "–" if text == MISSING else text
