"""The real data sets, where there are any."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from billhook.data import Preprocess, class_table, open_source, read_image, select
from billhook.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = pytest.mark.data


def test_cifar10(real_data):
    source = open_source(real_data / "cifar10")
    assert source.name == "cifar10"
    assert source.classes[3] == "cat"
    assert class_table(source)[3] == {"name": "cat", "train": 4500, "val": 500, "test": 1000}
    data = select(source, outputs=10, classes=["cat", "dog"], limit_train=500)
    assert (data.kept, data.kept_names) == ((3, 5), ("cat", "dog"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [450, 50, 2000]
    assert data.train.labels.unique(return_counts=True)[1].tolist() == [225, 225]
    prep = Preprocess.for_source(source, None, MEAN, STD)
    assert prep == Preprocess(32, MEAN, STD, 32, "crop", True, 4)
    batch = next(data.train.batches(128, prep, train=True))
    assert batch.images.shape == (128, 3, 32, 32)
    assert 0.5 < float(batch.images.std()) < 2
    with pytest.raises(InputError, match="the head has 100 outputs, but cifar10 has 10 classes"):
        select(source, outputs=100)


def test_the_first_quick_protocol_costs_5000_images(real_data):
    data = select(open_source(real_data / "cifar10"), limit_train=5000)
    assert (len(data.train), len(data.val), len(data.test)) == (4500, 500, 10000)
    assert data.val.labels.bincount().tolist() == [50] * 10


def test_cifar100(real_data):
    source = open_source(real_data / "cifar100")
    assert len(source.classes) == 100
    assert source.classes[1] == "aquarium_fish"
    data = select(source, outputs=100, classes=["aquarium fish", "apple"])
    assert data.kept == (0, 1)
    assert [len(part) for part in (data.train, data.val, data.test)] == [900, 100, 200]


def test_imagenette_with_imagenet_labels(real_data):
    source = open_source(real_data / "imagenette-mini")
    labels = real_data / "imagenet_classes.json"
    with pytest.raises(InputError, match="--labels"):
        select(source, outputs=1000)
    data = select(source, outputs=1000, labels=labels)
    assert data.kept == (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    assert data.kept_names[:2] == ("tench", "English_springer")
    assert [len(part) for part in (data.train, data.val, data.test)] == [900, 100, 500]
    chosen = select(source, outputs=1000, labels=labels, classes=["tench", "n03888257", 566])
    assert chosen.kept == (0, 566, 701)

    prep = Preprocess.for_source(source, None, MEAN, STD)
    assert (prep.input_size, prep.resize, prep.augment) == (224, 256, "resized-crop")
    part = chosen.test.subset(np.arange(6))
    (batch,) = part.batches(6, prep)
    assert torch.equal(batch.images[2:3], prep.one_image(read_image(part.rows.name(int(part.indices[2])))))
    training = next(chosen.train.batches(8, prep, train=True))
    assert training.images.shape == (8, 3, 224, 224)
