"""Classes, labels, caps and broken images."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from billhook.data import BrokenImageWarning, Preprocess, open_source, parse_classes, select
from billhook.errors import InputError, UsageError

PREP = Preprocess(12, (0.5,) * 3, (0.5,) * 3, 12)
LAYOUT = {f"{split}/{name}": count for split, count in (("train", 20), ("test", 4)) for name in ("cat", "dog", "owl")}


@pytest.fixture
def pets(tree):
    return open_source(tree(LAYOUT))


@pytest.fixture
def labels(tmp_path):
    def write(entries):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(entries))
        return path

    return write


def test_everything_by_default(pets):
    data = select(pets)
    assert (data.name, data.outputs, data.kept, data.subset) == ("pets", ("cat", "dog", "owl"), (0, 1, 2), False)
    assert data.kept_names == ("cat", "dog", "owl")
    assert [len(part) for part in (data.train, data.val, data.test)] == [54, 6, 12]
    assert data.train.labels.dtype == torch.int64
    assert data.train.labels.bincount().tolist() == [18, 18, 18]
    assert data.val.labels.bincount().tolist() == [2, 2, 2]
    assert not set(data.train.indices) & set(data.val.indices)


@pytest.mark.parametrize("classes", [["owl", "cat"], [2, 0], ["2", "0"], ["OWL", 0], "owl,cat", [np.int64(0), "owl"]])
def test_classes_by_name_and_index(pets, classes):
    data = select(pets, outputs=3, classes=classes)
    assert (data.kept, data.kept_names, data.subset) == ((0, 2), ("cat", "owl"), True)
    assert data.outputs == ("cat", "dog", "owl")
    assert data.test.labels.tolist() == [0] * 4 + [2] * 4
    assert len(data.train) + len(data.val) == 40


def test_a_digit_that_is_a_name_is_the_name(tree):
    source = open_source(tree({"train/1": 2, "train/2": 2, "test/1": 1, "test/2": 1}))
    assert select(source, classes=["1"]).kept == (0,)
    assert select(source, classes=[1]).kept == (1,)
    assert select(source, classes=["0"]).kept == (0,)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cow", "dgo"], "unknown class 'cow'"),
        (["dgo"], "did you mean 'dog'"),
        ([3], "class index 3 is out of range .indices run from 0 to 2"),
        (["7"], "class index 7 is out of range"),
        ([-1], "class index -1"),
        (["cat", "cat"], "class 'cat' is given twice"),
        (["cat", 0], "class '0' .the same as 'cat'. is given twice"),
        ([], "no classes given"),
    ],
)
def test_wrong_classes(pets, classes, message):
    with pytest.raises(UsageError, match=message):
        select(pets, classes=classes)


def test_parse_classes(tmp_path):
    assert parse_classes("cat, dog,owl,") == ["cat", "dog", "owl"]
    (tmp_path / "lines").write_text("great white shark\n\n tench \n")
    assert parse_classes(f"@{tmp_path}/lines") == ["great white shark", "tench"]
    (tmp_path / "list.json").write_text('["cat", 3]')
    assert parse_classes(f"@{tmp_path}/list.json") == ["cat", "3"]
    for bad, message in ((f"@{tmp_path}/none", "cannot read"), (",", "no class named"), (f"@{tmp_path}/bad", "JSON")):
        (tmp_path / "bad").write_text('["cat"')
        with pytest.raises(UsageError, match=message):
            parse_classes(bad)


# label files


def test_labels_match_names_whatever_the_case(pets, labels):
    path = labels(["Owl", "ant", "CAT", "bee", "dog"])
    data = select(pets, outputs=5, labels=path)
    assert data.outputs == ("Owl", "ant", "CAT", "bee", "dog")
    assert (data.kept, data.subset) == ((0, 2, 4), False)
    assert data.test.labels.tolist() == [2] * 4 + [4] * 4 + [0] * 4  # cat, dog, owl
    assert select(pets, labels=path, classes=["cat", "Owl"]).kept == (0, 2)


def test_labels_match_ids(tree, labels):
    source = open_source(tree({"train/n01": 4, "train/n02": 4, "val/n01": 2, "val/n02": 2}))
    path = labels([["n02", "great_white_shark"], ["n07", "ant"], ["n01", "tench"]])
    data = select(source, labels=path)
    assert data.kept_names == ("great_white_shark", "tench")
    assert data.test.labels.tolist() == [2, 2, 0, 0]
    for name in ("great white shark", "n02", "N02", 0, "0"):
        assert select(source, labels=path, classes=[name]).kept == (0,)


def test_ambiguous_names(tree, labels):
    source = open_source(tree({"train/n01": 2, "train/n02": 2, "val/n01": 2, "val/n02": 2}))
    path = labels([["n01", "crane"], ["n02", "crane"]])
    assert select(source, labels=path).kept == (0, 1)
    with pytest.raises(UsageError, match="'crane' stands for the outputs 0, 1"):
        select(source, labels=path, classes=["crane"])
    by_name = open_source(tree({"train/crane": 2, "val/crane": 2}, root="birds"))
    with pytest.raises(InputError, match="'crane' of birds matches 2 entries"):
        select(by_name, labels=path)


def test_a_class_without_an_output(pets, labels):
    path = labels(["cat", "doge"])
    with pytest.raises(InputError, match=r"class 'dog' of pets is not among the 2 labels .did you mean 'doge'"):
        select(pets, labels=path)
    data = select(pets, labels=path, classes=["cat"])
    assert data.kept == (0,)
    assert len(data.test) == 4
    with pytest.raises(InputError, match="class 'doge' has no training images"):
        select(pets, labels=path, classes=["doge"])


def test_counts_that_differ(pets, labels):
    with pytest.raises(InputError, match=r"the head has 10 outputs, but pets has 3 classes .*--labels.*billhook train"):
        select(pets, outputs=10)
    with pytest.raises(InputError, match="has 4 entries, but the head has 10 outputs"):
        select(pets, outputs=10, labels=labels(["cat", "dog", "owl", "ant"]))
    with pytest.raises(InputError, match=r"the classes 'cat' and 'CAT' of pets both match output 0"):
        select(open_like(pets, ("cat", "CAT", "owl")), labels=labels(["cat", "owl"]))


def open_like(source, classes):
    """The source under other class names."""
    return type(source)(source.name, classes, None, source.splits)


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[]", "[1]", '[["a", "b", "c"]]', None])
def test_bad_label_files(pets, tmp_path, text):
    path = tmp_path / "labels.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"labels\.json"):
        select(pets, labels=path)


def test_kept_classes_need_images(tree):
    source = open_source(tree({"train/a": 3, "train/b": 0, "train/c": 3, "test/a": 2, "test/b": 2, "test/c": 0}))
    with pytest.raises(InputError, match="class 'b' has no training images"):
        select(source)
    with pytest.raises(InputError, match="class 'c' has no test images"):
        select(source, classes=["a", "c"])
    assert len(select(source, classes=["a"]).test) == 2


# caps


def test_caps_come_before_the_validation_split(tree):
    source = open_source(tree({"train/a": 60, "train/b": 40, "test/a": 5, "test/b": 5}))
    data = select(source, limit_train=50)
    assert (len(data.train), len(data.val), len(data.test)) == (45, 5, 10)
    both = torch.cat([data.train.labels, data.val.labels])
    assert both.bincount().tolist() == [30, 20]
    each = select(source, images_per_class=10)
    assert each.train.labels.bincount().tolist() == [9, 9]
    assert each.val.labels.bincount().tolist() == [1, 1]
    assert len(select(source, images_per_class=10, classes=["b"]).train) == 9


def test_a_given_validation_set_is_not_capped(tree):
    source = open_source(tree({"train/a": 30, "val/a": 7, "test/a": 5}))
    data = select(source, limit_train=10)
    assert (len(data.train), len(data.val)) == (10, 7)


def test_wrong_caps(pets):
    with pytest.raises(UsageError, match="--limit-train 0"):
        select(pets, limit_train=0)
    with pytest.raises(UsageError, match="--images-per-class -1"):
        select(pets, images_per_class=-1)
    with pytest.raises(UsageError, match=r"below the number of kept classes .3."):
        select(pets, limit_train=2)
    assert len(select(pets, limit_train=3).train) == 3


def test_the_fingerprint_sees_what_defines_the_images(tree, pets):
    base = select(pets).fingerprint
    assert base == select(pets).fingerprint
    elsewhere = tree(LAYOUT, root="moved/pets")
    assert select(open_source(elsewhere)).fingerprint == base
    others = [select(pets, **change).fingerprint for change in ({"seed": 1}, {"limit_train": 30}, {"classes": [0, 1]})]
    (elsewhere / "test/cat/0000.png").write_bytes((elsewhere / "test/cat/0000.png").read_bytes() + b"\0")
    others.append(select(open_source(elsewhere)).fingerprint)
    assert len({base, *others}) == 5
    assert len(base) == 64


# broken images


@pytest.fixture
def many(tree):
    return tree({"train/a": 150, "test/a": 50})


def break_files(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.write_bytes([b"", path.read_bytes()[:100], b"no image at all"][number % 3])


def test_few_broken_images_are_named_and_skipped(many):
    break_files(many, "train/a/0003.png", "test/a/0007.png")
    with pytest.warns(
        BrokenImageWarning, match=r"2 of 200 images cannot be read: .*0007.png \(.*0003.png \("
    ) as caught:
        data = select(open_source(many))
    assert len(caught) == 1
    assert len(data.train) + len(data.val) == 149
    assert len(data.test) == 49
    assert [name.rsplit("/", 1)[1] for name in data.test.broken] == ["0007.png"]
    assert sum(len(batch.labels) for batch in data.test.batches(10, PREP)) == 49


def test_many_broken_images_are_refused(many):
    break_files(many, *(f"train/a/{number:04}.png" for number in range(5)))
    with pytest.raises(
        InputError, match=r"5 of 200 images cannot be read: .*0000\.png.*0001\.png.*0002\.png.*, \.\.\."
    ):
        select(open_source(many))


def test_broken_images_that_are_not_needed_do_not_matter(tree):
    root = tree(LAYOUT)
    break_files(root, "train/owl/0000.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(select(open_source(root), classes=["cat", "dog"]).test) == 8
    with pytest.raises(InputError, match="1 of 72"):
        select(open_source(root))


@pytest.mark.parametrize("limit", [2**30, 0])
def test_damage_that_only_decoding_shows(many, monkeypatch, limit):
    monkeypatch.setattr("billhook.data.views.MEMORY_LIMIT", limit)
    path = many / "train/a/0003.png"
    content = bytearray(path.read_bytes())
    content[60:100] = bytes(40)  # head and tail stay whole
    path.write_bytes(content)
    data = select(open_source(many))
    victim = next(i for i, row in enumerate(data.train.indices) if data.train.rows.name(int(row)) == str(path))
    with pytest.warns(BrokenImageWarning, match="1 of 135 images"):
        batches = list(data.train.batches(10, PREP, train=True))
    seen = torch.cat([batch.indices for batch in batches])
    assert victim not in seen
    assert data.train.broken == (str(path),)
    assert all(len(batch.images) == len(batch.labels) == len(batch.indices) for batch in batches)


def test_decoding_at_once_when_the_preprocessing_is_given(many):
    data = select(open_source(many), preprocess=PREP)
    for path in many.rglob("*.png"):
        path.unlink()
    assert sum(len(batch.labels) for batch in data.test.batches(16, PREP)) == 50
