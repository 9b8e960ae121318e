"""The main road: train, prune, evaluate, predict, classes, report; and every flag that changes the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import billhook
from billhook.data import open_source

from .commands import Cli, command, small_prune, snapshot

NUMBER = (int, float)
ACCURACY: dict[str, Any] = {"top1_full": NUMBER, "top1_kept": NUMBER}
SIZES = dict.fromkeys(("params", "nonzero", "macs", "effective_macs", "channels", "volume", "bytes"), int)
SUMMARY: dict[str, Any] = {
    "billhook": str,
    "method": str,
    "seed": int,
    "model": str,
    "data": str,
    "classes": [str],
    "epochs": NUMBER,
    "budget": [
        {
            "quantity": str,
            "relation": str,
            "bound": NUMBER,
            "value": NUMBER,
            "unit": str,
            "value_absolute": int,
            "met": bool,
        }
    ],
    "dense": ACCURACY | SIZES,
    "dense_finetuned": ACCURACY,
    "pruned": ACCURACY | SIZES | {"sparsity": NUMBER, "bytes_packed": type(None), "latency_ms": type(None)},
    "equivalence": {"max_abs_difference": NUMBER, "scale": NUMBER},
    "layers_left_dense": [{"name": str, "reason": str}],
    "seconds": dict.fromkeys(("baseline", "control", "prune", "fine_tune", "total"), NUMBER),
    "peak_rss_bytes": int,
    "environment": {"python": str, "torch": str, "cpu": str, "threads": int},
}
"""The document that the command promises, as types."""

FILES = {
    "summary.json",
    "recipe.yaml",
    "history.jsonl",
    "model.safetensors",
    "architecture.json",
    "report_data.npz",
    "report.html",
}


def fits(value: Any, form: Any, where: str = "summary") -> None:
    """``value`` has every key of ``form`` with the type that stands there."""
    if isinstance(form, dict):
        assert isinstance(value, dict), where
        for key, inner in form.items():
            assert key in value, f"{where}.{key}"
            fits(value[key], inner, f"{where}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list), where
        assert value, where
        for item in value:
            fits(item, form[0], f"{where}[]")
    else:
        assert isinstance(value, form), f"{where} is {value!r}"
        assert form is bool or form == (bool,) or not isinstance(value, bool), where


def summary_of(run: Path) -> dict[str, Any]:
    """The content of ``summary.json``."""
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_the_run_directory_and_its_summary(pruned: Path) -> None:
    assert {path.name for path in pruned.iterdir()} == FILES
    summary = summary_of(pruned)
    fits(summary, SUMMARY)
    assert summary["classes"] == ["3", "5", "8"]
    assert (summary["method"], summary["model"], summary["data"]) == ("crisp", "tinycnn", "digits")
    assert summary["billhook"] == billhook.__version__
    assert summary["budget"][0]["met"] is True
    assert summary["budget"][0]["unit"] == "ratio"
    assert summary["pruned"]["bytes"] == (pruned / "model.safetensors").stat().st_size
    assert summary["dense"]["params"] - summary["pruned"]["params"] == 7 * 129  # the head's other rows and biases
    assert 0.8 < summary["dense"]["top1_kept"] <= 1
    assert summary["dense"]["top1_full"] <= summary["dense"]["top1_kept"]
    assert [entry["name"] for entry in summary["layers_left_dense"]] == ["conv1", "fc"]
    assert summary["seconds"]["total"] >= summary["seconds"]["prune"] + summary["seconds"]["fine_tune"]


def test_history_and_architecture(pruned: Path) -> None:
    lines = [json.loads(line) for line in (pruned / "history.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"control", "prune"}
    masks = [line for line in lines if line["event"] == "mask"]
    assert [line["round"] for line in masks] == list(range(1, len(masks) + 1))
    assert masks[-1]["sparsity"] == pytest.approx(summary_of(pruned)["pruned"]["sparsity"])
    described = json.loads((pruned / "architecture.json").read_text())
    assert described["spec"] == "tinycnn"
    assert described["head"] == {"layer": "fc", "sliced": True, "kept": [3, 5, 8]}
    assert described["kept_classes"] == described["labels"] == ["3", "5", "8"]
    assert described["preprocess"]["input_size"] == 8
    assert described["hashes"].keys() >= {"model", "source_weights", "control"}
    assert set(described["patterns"]) == {"conv2.weight", "conv3.weight", "conv4.weight"}


def test_train_makes_a_run_directory(dense: Path) -> None:
    assert {path.name for path in dense.iterdir()} == FILES
    summary = summary_of(dense)
    fits(summary["dense"], ACCURACY | SIZES)
    assert (summary["method"], summary["pruned"]) == ("dense", None)
    assert summary["dense"]["bytes"] == (dense / "model.safetensors").stat().st_size
    assert summary["dense"]["top1_full"] > 0.7


def test_evaluate(cli: Cli, dense: Path, pruned: Path) -> None:
    outcome = cli("evaluate", pruned, "--data", "digits", "--json")
    assert outcome.code == 0
    assert outcome.err == ""
    found = outcome.document
    assert found.keys() == {"top1_full", "top1_kept", "per_class", "confusion", "classes", "images"}
    assert found["top1_full"] is None
    assert found["top1_kept"] == summary_of(pruned)["pruned"]["top1_kept"]
    assert found["classes"] == list(found["per_class"]) == ["3", "5", "8"]
    confusion = np.array(found["confusion"])
    assert confusion.shape == (3, 3)
    assert confusion.sum() == found["images"] == 108
    assert np.trace(confusion) / 108 == found["top1_kept"]
    assert found["per_class"]["5"] == confusion[1, 1] / confusion[1].sum()

    whole = cli("evaluate", dense, "--data", "digits", "--json").document
    assert whole["top1_full"] == whole["top1_kept"] == summary_of(dense)["dense"]["top1_full"]
    assert whole["images"] == 359
    weights = ["--weights", dense / "model.safetensors", "--classes", "3,5,8"]
    kept = cli("evaluate", "tinycnn", *weights, "--data", "digits", "--json").document
    expected = summary_of(pruned)["dense"]
    assert (kept["top1_full"], kept["top1_kept"]) == (expected["top1_full"], expected["top1_kept"])
    plain = cli("evaluate", pruned, "--data", "digits")
    assert f"{100 * found['top1_kept']:.2f} %" in plain.out


def test_evaluate_some_of_the_classes_of_a_sliced_run(cli: Cli, pruned: Path) -> None:
    """What the third output would have said must not be counted as another class's hit."""
    net = billhook.load(pruned)
    found = cli("evaluate", pruned, "--data", "digits", "--classes", "3,8", "--json").document
    rows = open_source("digits").splits["test"]
    expected = np.zeros((2, 2), dtype=int)
    for index in np.flatnonzero(np.isin(rows.labels, (3, 8))):
        pixels = np.asarray(rows.pil(int(index)))
        with torch.no_grad():
            image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
            logits = net(image[None])[0][[0, 2]]
        expected[int(rows.labels[index] == 8), int(logits.argmax())] += 1
    assert found["classes"] == ["3", "8"]
    assert found["confusion"] == expected.tolist()


