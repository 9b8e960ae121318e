"""Every kind of bad input: its exit code, one line, one JSON document, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from .commands import Cli, grey, small_prune, snapshot

NARROW = """
from torch import nn
def make(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(6, num_classes))
def broken():
    raise KeyError("no such thing")
"""

BAD: dict[str, tuple[list[str], int, str, str]] = {
    "unknown class": (["--classes", "3,5,elven"], 2, "usage", "unknown class 'elven'"),
    "class index out of range": (["--classes", "3,11"], 2, "usage", "out of range.*0 to 9"),
    "class given twice": (["--classes", "3,5,3"], 2, "usage", "'3' is given twice"),
    "class file missing": (["--classes", "@nowhere.txt"], 2, "usage", "nowhere.txt"),
    "N above M": (["--set", "nm=5:4"], 2, "usage", "N = 5 is larger than M = 4"),
    "M does not divide B": (["--set", "block=10"], 2, "usage", "M = 4 does not divide the block size 10"),
    "not a pattern": (["--set", "nm=two:four"], 2, "usage", "nm"),
    "unknown --set key": (["--set", "blok=16"], 2, "usage", "did you mean 'block'"),
    "unknown --set train key": (["--set", "train.learning=1"], 2, "usage", "train.learning"),
    "unknown --set part": (["--set", "trian.lr=1"], 2, "usage", "did you mean 'train'"),
    "--set without a value": (["--set", "nm"], 2, "usage", "key=value"),
    "unknown method": (["--method", "crips"], 2, "usage", "unknown method 'crips'.*did you mean 'crisp'"),
    "unknown quantity": (["--budget", "sparsty>=80%"], 2, "usage", "'sparsty'.*did you mean 'sparsity'"),
    "wrong relation": (["--budget", "sparsity<=80%"], 2, "usage", "sparsity>="),
    "bound out of range": (["--budget", "sparsity>=140%"], 2, "usage", "out of range"),
    "the same quantity twice": (["--budget", "sparsity>=80%", "--budget", "sparsity>=90%"], 2, "usage", "twice"),
    "budget the method cannot move": (["--budget", "macs<=50%"], 2, "usage", "cannot move macs"),
    "channels with crisp": (["--budget", "channels<=50%"], 2, "usage", "cannot move channels"),
    "latency in ms": (["--method", "magnitude", "--budget", "latency<=5ms"], 2, "usage", "cannot move latency"),
    "latency in percent": (["--method", "saliency", "--budget", "latency<=50%"], 2, "usage", "cannot move latency"),
    "sparsity above one rank column": (["--budget", "sparsity>=99.9%"], 3, "infeasible", "one rank column"),
    "sparsity above N:M alone": (["--method", "nm-only", "--budget", "sparsity>=60%"], 3, "infeasible", "2:4"),
    "bytes out of reach": (["--budget", "bytes<=1kB"], 3, "infeasible", "bytes<=1000B cannot be reached"),
    "no layer takes the pattern": (["--set", "nm=3:7", "--set", "block=14"], 2, "input", "no layer of tinycnn"),
    "zero epochs": (["--epochs", "0"], 2, "usage", r"train.epochs = 0\.0: "),
    "endless epochs": (["--epochs", "inf"], 2, "usage", "train.epochs"),
    "learning rate not a number": (["--lr", "nan"], 2, "usage", "train.lr"),
    "epochs that is a word": (["--epochs", "many"], 2, "usage", "--epochs"),
    "unknown device": (["--device", "abacus"], 2, "usage", "'abacus' cannot be used"),
    "unknown precision": (["--precision", "fp16"], 2, "usage", "precision"),
    "unknown head": (["--head", "half"], 2, "usage", "head"),
    "control that is nowhere": (["--control", "nowhere"], 2, "input", "nowhere holds no finished run"),
    "unknown flag": (["--bloock", "16"], 2, "usage", "--bloock.*see billhook prune --help"),
    "missing data": (["--data", "nowhere/at/all"], 2, "input", "no data at nowhere/at/all"),
    "missing weights": (["--weights", "nowhere.safetensors"], 2, "input", "nowhere.safetensors"),
    "mean of two numbers": (["--mean", "0.5,0.5"], 2, "usage", "--mean"),
    "mean of words": (["--mean", "grey"], 2, "usage", "--mean"),
    "caps below the classes": (["--limit-train", "2", "--classes", "3,5,8"], 2, "usage", "--limit-train 2"),
    "resume of nothing": (["--resume"], 2, "input", "nothing to resume"),
}


def refused(cli: Cli, folder: Path, arguments: list[Any], code: int, kind: str, message: str) -> None:
    """The command ends with ``code``, says one line matching ``message``, as JSON too, and touches nothing."""
    before = snapshot(folder)
    plain = cli(*arguments)
    assert (plain.code, plain.out) == (code, "")
    assert len(plain.error_lines) == 1
    assert re.search(message, plain.error_lines[0]), plain.error_lines[0]
    assert "Traceback" not in plain.err
    assert "defect" not in plain.err
    document = cli(*arguments, "--json")
    assert document.code == code
    assert not document.error_lines
    assert document.document.keys() == {"error"}
    error = document.document["error"]
    assert error.keys() == {"kind", "message", "hint"}
    assert error["kind"] == kind
    assert re.search(message, f"{error['message']} ({error['hint']})")
    assert "\n" not in error["message"]
    assert snapshot(folder) == before


@pytest.mark.parametrize(("flags", "code", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_flags_of_prune(
    cli: Cli, dense: Path, tmp_path: Path, flags: list[str], code: int, kind: str, message: str
) -> None:
    given = small_prune(dense)
    if "--budget" in flags:
        given = given[: given.index("--budget")]
    refused(cli, tmp_path, [*given, *flags, "--out", "run"], code, kind, message)


MISSING: dict[str, tuple[list[str], str]] = {
    "no command": ([], "no command given"),
    "unknown command": (["prnue"], "prnue"),
    "no model": (["prune"], "'model'"),
    "no data": (["prune", "tinycnn", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "run"], "--data"),
    "classes but no data": (
        ["prune", "tinycnn", "--classes", "3", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "run"],
        "--data",
    ),
    "no method": (["prune", "tinycnn", "--data", "digits", "--budget", "sparsity>=80%", "--out", "run"], "--method"),
    "settings but no method": (
        ["prune", "tinycnn", "--data", "digits", "--set", "nm=2:4", "--budget", "sparsity>=80%", "--out", "run"],
        "--method",
    ),
    "no budget": (["prune", "tinycnn", "--data", "digits", "--method", "crisp", "--out", "run"], "--budget"),
    "no out": (
        ["prune", "tinycnn", "--data", "digits", "--method", "crisp", "--budget", "sparsity>=80%", "--quiet"],
        "--out",
    ),
    "unknown model": (
        ["prune", "tinycn", "--data", "digits", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "run"],
        "did you mean 'tinycnn'",
    ),
    "unknown model option": (
        ["prune", "tinycnn,width=2", "--data", "digits", "--method", "crisp", "--budget", "sparsity>=8%", "--out", "r"],
        "width=2",
    ),
    "no recipe": (["prune", "nowhere.yaml", "--out", "run"], "recipe nowhere.yaml: No such file or directory"),
    "train without data": (["train", "tinycnn", "--out", "run"], "--data"),
    "train without out": (["train", "tinycnn", "--data", "digits"], "--out"),
    "train with an unknown preset": (
        ["train", "tinycnn", "--data", "digits", "--preset", "cifr", "--out", "run"],
        "did you mean 'cifar'",
    ),
    "train with an unknown class": (
        ["train", "tinycnn", "--data", "digits", "--classes", "ten", "--out", "run"],
        "unknown class 'ten'",
    ),
    "train on an unknown device": (
        ["train", "tinycnn", "--data", "digits", "--device", "abacus", "--out", "run"],
        "abacus",
    ),
    "evaluate without data": (["evaluate", "tinycnn"], "--data"),
    "evaluate nothing": (["evaluate", "nowhere", "--data", "digits"], "nowhere"),
    "predict without images": (["predict", "nowhere"], "IMAGE"),
    "predict with nothing": (["predict", "nowhere", "a.png"], "nowhere"),
    "classes of nothing": (["classes", "nowhere"], "nowhere"),
    "report of nothing": (["report", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), MISSING.values(), ids=MISSING.keys())
def test_missing_or_unknown_things(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    before = snapshot(tmp_path)
    plain = cli(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert len(plain.error_lines) == 1
    assert message in plain.error_lines[0]
    document = cli(*arguments, "--json")
    assert document.code == 2
    assert document.document["error"].keys() == {"kind", "message", "hint"}
    assert snapshot(tmp_path) == before


def test_class_names_suggest_the_nearest(cli: Cli, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("kitten", "puppy")):
            for index in range(4):
                grey(tmp_path / f"pets/{split}/{name}/{index}.png", 40 + 90 * number + index)
    arguments = ["prune", "tinycnn", "--data", "pets", "--classes", "kiten", "--method", "crisp"]
    refused(
        cli, tmp_path, [*arguments, "--budget", "sparsity>=80%", "--out", "run"], 2, "usage", "did you mean 'kitten'"
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/cat": 4, "train/dog": 0, "test/cat": 2, "test/dog": 2}, "class 'dog' has no training images"),
        ({"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 0}, "class 'dog' has no test images"),
        ({"train/cat": 0, "train/dog": 0, "test/cat": 0}, "no images in"),
        ({"cat": 0}, "no images in"),
        ({"test/cat": 4}, "class 'cat' has no training images"),
        ({}, "no images in"),
    ],
)
def test_folders_without_what_is_needed(cli: Cli, tmp_path: Path, counts: dict[str, int], message: str) -> None:
    (tmp_path / "pets").mkdir()
    for folder, count in counts.items():
        (tmp_path / "pets" / folder).mkdir(parents=True)
        (tmp_path / "pets" / folder / "notes.txt").write_text("not an image")
        for index in range(count):
            grey(tmp_path / "pets" / folder / f"{index}.png", 10 * index)
    arguments = ["prune", "tinycnn", "--data", "pets", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "run"]
    refused(cli, tmp_path, arguments, 2, "input", message)
    refused(cli, tmp_path, ["train", "tinycnn", "--data", "pets", "--out", "run"], 2, "input", message)


def test_more_than_one_percent_broken_images(cli: Cli, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for index in range(6):
                grey(tmp_path / f"pets/{split}/{name}/{index}.png", 30 * index)
    (tmp_path / "pets/train/cat/0.png").write_bytes(b"no image at all")
    arguments = ["prune", "tinycnn", "--data", "pets", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "run"]
    refused(cli, tmp_path, arguments, 2, "input", r"1 of 24 images cannot be read: .*0\.png")


def test_weights_of_another_architecture(cli: Cli, dense: Path, tmp_path: Path) -> None:
    arguments = small_prune(dense)
    arguments[1] = "resnet20"
    refused(cli, tmp_path, [*arguments, "--out", "run"], 2, "input", "do not fit the network.*look like tinycnn")


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["prune", "--data", "digits", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "again"],
        ["evaluate", "--data", "digits"],
        ["simulate"],
    ],
    ids=lambda command: command[0],
)
def test_weights_beside_a_run_are_not_passed_over(cli: Cli, dense: Path, tmp_path: Path, command: list[str]) -> None:
    arguments = [command[0], dense, *command[1:], "--weights", "nowhere.pt"]
    refused(cli, tmp_path, arguments, 2, "usage", "a run with its own weights: --weights nowhere.pt would not be read")


def test_a_pickle_that_wants_code_is_not_run(cli: Cli, dense: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    torch.save({"state_dict": Evil()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("zip.pth", "bare.pt"):
        arguments = [*small_prune(dense), "--weights", tmp_path / name, "--out", "run"]
        refused(cli, tmp_path, arguments, 2, "input", name)
    assert not (tmp_path / "owned").exists()


def test_a_truncated_weights_file(cli: Cli, dense: Path, tmp_path: Path) -> None:
    whole = (dense / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    arguments = [*small_prune(dense), "--weights", "half.safetensors", "--out", "run"]
    refused(cli, tmp_path, arguments, 2, "input", "half.safetensors cannot be read")


def test_a_network_where_no_layer_takes_the_pattern(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NARROW)
    rest = ["--data", "digits", "--images-per-class", "10", "--method", "crisp", "--budget", "sparsity>=80%"]
    refused(
        cli,
        tmp_path,
        ["prune", "net.py:make", *rest, "--out", "run"],
        2,
        "input",
        "no layer of net.py:make takes the pattern .*first convolution.*M = 4 does not divide its 6",
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("net.py:made", "did you mean 'make'"),
        ("nett.py:make", "no file nett.py"),
        ("no_such_package.net:make", "no module is called"),
        ("net.py:broken", "KeyError"),
    ],
)
def test_user_networks_that_cannot_be_built(cli: Cli, tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "net.py").write_text(NARROW)
    rest = ["--data", "digits", "--method", "crisp", "--budget", "sparsity>=80%", "--out", "run"]
    plain = cli("prune", spec, *rest)
    assert plain.code == 2
    assert len(plain.error_lines) == 1
    assert message in plain.error_lines[0]
    assert not (tmp_path / "run").exists()


def test_an_output_directory_that_holds_another_run(cli: Cli, dense: Path, pruned: Path, tmp_path: Path) -> None:
    before = snapshot(pruned)
    refused(cli, tmp_path, [*small_prune(dense), "--out", pruned], 2, "input", "is not empty.*--overwrite")
    refused(cli, tmp_path, [*small_prune(dense), "--out", pruned, "--resume"], 2, "input", "is finished")
    train = ["train", "tinycnn", "--data", "digits", "--epochs", "1", "--out", pruned]
    refused(cli, tmp_path, train, 2, "input", "is not empty")
    refused(cli, tmp_path, [*train, "--resume"], 2, "input", "is finished")
    assert snapshot(pruned) == before


def test_an_output_that_is_a_file_or_holds_foreign_files(cli: Cli, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    refused(cli, tmp_path, [*small_prune(dense), "--out", "file"], 2, "input", "is a file")
    refused(cli, tmp_path, [*small_prune(dense), "--out", "full"], 2, "input", "is not empty")
    refused(cli, tmp_path, [*small_prune(dense), "--out", "full", "--resume"], 2, "input", "nothing to resume")
    refused(cli, tmp_path, [*small_prune(dense), "--out", "empty", "--resume"], 2, "input", "nothing to resume")


def test_a_bad_command_leaves_the_run_that_it_would_overwrite(cli: Cli, dense: Path, tmp_path: Path) -> None:
    assert cli(*small_prune(dense), "--out", "run", "--control", "none").code == 0
    refused(
        cli,
        tmp_path,
        [*small_prune(dense), "--out", "run", "--overwrite", "--method", "crisp", "--set", "nm=5:4"],
        2,
        "usage",
        "N = 5",
    )
    refused(
        cli,
        tmp_path,
        [*small_prune(dense), "--out", "run", "--overwrite", "--control", "run/"],
        2,
        "input",
        "no control for this problem",
    )


RECIPES = {
    "not a mapping": ("[1, 2]", "not a mapping"),
    "not YAML": ("model: [", r"not YAML: line 1: (?!.*unicode string)"),
    "unknown key": (
        "model: tinycnn\ndata: digits\nmetod: crisp\nbudget: sparsity>=80%",
        "recipe key metod.*'method'",
    ),
    "unknown train key": (
        "model: tinycnn\ndata: digits\nmethod: crisp\nbudget: sparsity>=80%\ntrain: {epoch: 3}",
        "train.epoch",
    ),
    "data is a number": ("model: tinycnn\ndata: 5\nmethod: crisp\nbudget: sparsity>=80%", "data"),
    "method is a number": ("model: tinycnn\ndata: digits\nmethod: 5\nbudget: sparsity>=80%", "method"),
    "budget is a number": ("model: tinycnn\ndata: digits\nmethod: crisp\nbudget: 5", "budget"),
    "train is a number": ("model: tinycnn\ndata: digits\nmethod: crisp\nbudget: sparsity>=80%\ntrain: 5", "train"),
    "model is a number": ("model: 5\ndata: digits\nmethod: crisp\nbudget: sparsity>=80%", "model"),
    "classes is a mapping": (
        "model: tinycnn\ndata: {source: digits, classes: {a: 1}}\nmethod: crisp\nbudget: sparsity>=80%",
        "classes",
    ),
    "no method's name": ("model: tinycnn\ndata: digits\nmethod: {nm: '2:4'}\nbudget: sparsity>=80%", "--method"),
    "no source": ("model: tinycnn\ndata: {classes: [3]}\nmethod: crisp\nbudget: sparsity>=80%", "--data"),
    "empty": ("", "not a mapping"),
}


@pytest.mark.parametrize(("text", "message"), RECIPES.values(), ids=RECIPES.keys())
def test_bad_recipes(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    for more in ([], ["--epochs", "1", "--images-per-class", "5"]):
        outcome = cli("prune", "recipe.yaml", "--out", "run", *more)
        assert outcome.code == 2
        assert len(outcome.error_lines) == 1
        assert re.search(message, outcome.error_lines[0]), outcome.error_lines
        assert not (tmp_path / "run").exists()


def test_sparsity_below_that_of_the_pattern_is_met_with_a_note(cli: Cli, dense: Path, tmp_path: Path) -> None:
    given = small_prune(dense)
    given[-1] = "sparsity>=20%"
    outcome = cli(*given, "--out", "run", "--control", "none")
    assert outcome.code == 0
    assert "note: 2:4 alone gives" in outcome.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["budget"][0]["met"] is True
    assert summary["budget"][0]["value"] > 0.4
    assert any("no block is pruned" in note for note in summary["notes"])


def test_debug_shows_the_traceback(cli: Cli, dense: Path) -> None:
    outcome = cli(*small_prune(dense), "--method", "crips", "--out", "run", "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert len(outcome.error_lines) == 1


def test_predict_refuses_files_that_are_no_images(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_text("dear reader")
    refused(cli, tmp_path, ["predict", pruned, "letter.png"], 2, "input", "cannot read the image letter.png")
    refused(cli, tmp_path, ["predict", pruned, "nowhere.png"], 2, "input", "no image file at nowhere.png")
    refused(cli, tmp_path, ["predict", tmp_path, "letter.png"], 2, "input", "holds no finished run")


def test_evaluate_refuses_classes_that_the_run_does_not_have(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    refused(cli, tmp_path, ["evaluate", pruned, "--data", "digits", "--classes", "0"], 2, "usage", "class '0'")
    refused(cli, tmp_path, ["evaluate", pruned, "--data", "digits", "--classes", "cat"], 2, "usage", "class 'cat'")
    refused(
        cli,
        tmp_path,
        ["evaluate", pruned, "--data", "digits", "--model", "resnet20"],
        2,
        "input",
        "resnet20|do not fit",
    )


OWN = """
from torch import nn
def sixteen(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 256, num_classes))
def any_size(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, num_classes))
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = any_size()
    def forward(self, x):
        return self.net(x), x
