"""The section on greedy searches: from a literal history to two heat maps, and what damaged lines do to them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from billhook.report.read import Run
from billhook.report.rounds import SearchView, search_view

from .test_gates import cells, shades
from .test_page import SECTIONS, edit, page

Lines = list[dict[str, Any]]


def line(number: int, group: str, kept: int, of: int, **errors: float) -> dict[str, Any]:
    return {
        "phase": "prune", "event": "round", "step": 0, "epoch": 0.0, "round": number, "group": group, "kept": kept,
        "of": of, "error": errors.get(group), "errors": errors, "params": 9, "macs": 9, "channels": 9, "images": 4,
        "round_seconds": 0.5 * number, "seconds": 1.0,
    }  # fmt: skip


HISTORY: Lines = [
    line(1, "b", 6, 8, a=0.1, b=0.01),
    line(2, "b", 4, 8, a=0.1, b=0.1, c=1.0),
    line(3, "a", 2, 4, a=0.1, c=1.0),
    line(4, "b", 3, 8, a=0.9, b=0.5, c=1.0),
]
SUMMARY: dict[str, Any] = {
    "method": "hbgs", "seconds": {"prune": 5.0, "fine_tune": 5.0, "control": 2.0, "total": 20.0},
    "peak_rss_bytes": 1_500_000_000,
}  # fmt: skip
NAMES = {"channels/names": np.array(["c", "x", "a", "b"])}


def view(history: Lines, data: dict[str, Any] | None = None, **summary: Any) -> SearchView:
    found = search_view(Run(SUMMARY | summary, None, history, 0, {}, data or {}))
    assert found is not None
    return found


def dots(svg: str) -> int:
    return svg.count('<circle class="pick"')


def test_a_cell_per_group_and_round() -> None:
    found = view(HISTORY)
    assert [row.name for row in found.rows] == ["a", "b", "c"]
    assert cells(found.shares) == 3 * 4
    # c has no error before the second round; b has one that the third round does not repeat.
    assert cells(found.errors) == 3 * 4 - 1
    assert found.holes
    assert dots(found.errors) == 4
    shade = shades(found.errors)
    assert shade[0, 1] == 4  # the smallest error is faint, and still no hole
    assert shade[2, 2] == 100
    assert shade[0, 0] == shade[1, 1] == shade[2, 1] == 52  # halfway from 0.01 to 1, on a log scale
    assert (0, 2) not in shade
    gone = shades(found.shares)
    assert [gone[column, 1] for column in range(4)] == [24, 50, 50, 62]
    assert [gone[column, 0] for column in range(4)] == [0, 0, 50, 50]
    assert {gone[column, 2] for column in range(4)} == {0}
    assert [text for _, text in found.error_scale] == ["0.01", "0.046", "0.22", "1"]
    assert [shade for shade, _ in found.share_scale] == [0, 25, 50, 75, 100]


def test_groups_stand_from_input_to_output() -> None:
    found = view(HISTORY, NAMES)
    assert [row.name for row in found.rows] == ["c", "a", "b"]
    assert re.findall(r'text-anchor="end">(\w+)<', found.shares) == ["c", "a", "b"]
    # Groups of no known place come last.
    assert [row.name for row in view(HISTORY, {"channels/names": np.array(["b"])}).rows] == ["b", "a", "c"]


def test_figures_of_each_group() -> None:
    found = view(HISTORY)
    assert [(row.kept, row.rounds, row.first, row.last, row.error) for row in found.rows] == [
        ("2 of 4", "1", "3", "3", "0.1"), ("3 of 8", "3", "1", "4", "0.5"), ("all", "–", "–", "–", "–"),
    ]  # fmt: skip
    assert found.sentence == (
        "4 rounds; in each, one group of layers lost channels. Chosen most often: b (3) and a (1)."
        " 1 group of 3 lost none."
    )


def test_time_and_memory() -> None:
    found = view(HISTORY)
    assert [(name, text.replace("\u00a0", " ")) for name, text, _, _ in found.times] == [
        ("search", "5.0 s"), ("fine-tuning", "5.0 s"), ("whole run", "20.0 s"), ("one round (median)", "1.2 s"),
    ]  # fmt: skip
    assert found.memory == "1.50\u00a0GB"
    tuned = view([*HISTORY, {"phase": "round-1", "event": "epoch", "epoch": 1.0}])
    assert [name for name, _, _, _ in tuned.times][:2] == [
        "search, with the fine-tuning between rounds", "fine-tuning at the end",
    ]  # fmt: skip
    bare = view([entry | {"round_seconds": None} for entry in HISTORY], seconds=None, peak_rss_bytes=0)
    assert (bare.times, bare.memory) == ([], "not measured")


@pytest.mark.parametrize(
    ("before", "search", "tuned", "expected"),
    [
        (9e8, 1.1e9, 1.3e9, ["1.10 GB", "1.30 GB", "1.50 GB", ""]),
        (1.1e9, 1.1e9, 1.1e9, ["at most 1.10 GB", "at most 1.10 GB", "1.50 GB", ""]),
        (None, 1.1e9, None, ["1.10 GB", "–", "1.50 GB", ""]),
        (None, "much", 0, ["–", "–", "1.50 GB", ""]),
    ],
)
def test_memory_by_phase(before: Any, search: Any, tuned: Any, expected: list[str]) -> None:
    """Peaks of a process only rise: what did not raise them took no more."""
    history = [
        *HISTORY,
        {"phase": "prune", "event": "channels", "peak_rss_bytes_before": before, "peak_rss_bytes": search},
        {"phase": "prune", "event": "epoch", "epoch": 1.0},
        {"phase": "prune", "event": "epoch", "epoch": 2.0, "peak_rss_bytes": tuned},
    ]
    assert [memory.replace("\u00a0", " ") for _, _, _, memory in view(history).times] == expected
    assert [memory for _, _, _, memory in view(HISTORY).times][:2] == ["–", "–"]


def test_long_searches_are_binned() -> None:
    history = [line(number, "ab"[number % 2], 200 - number // 2, 200, a=1.0, b=2.0) for number in range(1, 301)]
    found = view(history)
    assert found.binned
    assert cells(found.shares) == cells(found.errors) == 2 * 60
    assert dots(found.errors) == 2 * 60  # in five rounds both groups have their turn
    gone = shades(found.shares)
    assert gone[59, 0] == 76  # 150 of 200, in steps of two
    labels = re.findall(r'dy="1.6em" text-anchor="middle">(\d+)<', found.shares)
    assert labels == ["1", "50", "100", "150", "200", "250", "300"]


def test_columns_of_several_rounds_hold_the_mean_of_what_is_known() -> None:
    history = [line(number, "a", 500 - number, 500, a=1.0 if number % 2 else 100.0) for number in range(1, 119)]
    history += [line(number, "b", 500 - number, 500, b=100.0) for number in range(119, 121)]
    shade = shades(view(history).errors)
    assert {shade[column, 0] for column in range(59)} == {86}  # 50.5, between 1 and 100 on a log scale
    assert shade[59, 1] == 100
    assert (0, 1) not in shade


@pytest.mark.parametrize(
    "damage",
    [
        {"round": None}, {"round": 1.5}, {"group": None}, {"group": 3}, {"kept": None}, {"kept": 9}, {"kept": -1},
        {"of": 0, "kept": 0}, {"of": "8"}, {"kept": True}, {"event": "epoch"}, {"kept": float("nan")},
    ],
)  # fmt: skip
def test_a_damaged_line_is_left_out(damage: dict[str, Any]) -> None:
    found = view([*HISTORY[:3], HISTORY[3] | damage])
    assert cells(found.shares) == 3 * 3
    assert search_view(Run(SUMMARY, None, [HISTORY[0] | damage], 0, {}, {})) is None


@pytest.mark.parametrize("errors", [None, [], 3, {"a": None, "b": "much", "c": float("inf")}])
def test_errors_that_cannot_be_read_are_holes(errors: Any) -> None:
    found = view([HISTORY[0] | {"errors": errors, "error": None}])
    assert found.errors == ""
    assert cells(found.shares) == 1
    found = view([HISTORY[0] | {"errors": {"a": 0.0}, "error": 0.0}])
    assert found.errors == ""


def test_a_round_done_again_counts_once() -> None:
    found = view([*HISTORY, line(4, "c", 1, 2, a=0.9, b=0.5, c=1.0)])
    assert cells(found.shares) == 3 * 4
    assert [row.kept for row in found.rows] == ["2 of 4", "4 of 8", "1 of 2"]


def test_a_run_without_rounds_has_no_section(channel_directory: Path) -> None:
    assert search_view(Run({}, None, [], 0, {}, {})) is None
    assert "rounds" not in page(channel_directory).ids


def test_the_page_of_a_search(channel_directory: Path) -> None:
    evil = "<b>layer</b>"
    path = channel_directory / "history.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in [*HISTORY, line(5, evil, 1, 2)]) + path.read_text())
    edit(channel_directory, method="hbgts")
    found = page(channel_directory)
    expected = [name for name in SECTIONS if name not in ("layers", "masks")]
    place = expected.index("epochs") + 1
    assert found.ids == [*expected[:place], "rounds", "channels", *expected[place:]]
    assert "Error at the end of the network, if the group lost its next channels" in found.text
    assert "Peak memory of the whole run: 1.83 GB." in found.text
    assert "search" in found.text
    assert "<b>" not in (channel_directory / "report.html").read_text()
    # 110 groups and 400 rounds still make a page that opens.
    groups = [f"features.denseblock3.denselayer{index}.conv1" for index in range(110)]
    rng = np.random.default_rng(0)
    kept = dict.fromkeys(groups, 32)
    lines = []
    for number in range(1, 401):
        chosen = groups[int(rng.integers(110))]
        kept[chosen] = max(0, kept[chosen] - 2)
        errors = dict(zip(groups, rng.random(110).tolist(), strict=True))
        lines.append(line(number, chosen, kept[chosen], 32) | {"errors": errors})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert "rounds" in page(channel_directory).ids
    assert (channel_directory / "report.html").stat().st_size < 1_500_000
