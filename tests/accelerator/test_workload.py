"""Networks and run directories as matrix products."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from billhook import artifact
from billhook.accelerator import metadata_of
from billhook.accelerator.workload import read_workload
from billhook.errors import InputError, UsageError
from billhook.formats import packed_tensors, read_safetensors, size_report

MULTIPLICATIONS = {"resnet50": 4_089_184_256, "vgg16_bn": 15_470_264_320, "mobilenet_v2": 300_774_272}


@pytest.mark.parametrize("spec", MULTIPLICATIONS)
def test_all_multiplications_are_there(spec: str) -> None:
    work = read_workload(spec)
    assert sum(gemm.macs for gemm in work.gemms) == MULTIPLICATIONS[spec]
    assert not work.run
    assert work.gemms[0].activation_density == 1
    assert {gemm.activation_density for gemm in work.gemms[1:]} == {0.5}


def test_shapes_of_resnet50() -> None:
    of = {gemm.name: gemm for gemm in read_workload("resnet50").gemms}
    stem, wide, last = of["conv1"], of["layer3.1.conv2"], of["fc"]
    assert (stem.rows, stem.depth, stem.columns, stem.input_words) == (64, 147, 112 * 112, 3 * 224 * 224)
    assert (wide.rows, wide.taps, wide.channels, wide.columns, wide.input_words) == (256, 9, 256, 196, 256 * 196)
    assert (last.rows, last.depth, last.columns, last.input_words) == (1000, 2048, 1, 2048)
    # A strided 1x1 convolution reads a quarter of what lies before it.
    assert of["layer2.0.downsample.0"].input_words == 256 * 28 * 28
    assert of["conv1"].columns // 4 == read_workload("resnet50", input_size=112).gemms[0].columns


def test_who_takes_a_pattern() -> None:
    mobile = read_workload("mobilenet_v2")
    depthwise = [gemm for gemm in mobile.gemms if gemm.groups > 1]
    assert len(depthwise) == 17
    assert all((gemm.rows, gemm.channels, gemm.depth) == (1, 1, 9) for gemm in depthwise)
    assert {mobile.left_dense[gemm.name] for gemm in depthwise} == {"depthwise convolution"}
    assert mobile.left_dense["features.0.0"] == "first convolution"
    assert "classifier.1" in mobile.prunable
    grouped = read_workload("resnext50_32x4d")
    shares = [gemm for gemm in grouped.gemms if gemm.groups == 32]
    assert shares
    assert all(gemm.name in grouped.left_dense for gemm in shares)


def test_a_run_brings_its_own_patterns(pruned: Path) -> None:
    work = read_workload(str(pruned))
    tensors, metadata = read_safetensors(pruned / artifact.WEIGHTS)
    packed = packed_tensors(tensors, metadata)
    assert work.run
    assert packed
    sparse = {f"{gemm.name}.weight": gemm for gemm in work.gemms if gemm.pattern is not None}
    assert set(sparse) == set(packed)
    for name, item in packed.items():
        pattern = sparse[name].pattern
        assert pattern is not None
        assert (pattern.n, pattern.m, pattern.block, pattern.kept) == (2, 4, 8, item.layer.kept)
        assert sparse[name].nonzeros == item.layer.values.size
    # What the calculator counts is what lies in the file, less the unused bits of last bytes.
    stored = size_report(tensors, metadata)
    bits = 8 * (stored["offsets"] + stored["columns"]) - stored["padding_bits"]
    assert sum(metadata_of(gemm).crisp for gemm in work.gemms) == bits


def test_a_run_of_unstructured_zeros(tmp_path: Path) -> None:
    from billhook.cli import run

    out = tmp_path / "run"
    effort = ["--epochs", "1", "--images-per-class", "20", "--set", "rounds=2", "--control", "none", "--quiet"]
    goal = ["--method", "magnitude", "--budget", "sparsity>=80%"]
    assert run(["prune", "tinycnn", "--data", "digits", *goal, *effort, "--out", str(out)]) == 0
    gemms = read_workload(str(out)).gemms
    assert all(gemm.pattern is None for gemm in gemms)
    assert min(gemm.weight_density for gemm in gemms) < 0.3


def test_densities_are_measured(pruned: Path) -> None:
    work = read_workload(str(pruned), data="digits")
    assert "measured on 64 test images of" in work.activations
    # By hand, on the same images: the inputs of every layer.
    network, described, preprocess = artifact.load_network(pruned)
    from billhook.data import open_source
    from billhook.recipe import DataRecipe, open_data

    recipe = DataRecipe(classes=tuple(described["head"]["kept"]))
    _, data = open_data(
        open_source("digits"), network, recipe, 0, labels=described["labels"], preprocess=preprocess, only_test=True
    )
    places = torch.linspace(0, len(data.test) - 1, 64).long()
    (batch,) = data.test.subset(places).batches(64, preprocess)
    seen: dict[str, float] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(part: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[name] = float((args[0] != 0).double().mean())

        return hook

    for name, part in network.module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_pre_hook(look(name))
    with torch.no_grad():
        network.module(batch.images)
    assert {gemm.name: pytest.approx(gemm.activation_density, abs=0.01) for gemm in work.gemms} == seen
    assert min(seen.values()) < 0.9


def test_what_cannot_be_read(pruned: Path) -> None:
    with pytest.raises(UsageError, match="random weights"):
        read_workload("resnet20", data="digits")
    with pytest.raises(UsageError, match="resnet51"):
        read_workload("resnet51")
    with pytest.raises(InputError, match="fails on a 3x1x1 image"):
        read_workload("vgg16_bn", input_size=1)


class Stubborn(nn.Module):
    """Cannot do with an empty batch, and calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.again(self.again(self.first(x))))
        return self.head(x.mean(dim=(2, 3)).view(x.shape[0], -1))


def stubborn() -> nn.Module:
    return Stubborn()


def test_a_network_of_ones_own() -> None:
    work = read_workload(f"{Path(__file__)}:stubborn", input_size=16)
    assert [gemm.name for gemm in work.gemms] == ["first", "again", "again (2)", "up", "head"]
    up = work.gemms[3]
    # 8 channels to 4 at 2 x 2 taps, at 256 positions of the input.
    assert (up.rows, up.depth, up.columns, up.macs) == (16, 8, 256, 8 * 4 * 4 * 256)
    assert work.left_dense["again (2)"] == "its weight is shared with an earlier call"
    assert work.left_dense["up"] == "transposed convolution"


def test_the_models_do_not_need_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import billhook.accelerator as a; print(len(a.machines()))"
    code += "; import billhook.accelerator.study, billhook.accelerator.sweep"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr
