"""Opening folders, parquet files, digits and dataset pairs; bad ones are named."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from billhook.data import class_table, open_source, read_image, select
from billhook.data.datasets import hwc
from billhook.errors import InputError, UsageError

from .pictures import picture


def counts(source):
    size = len(source.classes)
    return {split: np.bincount(rows.labels, minlength=size).tolist() for split, rows in source.splits.items()}


# folders


@pytest.mark.parametrize("second", ["val", "test", "valid"])
def test_one_more_split_is_the_test_set(tree, second):
    source = open_source(tree({"train/dog": 4, "train/cat": 3, f"{second}/cat": 2, f"{second}/dog": 1}))
    assert source.name == "pets"
    assert source.classes == source.ids == ("cat", "dog")
    assert counts(source) == {"train": [3, 4], "test": [2, 1]}


def test_val_beside_test_is_the_validation_set(tree):
    source = open_source(tree({"train/a": 4, "val/a": 2, "test/a": 1}))
    assert counts(source) == {"train": [4], "val": [2], "test": [1]}


@pytest.mark.parametrize("layout", [{"a": 20, "b": 40}, {"train/a": 20, "train/b": 40}])
def test_without_a_test_split_15_percent_become_one(tree, layout):
    source = open_source(tree(layout))
    assert counts(source) == {"train": [17, 34], "test": [3, 6]}
    again = open_source(tree(layout, root="elsewhere/pets"))
    assert select(source).fingerprint == select(again).fingerprint


@pytest.mark.parametrize("layout", [{"test/a": 3, "test/b": 2}, {"val/a": 3, "val/b": 2}])
def test_test_images_alone_are_enough_to_evaluate_on(tree, layout):
    source = open_source(tree(layout))
    assert counts(source)["test"] == [3, 2]
    data = select(source, only_test=True)
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, 5)
    with pytest.raises(InputError, match="class 'a' has no training images"):
        select(source)


def test_folder_reading_skips_hidden_and_foreign_files_and_goes_deep(tree):
    root = tree({"train/a": 2, "train/.hidden": 2, "test/a": 1})
    (root / "train/a/.0.png").write_bytes(b"")
    (root / "train/a/notes.txt").write_text("no image")
    (root / "train/a/deep/er").mkdir(parents=True)
    for name in ("x.JPG", "y.jpeg", "z.BMP", "u.webp", "v.gif", "w.tif"):
        picture(1).save(root / "train/a/deep/er" / name)
    source = open_source(root)
    assert source.classes == ("a",)
    assert counts(source)["train"] == [8]
    for index in range(8):
        assert source.splits["train"].read(index).shape == (12, 12, 3)


def test_labels_index_the_sorted_folder_names(tree):
    source = open_source(tree({"train/b": 1, "train/a": 1, "test/a": 1, "test/b": 1}))
    train = source.splits["train"]
    assert [(train.name(i).split("/")[-2], int(train.labels[i])) for i in range(2)] == [("a", 0), ("b", 1)]
    assert (train.read(1) == np.asarray(picture(0))).all()


def test_native_size(tree):
    assert open_source(tree({"a": 8})).native_size == 12
    assert open_source(tree({"a": 8}, size=(12, 13), root="tall")).native_size is None
    mixed = tree({"a": 8}, root="mixed")
    picture(0, 20, 20).save(mixed / "a/odd.png")
    assert open_source(mixed).native_size is None


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no images in"),
        ({"a": 0, "b": 0}, "no images in"),
        ({"train/a": 0, "test/a": 1}, "no images in"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "has both val/ and valid/"),
    ],
)
def test_bad_trees(tree, tmp_path, layout, message):
    (tmp_path / "pets").mkdir()
    with pytest.raises(InputError, match=message):
        open_source(tree(layout))


def test_missing_path_file_and_foreign_type(tmp_path):
    with pytest.raises(InputError, match=r"no data at .*nowhere"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "file.zip").write_bytes(b"")
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_source(str(tmp_path / "file.zip"))
    with pytest.raises(UsageError, match="a int is not an image source"):
        open_source(3)


# parquet


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_parquet_columns(parquet, struct, image, label):
    root = parquet(
        {"train-00000-of-00002": [0, 1, 0, 1], "train-00001-of-00002": [1], "test-00000-of-00001": [0, 1]},
        names=["cat", "dog"],
        image=image,
        label=label,
        struct=struct,
    )
    source = open_source(root)
    assert (source.name, source.classes, source.ids) == ("set", ("cat", "dog"), None)
    assert counts(source) == {"train": [2, 3], "test": [1, 1]}
    assert (source.splits["train"].read(3) == np.asarray(picture(3, 16, 16))).all()  # past the first row group
    assert (source.splits["train"].read(4) == np.asarray(picture(100, 16, 16))).all()  # the second file
    assert source.native_size == 16


@pytest.mark.parametrize("prefix", ["validation", "valid", "val"])
def test_parquet_validation_prefixes(parquet, prefix):
    three = open_source(parquet({"train-0": [0, 1], f"{prefix}-0": [0, 1, 1], "test-0": [0]}))
    assert {split: len(rows) for split, rows in three.splits.items()} == {"train": 2, "val": 3, "test": 1}
    two = open_source(parquet({"train-0": [0, 1], f"{prefix}-0": [0, 1, 1]}, root="two"))
    assert {split: len(rows) for split, rows in two.splits.items()} == {"train": 2, "test": 3}


def test_parquet_names_and_withheld_labels(parquet):
    assert open_source(parquet({"train-0": [0, 2], "test-0": [1]})).classes == ("0", "1", "2")
    old = {"1": "dog", "0": "cat", "10": "owl"}
    assert open_source(parquet({"train-0": [0, 1]}, names=old, root="old")).classes == ("cat", "dog", "owl")
    hidden = open_source(parquet({"train-0": [0, 1], "val-0": [1, None], "test-0": [-1, -1]}, root="hidden"))
    assert counts(hidden) == {"train": [1, 1], "test": [0, 1]}


def test_parquet_in_a_data_folder_and_without_test(parquet):
    parquet({"data/train-0": [0] * 20})
    source = open_source(parquet({}, root="set"))
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 17, "test": 3}


def test_bad_parquet(parquet, tmp_path):
    with pytest.raises(InputError, match=r"no train-\*.parquet"):
        open_source(parquet({"test-0": [0]}, root="a"))
    with pytest.raises(InputError, match=r"no image column in .*: it has picture, label"):
        open_source(parquet({"train-0": [0]}, image="picture", root="b"))
    with pytest.raises(InputError, match="no label column"):
        open_source(parquet({"train-0": [0]}, label="kind", root="c"))
    with pytest.raises(InputError, match=r"label 2 in .* name only 2 classes"):
        open_source(parquet({"train-0": [0, 2]}, names=["x", "y"], root="d"))
    with pytest.raises(InputError, match="no labelled training images"):
        open_source(parquet({"train-0": [None, -1]}, root="e"))
    (tmp_path / "f").mkdir()
    (tmp_path / "f/train-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a parquet file"):
        open_source(tmp_path / "f")


def test_a_parquet_row_without_bytes_is_a_broken_image(parquet):
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = parquet({"train-0": [0] * 120, "test-0": [0] * 80})
    table = pq.read_table(root / "train-0.parquet")
    rows = table.column("image").to_pylist()
    rows[5] = {"bytes": None, "path": None}
    pq.write_table(
        table.set_column(0, "image", pa.array(rows, table.schema.field("image").type)), root / "train-0.parquet"
    )
    with pytest.warns(UserWarning, match=r"1 of 200 images cannot be read: set/train-0.parquet row 5"):
        data = select(open_source(root))
    assert len(data.train) + len(data.val) == 119


# the hub


@pytest.fixture
def hub(monkeypatch):
    calls = []

    def install(answer):
        def snapshot_download(repository, *, repo_type, revision, allow_patterns):
            calls.append((repository, repo_type, revision, allow_patterns))
            return answer(revision)

        monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
        return calls

    return install


def test_hub_main_revision(hub, parquet):
    root = parquet({"data/train-00000-of-00001": [0, 1] * 3, "data/test-00000-of-00001": [0, 1]})
    calls = hub(lambda revision: str(root))
    source = open_source("hf:someone/pictures")
    assert source.name == "pictures"
    assert counts(source) == {"train": [3, 3], "test": [1, 1]}
    assert calls == [("someone/pictures", "dataset", None, ["*.parquet"])]


def test_hub_converted_revision(hub, parquet, tmp_path):
    root = parquet({"default/train/0000": [0, 1], "default/validation/0000": [1], "other/train/0000": [5]})
    (tmp_path / "empty").mkdir()
    calls = hub(lambda revision: str(root if revision else tmp_path / "empty"))
    assert counts(open_source("hf:someone/pictures")) == {"train": [1, 1], "test": [0, 1]}
    assert [call[2] for call in calls] == [None, "refs/convert/parquet"]


def test_hub_failures(hub, parquet, tmp_path, monkeypatch):
    def offline(revision):
        raise ConnectionError("no route to host\nand a long story")

    hub(offline)
    with pytest.raises(InputError, match="cannot download a/b from the Hugging Face hub: no route to host ") as caught:
        open_source("hf:a/b")
    assert "\n" not in str(caught.value)
    assert "local folder" in caught.value.hint
    hub(lambda revision: str(tmp_path))
    with pytest.raises(InputError, match="no parquet files in a/b"):
        open_source("hf:a/b")
    root = parquet({"one/train/0": [0], "two/train/0": [0]})
    hub(lambda revision: str(root))
    with pytest.raises(InputError, match="several configurations: one, two"):
        open_source("hf:a/b")
    with pytest.raises(UsageError, match="OWNER/NAME"):
        open_source("hf:cifar10")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="need huggingface_hub"):
        open_source("hf:a/b")


# digits


def test_digits():
    source = open_source("digits")
    assert source.classes == tuple("0123456789")
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 1438, "test": 359}
    assert (source.native_size, source.flips) == (8, False)
    image = source.splits["train"].read(1)
    assert image.shape == (8, 8, 3)
    assert image.max() == 255
    assert (image[..., 0] == image[..., 2]).all()


# datasets


class Pictures:
    """A map-style dataset of given items."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def pair(image, count=20):
    return tuple(Pictures([(image, index % 2) for index in range(count)]) for _ in range(2))


