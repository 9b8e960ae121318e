"""Images blended in pairs: shares, labels, what the teacher sees."""

import math

import pytest
import torch
from torch.nn import functional

from billhook.training.config import TrainConfig
from billhook.training.loop import fit
from billhook.training.mixup import Blend

from .small import TinyNet, preprocess, room, same_state, seeded
from .test_fit import CONFIG, task

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 2, 1])


def blend(seed, alpha=1.0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Blend(alpha, len(IMAGES))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_image_is_blended_with_its_partner(layout):
    made = blend(0)
    images = IMAGES.contiguous(memory_format=layout)
    found = made.images(images)
    assert sorted(made.partner.tolist()) == list(range(6))
    assert found.is_contiguous(memory_format=layout)
    for index, partner in enumerate(made.partner.tolist()):
        expected = made.share * IMAGES[index] + (1 - made.share) * IMAGES[partner]
        assert torch.allclose(found[index], expected, atol=1e-6)


def test_the_loss_is_that_of_blended_labels():
    """Cross-entropy is linear in its target: the loss on soft labels is the same."""
    made = blend(3)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    soft = made.share * functional.one_hot(LABELS, 4) + (1 - made.share) * functional.one_hot(LABELS[made.partner], 4)
    found = made.loss(lambda labels: functional.cross_entropy(logits, labels), LABELS)
    assert float(found) == pytest.approx(float(functional.cross_entropy(logits, soft)), rel=1e-5)


def test_an_image_keeps_the_greater_part_of_itself():
    shares = [blend(seed).share for seed in range(300)]
    assert 0.5 <= min(shares) < 0.51
    assert 0.99 < max(shares) <= 1
    assert sum(shares) / len(shares) == pytest.approx(0.75, abs=0.03)  # a uniform share, the greater side of it


def test_the_shares_come_from_the_beta_distribution():
    """The variance of Beta(a, a) is 1 / (4 (2a + 1)); folding at a half keeps the distance from there."""
    for alpha in (0.2, 5.0):
        squares = [(blend(seed, alpha).share - 0.5) ** 2 for seed in range(600)]
        assert sum(squares) / len(squares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_teacher_and_student_see_the_same_blends():
    """A student that is the teacher has nothing to learn from it, on any image that both see."""
    config = CONFIG.model_copy(update={"mixup": 1.0, "distil_weight": 1.0, "distil_features": 0.0, "momentum": 0.0})
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    student, teacher = seeded(TinyNet), seeded(TinyNet, seed=5)
    for name, net in (("student", student), ("teacher", teacher)):
        net.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0].detach().clone()))
    fit(task(student, config=config, steps=3, teacher=teacher), room())
    training = [images for images in seen["student"] if any(torch.equal(images, other) for other in seen["teacher"])]
    assert len(seen["teacher"]) == 3
    assert len(training) == 3


def test_it_changes_the_training_and_a_seed_repeats_it():
    config = CONFIG.model_copy(update={"mixup": 1.0})
    nets = []
    for changed in (config, config, CONFIG):
        net = seeded(TinyNet)
        history = fit(task(net, config=changed, transform=preprocess(False)), room())
        assert all(math.isfinite(line["loss"]) for line in history)
        nets.append(net)
    assert same_state(nets[0], nets[1])
    assert not same_state(nets[0], nets[2])


def test_off_by_default_and_never_negative():
    assert TrainConfig().mixup == 0
    with pytest.raises(ValueError, match="mixup"):
        TrainConfig(mixup=-0.1)
