"""``billhook inspect``: the document, the tables, the exit codes."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from billhook.cli.inspect import short, show
from billhook.inspection import inspect_network, make_inspection
from billhook.methods import CHANNEL_METHODS, WEIGHT_METHODS

from .commands import Cli, snapshot

METHODS = [*WEIGHT_METHODS, *CHANNEL_METHODS]
TOTALS = {"params", "nonzero", "macs", "effective_macs", "channels", "volume", "bytes"}


def printed(document: dict[str, Any], width: int, terminal: bool) -> str:
    file = io.StringIO()
    colours = "standard" if terminal else None
    show(document, Console(file=file, width=width, force_terminal=terminal, color_system=colours, highlight=False))
    return file.getvalue()


def look_at(model: str, **content: Any) -> dict[str, Any]:
    return inspect_network(make_inspection({"model": model} | content))


def test_the_document(cli: Cli, tmp_path: Path) -> None:
    done = cli("inspect", "tinycnn", "--method", "crisp", "--budget", "sparsity>=80%", "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document
    assert set(document["totals"]) == TOTALS
    assert {"totals", "layers", "groups", "feasible"} <= set(document)
    for layer in document["layers"]:
        assert {"name", "kind", "params", "macs", "group", "prunable"} <= set(layer)
        assert list(layer["prunable"]) == ["crisp"]
    assert [group["name"] for group in document["groups"]] == ["conv1", "conv2", "conv3", "conv4"]
    for group in document["groups"]:
        assert set(group) == {"name", "channels", "sections", "layers", "readers", "may_vanish"}
    (row,) = document["feasible"]
    assert set(row) == {"quantity", "dense", "smallest", "asked", "binding_layer", "feasible"}
    assert not any(tmp_path.iterdir())


def test_all_methods_without_one_named(cli: Cli) -> None:
    document = cli("inspect", "tinycnn", "--json").document
    assert all(list(layer["prunable"]) == METHODS for layer in document["layers"])


def test_an_infeasible_budget_prints_its_row_and_exits_3(cli: Cli) -> None:
    arguments = ["inspect", "tinycnn", "--method", "nm-only", "--budget", "sparsity>=90%"]
    done = cli(*arguments, "--budget", "bytes<=90%")
    assert (done.code, done.err) == (3, "")
    (row,) = [line for line in done.out.splitlines() if line.startswith("sparsity")]
    assert row.split()[-2] == "no"
    assert "90.00 %" in row
    (row,) = [line for line in done.out.splitlines() if line.startswith("bytes") and "yes" in line]
    document = cli(*arguments, "--json")
    assert document.code == 3
    assert document.document["feasible"][0]["feasible"] is False


@pytest.mark.parametrize("method", CHANNEL_METHODS)
def test_a_channel_budget_is_checked_like_any_other(cli: Cli, method: str) -> None:
    asked = ["--method", method, "--budget", "macs<=50%", "--set", "least=0.25"]
    done = cli("inspect", "tinycnn", *asked, "--budget", "params<=1%")
    assert (done.code, done.err) == (3, "")
    found = {line.split()[0]: line for line in done.out.splitlines() if " no " in line or " yes " in line}
    assert "yes" in found["macs"].split()
    assert "no" in found["params"].split()
    (row, _) = cli("inspect", "tinycnn", *asked, "--budget", "params<=1%", "--json").document["feasible"]
    assert row["smallest"] < row["asked"] == row["dense"] / 2
    assert cli("inspect", "tinycnn", *asked).code == 0


def test_milliseconds_are_shown_as_such() -> None:
    document = look_at("tinycnn", method={"name": "l1"})
    row = {"quantity": "latency", "dense": 12.345, "smallest": 0.0321, "asked": 5.0, "binding_layer": "conv4"}
    text = printed(document | {"feasible": [row | {"feasible": True}]}, 120, terminal=False)
    assert re.search(r"latency +12\.3 ms +0\.0321 ms +5 ms +yes +conv4", text)


def test_the_dry_run_of_a_channel_method(cli: Cli, dense: Path) -> None:
    weights = ["--weights", dense / "model.safetensors"]
    asked = ["--data", "digits", "--method", "l1", "--set", "round_to=8"]
    wanted = cli("prune", "tinycnn", *weights, *asked, "--budget", "macs<=50%", "--epochs", "1", "--dry-run", "--json")
    assert wanted.code == 0
    found = cli("inspect", "tinycnn", *weights, *asked, "--budget", "macs<=50%", "--json").document
    assert found["feasible"] == wanted.document["feasible"]
    far = cli("prune", "tinycnn", *weights, *asked, "--budget", "params<=1%", "--epochs", "1", "--dry-run")
    assert far.code == 3
    assert "in multiples of 8" in far.error_lines[0]


def test_the_dry_run_of_prune_says_the_same(cli: Cli, dense: Path) -> None:
    more = ["--data", "digits", "--classes", "3,5,8", "--method", "crisp", "--set", "nm=1:4", "--budget", "bytes<=40%"]
    weights = ["--weights", dense / "model.safetensors"]
    wanted = cli("prune", "tinycnn", *weights, *more, "--epochs", "1", "--dry-run", "--json").document
    found = cli("inspect", "tinycnn", *weights, *more, "--set", "train.epochs=1", "--json").document
    assert found["feasible"] == wanted["feasible"]
    reasons = {layer["name"]: layer["prunable"]["crisp"] for layer in found["layers"]}
    assert {entry["name"]: entry["reason"] for entry in wanted["layers_left_dense"]}.items() <= reasons.items()


def test_a_run_is_shown_as_it_lies_on_disk(cli: Cli, pruned: Path) -> None:
    before = snapshot(pruned)
    summary = json.loads((pruned / "summary.json").read_text())
    document = cli("inspect", pruned, "--json").document
    assert document["totals"] == {key: summary["pruned"][key] for key in TOTALS}
    described = json.loads((pruned / "architecture.json").read_text())["patterns"]
    layers = {layer["name"]: layer for layer in document["layers"]}
    for name, pattern in described.items():
        layer = layers[name.removesuffix(".weight")]
        positions = layer["macs"] // math.prod(layer["shape"])
        assert layer["effective_macs"] == pattern["nonzero"] * positions
        assert layer["nonzero"] < layer["params"]
    text = cli("inspect", pruned).out
    assert "nonzero" in text.splitlines()[0]
    assert "3 outputs" in text
    assert snapshot(pruned) == before


def test_a_dense_run_has_the_totals_of_its_summary(cli: Cli, dense: Path) -> None:
    summary = json.loads((dense / "summary.json").read_text())
    document = cli("inspect", dense, "--json").document
    assert document["totals"] == {key: summary["dense"][key] for key in TOTALS}
    assert "nonzero" not in cli("inspect", dense).out.splitlines()[0]


def test_classes_of_a_run_go_by_its_labels(cli: Cli, pruned: Path) -> None:
    document = cli("inspect", pruned, "--classes", "5,8", "--json").document
    assert document["classes"] == 3
    assert document["delivered"]["params"] < document["totals"]["params"]
    with_data = cli("inspect", pruned, "--classes", "5,8", "--data", "digits", "--json").document
    assert with_data["delivered"] == document["delivered"]
    assert cli("inspect", pruned, "--data", "digits", "--json").document["delivered"] is None
    refused = cli("inspect", pruned, "--classes", "7", "--data", "digits")
    assert refused.code == 2
    assert "does not know the class '7'" in refused.err


@pytest.fixture(scope="module", params=["resnet101", "resnext50_32x4d", "mobilenet_v2"])
def long_network(request: pytest.FixtureRequest) -> dict[str, Any]:
    return look_at(request.param, data={"input_size": 32})


@pytest.mark.parametrize("width", [80, 120])
def test_long_networks_fit_the_terminal(long_network: dict[str, Any], width: int) -> None:
    document = long_network
    text = printed(document, width, terminal=False)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= width
    matrices = [layer for layer in document["layers"] if layer["macs"]]
    # One line per layer: its name whole, its shape whole.
    for layer in matrices:
        shape = "x".join(str(n) for n in layer["shape"])
        assert sum(line.startswith(f"{layer['name']} ") and shape in line for line in lines) == 1
    assert len(lines) <= len(matrices) + 25
    assert "first convolution" in text
    assert "batchnorm (no weight matrix)" in text


def test_a_pruned_table_fits_80_columns_too(cli: Cli, pruned: Path) -> None:
    lines = printed(look_at(str(pruned)), 80, terminal=False).splitlines()
    assert max(len(line) for line in lines) <= 80


def test_colours_only_on_a_terminal(cli: Cli) -> None:
    content = {"method": {"name": "crisp"}, "budget": ["sparsity>=99.9%"]}
    document = look_at("tinycnn", **content)
    colourful = printed(document, 100, terminal=True)
    assert "\x1b[" in colourful
    plain = printed(document, 100, terminal=False)
    assert "\x1b[" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colourful) == plain
    assert "\x1b[" not in cli("inspect", "tinycnn").out


def test_reasons_stand_once_below_the_table(cli: Cli) -> None:
    lines = cli("inspect", "resnext50_32x4d", "--input-size", "32").out.splitlines()
    grouped = [line for line in lines if "grouped convolution (32 groups)" in line]
    assert len(grouped) == 1
    mark = grouped[0].split()[0]
    assert sum(line.rstrip().endswith(f"channels {mark}") for line in lines) == 16
    one = cli("inspect", "resnext50_32x4d", "--input-size", "32", "--method", "crisp").out
    assert one.count(f"no {mark}") == 16


def test_channel_methods_speak_with_one_voice() -> None:
    text = printed(look_at("mobilenet_v2", data={"input_size": 32}), 120, terminal=False)
    assert "fpgm" not in text
    assert "slimming" not in text
    (head,) = [line for line in text.splitlines() if line.startswith("classifier.1 ")]
    assert head.split()[-2] == "weights"
    assert "channel methods: its channels are the network's output" in text
    one = printed(look_at("mobilenet_v2", data={"input_size": 32}, method={"name": "l1"}), 120, terminal=False)
    assert "] its channels are the network's output" in one


def test_layers_of_one_group_have_one_number() -> None:
    text = printed(look_at("resnet20"), 120, terminal=False)
    header, *lines = text.splitlines()
    end = header.index("group") + len("group")
    group = {line.split()[0]: line[:end].split()[-1] for line in lines[:20]}
    # conv1's channels are the residual stream of layer1; the inside of a block is a group of its own.
    assert [group[name] for name in ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.2.conv2")] == list("1211")
    assert group["linear"] == "-"
    assert list(dict.fromkeys(group.values())) == [*(str(number) for number in range(1, 13)), "-"]
    assert "12 channel groups: layers of one group lose the same channels; 9 of them may go entirely" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (99_960, "100 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (25_557_032, "25.6 M"),
        (16_414_000_000, "16.4 G"),
    ],
)
def test_three_digits(value: int, text: str) -> None:
    assert short(value) == text


BROKEN = "def make(num_classes=10):\n    raise RuntimeError('no such layer: conv9')\n"
NARROW = """
from torch import nn
def make(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
BAD: dict[str, tuple[list[str], str]] = {
    "unknown spec": (["resnet55"], "did you mean 'resnet56'"),
    "unknown option": (["resnet56,widht=2"], "widht=2"),
    "factory that raises": (["broken.py:make"], "broken.py:make failed: RuntimeError: no such layer: conv9"),
    "no such directory": (["./nowhere"], "nowhere"),
    "size out of reach": (["narrow.py:make", "--input-size", "4"], "fails on a 3x4x4 image in layer '0'"),
    "size out of reach of our own": (["vgg16", "--input-size", "16"], "fails on a 3x16x16 image"),
    "size that is none": (["tinycnn", "--input-size", "0"], "--input-size"),
    "budget that the method cannot move": (
        ["tinycnn", "--method", "crisp", "--budget", "macs<=50%"],
        "the method 'crisp' cannot move macs",
    ),
    "budget without method": (["tinycnn", "--budget", "sparsity>=50%"], "--method"),
    "unknown method": (["tinycnn", "--method", "magnitud"], "did you mean 'magnitude'"),
    "setting without method": (["tinycnn", "--set", "nm=2:4"], "--method"),
    "unknown setting": (["tinycnn", "--method", "crisp", "--set", "bolck=8"], "did you mean 'block'"),
    "no weights": (["tinycnn", "--weights", "nowhere.pt"], "nowhere.pt"),
    "names without labels": (["tinycnn", "--classes", "cat"], "--labels"),
    "unknown class": (["tinycnn", "--data", "digits", "--classes", "ten"], "unknown class 'ten'"),
    "no data": (["tinycnn", "--data", "nowhere"], "no data at nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "narrow.py").write_text(NARROW)
    plain = cli("inspect", *arguments)
    assert (plain.code, plain.out) == (2, "")
    assert len(plain.error_lines) == 1
    assert message in plain.error_lines[0]
    document = cli("inspect", *arguments, "--json")
    assert document.code == 2
    assert document.document["error"].keys() == {"kind", "message", "hint"}


def test_labels_of_another_head(cli: Cli, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text('["a", "b"]')
    done = cli("inspect", "tinycnn", "--weights", dense / "model.safetensors", "--labels", "two.json", "--classes", "a")
    assert done.code == 2
    assert "two.json has 2 entries, but the head has 10 outputs" in done.error_lines[0]


@pytest.mark.slow
def test_a_large_network_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "billhook", "inspect", "resnet101", "--json"], capture_output=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["totals"]["params"] == 44_549_160
