"""``billhook simulate``: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from billhook.accelerator import machine_text
from billhook.cli import run

DESIGNS = ["dense-tc", "nvidia-stc", "flexible-stc", "dstc", "crisp-stc"]
PROMISED = {"design", "layer", "cycles", "energy_uj", "speedup", "bound_by"}


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run(["simulate", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "resnet20")
    rows = found["rows"]
    assert all(set(row) >= PROMISED for row in rows)
    assert [row["design"] for row in rows if row["layer"] == "total"] == DESIGNS
    assert len(rows) == 5 * (len(found["layers"]) + 1)
    # Nothing is zero but activations: only the dual-side design gains.
    gains = {row["design"]: row["speedup"] for row in rows if row["layer"] == "total"}
    assert {name for name, gain in gains.items() if gain != 1} == {"dstc"}
    assert any("no weight is zero" in note for note in found["notes"])
    assert any("modelled, not timed" in note.lower() for note in found["notes"])


def test_one_pattern_on_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "resnet20", "--nm", "2:4", "--block", "16", "--blocks-pruned", "0.5")
    gains = {row["design"]: row["speedup"] for row in found["rows"] if row["layer"] == "total"}
    assert gains["crisp-stc"] > gains["flexible-stc"] >= gains["nvidia-stc"] > gains["dense-tc"] == 1
    assert found["metadata"]["total"]["crisp"] == sum(e["crisp"] for e in found["metadata"]["layers"].values()) > 0


def test_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "resnet20", "--sweep")
    assert len(found["rows"]) == 5 * 3 * 3 * 8
    assert all(set(row) >= PROMISED | {"nm", "block", "block_sparsity", "sparsity"} for row in found["rows"])
    asked = itertools.product(("network", "layer"), ("latency", "energy"), (7, 14))
    assert {(entry["scope"], entry["metric"], entry["times"]) for entry in found["reached"]} == set(asked)


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["simulate", "resnet20", "--nm", "2:4"]) == 0
    text = capsys.readouterr().out
    assert "modelled, not measured" in text
    assert "layer1.0.conv1" in text
    assert "CSR" in text
    assert run(["simulate", "resnet20", "--sweep"]) == 0
    text = capsys.readouterr().out
    assert "crisp-stc, faster than dense" in text
    assert "not reached" in text


def test_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    found = document(capsys, "resnet20", "--csv", str(path))
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(found["rows"])
    for row, before in zip(rows, found["rows"], strict=True):
        assert row["design"] == before["design"]
        assert int(row["cycles"]) == before["cycles"]
        levels = [float(row[f"energy_{level}_uj"]) for level in before["energy_by_level"]]
        assert math.isclose(sum(levels), float(row["energy_uj"]), rel_tol=1e-9)


def test_an_own_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    wide = machine_text("crisp-stc").replace("name: crisp-stc", "name: wide").replace("per_cycle: 42", "per_cycle: 420")
    path.write_text(wide)
    found = document(capsys, "resnet20", "--nm", "1:4", "--machine", str(path))
    totals = {row["design"]: row for row in found["rows"] if row["layer"] == "total"}
    assert list(totals) == [*DESIGNS, "wide"]
    assert totals["wide"]["speedup"] > totals["crisp-stc"]["speedup"]


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ("read_words_per_cycle: 42", "read_words_per_cycle: 0", "smem.read_words_per_cycle"),
        ("capacity: 8192", "capacity: 100", "accumulators.capacity"),
        ("mac_pj: 0.5608", "mac_pj: [", "is not YAML"),
    ],
)
def test_a_machine_that_makes_no_sense(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, before: str, after: str, field: str
) -> None:
    path, out = tmp_path / "bad.yaml", tmp_path / "rows.csv"
    text = machine_text("crisp-stc")
    assert before in text
    path.write_text(text.replace(before, after))
    capsys.readouterr()
    assert run(["simulate", "resnet20", "--machine", str(path), "--csv", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert field in line
    assert "bad.yaml" in line
    assert not out.exists()
    assert field in document(capsys, "resnet20", "--machine", str(path), code=2)["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["resnet51"],
        ["resnet20", "--nm", "5:4"],
        ["resnet20", "--sweep", "--nm", "2:4"],
        ["resnet20", "--blocks-pruned", "0.5"],
        ["resnet20", "--blocks-pruned", "1.5", "--block", "16"],
        ["resnet20", "--machine", "nowhere.yaml"],
        ["resnet20", "--data", "digits"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    capsys.readouterr()
    assert run(["simulate", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_keeps_its_simulation(capsys: pytest.CaptureFixture[str], pruned: Path) -> None:
    page = pruned / "report.html"
    assert "sparse tensor cores" not in page.read_text()
    found = document(capsys, str(pruned), "--data", "digits")
    assert found["metadata"]["layers"]
    totals = {row["design"]: row for row in found["rows"] if row["layer"] == "total"}
    assert totals["crisp-stc"]["speedup"] > totals["nvidia-stc"]["speedup"]
    assert json.loads((pruned / "simulation.json").read_text())["layers"]["rows"] == found["rows"]
    text = page.read_text()
    assert "On sparse tensor cores, modelled" in text
    assert f"{totals['crisp-stc']['speedup']:.2f} times fewer" in text
    assert "measured on 64 test images" in text
    assert "Other patterns" not in text
    swept = document(capsys, str(pruned), "--sweep")
    kept = json.loads((pruned / "simulation.json").read_text())
    assert kept["layers"]["rows"] == found["rows"]
    assert kept["sweep"]["rows"] == swept["rows"]
    assert "Other patterns" in page.read_text()
    assert "not reached" in page.read_text()
    # A pattern that is only tried is not the run's.
    before = (pruned / "simulation.json").read_bytes()
    document(capsys, str(pruned), "--nm", "1:4")
    assert (pruned / "simulation.json").read_bytes() == before
