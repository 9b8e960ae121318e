"""What a notebook types: modules and datasets of the user's own, configs as objects, several runs in one process."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import billhook as bh
from billhook.api import measure
from billhook.errors import InputError, UsageError
from billhook.models import build

from .small import EFFORT, AtStep

PAIR = tuple[Any, Any]


def datasets(kind: str) -> PAIR:
    """The digits as a pair of datasets: uint8 CHW images, or normalised floats."""
    bundle = load_digits()
    pixels = torch.from_numpy(np.rint(bundle.images * (255 / 16)).astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    images = pixels if kind == "uint8" else (pixels.float() / 255 - 0.5) / 0.5
    labels = torch.from_numpy(bundle.target).long()
    whole = TensorDataset(images, labels)
    return Subset(whole, range(600)), Subset(whole, range(600, 900))


class Own(nn.Module):
    """A network of the user's own, without batch normalisation on one side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.top = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        out: Tensor = self.top(x.mean((2, 3)))
        return out


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that a call might change."""
    tensors = {
        name: (t.clone(), t.stride(), t.device, t.dtype) for name, t in module.state_dict(keep_vars=False).items()
    }
    return {
        "tensors": tensors,
        "grad": {name: (p.requires_grad, p.grad is None) for name, p in module.named_parameters()},
        "training": [part.training for part in module.modules()],
        "names": [name for name, _ in module.named_modules()],
    }


def assert_untouched(module: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(module)
    for key in ("grad", "training", "names"):
        assert after[key] == before[key]
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, (tensor, *rest) in before["tensors"].items():
        assert torch.equal(after["tensors"][name][0], tensor), name
        assert list(after["tensors"][name][1:]) == rest, name


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_a_module_and_a_pair_of_datasets(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Own().train()
    before = state_of(model)
    images, generator = torch.randn(4, 3, 8, 8), torch.random.get_rng_state()
    result = bh.prune(
        model,
        datasets(kind),
        classes=[7, 1, 4],
        method=bh.CRISP(nm="2:4", block=8, rounds=3),
        budget="sparsity>=60%",
        epochs=1,
        out=tmp_path / "run",
    )
    assert_untouched(model, before)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert result.met
    assert result.summary["classes"] == ["1", "4", "7"]
    assert isinstance(result.model, nn.Module)
    assert result.model(images).shape == (4, 3)
    with pytest.raises(UsageError, match="your own code"):
        bh.load(tmp_path / "run")
    again = bh.load(tmp_path / "run", model=model)
    assert_untouched(model, before)
    with torch.no_grad():
        assert torch.equal(again(images), result.model(images))
    with pytest.raises(InputError):
        bh.load(tmp_path / "run", model=build("tinycnn"))


def test_measuring_a_module_does_not_change_it() -> None:
    torch.manual_seed(0)
    model = Own().train()
    before = state_of(model)
    found = measure(model, datasets("uint8"), classes=["1", "7"])
    assert_untouched(model, before)
    assert found["classes"] == ["1", "7"]


def test_frozen_parameters_are_trained_in_the_copy() -> None:
    model = Own().requires_grad_(False)
    before = state_of(model)
    given: dict[str, Any] = {"method": bh.CRISP(block=8, rounds=2), "budget": "sparsity>=60%", "epochs": 1}
    result = bh.prune(model, datasets("uint8"), **given, control="none")
    assert result.met
    assert not torch.equal(result.model.top.weight, model.top.weight)
    assert_untouched(model, before)


def test_a_half_precision_module_is_trained_in_fp32() -> None:
    model = Own().half()
    before = state_of(model)
    given: dict[str, Any] = {"method": bh.CRISP(block=8, rounds=2), "budget": "sparsity>=60%", "epochs": 1}
    result = bh.prune(model, datasets("uint8"), **given, control="none")
    assert {t.dtype for t in result.model.parameters()} == {torch.float32}
    assert_untouched(model, before)


class Pair(nn.Module):
    """Returns its features beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Own()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.own(x), x


def test_a_network_that_gives_no_logits_is_refused() -> None:
    with pytest.raises(InputError, match=r"returns a tuple for one image, not \[1, 10\]"):
        bh.prune(Pair(), datasets("uint8"), budget="sparsity>=60%", **EFFORT)


