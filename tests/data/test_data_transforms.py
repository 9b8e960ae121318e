"""The vectorised transforms against one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from billhook.data import Preprocess, open_source
from billhook.data import transforms as T
from billhook.data.decode import fit, shrink
from billhook.errors import UsageError

from .pictures import picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count, height=10, width=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def test_draws_are_a_function_of_the_seed():
    assert torch.equal(T.draw(4, 7), T.draw(4, 7))
    assert not torch.equal(T.draw(4, 7), T.draw(4, 8))
    assert T.draw(5, 0).shape == (5, 23)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_pad_crop(padding):
    batch, draws = images(32, 8, 10), T.draw(32, 1)
    out = T.pad_crop(batch, draws, padding)
    places = set()
    for image, row, result in zip(batch, draws, out, strict=True):
        top, left = (int(u * (2 * padding + 1)) for u in row[1:3].tolist())
        padded = np.pad(image.numpy(), ((padding, padding), (padding, padding), (0, 0)))
        assert (result.numpy() == padded[top : top + 8, left : left + 10]).all()
        places.add((top, left))
    assert len(places) > padding * 4
    assert out.data_ptr() != batch.data_ptr()


def test_flip():
    batch, draws = images(16), T.draw(16, 2)
    chosen = T.flips(draws)
    assert 0 < int(chosen.sum()) < 16
    out = T.flip(batch.clone(), chosen)
    for image, mirrored, result in zip(batch, chosen.tolist(), out, strict=True):
        assert (result.numpy() == (image.numpy()[:, ::-1] if mirrored else image.numpy())).all()


def test_normalise():
    batch = images(3, 4, 5)
    out = T.normalise(batch, MEAN, STD)
    assert (out.shape, out.dtype) == ((3, 3, 4, 5), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = (batch.numpy() / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(out.permute(0, 2, 3, 1), expected, atol=1e-6)
    planes = batch.permute(0, 3, 1, 2).float().contiguous()
    np.testing.assert_allclose(T.normalise_planes(planes, MEAN, STD), out, atol=1e-6)


def box_by_hand(height, width, row):
    """torchvision's RandomResizedCrop.get_params, fed with our uniform numbers."""
    for area_u, ratio_u in row[3:].reshape(10, 2).tolist():
        area = height * width * (0.08 + area_u * 0.92)
        ratio = math.exp(math.log(3 / 4) + ratio_u * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(row[1] * (height - h + 1)), int(row[2] * (width - w + 1)), h, w]
    h, w = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("size", [(40, 40), (40, 90), (90, 40), (12, 300), (300, 12), (1, 1)])
def test_crop_boxes(size):
    draws = T.draw(64, 3)
    boxes = T.crop_boxes(torch.tensor([size] * 64), draws)
    assert boxes.tolist() == [box_by_hand(*size, row) for row in draws]


def test_resized_crop_is_crop_then_bilinear_resize():
    batch, draws = images(12, 30, 40, seed=5), T.draw(12, 4)
    boxes = T.crop_boxes(torch.tensor([[30, 40]] * 12), draws)
    mirrored = T.flips(draws)
    out = T.resized_crop(batch, boxes, 16, mirrored)
    plain = T.resized_crop(batch, boxes, 16)
    for image, (top, left, tall, wide), flipped, result, straight in zip(
        batch, boxes.tolist(), mirrored.tolist(), out, plain, strict=True
    ):
        cut = image[top : top + tall, left : left + wide].permute(2, 0, 1)[None].float()
        expected = functional.interpolate(cut, (16, 16), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(straight, expected, atol=0.05, rtol=0)
        torch.testing.assert_close(result, expected.flip(2) if flipped else expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [(30, 50), (51, 30), (20, 20), (16, 16), (37, 37)])
def test_fit_is_resize_then_centre_crop(size):
    image = picture(1, *size)
    width, height = size
    short = min(size)
    scaled = image.resize((int(20 * width / short), int(20 * height / short)), Image.Resampling.BICUBIC)
    top, left = round((scaled.height - 16) / 2), round((scaled.width - 16) / 2)
    expected = np.asarray(scaled)[top : top + 16, left : left + 16]
    assert (np.asarray(fit(image, 20, 16)) == expected).all()


def test_shrink_never_enlarges():
    assert shrink(picture(0, 80, 40), 20).size == (40, 20)
    assert shrink(picture(0, 80, 10), 20).size == (80, 10)


# Preprocess


def test_defaults_for_small_images_of_one_size(tree):
    source = open_source(tree({"a": 10}, size=(40, 40)))
    prep = Preprocess.for_source(source, None, MEAN, STD)
    assert prep == Preprocess(40, MEAN, STD, 40, "crop", True, 5)
    assert Preprocess.for_source(source, 40, MEAN, STD) == prep
    assert Preprocess.for_source(source, 224, MEAN, STD) == Preprocess(224, MEAN, STD, 256, "resized-crop", True, 0)
    assert Preprocess.for_source(source, 112, MEAN, STD).resize == 128


def test_defaults_for_other_images(tree):
    large = open_source(tree({"a": 4}, size=(65, 65)))
    wide = open_source(tree({"a": 4}, size=(40, 30), root="wide"))
    for source in (large, wide):
        assert Preprocess.for_source(source, None, MEAN, STD) == Preprocess(224, MEAN, STD, 256, "resized-crop", True)


def test_defaults_for_digits():
    assert Preprocess.for_source(open_source("digits"), None, MEAN, STD) == Preprocess(
        8, MEAN, STD, 8, "crop", False, 1
    )


def test_dictionary_round_trip():
    prep = Preprocess(32, MEAN, STD, 36, "crop", True, 4)
    assert Preprocess.from_dict(prep.as_dict()) == prep
    assert prep.as_dict()["mean"] == list(MEAN)
    with pytest.raises(UsageError, match="unknown key 'colour'"):
        Preprocess.from_dict(prep.as_dict() | {"colour": 1})
    with pytest.raises(UsageError, match="no 'resize'"):
        Preprocess.from_dict({"input_size": 3, "mean": MEAN, "std": STD})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": 0}, "input size 0"),
        ({"resize": 31}, "resize 31 is below the input size 32"),
        ({"mean": (0.5,)}, "three values"),
        ({"std": (0.1, 0.0, 0.1)}, "three values"),
        ({"augment": "mixup"}, "unknown augmentation 'mixup'"),
        ({"padding": -1}, "padding -1"),
    ],
)
def test_wrong_preprocessing(change, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.from_dict(Preprocess(32, MEAN, STD, 32).as_dict() | change)


def test_evaluate_is_one_image_many_times():
    prep = Preprocess(16, MEAN, STD, 20)
    pictures = [picture(seed, 30, 24) for seed in range(3)]
    raw = torch.stack([torch.from_numpy(np.asarray(item).copy()) for item in pictures]).permute(0, 3, 1, 2)
    assert torch.equal(prep.evaluate(raw), torch.cat([prep.one_image(item) for item in pictures]))
    assert prep.one_image(pictures[0].convert("L")).shape == (1, 3, 16, 16)
    small = Preprocess(24, MEAN, STD, 24)
    square = raw[..., :24]
    expected = (square.numpy() / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    np.testing.assert_allclose(small.evaluate(square), expected, atol=1e-6)
