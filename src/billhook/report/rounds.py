"""Which layer went when: the rounds of a greedy search, what each group would have cost, and what it has lost."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from billhook.report import heat, plots, tables, words
from billhook.report.read import Json, Run

ERRORS = {
    "hbgs": "relative error of the layers that read the group",
    "hbgts": "error at the end of the network",
    "fp-omp-search": "share of images that the network then gets wrong",
}


@dataclass(frozen=True)
class GroupRow:
    """One group, as text.

    Attributes:
        kept: Channels kept, and before.
        rounds: In how many rounds it lost channels.
        first: The first of them; "–" without any.
        last: The last of them.
        error: Of that last round.
    """

    name: str
    kept: str
    rounds: str
    first: str
    last: str
    error: str


@dataclass(frozen=True)
class SearchView:
    """The section on a greedy search.

    Attributes:
        sentence: How many rounds there were, and which groups paid.
        errors: Heat map of the error per group and round; empty when none was recorded.
        measure: What the error is.
        error_scale: The colours of that map.
        holes: Whether some errors are not known.
        longest: Characters of the longest name beside the maps.
        shares: Heat map of the share of every group that is gone.
        share_scale: Its colours.
        binned: Whether a column stands for several rounds.
        rows: The figures per group.
        times: (phase, time, bar, peak memory until its end).
        memory: Peak memory of the whole run.
    """

    sentence: str
    errors: Markup
    measure: str
    error_scale: list[tuple[int, str]]
    holes: bool
    longest: int
    shares: Markup
    share_scale: list[tuple[int, str]]
    binned: bool
    rows: list[GroupRow]
    times: list[tuple[str, str, Markup, str]]
    memory: str


@dataclass(frozen=True)
class _Round:
    number: int
    group: str
    kept: int
    of: int
    errors: dict[str, float]
    seconds: float | None


@dataclass
class _Search:
    """All rounds as arrays: [groups, rounds] errors (NaN where unknown) and shares that are gone."""

    groups: list[str]
    rounds: list[_Round]
    errors: npt.NDArray[np.float64]
    gone: npt.NDArray[np.float64]
    picked: dict[str, list[int]] = field(default_factory=dict)


def search_view(run: Run) -> SearchView | None:
    """The section; None for a run without rounds."""
    rounds = _rounds(run.history)
    if not rounds:
        return None
    search = _arrays(rounds, _order(run, rounds))
    errors, scale = _error_map(search)
    return SearchView(
        sentence=_sentence(search),
        errors=errors,
        measure=ERRORS.get(str(run.summary.get("method")), "error"),
        error_scale=[] if scale is None else _error_scale(scale),
        holes=bool(np.isnan(search.errors).any()),
        longest=max(min(len(name), heat.LONGEST) for name in search.groups),
        shares=_share_map(search),
        share_scale=heat.legend((step, words.percent(step, 0)) for step in (0.0, 0.25, 0.5, 0.75, 1.0)),
        binned=len(rounds) > heat.MOST_COLUMNS,
        rows=_rows(search),
        times=_times(run, rounds),
        # A process of no size does not exist: 0 stands for a peak that nobody took.
        memory=words.size(words.number(run.summary.get("peak_rss_bytes")) or None),
    )


# ---------------------------------------------------------------------- what the history says
def _whole(value: object) -> int | None:
    found = words.number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def _rounds(history: list[Json]) -> list[_Round]:
    """Whole lines in the order of their numbers, a later one instead of an earlier one of the same number."""
    found: dict[int, _Round] = {}
    for entry in history:
        number, kept, of = (_whole(entry.get(key)) for key in ("round", "kept", "of"))
        group, errors = entry.get("group"), entry.get("errors")
        if entry.get("event") != "round" or number is None or kept is None or of is None or not 0 <= kept <= of:
            continue
        if not isinstance(group, str) or not of:
            continue
        given = {**errors} if isinstance(errors, dict) else {}
        given.setdefault(group, entry.get("error"))
        read = {str(name): error for name, value in given.items() if (error := words.number(value)) is not None}
        found[number] = _Round(number, group, kept, of, read, words.number(entry.get("round_seconds")))
    return [found[number] for number in sorted(found)]


def _order(run: Run, rounds: list[_Round]) -> list[str]:
    """From input to output where the run says so; else in the order of the first round that speaks of them."""
    groups = list(dict.fromkeys(name for entry in rounds for name in (*entry.errors, entry.group)))
    known = run.data.get("channels/names")
    place = {str(name): index for index, name in enumerate(known)} if known is not None and known.ndim == 1 else {}
    return sorted(groups, key=lambda name: place.get(name, len(place)))


def _arrays(rounds: list[_Round], groups: list[str]) -> _Search:
    row = {name: index for index, name in enumerate(groups)}
    errors = np.full((len(groups), len(rounds)), np.nan)
    gone = np.zeros_like(errors)
    picked: dict[str, list[int]] = {}
    for column, entry in enumerate(rounds):
        for name, error in entry.errors.items():
            errors[row[name], column] = error
        gone[row[entry.group], column:] = 1 - entry.kept / entry.of
        picked.setdefault(entry.group, []).append(column)
    for index in range(len(groups)):
        _bridge(errors[index])
    return _Search(groups, rounds, errors, gone, picked)


def _bridge(errors: npt.NDArray[np.float64]) -> None:
    """Between two rounds that name an error, those that do not have the earlier one's."""
    known = np.flatnonzero(np.isfinite(errors))
    for before, after in itertools.pairwise(known):
        errors[before:after] = errors[before]