def test_dataset_pair_of_pil_images_with_classes():
    items = [(picture(index), index % 2) for index in range(20)]
    source = open_source((Pictures(items, classes=["no", "yes"]), Pictures(items[:4])))
    assert (source.name, source.classes, source.ids) == ("pictures", ("no", "yes"), None)
    assert counts(source) == {"train": [10, 10], "test": [2, 2]}
    assert (source.splits["train"].read(3) == np.asarray(picture(3))).all()
    assert source.native_size == 12


def test_dataset_triple_and_subset():
    items = [(picture(index), index % 3) for index in range(30)]
    whole = Pictures(items, classes=["a", "b", "c"], targets=[index % 3 for index in range(30)])
    parts = [torch.utils.data.Subset(whole, list(range(first, 30, 3))) for first in (0, 1, 2)]
    source = open_source(parts)
    assert source.classes == ("a", "b", "c")
    assert counts(source) == {"train": [10, 0, 0], "val": [0, 10, 0], "test": [0, 0, 10]}


def test_targets_that_disagree_with_the_items_are_not_believed():
    items = [(picture(0), 1 - index % 2) for index in range(6)]
    source = open_source((Pictures(items, targets=[0, 1, 0, 1, 0, 1]), Pictures(items)))
    assert source.splits["train"].labels.tolist() == [1, 0, 1, 0, 1, 0]


