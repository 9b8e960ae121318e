"""Networks with 1x1 convolutions around their layers end to end: artifacts, hostile ones, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import billhook as bh
from billhook import artifact
from billhook.cli import run
from billhook.compensation import pointwise_layers
from billhook.cost import count
from billhook.errors import InputError
from billhook.models import build

from .test_channel_runs import FAST, command_line
from .test_resume import at_step

__all__ = ["at_step"]

METHOD: dict[str, Any] = {"name": "hbgs", "compensation": "pointwise", "selection": 16, "step": 0.25}


@pytest.fixture(scope="module")
def thin(weights: Path) -> bh.Result:
    """A network at 60 % of its parameters; its first convolution is left as it is."""
    return bh.prune("tinycnn", "digits", weights=weights, classes=["3", "5", "8"], method=METHOD,
                    budget=["params<=60%", "macs<=80%"], **FAST)  # fmt: skip


def test_it_is_delivered_and_loads_bit_equal(thin: bh.Result, tmp_path: Path) -> None:
    pruned, dense = thin.summary["pruned"], thin.summary["dense"]
    assert thin.met
    assert 0.5 * dense["params"] <= pruned["params"] <= 0.6 * dense["params"]
    assert pruned["params"] == sum(p.numel() for p in thin.model.parameters())
    assert pruned["macs"] == count(thin.model, 8).macs
    equivalence = thin.summary["equivalence"]
    assert 0 < equivalence["max_abs_difference"] <= 1e-4 * equivalence["scale"]
    place = thin.save(tmp_path / "run")
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    again = bh.load(place)
    assert pointwise_layers(again)
    with torch.no_grad():
        assert torch.equal(again(images), thin.model(images))
    described = json.loads((place / artifact.ARCHITECTURE).read_text())
    assert described["channels"] is None
    assert set(described["pointwise"]) == set(pointwise_layers(thin.model))
    assert run(["evaluate", str(place), "--data", "digits"]) == 0
    assert run(["report", str(place)]) == 0
    assert (place / "model.safetensors").stat().st_size == pruned["bytes"]


def test_what_stands_around_a_layer_counts_as_its_own(thin: bh.Result, tmp_path: Path) -> None:
    place = thin.save(tmp_path / "run")
    with np.load(place / "report_data.npz", allow_pickle=False) as held:
        data = {name.removeprefix("channels/"): held[name] for name in held.files if name.startswith("channels/")}
    assert data["macs"].sum() == thin.summary["pruned"]["macs"]
    for name, part in pointwise_layers(thin.model).items():
        row = list(data["names"]).index(name)
        assert data["kept"][row] == part.conv.out_channels
        assert data["params"][row] == sum(p.numel() for p in part.parameters())
    first = list(data["names"]).index("conv1")
    assert data["kept"][first] == data["dense"][first] > 0
    assert data["params"][first] == data["dense_params"][first] > 0


HUGE = {"inside": 10**9, "out": None}


@pytest.mark.parametrize(
    "damage",
    [3, "x", [3], {"conv2": 3}, {"conv2": {}}, {"conv2": {"inside": None, "out": None}},
     {"conv2": {"inside": -1, "out": 3}}, {"conv2": HUGE}, {"nowhere": {"inside": 3, "out": 3}},
     {"fc": {"inside": 3, "out": 3}}, {"": {"inside": 3, "out": 3}},
     {"conv2": {"inside": True, "out": None}}, {"conv2": {"inside": 1.5, "out": None}}, None, {}],
)  # fmt: skip
def test_damaged_shapes_are_refused_in_one_line(
    thin: bh.Result, tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = thin.save(tmp_path / "run")
    path = place / artifact.ARCHITECTURE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pointwise": damage}))
    with pytest.raises(InputError):
        bh.load(place)
    capsys.readouterr()
    assert run(["evaluate", str(place), "--data", "digits"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")


def test_a_few_words_cannot_ask_for_all_memory(
    thin: bh.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1x1 convolutions at full width around layers are more than what is stored: refused before they are made."""
    place = thin.save(tmp_path / "run")
    path = place / artifact.ARCHITECTURE
    net = build("tinycnn", 3)
    layers = {name: net.get_submodule(name) for name in ("conv2", "conv3", "conv4")}
    shapes = {name: {"inside": layer.in_channels, "out": layer.out_channels} for name, layer in layers.items()}
    added = sum(layer.in_channels**2 + layer.out_channels**2 for layer in layers.values())
    made: list[Any] = []
    monkeypatch.setattr("billhook.artifact.shape_pointwise", lambda *given: made.append(given))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pointwise": shapes}))
    for stored, refused in ((added - 1, True), (added, False)):
        monkeypatch.setattr("billhook.artifact._values", lambda state, stored=stored: stored)
        with pytest.raises(InputError, match="more 1x1 convolutions than weights" if refused else "do not fit"):
            bh.load(place)
        assert bool(made) != refused