# ---------------------------------------------------------------------- words
def _sentence(search: _Search) -> str:
    number = len(search.rounds)
    text = f"{words.count(number)} rounds; in each," if number > 1 else "One round; in it"
    text += " one group of layers lost channels."
    most = sorted(search.picked, key=lambda name: -len(search.picked[name]))[:3]
    named = [f"{name} ({len(search.picked[name])})" for name in most]
    text += f" Chosen most often: {words.joined(named)}." if len(search.picked) > 1 else ""
    never = len(search.groups) - len(search.picked)
    if never:
        text += f" {never} group{'s' if never > 1 else ''} of {len(search.groups)} lost none."
    return text


def _rows(search: _Search) -> list[GroupRow]:
    rows = []
    for index, name in enumerate(search.groups):
        picked = [search.rounds[column] for column in search.picked.get(name, [])]
        last = picked[-1] if picked else None
        error = search.errors[index, search.picked[name][-1]] if last is not None else None
        rows.append(
            GroupRow(
                name,
                f"{last.kept:,} of {last.of:,}" if last is not None else "all",
                f"{len(picked):,}" if picked else "–",
                f"{picked[0].number:,}" if picked else "–",
                f"{last.number:,}" if last is not None else "–",
                "–" if error is None or np.isnan(error) else words.scientific(float(error)),
            )
        )
    return rows


def _times(run: Run, rounds: list[_Round]) -> list[tuple[str, str, Markup, str]]:
    """The run's phases, with the search's name for what is pruning elsewhere, and how long a round took."""
    memory = _memory(run)
    tuned = any(str(entry.get("phase", "")).startswith("round-") for entry in run.history)
    search = "search, with the fine-tuning between rounds" if tuned else "search"
    names = {words.PHASES["prune"]: search, "total": "whole run"}
    if tuned:
        names[words.PHASES["fine_tune"]] = "fine-tuning at the end"
    shown = {words.PHASES[key] for key in ("prune", "fine_tune", "total")}
    rows = [
        (names.get(name, name), text, plots.bar(share, "control"), memory.get(name, "–"))
        for name, text, share in tables.phases(run)
        if name in shown
    ]
    seconds = [entry.seconds for entry in rounds if entry.seconds is not None]
    if seconds:
        rows.append(("one round (median)", words.duration(float(np.median(seconds))), Markup(), ""))
    return rows