def test_predict(cli: Cli, pruned: Path, picture: Callable[[int], Path]) -> None:
    rows = open_source("digits").splits["test"]
    chosen = [int(index) for index in np.flatnonzero(np.isin(rows.labels, (3, 5, 8)))[:5]]
    files = [picture(index) for index in chosen]
    outcome = cli("predict", pruned, *files, "--json")
    assert outcome.code == 0
    net = billhook.load(pruned)
    for row, index, file in zip(outcome.document, chosen, files, strict=True):
        pixels = torch.from_numpy(np.asarray(rows.pil(index)).copy()).permute(2, 0, 1).float()
        with torch.no_grad():
            wanted = net(((pixels / 255 - 0.5) / 0.5)[None])[0].softmax(0)
        assert row["image"] == str(file)
        assert row["label"] == ("3", "5", "8")[int(wanted.argmax())]
        assert row["probability"] == pytest.approx(float(wanted.max()), abs=1e-5)
    plain = cli("predict", pruned, *files)
    assert plain.out.splitlines() == [
        f"{row['image']}: {row['label']} {100 * row['probability']:.2f} %" for row in outcome.document
    ]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "LA"])
def test_predict_takes_pictures_of_any_size_and_mode(cli: Cli, pruned: Path, tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (31, 17), (200, 30, 90)).convert(mode).save(tmp_path / "picture.png")
    outcome = cli("predict", pruned, "picture.png", "--json")
    assert outcome.code == 0
    assert outcome.document[0]["label"] in ("3", "5", "8")


def test_classes(cli: Cli, dense: Path) -> None:
    outcome = cli("classes", "digits", "--json")
    assert outcome.code == 0
    table = outcome.document["classes"]
    assert [row["name"] for row in table] == [str(digit) for digit in range(10)]
    assert sum(row["train"] + row["val"] + row["test"] for row in table) == 1797
    counts = summary_of(dense)["images"]
    assert {split: sum(row[split] for row in table) for split in counts} == counts
    assert cli("classes", "digits").out.count("\n") == 12


def test_report_is_written_again(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES - {"report.html"}:
        (copy / name).write_bytes((pruned / name).read_bytes())
    outcome = cli("report", copy)
    assert outcome.code == 0
    assert (copy / "report.html").read_text() == (pruned / "report.html").read_text()
    assert cli("report", copy, "--json").document == {"report": str(copy / "report.html")}


def test_version(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"billhook {billhook.__version__}"
    assert cli("--version", "--json").document["billhook"] == billhook.__version__
    assert cli("--help").code == 0


def test_json_is_the_only_thing_on_standard_output(cli: Cli, dense: Path, tmp_path: Path) -> None:
    outcome = cli(*small_prune(dense), "--out", "run", "--json")
    assert outcome.code == 0
    assert outcome.document == summary_of(tmp_path / "run")
    assert "of work" in outcome.err
    heading, _, row = outcome.err.splitlines()[:3]
    assert heading.split() == ["quantity", "dense", "reachable", "asked", "feasible"]  # before anything is trained
    assert row.split()[-1] == "yes"
    trained = cli("train", "tinycnn", "--data", "digits", "--epochs", "0.2", "--out", "dense", "--json")
    assert trained.document == summary_of(tmp_path / "dense")


def test_quiet_prints_nothing_on_standard_error(cli: Cli, dense: Path) -> None:
    outcome = cli(*small_prune(dense), "--out", "run", "--quiet")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "budget sparsity>=80.00%" in outcome.out
    assert cli("prune", "tinycnn", *small_prune(dense)[4:], "--out", "random", "--quiet").err == ""
    assert "no --weights" in cli("prune", "tinycnn", *small_prune(dense)[4:], "--out", "again").err


def test_dry_run_writes_nothing(cli: Cli, dense: Path, tmp_path: Path) -> None:
    outcome = cli(*small_prune(dense), "--dry-run", "--out", "run", "--json")
    assert outcome.code == 0
    row = outcome.document["feasible"][0]
    assert row.keys() >= {"quantity", "dense", "smallest", "asked", "binding_layer", "feasible"}
    assert (row["quantity"], row["asked"], row["feasible"]) == ("sparsity", 0.8, True)
    assert row["smallest"] > 0.9
    assert outcome.document["seconds"] > 0
    plain = cli(*small_prune(dense), "--dry-run")
    assert "stays dense: conv1 (first convolution)" in plain.out
    assert snapshot(tmp_path) == {}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(
    cli: Cli, dense: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli(*small_prune(dense), "--out", name, "--seed", seed, "--control", "none").code == 0
    first, second, third = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second
    assert first != third
    assert summary_of(tmp_path / "c")["seed"] == 1


def test_a_finished_recipe_runs_again_to_the_same_bytes(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    assert cli("prune", pruned / "recipe.yaml", "--out", "again").code == 0
    for name in ("model.safetensors", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (pruned / name).read_bytes()
    before, after = summary_of(pruned), summary_of(tmp_path / "again")
    for volatile in ("seconds", "peak_rss_bytes"):
        del before[volatile], after[volatile]
    assert after["dense_finetuned"].pop("cached") is True
    del before["dense_finetuned"]["cached"]
    assert after == before


def test_the_control_comes_from_the_cache_the_second_time(
    cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLHOOK_CACHE", str(tmp_path / "cache"))
    first = cli(*small_prune(dense), "--out", "a")
    second = cli(*small_prune(dense), "--out", "b")
    assert "control  epoch" in first.err
    assert "control  epoch" not in second.err
    assert "in the cache" in second.err
    a, b = summary_of(tmp_path / "a")["dense_finetuned"], summary_of(tmp_path / "b")["dense_finetuned"]
    assert (a.pop("cached"), b.pop("cached")) == (False, True)
    assert a == b
    phases = [json.loads(line)["phase"] for line in (tmp_path / "b" / "history.jsonl").read_text().splitlines()]
    assert "control" in phases
    for changed in (["--seed", "1"], ["--epochs", "1"], ["--lr", "0.01"], ["--classes", "3,5"]):
        other = cli(*small_prune(dense), *changed, "--out", "c", "--overwrite")
        assert "control  epoch" in other.err, changed


def test_a_damaged_cache_is_trained_again(
    cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLHOOK_CACHE", str(tmp_path / "cache"))
    cli(*small_prune(dense), "--out", "a")
    (cached,) = (tmp_path / "cache").rglob("control.safetensors")
    cached.write_bytes(cached.read_bytes()[:-100])
    again = cli(*small_prune(dense), "--out", "b")
    assert again.code == 0
    assert "control  epoch" in again.err
    a, b = summary_of(tmp_path / "a")["dense_finetuned"], summary_of(tmp_path / "b")["dense_finetuned"]
    assert a == b


def test_a_cache_that_cannot_be_written_costs_a_note(
    cli: Cli, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BILLHOOK_CACHE", str(tmp_path / "file"))
    outcome = cli(*small_prune(dense), "--out", "a")
    assert outcome.code == 0
    assert "note: the control could not be cached" in outcome.err


def test_control_none_and_control_of_another_run(cli: Cli, dense: Path, pruned: Path, tmp_path: Path) -> None:
    given = [*small_prune(dense), "--classes", "3,5,8"]
    none = cli(*given, "--control", "none", "--out", "none", "--json")
    assert none.code == 0
    assert none.document["dense_finetuned"] is None
    assert none.document["seconds"]["control"] == 0
    phases = [json.loads(line)["phase"] for line in (tmp_path / "none" / "history.jsonl").read_text().splitlines()]
    assert set(phases) == {"prune"}

    taken = cli(*given, "--method", "magnitude", "--control", pruned, "--out", "taken", "--json")
    assert taken.code == 0
    figures, source = taken.document["dense_finetuned"], summary_of(pruned)["dense_finetuned"]
    assert (figures["top1_full"], figures["top1_kept"]) == (source["top1_full"], source["top1_kept"])
    before = snapshot(tmp_path)
    for wrong in (tmp_path / "none", dense):
        refused = cli(*given, "--control", wrong, "--out", "wrong")
        assert refused.code == 2
        assert "no control for this problem" in refused.error_lines[0]
    other_seed = cli(*given, "--control", pruned, "--seed", "4", "--out", "wrong")
    assert other_seed.code == 2
    assert snapshot(tmp_path) == before


def test_head_full_keeps_all_outputs(cli: Cli, dense: Path, tmp_path: Path) -> None:
    outcome = cli(*small_prune(dense), "--classes", "3,5,8", "--head", "full", "--out", "run", "--json")
    assert outcome.code == 0
    summary = outcome.document
    assert summary["pruned"]["params"] == summary["dense"]["params"] == 131_754
    assert billhook.load(tmp_path / "run")(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    found = cli("evaluate", "run", "--data", "digits", "--json").document
    assert found["classes"] == ["3", "5", "8"]
    assert (found["top1_full"], found["top1_kept"]) == (
        summary["pruned"]["top1_full"],
        summary["pruned"]["top1_kept"],
    )
    described = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert described["head"]["sliced"] is False
    assert len(described["labels"]) == 10


def test_a_run_directory_as_model_is_pruned_further(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    given = ["prune", pruned, "--data", "digits", "--images-per-class", "40", "--epochs", "2", "--method", "crisp"]
    outcome = cli(*given, "--budget", "sparsity>=90%", "--out", "further", "--json")
    assert outcome.code == 0
    assert "no --weights" not in outcome.err
    summary = outcome.document
    assert summary["classes"] == ["3", "5", "8"]
    assert summary["dense"]["top1_kept"] == summary_of(pruned)["pruned"]["top1_kept"]
    assert summary["dense"]["nonzero"] == summary_of(pruned)["pruned"]["nonzero"]
    assert summary["pruned"]["sparsity"] >= 0.9
    assert summary["pruned"]["params"] == summary["dense"]["params"]
    found = cli("evaluate", "further", "--data", "digits", "--json").document
    assert found["top1_kept"] == summary["pruned"]["top1_kept"]
    fewer = cli(*given, "--budget", "sparsity>=90%", "--classes", "3,8", "--out", "fewer", "--json").document
    assert fewer["classes"] == ["3", "8"]
    assert billhook.load(tmp_path / "fewer")(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    refused = cli(*given, "--budget", "sparsity>=90%", "--classes", "0,1", "--out", "wrong")
    assert refused.code == 2
    assert "does not know the class '0'" in refused.error_lines[0]


def test_a_dense_run_directory_as_model(cli: Cli, dense: Path, tmp_path: Path) -> None:
    rest = small_prune(dense)[4:]
    assert cli("prune", dense, *rest, "--out", "by_directory", "--control", "none").code == 0
    assert cli(*small_prune(dense), "--out", "by_weights", "--control", "none").code == 0
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("by_directory", "by_weights"))
    assert a == b


def test_a_folder_called_like_a_network_is_not_taken_for_a_run(cli: Cli, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "tinycnn").mkdir()
    assert cli(*small_prune(dense), "--out", "run", "--control", "none").code == 0
    evaluated = cli("evaluate", "tinycnn", "--weights", dense / "model.safetensors", "--data", "digits")
    assert evaluated.code == 0


USER_NETWORK = """
import torch
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.top = nn.Linear(WIDTH, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.top(x.mean((2, 3)))

def make(num_classes=10):
    return Net(num_classes)
"""


@pytest.fixture
def user_network(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(USER_NETWORK)
    (tmp_path / "code" / "helper.py").write_text("WIDTH = 32\n")
    return tmp_path / "code" / "net.py"


def test_a_network_of_the_users_own(cli: Cli, user_network: Path, picture: Callable[[int], Path]) -> None:
    spec = f"{user_network}:make"
    effort = ["--data", "digits", "--images-per-class", "20", "--epochs", "1"]
    assert cli("train", spec, *effort, "--out", "dense").code == 0
    given = ["prune", spec, "--weights", "dense/model.safetensors", *effort, "--method", "crisp"]
    outcome = cli(*given, "--budget", "sparsity>=70%", "--classes", "3,5,8", "--out", "run", "--json")
    assert outcome.code == 0
    figure = outcome.document["pruned"]["top1_kept"]
    for command_line in (["evaluate", "run", "--data", "digits"], ["predict", "run", picture(0)]):
        refused = cli(*command_line)
        assert refused.code == 2
        assert "--model" in refused.error_lines[0]
        assert cli(*command_line, "--model", spec).code == 0
        wrong = cli(*command_line, "--model", "tinycnn")
        assert wrong.code == 2
        assert len(wrong.error_lines) == 1
    found = cli("evaluate", "run", "--data", "digits", "--model", spec, "--json").document
    assert found["top1_kept"] == figure


def test_an_artifact_never_names_code_to_run(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    """Neither its ``builtin`` nor a spec that looks like a library's may lead to a file being executed."""
    (tmp_path / "evil.py").write_text("open('owned', 'w').close()\n")
    (tmp_path / "timm:.").mkdir()
    (tmp_path / "timm:." / "evil.py").write_text("open('owned', 'w').close()\n")
    run = tmp_path / "run"
    run.mkdir()
    for file in pruned.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    described = json.loads((run / "architecture.json").read_text())
    for spec in ("evil.py:make", f"{tmp_path}/evil.py:make", "evil:make", "timm:./evil.py:make", "os:system"):
        (run / "architecture.json").write_text(json.dumps(described | {"spec": spec, "builtin": True}))
        outcome = cli("evaluate", "run", "--data", "digits")
        assert outcome.code == 2, spec
        assert "of your own code" in outcome.error_lines[0], spec
        assert not (tmp_path / "owned").exists(), spec


def test_flags_override_the_recipe(cli: Cli, dense: Path, tmp_path: Path) -> None:
    recipe = {
        "model": "tinycnn",
        "weights": str(dense / "model.safetensors"),
        "data": {"source": "digits", "classes": [3, 5, 8], "images_per_class": 20},
        "method": {"name": "crisp", "nm": "1:4", "block": 8},
        "budget": ["sparsity>=90%"],
        "train": {"epochs": 1, "lr": 0.01},
        "control": "none",
        "seed": 3,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def in_force(name: str, *flags: str) -> dict[str, Any]:
        assert cli("prune", "recipe.yaml", "--out", name, *flags).code == 0
        content: dict[str, Any] = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())
        return content

    plain = in_force("plain")
    assert plain["method"]["nm"] == "1:4"
    assert plain["data"]["classes"] == ["3", "5", "8"]
    assert (plain["train"]["epochs"], plain["seed"], plain["budget"]) == (1, 3, ["sparsity>=90%"])
    flags = ["--classes", "1,2", "--epochs", "0.5", "--seed", "7", "--budget", "sparsity>=85%", "--lr", "0.03"]
    changed = in_force("changed", *flags, "--set", "block=16", "--set", "train.ema=0.9", "--method", "crisp")
    assert changed["data"]["classes"] == ["1", "2"]
    assert changed["data"]["images_per_class"] == 20
    assert (changed["train"]["epochs"], changed["train"]["lr"], changed["train"]["ema"]) == (0.5, 0.03, 0.9)
    assert (changed["seed"], changed["budget"]) == (7, ["sparsity>=85%"])
    assert (changed["method"]["nm"], changed["method"]["block"]) == ("1:4", 16)
    other = in_force("other", "--method", "magnitude")
    assert other["method"]["name"] == "magnitude"


@pytest.mark.parametrize("classes", ["[3, 5, 8]", "'3,5,8'", "['3', '5', '8']", "'@keep.txt'"])
def test_recipes_take_classes_and_patterns_as_people_write_them(
    cli: Cli, dense: Path, tmp_path: Path, classes: str
) -> None:
    (tmp_path / "keep.txt").write_text("3\n5\n8\n")
    (tmp_path / "recipe.yaml").write_text(
        f"model: tinycnn\nweights: {dense / 'model.safetensors'}\n"
        f"data: {{source: digits, classes: {classes}, images_per_class: 20}}\n"
        "method:\n  name: crisp\n  nm: 1:4\nbudget: sparsity>=90%\ntrain: {epochs: 1}\ncontrol: none\n"
    )
    outcome = cli("prune", "recipe.yaml", "--out", "run", "--json")
    assert outcome.code == 0
    assert outcome.document["classes"] == ["3", "5", "8"]
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["method"]["nm"] == "1:4"


def test_class_lists_from_files(cli: Cli, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.json").write_text('["5", "8"]')
    outcome = cli(*small_prune(dense), "--classes", "@keep.json", "--out", "run", "--control", "none", "--json")
    assert outcome.document["classes"] == ["5", "8"]
    trained = ["train", "tinycnn", "--data", "digits", "--epochs", "0.5", "--classes", "@keep.json", "--out", "dense"]
    assert cli(*trained, "--json").document["classes"] == ["5", "8"]


def test_overwrite_replaces_the_run_and_leaves_other_files(cli: Cli, dense: Path, tmp_path: Path) -> None:
    assert cli(*small_prune(dense), "--out", "run", "--control", "none").code == 0
    before = summary_of(tmp_path / "run")
    (tmp_path / "run" / "letter.txt").write_text("mine")
    (tmp_path / "run" / "model.onnx").write_bytes(b"of the old run")
    again = cli(*small_prune(dense), "--out", "run", "--control", "none", "--seed", "5", "--overwrite")
    assert again.code == 0
    assert summary_of(tmp_path / "run")["seed"] != before["seed"]
    assert (tmp_path / "run" / "letter.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "model.onnx").exists()
    further = cli(
        "prune", "run", *small_prune(dense)[4:], "--out", "run", "--control", "none", "--overwrite", "--set", "nm=1:4"
    )
    assert further.code == 0
    assert summary_of(tmp_path / "run")["dense"]["nonzero"] < 40_000


@pytest.mark.parametrize(
    ("method", "budgets"),
    [
        ("crisp", ["effective_macs<=30%"]),
        ("crisp", ["bytes<=120kB"]),
        ("crisp", ["sparsity>=70%", "effective_macs<=25%", "bytes<=150kB"]),
        ("nm-only", ["sparsity>=45%"]),
        ("block-only", ["sparsity>=60%"]),
        ("magnitude", ["sparsity>=90%"]),
        ("magnitude", ["effective_macs<=20%", "sparsity>=50%"]),
        ("saliency", ["sparsity>=90%"]),
        ("saliency", ["bytes<=100kB"]),
    ],
)
def test_budgets_are_met(cli: Cli, dense: Path, tmp_path: Path, method: str, budgets: list[str]) -> None:
    given = small_prune(dense)
    given = [*given[: given.index("--method")], "--method", method]
    for budget in budgets:
        given += ["--budget", budget]
    outcome = cli(*given, "--classes", "3,5,8", "--control", "none", "--out", "run", "--json")
    assert outcome.code == 0
    assert [entry["met"] for entry in outcome.document["budget"]] == [True] * len(budgets)
    assert outcome.document["method"] == method
    reloaded = cli("evaluate", "run", "--data", "digits", "--json").document
    assert reloaded["top1_kept"] == outcome.document["pruned"]["top1_kept"]


def test_demo(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's story with its epochs cut: table, report, and the command that it suggests works."""
    import billhook.cli.demo as demo

    train_dense, prune = demo.train_dense, demo.prune
    monkeypatch.setattr(
        demo,
        "train_dense",
        lambda recipe, *rest: train_dense(
            recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1.0})}), *rest
        ),
    )
    monkeypatch.setattr(demo, "prune", lambda *given, **named: prune(*given, **(named | {"epochs": 1})))
    monkeypatch.setattr(demo, "SECONDS", 0.02)
    outcome = cli("demo", "--out", "demo")
    assert outcome.code == 0
    assert (tmp_path / "demo" / "pruned" / "report.html").is_file()
    assert (tmp_path / "demo" / "pruned" / "bench.json").is_file()
    assert "budget sparsity>=80.00%" in outcome.out
    assert "1 image at a time, 1 thread; milliseconds" in outcome.out
    suggested = next(line for line in outcome.out.splitlines() if line.startswith("try:"))
    assert command(*suggested.split()[2:]) == 0
