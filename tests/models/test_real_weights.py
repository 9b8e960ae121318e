"""The public weights on real test images: the accuracy that their authors state."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from billhook.cost import count
from billhook.models import Network, open_network

DATA = Path(os.environ.get("BILLHOOK_DATA", "/nonexistent"))
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="BILLHOOK_DATA does not name a folder with the real data"),
]

CIFAR = [
    # spec, weights, data, canonical spec, how many of the first 250 test images are right, top-1 of all 10,000
    ("resnet20", "cifar10_resnet20", "cifar10", "resnet20", 238, 0.9173),
    ("resnet32", "cifar10_resnet32", "cifar10", "resnet32", 243, 0.9263),
    ("resnet56", "cifar10_resnet56", "cifar10", "resnet56", 241, 0.9339),
    ("resnet56", "cifar100_resnet56_chenyaofo", "cifar100", "resnet56,shortcut=conv", 189, 0.7263),
    ("resnet18", "cifar100_resnet18_half", "cifar100", "resnet18,stem=cifar,width=0.5", 177, 0.7245),
]


def weights(name: str) -> Path:
    return DATA / "weights" / f"{name}.safetensors"


def cifar(data: str, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    table = pq.read_table(DATA / data / "test-00000-of-00001.parquet").slice(0, first)
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(images)), torch.tensor(table["label"].to_pylist())


def logits(network: Network, images: torch.Tensor, batch: int) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    module = network.module.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([module((part.permute(0, 3, 1, 2) / 255 - mean) / std) for part in images.split(batch)])


@pytest.mark.parametrize(("spec", "name", "data", "canonical", "right", "_all"), CIFAR)
def test_cifar_first_images(spec, name, data, canonical, right, _all):
    network = open_network(spec, weights=weights(name))
    assert network.spec == canonical
    images, labels = cifar(data, 250)
    # One image of slack for another order of floating-point sums.
    assert abs(int((logits(network, images, 250).argmax(1) == labels).sum()) - right) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "name", "data", "canonical", "_first", "top1"), CIFAR)
def test_cifar_all(spec, name, data, canonical, _first, top1):
    network = open_network(spec, weights=weights(name))
    images, labels = cifar(data, 10_000)
    assert (logits(network, images, 250).argmax(1) == labels).float().mean().item() == pytest.approx(top1, abs=0.0003)


def imagenette(every: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Short side 256, bicubic, centre crop 224."""
    ids = [entry[0] for entry in json.loads((DATA / "imagenet_classes.json").read_text())]
    paths = sorted((DATA / "imagenette-mini" / "val").glob("*/*"))[::every]
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        width, height = image.size
        scale = 256 / min(width, height)
        image = image.resize((max(256, int(width * scale)), max(256, int(height * scale))), Image.Resampling.BICUBIC)
        left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
        images.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    return torch.from_numpy(np.stack(images)), torch.tensor([ids.index(path.parent.name) for path in paths])


def test_mobilenet_needs_its_padding():
    images, labels = imagenette(every=10)
    right, wrong = (
        (logits(open_network(spec, weights=weights("imagenet_mobilenet_v2_tfqat")), images, 25).argmax(1) == labels)
        .float()
        .mean()
        .item()
        for spec in ("mobilenet_v2,padding=tf", "mobilenet_v2")
    )
    # 50 of the 500 images: 32 and 24 right, with one image of slack; the figure over all is in test_mobilenet_all.
    assert right == pytest.approx(0.64, abs=0.021)
    assert wrong == pytest.approx(0.48, abs=0.021)


@pytest.mark.slow
def test_mobilenet_all():
    images, labels = imagenette(every=1)
    out = logits(open_network("mobilenet_v2,padding=tf", weights=weights("imagenet_mobilenet_v2_tfqat")), images, 50)
    assert (out.argmax(1) == labels).float().mean().item() == pytest.approx(0.696, abs=0.003)
    kept = labels.unique()
    assert (kept[out[:, kept].argmax(1)] == labels).float().mean().item() == pytest.approx(0.972, abs=0.003)


def test_trained_weights_have_no_zeros():
    cost = count(open_network("resnet56", weights=weights("cifar10_resnet56")).module, 32)
    assert (cost.params, cost.nonzero) == (853_018, 853_018)