def _memory(run: Run) -> dict[str, str]:
    """Peak memory by phase. A process knows its peak so far: a phase that did not raise it took no more than that."""

    def told(before: float | None, after: float | None) -> str:
        if not after:
            return "–"
        return ("at most " if before is not None and after <= before else "") + words.size(after)

    lines = [entry for entry in run.history if "peak_rss_bytes" in entry]
    search = next((entry for entry in reversed(lines) if entry.get("event") == "channels"), {})
    tuned = next((entry for entry in reversed(lines) if entry.get("event") == "epoch"), {})
    before, first, last, whole = (
        words.number(found)
        for found in (
            search.get("peak_rss_bytes_before"),
            search.get("peak_rss_bytes"),
            tuned.get("peak_rss_bytes"),
            run.summary.get("peak_rss_bytes"),
        )
    )
    found = {"prune": told(before, first), "fine_tune": told(first, last), "total": told(None, whole)}
    return {words.PHASES[key]: text for key, text in found.items()}


# ---------------------------------------------------------------------- pictures
def _labels(search: _Search) -> tuple[int, list[tuple[float, str]], list[tuple[float, str]]]:
    """Height of a map, names of its rows, and the rounds below it."""
    number, rounds = len(search.groups), search.rounds
    high = heat.row_height(number)
    every = -(-11 // high)
    rows = [((index + 0.5) / number, search.groups[index]) for index in range(0, number, every)]
    places = plots.places(len(rounds), 10)
    return high * number, rows, [((at + 0.5) / len(rounds), str(rounds[at].number)) for at in places]


def _picks(search: _Search) -> list[tuple[int, int]]:
    into = heat.column_of(len(search.rounds))
    row = {name: index for index, name in enumerate(search.groups)}
    return sorted({(row[name], int(into[column])) for name, found in search.picked.items() for column in found})


def _error_map(search: _Search) -> tuple[Markup, heat.Scale | None]:
    scale = heat.Scale.of(search.errors)
    if scale is None:
        return Markup(), None
    high, rows, across = _labels(search)
    titles = []
    for index, name in enumerate(search.groups):
        known = search.errors[index][np.isfinite(search.errors[index])]
        ends = [words.scientific(float(error)) for error in known[[0, -1]]] if known.size else []
        titles.append(f"{name}: {ends[0]} at first, {ends[1]} at last" if ends else f"{name}: no figure")
    alt = f"Error of {len(search.groups)} groups over {len(search.rounds)} rounds"
    alt += f", from {words.scientific(scale.low)} to {words.scientific(scale.high)}; dots mark the chosen group"
    shades = scale.shade(heat.binned(search.errors))
    return heat.heat_map(shades, alt, high, rows=rows, across=across, titles=titles, picks=_picks(search)), scale


def _error_scale(scale: heat.Scale) -> list[tuple[int, str]]:
    steps = scale.steps()
    return heat.legend((float(scale.shade(np.array([step]))[0]), f"{words.scientific(float(f'{step:.2g}'))}")
                       for step in steps)  # fmt: skip


def _share_map(search: _Search) -> Markup:
    high, rows, across = _labels(search)
    into = heat.column_of(len(search.rounds))
    # A column of several rounds shows how things stand after the last of them.
    last = np.searchsorted(into, np.arange(heat.columns(len(search.rounds))), side="right") - 1
    titles = []
    for index, name in enumerate(search.groups):
        numbers = [search.rounds[column].number for column in search.picked.get(name, [])]
        when = f", chosen {len(numbers)} times from round {numbers[0]} to {numbers[-1]}" if numbers else ""
        titles.append(f"{name}: {words.percent(float(search.gone[index, -1]))} of its channels gone{when}")
    alt = f"Share of the channels of {len(search.groups)} groups that is gone, over {len(search.rounds)} rounds"
    return heat.heat_map(search.gone[:, last], alt, high, rows=rows, across=across, titles=titles)