PIXELS = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS.transpose(2, 0, 1), PIXELS),
        (torch.from_numpy(PIXELS), PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS),
        (PIXELS[..., :1], PIXELS[..., [0, 0, 0]]),
        (PIXELS[..., 0], PIXELS[..., [0, 0, 0]]),
        (np.concatenate([PIXELS, PIXELS[..., :1]], 2), PIXELS),
        (PIXELS[:3], PIXELS[:3]),  # [3, 5, 3] reads both ways: an array as HWC, a tensor as CHW
        (torch.from_numpy(PIXELS[:3]), PIXELS[:3].transpose(1, 2, 0)),
    ],
)
def test_uint8_layouts(image, expected):
    assert hwc(image).tolist() == expected.tolist()


def test_float_tensors_pass_through_untouched():
    images = torch.randn(20, 3, 6, 6)
    labels = torch.arange(20) % 2
    train = torch.utils.data.TensorDataset(images, labels)
    source = open_source((train, torch.utils.data.TensorDataset(images[:4], labels[:4])))
    assert source.pixels == "float"
    from billhook.data import Preprocess

    prep = Preprocess.for_source(source, None, (0.5,) * 3, (0.5,) * 3)
    assert (prep.input_size, prep.augment, prep.flip) == (6, "none", False)
    data = select(source)
    for batch in data.train.batches(5, prep, train=True):
        assert torch.equal(batch.images, images[data.train.indices[batch.indices]])
    (batch,) = data.test.batches(8, prep)
    assert torch.equal(batch.images, images[:4])
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(InputError, match="are 6 px"):
        Preprocess.for_source(source, 224, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("datasets", "error", "message"),
    [
        ((), UsageError, "0 datasets given"),
        ((1, 2), UsageError, "not map-style"),
        ((Pictures([]), Pictures([])), InputError, "train dataset is empty"),
        (pair("text"), InputError, "unknown form: str"),
        (pair(np.zeros((4, 4, 3), dtype=np.int64)), InputError, r"unknown form: int64 \[4, 4, 3\]"),
        (pair(torch.zeros(2, 4, 5, dtype=torch.uint8)), InputError, r"unknown form: uint8 \[2, 4, 5\]"),
        ((Pictures([picture(0)]), Pictures([picture(0)])), InputError, "is not .image, label."),
        ((Pictures([(picture(0), "x")]), Pictures([(picture(0), 0)])), InputError, "labels that are not integers"),
        ((Pictures([(picture(0), 3)], classes=["a"]), Pictures([(picture(0), 0)])), InputError, "run from 0 to 3"),
        ((Pictures([(picture(0), -1)]), Pictures([(picture(0), 0)])), InputError, "run from -1 to 0"),
        ((pair(torch.zeros(3, 4, 4))[0], pair(picture(0))[1]), InputError, "some datasets yield float"),
    ],
)
def test_bad_datasets(datasets, error, message):
    with pytest.raises(error, match=message):
        open_source(datasets)


# single images and tables


def test_read_image(tmp_path):
    picture(1).convert("RGBA").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mode == "RGB"
    deep = Image.fromarray(np.full((3, 3), 0x80FF, dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    assert np.asarray(read_image(str(tmp_path / "deep.png"))).tolist() == [[[128] * 3] * 3] * 3
    with pytest.raises(InputError, match=r"no image file at .*b.png"):
        read_image(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"cannot read the image .*c.jpg: not an image"):
        read_image(tmp_path / "c.jpg")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"d\.png"):
        read_image(tmp_path / "d.png")


def test_class_table(tree, parquet):
    given_val = open_source(tree({"train/a": 20, "val/a": 3, "test/a": 5}))
    assert class_table(given_val) == [{"name": "a", "id": "a", "train": 20, "val": 3, "test": 5}]
    source = open_source(parquet({"train-0": [0] * 20 + [1] * 40, "test-0": [0]}, names=["x", "y"]))
    assert class_table(source) == [
        {"name": "x", "train": 18, "val": 2, "test": 1},
        {"name": "y", "train": 36, "val": 4, "test": 0},
    ]
    data = select(source, classes=["x"])
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 1)
