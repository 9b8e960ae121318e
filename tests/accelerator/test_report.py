"""The section of the run's page: pictures and words from ``simulation.json``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from billhook.accelerator import Gemm, Pattern, machines
from billhook.accelerator.study import study
from billhook.accelerator.workload import Workload
from billhook.report.read import Run, read_run
from billhook.report.simulation import bar_chart, reached_sentence, simulation_view, stack

WORK = Workload(
    "runs/x",
    True,
    (
        Gemm("conv1<b>", 64, 9, 16, 100),
        Gemm("conv2", 64, 9, 64, 100, pattern=Pattern(2, 4, 16, 9)),
        Gemm("dw", 1, 9, 1, 100, groups=64),
    ),
    {"conv1<b>": "first convolution", "dw": "depthwise convolution"},
    (10, 10),
    "density of the activations: taken for 0.5",
)


def run_with(simulation: dict[str, object]) -> Run:
    return Run({}, None, [], 0, {}, {}, simulation=simulation)


def test_the_view() -> None:
    document = study(WORK, machines())
    view = simulation_view(run_with({"layers": document}))
    assert view is not None
    assert view.layers is not None
    assert not view.maps
    total = next(r for r in document["rows"] if (r["design"], r["layer"]) == ("crisp-stc", "total"))
    assert f"{total['speedup']:.2f} times fewer" in view.sentence
    assert [row.name for row in view.layers.designs] == [machine.name for machine in machines()]
    assert view.layers.designs[0].faster == "1.00×"
    assert [line.weights for line in view.layers.lines] == ["dense", "2:4, 9 of 36 blocks of 16", "dense"]
    assert view.layers.lines[2].product == "1×9×100 ×64"
    assert [name for name, _, _ in view.layers.positions][:2] == ["CRISP", "CSR"]
    assert "<b>" not in view.layers.chart
    assert len(set(view.notes)) == len(view.notes)
    assert any("CPU runtime" in note for note in view.notes)


def test_the_sweep() -> None:
    view = simulation_view(run_with({"sweep": study(WORK, machines(), sweep=True)}))
    assert view is not None
    assert view.layers is None
    assert len(view.maps) == 2
    for shown in view.maps:
        assert shown.picture.count("<title>") == 9
        assert shown.scale
    assert len(view.reached) == 8


def test_nothing_to_show() -> None:
    assert simulation_view(run_with({})) is None
    assert simulation_view(run_with({"layers": "?"})) is None
    assert simulation_view(run_with({"layers": {"rows": []}})) is None
    assert simulation_view(run_with({"sweep": {"rows": [{}], "reached": [{}], "notes": []}})) is None


def test_energy_stacks_add_up() -> None:
    picture = stack([("near", 1.0, 10), ("far", 3.0, 90)], 8.0)
    spans = re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', picture)
    assert spans == [("0.00", "12.50"), ("12.50", "37.50")]


def test_bars_are_cycles() -> None:
    assert not bar_chart([])
    picture = bar_chart([("a", 100, 50), ("b", 40, 40)])
    heights = re.findall(r'class="(was|pruned)"[^>]*height="([\d.]+)%"', picture)
    assert heights == [("was", "100.00"), ("pruned", "50.00"), ("was", "40.00"), ("pruned", "40.00")]


@pytest.mark.parametrize(("met", "words"), [(True, "reaches 7× in energy from 2:4"), (False, "7× in energy is not")])
def test_sentences(met: bool, words: str) -> None:
    entry = {
        "scope": "network", "metric": "energy", "times": 7.0, "met": met, "nm": "2:4", "block": 64,
        "block_sparsity": 0.75, "sparsity": 0.875, "value": 3.5, "layer": "", "bound_by": "dram read",
    }  # fmt: skip
    assert words in reached_sentence(entry)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    from billhook.errors import InputError

    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "simulation.json").write_text("{")
    with pytest.raises(InputError, match=r"simulation\.json is not JSON"):
        read_run(tmp_path)
