"""The section on ChipNet's gates: from a literal history to the pictures, and what damaged lines do to it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from billhook.report.gates import GateView, gate_view
from billhook.report.read import Run

from .test_page import SECTIONS, page

Lines = list[dict[str, Any]]

HISTORY: Lines = [
    {"phase": "gates", "event": "epoch", "epoch": 1.0, "step": 10, "val_top1_kept": 0.9, "loss": 2.0},
    {"phase": "gates", "event": "gates", "step": 10, "best": True, "hard_top1_kept": 0.6, "soft_share": [0.7],
     "hard_share": [0.48], "allowed": [0.5], "open": 60, "between": 1.0, "histogram": [0, 0, 100, 0]},
    {"phase": "gates", "event": "budget_weight", "step": 15, "before": 30.0, "after": 45.0, "excess": 0.1},
    {"phase": "gates", "event": "budget_weight", "step": 16, "before": 45.0, "after": 67.5, "excess": 0.1},
    {"phase": "gates", "event": "epoch", "epoch": 2.0, "step": 20, "val_top1_kept": 0.88, "loss": 1.0},
    {"phase": "gates", "event": "gates", "step": 20, "best": True, "hard_top1_kept": 0.8, "soft_share": [0.55],
     "hard_share": [0.49], "allowed": [0.5], "open": 58, "between": 0.5, "histogram": [25, 25, 0, 50]},
    {"phase": "gates", "event": "epoch", "epoch": 3.0, "step": 30, "val_top1_kept": 0.86, "loss": 1.0},
    {"phase": "gates", "event": "gates", "step": 30, "best": False, "hard_top1_kept": 0.7, "soft_share": [0.5],
     "hard_share": [0.5], "allowed": [0.5], "open": 57, "between": 0.03, "histogram": [40, 0, 0, 60]},
    {"phase": "prune", "event": "channels", "round": 1, "step": 0, "epoch": 0.0, "params": 5, "macs": 5, "channels": 5},
]  # fmt: skip

BUDGET: dict[str, Any] = {"budget": [{"quantity": "macs"}]}


def view(history: Lines, summary: dict[str, Any] = BUDGET) -> GateView:
    found = gate_view(Run(summary, None, history, 0, {}, {}))
    assert found is not None
    return found


def changed(number: int, **changes: Any) -> Lines:
    history = copy.deepcopy(HISTORY)
    history[number] |= changes
    return history


def cells(svg: str) -> int:
    return sum(int(wide) for wide in re.findall(r'<rect class="heat"[^>]* width="(\d+)"', svg))


def shades(svg: str) -> dict[tuple[int, int], int]:
    """(column, row) -> percentage of the colour."""
    pattern = r'<rect class="heat" x="(\d+)" y="(\d+)" width="(\d+)" height="1" style="--v:(\d+)%"'
    found: dict[tuple[int, int], int] = {}
    for x, y, wide, shade in re.findall(pattern, svg):
        found |= {(int(x) + more, int(y)): int(shade) for more in range(int(wide))}
    return found


def points(svg: str, style: str) -> list[tuple[float, float]]:
    """A curve in shares of the chart's width, and of its height from the bottom."""
    drawn = re.search(rf'<polyline class="line {style}" points="([^"]*)"', svg)
    assert drawn is not None
    pairs = [pair.split(",") for pair in drawn[1].split()]
    return [(float(x) / 1000, 1 - float(y) / 1000) for x, y in pairs]


def test_a_column_per_look_and_a_row_per_bin() -> None:
    found = view(HISTORY)
    assert cells(found.histogram) == 3 * 4
    shade = shades(found.histogram)
    # 1 is on top: the four bins, from shut to open, are rows 3 to 0. All gates in one bin have the full colour.
    assert shade[0, 1] == 100
    assert [shade[0, row] for row in (0, 2, 3)] == [0, 0, 0]
    assert shade[1, 3] == shade[1, 2] == 50  # the square root of a quarter
    assert shade[2, 0] > shade[2, 3] > 0
    texts = [text.replace("\u00a0", " ") for _, text in found.scale]
    assert texts == ["0 %", "6.2 %", "25 %", "56 %", "100 %"]
    assert [shade for shade, _ in found.scale] == [0, 25, 50, 75, 100]
    assert re.findall(r'dy="1.6em" text-anchor="middle">([^<]*)<', found.histogram) == ["1", "2", "3"]
    assert not found.binned


def test_what_it_says() -> None:
    found = view(HISTORY)
    assert found.sentence.replace("\u00a0", " ") == (
        "The network has 100 gates. When they had been learnt, 3.0 % of them were still between 0.05 and 0.95 "
        "(100.0 % at the first look). The network that went on is that of epoch 2, where 58 stay open."
    )
    assert found.weight.endswith("rose 2 times, from 30 to 67.5, between epochs 1.5 and 1.6.")
    assert view(HISTORY[:3]).weight.endswith("rose once, from 30 to 45, in epoch 1.5.")
    assert view(HISTORY[:2]).weight == ""
    assert found.rows[1] == ["2", "88.0\u00a0%", "80.0\u00a0%", "55.0\u00a0% / 49.0\u00a0%", "58", "50.0\u00a0%"]


