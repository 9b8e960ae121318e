"""What a run leaves on disk reads back to the same network; what is damaged is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import billhook as bh
from billhook.api import measure
from billhook.cli import run
from billhook.errors import InputError, UsageError
from billhook.models import build

from .small import EFFORT


def test_loading_gives_bit_equal_outputs(result: bh.Result, saved: Path) -> None:
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = bh.load(saved)
    assert not net.training
    with torch.no_grad():
        assert torch.equal(net(images), result.model(images))
    for name, tensor in result.model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(net.state_dict()[name], tensor), name
    again = result.save(saved.with_name("again"))
    assert (again / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_the_reloaded_network_has_the_accuracy_of_the_summary(result: bh.Result, saved: Path) -> None:
    found = measure(str(saved), "digits")
    assert found["top1_kept"] == result.summary["pruned"]["top1_kept"]
    assert json.loads((saved / "summary.json").read_text()) == result.summary


def test_the_delivered_network_equals_the_masked_one(result: bh.Result) -> None:
    found = result.summary["equivalence"]
    assert found["scale"] > 0.1
    assert found["max_abs_difference"] <= 1e-5 * found["scale"]


def test_sizes_recounted_by_hand(result: bh.Result, saved: Path) -> None:
    """Sparsity = 1 - non-zeros of the delivered network / parameters before, with the head as delivered."""
    net = bh.load(saved)
    before = sum(p.numel() for p in build("tinycnn", 3).parameters())
    params = sum(p.numel() for p in net.parameters())
    nonzero = sum(int(torch.count_nonzero(p)) for p in net.parameters())
    pruned = result.summary["pruned"]
    assert (pruned["params"], pruned["nonzero"]) == (params, nonzero)
    assert pruned["sparsity"] == 1 - nonzero / before
    assert result.summary["budget"][0]["value"] == pruned["sparsity"]
    assert result.summary["budget"][0]["value_absolute"] == before - nonzero
    assert pruned["bytes"] == (saved / "model.safetensors").stat().st_size
    # 8x8, pooled once: 64 positions of the first two convolutions, 16 of the others
    layers = {"conv1": 64, "conv2": 64, "conv3": 16, "conv4": 16, "fc": 1}
    weights = {name: net.get_submodule(name).weight for name in layers}
    assert pruned["macs"] == sum(weights[name].numel() * at for name, at in layers.items())
    assert pruned["effective_macs"] == sum(int(torch.count_nonzero(weights[n])) * at for n, at in layers.items())


def test_every_pruned_layer_obeys_the_pattern(saved: Path) -> None:
    net = bh.load(saved)
    for name in ("conv2", "conv3", "conv4"):
        weight = net.get_submodule(name).weight.detach()  # [O, I, kh, kw]
        matrix = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], 9, -1)
        assert int((matrix != 0).unflatten(2, (-1, 4)).sum(-1).max()) <= 2
        rows, blocks = weight.shape[0] // 16, weight.shape[1] // 16
        kept = (matrix != 0).reshape(rows, 16, 9, blocks, 16).any(1).any(-1).sum((1, 2))
        assert kept.min() == kept.max() >= 1, name
    for name in ("conv1", "fc"):
        assert int(torch.count_nonzero(net.get_submodule(name).weight)) == net.get_submodule(name).weight.numel()


@pytest.mark.parametrize(
    ("method", "bound", "unit"),
    [
        # the smallest rank column: 64 outputs x one block of inputs, 2 of 4 of it
        (bh.CRISP(rounds=3), 70, 64 * 16 // 2),
        (bh.CRISP(rounds=3), 93.3, 64 * 16 // 2),
        (bh.CRISP(nm="1:4", block=8, rounds=3), 85, 64 * 8 // 4),
        (bh.CRISP(nm="2:4", block=4, rounds=3), 77.7, 64 * 4 // 2),
        (bh.BlockOnly(rounds=3), 50, 64 * 16),
        (bh.Magnitude(rounds=3), 88.8, 1),
        (bh.Saliency(rounds=3), 95, 1),
    ],
)
def test_sparsity_is_met_and_hardly_exceeded(weights: Path, method: Any, bound: float, unit: int) -> None:
    effort = EFFORT | {"method": method, "epochs": 1}
    found = bh.prune(
        "tinycnn", "digits", weights=weights, classes=["3", "5"], budget=f"sparsity>={bound}%", **effort
    ).summary["budget"][0]
    assert found["met"] is True
    params = sum(p.numel() for p in build("tinycnn", 2).parameters())
    over = found["value"] - bound / 100
    # a weight or two may be zero by accident
    assert 0 <= over <= max(0.001, unit / params) + 2 / params


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        content[-5] ^= 0x10
        path.write_bytes(content)
    elif how == "garbage":
        path.write_bytes(b"\x80\x04" + bytes(range(256)) * 4)
    elif how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "garbage", "missing", "a folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "architecture.json"])
def test_damaged_files_are_refused_in_one_line(
    saved: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(saved / name, how)
    if (name, how) == ("architecture.json", "flipped"):
        (saved / name).write_text((saved / name).read_text().replace('"spec": "tinycnn"', '"spec": "resnet20"'))
    with pytest.raises(InputError) as caught:
        bh.load(saved)
    assert name in caught.value.message
    capsys.readouterr()
    assert run(["evaluate", str(saved), "--data", "digits"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "missing"])
def test_a_damaged_summary_is_refused_by_the_report(saved: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(saved / "summary.json", how)
    assert run(["report", str(saved)]) == 2
    assert re.fullmatch(r"error: [^\n]*summary.json[^\n]+\n", capsys.readouterr().err)


WRONG: tuple[Any, ...] = (None, [], {}, "text", -1, 10**6, [[1]], ["a", 3], True)


def test_no_entry_of_the_architecture_can_bring_a_traceback(saved: Path) -> None:
    """Each entry missing, and of every wrong kind: read correctly or refused as damaged, never a crash."""
    path = saved / "architecture.json"
    good = json.loads(path.read_text())
    places: list[tuple[str, ...]] = [(key,) for key in good]
    places += [(key, inner) for key in ("head", "preprocess", "hashes") for inner in good[key]]
    with torch.no_grad():
        expected = bh.load(saved)(torch.ones(1, 3, 8, 8))
    refused = 0
    for place in places:
        for wrong in (..., *WRONG):
            described = json.loads(json.dumps(good))
            target = described if len(place) == 1 else described[place[0]]
            if wrong is ...:
                del target[place[-1]]
            else:
                target[place[-1]] = wrong
            path.write_text(json.dumps(described))
            try:
                net = bh.load(saved)
            except (InputError, UsageError):
                refused += 1
                continue
            with torch.no_grad():
                assert torch.equal(net(torch.ones(1, 3, 8, 8)), expected), (place, wrong)
    assert refused > 80


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("classes", 10**9),
        ("spec", "resnet50,width=1000"),
        ("spec", "resnet18,stem=cifar,width=20"),
        ("preprocess", {"input_size": 10**6, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": 10**6}),
        ("preprocess", {"input_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": 10**9}),
        ("preprocess", {"input_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": 8, "padding": 10**6}),
    ],
)
def test_a_few_words_cannot_ask_for_all_memory(
    saved: Path, entry: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    made = []
    empty = torch.nn.Parameter.__new__
    monkeypatch.setattr(
        torch.nn.Parameter,
        "__new__",
        lambda cls, data=None, *more, **kw: (made.append(data), empty(cls, data, *more, **kw))[1],
    )
    with pytest.raises(InputError, match=r"architecture\.json is damaged"):
        bh.load(saved)
    assert all(data.device.type == "meta" for data in made)


def test_deeply_nested_text_is_damaged(saved: Path) -> None:
    (saved / "architecture.json").write_text('{"a":' + "[" * 10**6 + "]" * 10**6 + "}")
    with pytest.raises(InputError, match="damaged"):
        bh.load(saved)
    (saved / "history.jsonl").write_text("[" * 10**6 + "\n")
    (saved / "architecture.json").unlink()
    assert run(["report", str(saved)]) == 0


def test_weights_of_another_run_are_refused(weights: Path, saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="hash"):
        bh.load(saved)


def test_saving_over_another_run_needs_a_word(result: bh.Result, saved: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        result.save(saved)
    (saved / "model.safetensors").write_bytes(b"")
    assert result.save(saved, overwrite=True) == saved
    bh.load(saved)


def test_loading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory"):
        bh.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no finished run"):
        bh.load(tmp_path)


def test_the_report_data_agree_with_the_summary(result: bh.Result, saved: Path) -> None:
    with np.load(saved / "report_data.npz", allow_pickle=False) as held:
        data = {name: held[name] for name in held.files}
    pruned = result.summary["pruned"]
    confusion = data["confusion_pruned"]
    assert np.trace(confusion) / confusion.sum() == pruned["top1_kept"]
    assert list(data["class_names"]) == ["3", "5", "8"]
    assert data["layer_macs"].sum() == pruned["macs"]
    assert data["layer_effective_macs"].sum() == pruned["effective_macs"]
    net = bh.load(saved)
    for name in (key.removeprefix("mask/") for key in data if key.startswith("mask/")):
        weight = net.get_submodule(name).weight.detach()
        kept = (weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1) != 0).numpy()
        assert np.array_equal(kept, data[f"mask/{name}"].astype(bool)), name
