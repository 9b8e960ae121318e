"""The section on channels: its figures, its chart, and what stays away from the page of a channel run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import billhook
from billhook.cost import count
from billhook.formats import read_npz
from billhook.proof import _channel_data
from billhook.report import plots, write_report
from billhook.report.channels import channel_view, chart
from billhook.report.read import Run
from billhook.surgery.channels import Wired

from .runs import write_run
from .test_page import SECTIONS, edit, page


def run_of(**columns: list[object]) -> Run:
    data = {f"channels/{key}": np.array(column) for key, column in columns.items()}
    return Run(summary={}, recipe=None, history=[], unreadable=0, architecture={}, data=data)


FIGURES: dict[str, list[object]] = {
    "names": ["a", "b", "c", "fc"],
    "dense": [16, 32, 32, 0],
    "kept": [4, 32, 0, 0],
    "dense_macs": [1000, 20_000_000, 3000, 320],
    "macs": [250, 5_000_000, 0, 320],
    "dense_params": [100, 4608, 9216, 330],
    "params": [25, 1152, 0, 330],
}


def bars(text: str) -> list[tuple[float, float]]:
    """(height of what was, height of what is left) of each bar, as shares of the chart."""
    pattern = r'<rect class="{}"[^>]* height="([\d.]+)%"/>'
    was, left = ([float(high) / 100 for high in re.findall(pattern.format(s), text)] for s in ("was", "pruned"))
    return list(zip(was, left, strict=True))


def test_figures_of_every_layer() -> None:
    view = channel_view(run_of(**FIGURES))
    assert view is not None
    assert [row.channels for row in view.rows] == ["4 of 16", "32 of 32", "0 of 32", "–"]
    assert [row.gone for row in view.rows] == [False, False, True, False]
    assert view.rows[1].macs_before.replace("\u00a0", " ") == "20.0 M"
    assert (view.rows[1].macs, view.rows[1].params_before, view.rows[1].params) == ("5,000,000", "4,608", "1,152")
    assert view.sentence.replace("\u00a0", " ") == (
        "36 of the 80 output channels of all convolutions are left (45.0 %)."
        " 1 layer is gone entirely, with a residual branch."
    )


def test_bars_are_as_high_as_the_channels_are_many() -> None:
    text = str(chart([("a", 16, 4), ("b", 32, 32), ("c", 32, 0)]))
    top = plots.ticks(0, 32, 4)[-1]
    was, left = zip(*bars(text), strict=True)
    assert was == pytest.approx([16 / top, 32 / top, 32 / top], abs=1e-4)
    assert left == pytest.approx([4 / top, 32 / top, 0], abs=1e-4)
    assert "<title>a: 4 of 16 channels</title>" in text
    assert "before and after: 80 and 36 in all" in text
    assert chart([]) == ""
    assert "&lt;i&gt;" in str(chart([("<i>", 2, 1)]))


@pytest.mark.parametrize(("number", "last"), [(1, "1"), (20, "20"), (21, "20"), (104, "100"), (999, "900")])
def test_numbers_below_the_bars_stay_few(number: int, last: str) -> None:
    text = str(chart([("conv", 8, 4)] * number))
    labels = re.findall(r'text-anchor="middle">(\d+)<', text)
    assert labels[0] == "1"
    assert labels[-1] == last
    assert len(labels) <= 20
    assert len(bars(text)) == number


@pytest.mark.parametrize(
    "changes",
    [{"kept": None}, {"kept": [1]}, {key: [] for key in FIGURES}, {key: [[1]] for key in FIGURES}],
    ids=["missing", "ragged", "empty", "matrix"],
)
def test_without_whole_figures_there_is_no_section(changes: dict[str, list[object] | None]) -> None:
    columns = {key: value for key, value in (FIGURES | changes).items() if value is not None}
    assert channel_view(run_of(**columns)) is None


def test_a_channel_run_has_its_section_and_none_that_is_empty(channel_directory: Path) -> None:
    found = page(channel_directory)
    expected = [name for name in SECTIONS if name not in ("layers", "masks")]
    expected.insert(expected.index("epochs") + 1, "channels")
    assert found.ids == expected
    text = found.text
    assert "Accuracy over the epochs" in text
    assert "Layers that keep their channels" in text
    assert "its channels are the network's output" in text
    assert "2 layers are gone entirely" in text
    for words in ("Masks", "Sparsity per layer", "and sparsity", "left dense", "Mask updates"):
        assert words not in text
    charts = [attributes for tag, attributes in found.tags if tag == "svg" and attributes.get("class") == "chart"]
    assert len(charts) == 2
    assert "Output channels of 55 convolutions" in str(charts[1]["aria-label"])
    # 56 layers: the table is folded away; the removal and its mark are there.
    assert "layer2.4.conv1 gone" in text
    assert "Removals of channels" in text
    assert "1 500,000 72.0 M 1,600" in text
    assert "channels removed" in text
    assert "fine-tuning 1.00 0.400" in text
    assert (channel_directory / "report.html").stat().st_size < 300_000


def test_a_run_with_zeros_and_fewer_channels_shows_both(channel_directory: Path) -> None:
    with np.load(channel_directory / "report_data.npz") as held:
        arrays = {key: held[key] for key in held.files}
    arrays["layer_nonzero"] = arrays["layer_nonzero"] // 4
    arrays["layer_effective_macs"] = arrays["layer_macs"] // 4
    arrays["mask/conv1"] = np.eye(8, dtype=np.uint8)
    np.savez(channel_directory / "report_data.npz", **arrays)
    found = page(channel_directory)
    assert {"channels", "layers", "masks"} <= set(found.ids)
    assert "Sparsity per layer" in found.text
    assert "Layers left dense" in found.text


def test_runs_of_weight_methods_stay_as_they_were(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    before = write_report(directory).read_bytes()
    assert page(directory).ids == SECTIONS
    assert b'id="channels"' not in before
    edit(directory, method="l1")  # a channel run that kept no such figures
    assert page(directory).ids == SECTIONS


def test_a_real_run_keeps_the_figures(tmp_path: Path) -> None:
    result = billhook.prune(
        "tinycnn", "digits", method="l1", budget="macs<=50%", epochs=0.2, control="none", limit_train=100,
        out=tmp_path / "run",
    )  # fmt: skip
    data = read_npz(tmp_path / "run" / "report_data.npz")
    cost = {layer.name: layer for layer in count(result.model, 8).layers if layer.macs}
    assert data["channels/names"].tolist() == list(cost) == ["conv1", "conv2", "conv3", "conv4", "fc"]
    assert data["channels/dense"].tolist() == [32, 64, 64, 128, 0]
    assert data["channels/kept"].tolist() == [layer.channels for layer in cost.values()]
    assert data["channels/params"].tolist() == [layer.params for layer in cost.values()]
    assert data["channels/macs"].sum() == result.summary["pruned"]["macs"]
    assert data["channels/dense_macs"].sum() == result.summary["dense"]["macs"]
    assert data["channels/kept"].sum() < data["channels/dense"].sum()
    found = page(tmp_path / "run")
    assert "channels" in found.ids
    assert "masks" not in found.ids


def test_a_layer_between_channel_maps_and_one_that_is_gone() -> None:
    def network(a: nn.Module, b: nn.Module) -> nn.Module:
        parts = {"a": a, "b": b, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(8, 2)}
        module = nn.Sequential()
        for name, part in parts.items():
            module.add_module(name, part)
        return module

    dense = network(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1))
    wired = Wired()
    wired.add_module("layer", nn.Conv2d(3, 8, 1))
    data = _channel_data(count(dense, 4), count(network(wired, nn.Identity()), 4), {})
    assert data["channels/names"].tolist() == ["a", "b", "fc"]
    assert data["channels/dense"].tolist() == [16, 8, 0]
    assert data["channels/kept"].tolist() == [8, 0, 0]
    assert data["channels/params"].tolist() == [32, 0, 18]
    assert data["channels/macs"].tolist() == [8 * 3 * 16, 0, 16]