def test_the_curves_are_those_of_the_history() -> None:
    found = view(HISTORY)
    assert [x for x, _ in points(found.accuracy, "pruned")] == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-3)
    (share,) = found.shares
    assert share.name == "MACs"
    soft, hard, allowed = (points(share.chart, style) for style in ("control", "pruned", "allowed"))
    top = soft[0][1] / 0.7  # the axis starts at nothing: heights are in proportion
    assert [y / top for _, y in soft] == pytest.approx([0.7, 0.55, 0.5], abs=2e-3)
    assert [y / top for _, y in hard] == pytest.approx([0.48, 0.49, 0.5], abs=2e-3)
    assert [y / top for _, y in allowed] == pytest.approx([0.5, 0.5], abs=2e-3)
    assert share.chart.count('<line class="tick"') == 2
    assert '<line class="tick"' not in view([line for line in HISTORY if "before" not in line]).shares[0].chart
    assert "went on" in found.accuracy


def test_without_validation_images_there_is_no_accuracy() -> None:
    history = [line | {"val_top1_kept": None, "hard_top1_kept": None} for line in HISTORY]
    found = view(history)
    assert found.accuracy == ""
    assert found.rows[0][1:3] == ["–", "–"]
    assert len(found.shares) == 1


@pytest.mark.parametrize(
    ("quantities", "number", "names"),
    [
        (["macs", "params"], 2, ["MACs", "parameters"]),
        (["latency", "params"], 2, ["parameters", "latency, in MACs"]),
        (["macs"], 2, ["budget 1", "budget 2"]),
        (None, 1, ["budget 1"]),
    ],
)
def test_names_of_the_budgets(quantities: list[str] | None, number: int, names: list[str]) -> None:
    shares = {key: [0.5] * number for key in ("soft_share", "hard_share", "allowed")}
    summary = {"budget": None if quantities is None else [{"quantity": name} for name in quantities]}
    assert view(changed(1, **shares)[:2], summary).names == names


def test_long_runs_are_binned() -> None:
    history = [HISTORY[7] | {"step": step, "histogram": [step % 2, 1 - step % 2]} for step in range(1, 131)]
    found = view(history)
    assert found.binned
    assert cells(found.histogram) == 60 * 2
    assert len(found.rows) == 130
    # No epoch says where the steps are: every look counts for one.
    assert found.rows[-1][0] == "130"


@pytest.mark.parametrize(
    "damage",
    [
        {"histogram": None}, {"histogram": []}, {"histogram": [0, 0, 0, 0]}, {"histogram": [1, -1, 0, 5]},
        {"histogram": [1, None, 0, 5]}, {"histogram": "many"}, {"histogram": [1, 2]}, {"soft_share": [0.5, 0.5]},
        {"soft_share": 0.5}, {"hard_share": []}, {"allowed": None}, {"step": None}, {"step": 0}, {"step": "ten"},
        {"phase": "prune"}, {"allowed": [float("nan")]},
    ],
)  # fmt: skip
def test_a_damaged_line_is_left_out(damage: dict[str, Any]) -> None:
    found = view(changed(5, **damage))
    assert cells(found.histogram) == 2 * 4
    assert [row[0] for row in found.rows] == ["1", "3"]
    assert gate_view(Run(BUDGET, None, changed(1, **damage)[1:2], 0, {}, {})) is None or "histogram" in damage


def test_a_line_written_again_counts_once() -> None:
    found = view([*HISTORY[:6], HISTORY[5] | {"open": 59}, *HISTORY[6:]])
    assert len(found.rows) == 3
    assert found.rows[1][4] == "59"


def test_a_run_without_gates_has_no_section(channel_directory: Path) -> None:
    assert gate_view(Run({}, None, [], 0, {}, {})) is None
    assert gate_view(Run({}, None, HISTORY[:1] + HISTORY[2:5], 0, {}, {})) is None
    assert "gates" not in page(channel_directory).ids


def test_the_page_of_a_run_with_gates(channel_directory: Path) -> None:
    path = channel_directory / "history.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in HISTORY) + path.read_text())
    found = page(channel_directory)
    expected = [name for name in SECTIONS if name not in ("layers", "masks")]
    place = expected.index("epochs") + 1
    assert found.ids == [*expected[:place], "gates", "channels", *expected[place:]]
    assert "How the gates closed" in found.text
    assert "ticks mark where the budget's weight rose" in found.text
    assert "learning gates 1.00 2.000" in found.text
    charts = [str(a["aria-label"]) for tag, a in found.tags if tag == "svg" and a.get("class") == "chart"]
    assert [text.split(" ")[0] for text in charts] == ["validation", "Values", "Validation", "What", "Output"]


def test_no_axis_goes_beyond_all_of_it() -> None:
    history = [line | {"val_top1_kept": 1.0, "hard_top1_kept": 0.99} for line in HISTORY]
    texts = re.findall(r'text-anchor="end">([\d.]+)\u00a0%<', view(history).accuracy)
    assert [float(texts[0]), float(texts[-1])] == [95, 100]
