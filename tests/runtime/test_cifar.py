"""Real images and weights through the runtime: the accuracy of the network is that of PyTorch, in f32 and in bf16."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from billhook.export import lower
from billhook.formats import PatternInfo
from billhook.formats.graph import Preprocess
from billhook.formats.network import write_network
from billhook.models import open_network
from billhook.runtime import load, native
from billhook.runtime.network import Network

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not native.available(), reason="there is no native library"),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def network(data_root: Path) -> torch.nn.Module:
    """ResNet-56 with three of every four weights where that is possible, chosen by magnitude."""
    path = data_root / "weights" / "cifar10_resnet56.safetensors"
    module = open_network("resnet56", weights=path).module.eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels % 4 == 0:
            layer.weight.data *= three_of_four(layer.weight.detach())
    return module


def three_of_four(weight: torch.Tensor) -> torch.Tensor:
    outputs, inputs, down, along = weight.shape
    groups = weight.abs().permute(0, 2, 3, 1).reshape(-1, 4)
    kept = groups.argsort(1).argsort(1) >= 1
    return kept.reshape(outputs, down, along, inputs).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def packed(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph, tensors = lower(network, (3, 32, 32))
    patterns = {}
    for operator in graph.operators:
        name = operator.tensors.get("weight", "")
        if operator.kind == "conv" and tensors[name].shape[1] % 4 == 0:
            mask = three_of_four(torch.from_numpy(tensors[name])).numpy()
            patterns[name] = PatternInfo("hybrid", 3, 4, 0, mask)
    path = tmp_path_factory.mktemp("packed") / "packed.safetensors"
    graph = type(graph)(graph.input, graph.shape, graph.operators, graph.output, Preprocess(32, 32, MEAN, STD))
    write_network(path, graph, tensors, patterns)
    return path


def sparse_plan(file: Path, precision: Literal["f32", "bf16"], target: Path) -> Path:
    """A plan of hybrid kernels: so many weights are left that the guess is to multiply all of them."""
    steps = {}
    for step in load(file, threads=1, precision=precision, plan="default").plan:
        if step["choice"]:
            sparse = {"kernel": "hybrid", "vectors": 1, "slots": 4} if step["density"] < 1 else {}
            steps[step["name"]] = step["choice"] | sparse | {"seconds": 0.0}
    target.write_text(json.dumps({"steps": steps}))
    return target


def images_of(root: Path, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    table = parquet.read_table(next((root / "cifar10").glob("test-*.parquet"))).slice(0, number)
    column = "img" if "img" in table.column_names else "image"
    decoded = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table[column].to_pylist()]
    return np.stack(decoded).transpose(0, 3, 1, 2).copy(), np.array(table["label"].to_pylist())


@pytest.mark.parametrize("kernel", ["dense", "hybrid"])
@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_image_gets_the_label_that_pytorch_gives_it(data_root, network, packed, number, kernel, tmp_path):
    images, labels = images_of(data_root, number)
    shape = (1, 3, 1, 1)
    floats = (images / np.float32(255) - np.reshape(MEAN, shape)) / np.reshape(STD, shape)
    with torch.inference_mode():
        expected = torch.cat([network(batch) for batch in torch.from_numpy(floats).float().split(250)]).numpy()
    accuracy = (expected.argmax(1) == labels).mean()
    assert accuracy > 0.9
    scale = np.abs(expected).max()

    def opened(precision: Literal["f32", "bf16"]) -> Network:
        plan = "default" if kernel == "dense" else sparse_plan(packed, precision, tmp_path / f"{precision}.json")
        net = load(packed, threads=1, precision=precision, plan=plan)
        assert {step["kind"] for step in net.plan if step["density"] < 1} == {kernel}
        return net

    found = opened("f32")(images)
    assert np.abs(found - expected).max() <= 1e-4 * scale
    assert (found.argmax(1) == expected.argmax(1)).all()

    if native.ISAS.index("avx512_bf16") not in native.usable():
        pytest.skip("bf16: this CPU does not multiply it")
    halves = opened("bf16")(images)
    assert (halves.argmax(1) == expected.argmax(1)).mean() >= 0.995
    # A tenth of a point of all 10,000 test images; of fewer, one image is more than that.
    assert abs((halves.argmax(1) == labels).mean() - accuracy) <= max(0.001, 2 / number)