"""


def test_training_a_network_that_cannot_take_the_images(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    train = ["train", "own.py:sixteen", "--data", "digits", "--epochs", "1", "--out", "run"]
    refused(cli, tmp_path, train, 2, "input", "own.py:sixteen fails on an image of .*--input-size")
    train[1] = "own.py:Pair"
    refused(cli, tmp_path, train, 2, "input", "own.py:Pair returns a tuple for one image")


def test_pruning_a_run_of_ones_own_code_further_names_a_way(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    effort = ["--data", "digits", "--epochs", "1", "--images-per-class", "4", "--input-size", "8", "--quiet"]
    assert cli("train", "own.py:any_size", *effort, "--out", "own").code == 0
    prune = ["prune", "own", *effort, "--method", "magnitude", "--budget", "sparsity>=50%"]
    refused(cli, tmp_path, [*prune, "--out", "r"], 2, "usage", r"prune SPEC --weights own/model\.safetensors")
    way = ["prune", "own.py:any_size", "--weights", "own/model.safetensors", *prune[2:]]
    assert cli(*way, "--dry-run").code == 0


def test_a_network_with_nothing_to_prune(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    prune = ["prune", "own.py:sixteen", "--data", "digits", "--input-size", "16", "--epochs", "1", "--out", "run"]
    unstructured = [*prune, "--method", "magnitude", "--budget", "sparsity>=50%"]
    refused(cli, tmp_path, unstructured, 2, "input", r"no layer .* can be pruned \(0: first conv(?!.*N:M)")