def further(first: Path, out: Path, method: str, budget: str, *more: str) -> list[str]:
    given = ["prune", str(first), "--data", "digits", "--classes", "3,5,8", "--images-per-class", "20", "--quiet"]
    given += ["--method", method, "--budget", budget, "--epochs", "1", "--control", "none", "--out", str(out)]
    return [*given, *more]


def test_weights_of_it_can_be_pruned_and_its_channels_cannot(
    thin: bh.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = thin.save(tmp_path / "first"), tmp_path / "second"
    for method, more in (("l1", ()), ("hbgs", ()), ("hbgs", ("--set", "compensation=pointwise")), ("chipnet", ())):
        capsys.readouterr()
        assert run(further(first, tmp_path / "none", method, "params<=90%", *more)) == 2
        captured = capsys.readouterr().err
        assert "1x1 convolutions around its layers" in captured
        assert captured.count("\n") == 1
        assert not (tmp_path / "none").exists()
    assert run(further(first, second, "magnitude", "sparsity>=50%")) == 0
    net = bh.load(second)
    assert {n: p.shape for n, p in net.named_parameters()} == {n: p.shape for n, p in thin.model.named_parameters()}
    described = json.loads((second / artifact.ARCHITECTURE).read_text())
    assert described["pointwise"] == json.loads((first / artifact.ARCHITECTURE).read_text())["pointwise"]
    assert json.loads((second / "summary.json").read_text())["pruned"]["sparsity"] >= 0.5


def test_channels_first_then_this(weights: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(command_line(weights, first, "l1", "params<=70%", "--quiet")) == 0
    more = ("--set", "compensation=pointwise", "--set", "step=0.25", "--set", "selection=16")
    assert run(further(first, second, "hbgs", "params<=70%", *more)) == 0
    described = json.loads((second / artifact.ARCHITECTURE).read_text())
    assert len(described["channels"]) == 1
    assert described["pointwise"]
    summary = json.loads((second / "summary.json").read_text())
    assert sum(p.numel() for p in bh.load(second).parameters()) == summary["pruned"]["params"]


def test_a_run_of_ones_own_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10),
    )  # fmt: skip
    method = {"name": "fp-backward", "compensation": "pointwise"}
    result = bh.prune(own, "digits", method=method, budget="params<=70%", epochs=1, images_per_class=10,
                      control="none", input_size=16)  # fmt: skip
    assert not pointwise_layers(own)
    place = result.save(tmp_path / "run")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(bh.load(place, own)(images), result.model(images))
    with pytest.raises(InputError, match=r"damaged|does not fit|do not fit"):
        bh.load(place, nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))
    given = ["prune", str(place), "--data", "digits", "--images-per-class", "10", "--quiet", "--method", "magnitude"]
    assert run([*given, "--budget", "sparsity>=50%", "--out", str(tmp_path / "two")]) == 2  # its code is not at hand
    again = bh.prune(bh.load(place, own), "digits", method="magnitude", budget="sparsity>=50%", epochs=1,
                     images_per_class=10, control="none", input_size=16)  # fmt: skip
    assert again.met
