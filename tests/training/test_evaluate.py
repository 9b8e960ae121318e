"""Evaluation and recalibration against loops over single images."""

import numpy as np
import pytest
import torch
from torch import nn

from billhook.data import ImageSet
from billhook.surgery import slice_head
from billhook.training.evaluate import evaluate
from billhook.training.recalibrate import recalibrate

from .small import TinyNet, data, preprocess, room, seeded


def one_by_one(net: nn.Module, images: ImageSet, kept: list[int], sliced: bool):
    """(top-1 full, top-1 kept, confusion) by arg-max over plain lists."""
    net = net.eval()
    full = right = 0
    confusion = [[0] * len(kept) for _ in kept]
    for batch in images.batches(1, preprocess()):
        with torch.no_grad():
            logits = net(batch.images)[0].tolist()
        label = int(batch.labels)
        full += max(range(len(logits)), key=lambda c: logits[c]) == label
        seen = logits if sliced else [logits[c] for c in kept]
        guess = max(range(len(seen)), key=lambda c: seen[c])
        confusion[kept.index(label)][guess] += 1
        right += kept[guess] == label
    return full / len(images), right / len(images), confusion


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [1, 3], [0, 2, 5], [4]])
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 250])
def test_equals_one_by_one(kept, sliced, batch_size):
    net = seeded(TinyNet, 6, seed=3)
    if sliced:
        net = slice_head(net, "fc", kept)
    images = data(96, classes=6, keep=kept).train
    full, top1, confusion = one_by_one(net, images, kept, sliced)
    result = evaluate(net, images, preprocess(), kept, room(), sliced=sliced, batch_size=batch_size)
    assert result.top1_full == (None if sliced else pytest.approx(full))
    assert result.top1_kept == pytest.approx(top1)
    assert result.confusion.tolist() == confusion
    assert result.images == len(images) == np.sum(confusion)


def test_slicing_does_not_change_what_is_predicted_among_the_kept():
    kept = [1, 4]
    net, images = seeded(TinyNet, 6, seed=3), data(96, classes=6, keep=kept).train
    whole = evaluate(net, images, preprocess(), kept, room())
    small = evaluate(slice_head(net, "fc", kept), images, preprocess(), kept, room(), sliced=True)
    assert whole.top1_kept == small.top1_kept
    assert whole.confusion.tolist() == small.confusion.tolist()
    assert whole.top1_full <= whole.top1_kept


def test_a_class_without_images_has_no_accuracy():
    images = data(96, classes=4).train
    some = images.subset([i for i, label in enumerate(images.labels.tolist()) if label != 2])
    result = evaluate(seeded(TinyNet, 4), some, preprocess(), [0, 1, 2, 3], room())
    assert np.isnan(result.per_class).tolist() == [False, False, True, False]
    assert result.confusion[2].sum() == 0
    right, counts = result.confusion.diagonal(), result.confusion.sum(axis=1)
    assert result.per_class[[0, 1, 3]].tolist() == (right / np.maximum(counts, 1))[[0, 1, 3]].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    net = seeded(TinyNet, 4, 0.5).train(training)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    images = data().val
    first = evaluate(net, images, preprocess(), [0, 1, 2, 3], room())
    assert net.training is training
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert evaluate(net, images, preprocess(), [0, 1, 2, 3], room()).confusion.tolist() == first.confusion.tolist()


def test_exact_is_fp32_also_in_a_bf16_run():
    seen = []

    class Watching(TinyNet):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    net, images = seeded(Watching), data().val
    evaluate(net, images, preprocess(), [0, 1, 2, 3], room("bf16"))
    evaluate(net, images, preprocess(), [0, 1, 2, 3], room("bf16"), exact=False)
    assert seen == [torch.float32, torch.bfloat16]


# ---------------------------------------------------------------------- recalibration


def test_statistics_of_one_batch_by_hand():
    net, images = seeded(TinyNet).train(), data().train
    net.bn1.running_mean.fill_(7)
    net.bn1.momentum = 0.3
    weights = [p.clone() for p in net.parameters()]
    assert recalibrate(net, images, preprocess(), room()) == len(images)
    batch = next(iter(images.batches(1000, preprocess())))
    with torch.no_grad():
        features = net.conv1(batch.images)
        assert torch.allclose(net.bn1.running_mean, features.mean(dim=(0, 2, 3)), atol=1e-5)
        assert torch.allclose(net.bn1.running_var, features.var(dim=(0, 2, 3)), rtol=1e-4)
        # The second norm sees the first one normalising by the batch, as in training.
        normal = nn.functional.batch_norm(features, None, None, net.bn1.weight, net.bn1.bias, training=True)
        deeper = net.conv2(normal.relu())
        assert torch.allclose(net.bn2.running_mean, deeper.mean(dim=(0, 2, 3)), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert net.bn1.momentum == 0.3
    assert net.training
    assert net.bn1.training


def test_several_batches_are_averaged_alike():
    net, images = seeded(TinyNet).eval(), data(100).train
    used = recalibrate(net, images, preprocess(), room(), batch_size=16)
    assert used == len(images) // 16 * 16 < len(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:used]
    with torch.no_grad():
        features = [net.conv1(b.images) for b in images.subset(order).batches(16, preprocess())]
    mean = torch.cat(features).mean(dim=(0, 2, 3))
    variance = torch.stack([f.var(dim=(0, 2, 3)) for f in features]).mean(dim=0)
    assert torch.allclose(net.bn1.running_mean, mean, atol=1e-5)
    assert torch.allclose(net.bn1.running_var, variance, rtol=1e-4)
    assert not net.training


def test_the_limit_is_a_draw_and_a_rest_of_one_image_does_no_harm():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(3), nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(self.norm(x.mean(dim=(2, 3))))

    net, images = seeded(Flat), data(100).train
    assert recalibrate(net, images, preprocess(), room(), limit=33, batch_size=16) == 32
    assert recalibrate(net, images, preprocess(), room(), limit=10, batch_size=16) == 10


def test_dropout_stays_off_and_nothing_to_do_without_norms():
    net, images = seeded(TinyNet, 4, 0.9), data().train
    seen = []
    net.dropout.register_forward_hook(lambda module, args, output: seen.append(torch.equal(args[0], output)))
    recalibrate(net, images, preprocess(), room())
    assert seen == [True]
    assert recalibrate(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), images, preprocess(), room()) == 0
