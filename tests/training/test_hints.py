"""Distillation of feature maps: which maps, how far apart, and nothing left behind."""

import pytest
import torch

from billhook.models import build
from billhook.training.config import TrainConfig
from billhook.training.distil import Hints
from billhook.training.loop import fit

from .small import TinyNet, preprocess, room, seeded
from .test_fit import CONFIG, task


def images(size=16):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_last_map_of_each_resolution_gives_the_hint():
    student, teacher = build("resnet20").train(), build("resnet20").eval()
    hints = Hints(student, teacher, images(32))
    assert set(hints.layers) == {"layer1", "layer2", "layer3"}
    assert student.training


def test_the_loss_is_the_mean_relative_squared_difference():
    student, teacher = build("resnet20").eval(), build("resnet20").eval()
    x = images(32)
    hints = Hints(student, teacher, x)
    student(x)
    teacher(x)
    loss = hints.loss()
    expected = []
    a = student.relu(student.bn1(student.conv1(x)))
    b = teacher.relu(teacher.bn1(teacher.conv1(x)))
    for stage in ("layer1", "layer2", "layer3"):
        a, b = student.get_submodule(stage)(a), teacher.get_submodule(stage)(b)
        expected.append((a - b).square().mean() / b.var())
    assert float(loss.detach()) == pytest.approx(float(sum(expected).detach() / 3), rel=1e-5)
    loss.backward()
    assert student.conv1.weight.grad is not None
    assert teacher.conv1.weight.grad is None


def test_a_copy_of_the_teacher_has_nothing_to_learn():
    net = build("resnet20").eval()
    hints = Hints(net, build("resnet20").eval(), images(32))
    twin = build("resnet20").eval()
    twin.load_state_dict(net.state_dict())
    hints = Hints(twin, net, images(32))
    twin(images(32))
    net(images(32))
    assert float(hints.loss()) == 0


def test_maps_of_another_width_give_no_hint():
    student, teacher = build("resnet18,stem=cifar,width=0.25").eval(), build("resnet18,stem=cifar,width=0.5").eval()
    hints = Hints(student, teacher, images(32))
    assert hints.layers == ()
    student(images(32))
    assert hints.loss() == 0


def test_nothing_is_left_behind():
    teacher = seeded(TinyNet, seed=5)
    net = seeded(TinyNet)
    fit(task(net, config=CONFIG.model_copy(update={"distil_features": 2.0}), teacher=teacher), room())
    for network in (net, teacher):
        assert not any(layer._forward_hooks for layer in network.modules())


def test_hints_pull_the_maps_together():
    def distance(weight):
        teacher, net = seeded(TinyNet, seed=5).eval(), seeded(TinyNet)
        config = CONFIG.model_copy(update={"distil_features": weight, "distil_weight": 0.0})
        fit(task(net, config=config, transform=preprocess(False), teacher=teacher), room())
        hints = Hints(net.eval(), teacher, images())
        assert hints.layers
        net(images())
        teacher(images())
        return float(hints.loss())

    assert distance(5.0) < 0.9 * distance(0.0)


def test_they_are_on_by_default():
    assert TrainConfig().distil_features > 0
