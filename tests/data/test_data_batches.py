"""Order, resuming, ranks, streaming: what a training loop relies on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from billhook.data import ImageSet, Preprocess, open_source, read_image, select, views
from billhook.data.source import ArrayRows
from billhook.errors import UsageError

from .pictures import picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = Preprocess(12, MEAN, STD, 12, "crop", True, 2)
PLAIN = Preprocess(12, MEAN, STD, 12)
BOXES = Preprocess(12, MEAN, STD, 14, "resized-crop", True)


def image_set(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return ImageSet(ArrayRows(pixels, np.zeros(count)), np.arange(count), torch.arange(count) % 7)


@pytest.fixture(params=["held", "streamed"])
def memory(request, monkeypatch):
    if request.param == "streamed":
        monkeypatch.setattr(views, "MEMORY_LIMIT", 0)
    return request.param


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.step == b.step
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize(
    ("count", "size", "train", "expected"),
    [
        (10, 4, True, [4, 4]),
        (10, 4, False, [4, 4, 2]),
        (8, 4, True, [4, 4]),
        (3, 4, True, [3]),
        (3, 4, False, [3]),
        (0, 4, True, []),
        (0, 4, False, []),
    ],
)
def test_drop_rule(count, size, train, expected):
    data = image_set(count)
    assert [len(batch.labels) for batch in data.batches(size, CROP, train=train)] == expected
    if train:
        assert data.steps(size) == len(expected)


def test_evaluation_keeps_order_and_values():
    data = image_set(10)
    batches = list(data.batches(4, CROP))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.labels)
    raw = torch.from_numpy(data.rows.images).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([batch.images for batch in batches]), CROP.evaluate(raw))
    assert [batch.step for batch in batches] == [0, 1, 2]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("prep", [CROP, BOXES])
def test_types_and_memory_format(prep, channels_last):
    for train in (True, False):
        batch = next(image_set(6).batches(4, prep, train=train, channels_last=channels_last))
        assert (batch.images.dtype, batch.labels.dtype, batch.indices.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )
        assert batch.images.shape == (4, 3, 12, 12)
        assert batch.images.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert batch.images.is_contiguous() != channels_last


@pytest.mark.parametrize("prep", [CROP, PLAIN, BOXES])
def test_randomness_is_a_function_of_seed_epoch_and_step(prep, memory):
    data = image_set(20)

    def run(**key):
        return list(data.batches(4, prep, train=True, **key))

    base = run(seed=1, epoch=2)
    same(base, run(seed=1, epoch=2))
    same(base[3:], run(seed=1, epoch=2, start=3))
    assert run(seed=1, epoch=2, start=5) == []
    for key in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not torch.equal(base[0].indices, run(**key)[0].indices)
    assert sorted(torch.cat([batch.indices for batch in base]).tolist()) == list(range(20))
    assert torch.equal(base[1].labels, data.labels[base[1].indices])


@pytest.mark.parametrize("prep", [CROP, PLAIN, BOXES])
def test_held_and_streamed_batches_are_the_same(prep, monkeypatch):
    for train in (True, False):
        held = list(image_set(10).batches(4, prep, train=train))
        with monkeypatch.context() as patch:
            patch.setattr(views, "MEMORY_LIMIT", 0)
            same(held, list(image_set(10).batches(4, prep, train=train)))


@pytest.mark.parametrize("prep", [CROP, BOXES])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_share_one_global_batch(prep, train, world, memory):
    data = image_set(10)
    whole = list(data.batches(4, prep, train=train, seed=5))
    shares = [list(data.batches(4, prep, train=train, seed=5, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        together = torch.empty_like(batch.images)
        indices = torch.empty_like(batch.indices)
        for rank in range(world):
            together[rank::world] = shares[rank][step].images
            indices[rank::world] = shares[rank][step].indices
        assert torch.equal(indices, batch.indices)
        torch.testing.assert_close(together, batch.images, atol=1e-4, rtol=0)  # canvases differ in size, hence rounding


def test_a_rank_may_come_away_empty_but_never_out_of_step(memory):
    data = image_set(5)
    for prep in (CROP, BOXES):
        for train in (True, False):
            sizes = [
                [tuple(batch.images.shape) for batch in data.batches(4, prep, train=train, rank=rank, world=3)]
                for rank in range(3)
            ]
            assert len({len(rank) for rank in sizes}) == 1
            if not train:
                assert sizes[2] == [(1, 3, 12, 12), (0, 3, 12, 12)]


def test_augmentation_varies_but_no_augmentation_does_not():
    data = image_set(8)
    plain = {int(i): image for b in data.batches(8, PLAIN) for i, image in zip(b.indices, b.images, strict=True)}
    for prep, expected in ((PLAIN, True), (CROP, False), (BOXES, False)):
        (batch,) = data.batches(8, prep, train=True)
        equal = all(torch.equal(image, plain[int(i)]) for i, image in zip(batch.indices, batch.images, strict=True))
        assert equal is expected


def test_augmenting_leaves_the_held_images_alone():
    data = image_set(8)
    before = torch.cat([batch.images for batch in data.batches(4, CROP)])
    for prep in (CROP, Preprocess(12, MEAN, STD, 12, "none", True), BOXES):
        list(data.batches(4, prep, train=True))
    assert torch.equal(torch.cat([batch.images for batch in data.batches(4, CROP)]), before)


def test_subset():
    data = image_set(10)
    for prepared in (False, True):
        if prepared:
            data.prepare(PLAIN)
        part = data.subset([7, 2, 2])
        assert part.labels.tolist() == [0, 2, 2]
        (batch,) = part.batches(3, PLAIN)
        (whole,) = data.batches(10, PLAIN)
        assert torch.equal(batch.images, whole.images[[7, 2, 2]])
        assert batch.indices.tolist() == [0, 1, 2]
    assert len(data.subset(torch.tensor([1]))) == 1
    assert len(data.subset(np.array([], dtype=np.int64))) == 0


def test_wrong_arguments_are_refused_at_once():
    data = image_set(4)
    with pytest.raises(UsageError, match="batch size 0"):
        data.batches(0, PLAIN)
    with pytest.raises(UsageError, match="rank 2 is outside a world of 2"):
        data.batches(2, PLAIN, rank=2, world=2)


def test_no_thread_is_left_behind(monkeypatch):
    monkeypatch.setattr(views, "MEMORY_LIMIT", 0)
    before = threading.active_count()
    batches = image_set(40).batches(2, BOXES, train=True)
    next(batches)
    batches.close()
    assert threading.active_count() == before


# files of many sizes


@pytest.fixture
def mixed(tree):
    root = tree({"train/a": 0, "test/a": 0})
    for number, size in enumerate([(40, 60), (61, 33), (20, 20), (300, 24), (33, 47), (90, 90)]):
        picture(number, *size).save(root / "train/a" / f"{number}.png")
        picture(number, *size).save(root / "test/a" / f"{number}.jpg", quality=95)
    return root


def test_one_image_equals_the_batch_path(mixed, memory):
    prep = Preprocess(28, MEAN, STD, 32, "resized-crop", True)
    data = select(open_source(mixed))
    (batch,) = data.test.batches(8, prep)
    for image, row in zip(batch.images, data.test.indices, strict=True):
        assert torch.equal(image[None], prep.one_image(read_image(data.test.rows.name(int(row)))))


def test_training_crops_come_from_their_own_image(tree, memory):
    root = tree({"train/a": 0, "test/a": 1})
    colours = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20)]
    from PIL import Image

    for number, (colour, size) in enumerate(zip(colours, [(50, 70), (33, 33), (20, 90), (200, 60)], strict=True)):
        Image.new("RGB", size, colour).save(root / "train/a" / f"{number}.png")
    data = select(open_source(root))
    prep = Preprocess(24, (0.0,) * 3, (1 / 255,) * 3, 28, "resized-crop", True)
    for epoch in range(4):
        (batch,) = data.train.batches(8, prep, train=True, epoch=epoch)
        for image, index in zip(batch.images, batch.indices, strict=True):
            colour = colours[int(data.train.indices[int(index)])]
            expected = torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, 24, 24)
            torch.testing.assert_close(image, expected, atol=1e-2, rtol=0)


def test_threads_decode_the_same(mixed, monkeypatch):
    prep = Preprocess(28, MEAN, STD, 32, "resized-crop", True)
    one = [list(select(open_source(mixed)).train.batches(2, prep, train=train)) for train in (True, False)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = [list(select(open_source(mixed)).train.batches(2, prep, train=train)) for train in (True, False)]
    for first, second in zip(one, three, strict=True):
        same(first, second)