class Fixed(nn.Module):
    """Takes images of 16 x 16 pixels and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.top = nn.Linear(16 * 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.conv(x).flatten(1))


def test_a_network_of_another_input_size_is_refused_and_told_the_flag() -> None:
    with pytest.raises(InputError, match=r"module:Fixed fails on an image of 8x8 pixels.*--input-size") as caught:
        bh.prune(Fixed(), datasets("uint8"), budget="sparsity>=60%", **EFFORT)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_classes_may_be_one_text_as_on_the_command_line_and_a_result_shows_itself_briefly() -> None:
    result = bh.prune("tinycnn", "digits", classes="3,5", budget="sparsity>=60%", **EFFORT)
    assert result.summary["classes"] == ["3", "5"]
    shown = repr(result)
    assert len(shown.splitlines()) == 4
    assert f"{100 * result.summary['pruned']['top1_kept']:.2f} %" in shown
    assert re.search(r"sparsity>=0\.6: 0\.6\d+ \(ratio\), met", shown)


def test_few_steps_are_noted() -> None:
    result = bh.prune("tinycnn", "digits", classes="3,5", budget="sparsity>=60%", **EFFORT)
    assert any(note.startswith("weights are updated only 2 times") for note in result.summary["notes"])


def test_a_budget_that_is_a_number_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the budget 0\.8 is not text"):
        bh.prune("tinycnn", "digits", budget=0.8, **EFFORT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("crisp", "crisp"),
        (bh.CRISP(nm="1:4", block=8), "crisp"),
        (bh.NMOnly(nm="1:4"), "nm-only"),
        (bh.BlockOnly(block=8), "block-only"),
        (bh.Magnitude(rounds=2), "magnitude"),
        (bh.Saliency(schedule="linear"), "saliency"),
    ],
)
def test_methods_by_name_and_by_config(weights: Path, method: Any, name: str) -> None:
    effort = EFFORT | {"method": method, "epochs": 1}
    result = bh.prune("tinycnn", "digits", weights=weights, classes=["3", "5"], budget="sparsity>=45%", **effort)
    assert result.met
    assert result.summary["method"] == name


def test_several_budgets_and_training_fields(weights: Path) -> None:
    result = bh.prune(
        "tinycnn",
        "digits",
        weights=weights,
        budget=["sparsity>=60%", "bytes<=150kB"],
        train={"lr": 0.01, "optimizer": "adamw", "ema": 0.9},
        **EFFORT,
    )
    assert [entry["quantity"] for entry in result.summary["budget"]] == ["sparsity", "bytes"]
    assert all(entry["met"] for entry in result.summary["budget"])
    assert result.summary["pruned"]["bytes"] <= 150_000
    assert "optimizer: adamw" in result.files.recipe


class Named(TensorDataset):
    """Digits whose classes are called one higher than they are."""

    classes = tuple(str(digit + 1) for digit in range(10))


def test_an_integer_is_an_index_also_where_a_class_is_called_so(tmp_path: Path) -> None:
    train, test = datasets("uint8")
    pair = tuple(Named(*(column[list(part.indices)] for column in part.dataset.tensors)) for part in (train, test))
    torch.manual_seed(0)
    given: dict[str, Any] = {"method": bh.Magnitude(rounds=1), "budget": "sparsity>=50%", "epochs": 0.5}
    by_index = bh.prune(Own(), pair, classes=[1, 2], control="none", out=tmp_path / "run", **given)
    assert by_index.summary["classes"] == ["2", "3"]
    by_name = bh.prune(Own(), pair, classes=["1", "2"], control="none", **given)
    assert by_name.summary["classes"] == ["1", "2"]
    # the recipe says names, so that reading it as text means the same
    assert "- '2'\n  - '3'\n" in by_index.files.recipe
    described = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert described["head"]["kept"] == [1, 2]


def test_two_runs_in_one_process_do_not_disturb_each_other(weights: Path) -> None:
    def one(seed: int) -> bh.Result:
        return bh.prune("tinycnn", "digits", weights=weights, budget="sparsity>=80%", seed=seed, **EFFORT)

    first, other, again = one(0), one(1), one(0)
    a, b, c = (run.model.state_dict() for run in (first, other, again))
    assert all(torch.equal(a[name], c[name]) for name in a)
    assert not all(torch.equal(a[name], b[name]) for name in a)
    strip = [{k: v for k, v in line.items() if k != "seconds"} for line in first.history]
    assert strip == [{k: v for k, v in line.items() if k != "seconds"} for line in again.history]


def test_nothing_is_written_without_a_place(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = bh.prune("tinycnn", "digits", weights=weights, budget="sparsity>=80%", **EFFORT)
    assert list(tmp_path.iterdir()) == []
    place = result.save("run")
    assert place == Path("run")
    assert {path.name for path in place.iterdir()} >= {"summary.json", "model.safetensors", "report.html"}


def test_progress_is_told(weights: Path) -> None:
    calls: list[str] = []
    progress = AtStep(1, lambda: calls.append("step"))
    bh.prune("tinycnn", "digits", weights=weights, budget="sparsity>=80%", progress=progress, **EFFORT)
    assert calls == ["step"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": bh}, "neither a name nor a method's config"),
        ({"method": "crips"}, "did you mean 'crisp'"),
        ({"budget": "sparsity<=5%"}, "must read"),
        ({"budget": []}, "budget"),
        ({"classes": ["33"]}, "out of range"),
        ({"classes": []}, "no classes"),
        ({"classes": [11]}, "out of range"),
        ({"train": {"learning_rate": 1}}, "train.learning_rate"),
        ({"epochs": -1}, "epochs"),
        ({"head": "half"}, "head"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_arguments_are_usage_errors(weights: Path, change: dict[str, Any], message: str) -> None:
    given = EFFORT | {"budget": "sparsity>=80%"} | change
    with pytest.raises(UsageError, match=message):
        bh.prune("tinycnn", "digits", weights=weights, **given)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)),) * 2, "empty"),
        ((TensorDataset(torch.zeros(4, 3, 8, 8)),) * 2, r"not \(image, label\)"),
        ((1, 2), "map-style"),
        ((TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4)),), "give"),
        (7, "not an image source"),
    ],
)
def test_data_that_are_none(data: Any, message: str) -> None:
    with pytest.raises(bh.BillhookError, match=message) as caught:
        bh.prune(Own(), data, budget="sparsity>=60%", **EFFORT)
    assert caught.value.exit_code == 2


def test_a_loaded_network_goes_on_as_an_ordinary_module(saved: Path) -> None:
    net = bh.load(saved)
    twin = copy.deepcopy(net)
    loss = net.train()(torch.randn(8, 3, 8, 8)).square().mean()
    loss.backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not torch.equal(net.fc.weight, twin.fc.weight)
    assert all(p.requires_grad for p in twin.parameters())
