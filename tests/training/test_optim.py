"""Learning rates, weight decay groups, the distillation loss."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from billhook.recipe import TrainRecipe
from billhook.training.config import PRESETS, TrainConfig
from billhook.training.distil import distillation_loss
from billhook.training.optim import learning_rate, make_optimizer

from .small import TinyNet, seeded


def test_cosine_after_a_linear_warm_up():
    config = TrainConfig(lr=0.4, warmup=0.5, schedule="cosine")
    # 6 steps per epoch: 3 steps of warm-up asked for, a tenth of 40 allows 4.
    rates = [learning_rate(config, step, 40, 6) for step in range(40)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[3] == pytest.approx(0.4)
    assert rates[3:] == pytest.approx([0.2 * (1 + math.cos(math.pi * s / 37)) for s in range(37)])
    assert 0 < rates[-1] < 0.001
    assert max(rates) == rates[3]


def test_the_warm_up_takes_at_most_a_tenth():
    config = TrainConfig(lr=1.0, warmup=5.0, schedule="constant")
    assert [learning_rate(config, step, 30, 10) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert learning_rate(config, 0, 9, 10) == 1.0


def test_constant_and_no_warm_up():
    config = TrainConfig(lr=0.3, warmup=0.0, schedule="constant")
    assert {learning_rate(config, step, 50, 5) for step in range(50)} == {0.3}
    assert learning_rate(TrainConfig(lr=0.3, warmup=0.0), 0, 1, 1) == 0.3


def test_biases_and_norms_are_not_decayed():
    net = seeded(TinyNet)
    optimizer = make_optimizer(net, TrainConfig(optimizer="sgd", weight_decay=0.1, momentum=0.9))
    by_decay = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    weights = (net.conv1.weight, net.conv2.weight, net.conv3.weight, net.fc.weight)
    assert {id(p) for p in by_decay[0.1]} == {id(weight) for weight in weights}
    assert sum(len(group) for group in by_decay.values()) == len(list(net.parameters()))
    assert all(p.dim() == 1 for p in by_decay[0.0])


def test_frozen_parameters_are_not_given_to_the_optimiser():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    net[0].requires_grad_(False)
    optimizer = make_optimizer(net, TrainConfig(optimizer="adamw", weight_decay=0.2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [net[1].weight.shape]


def test_no_nesterov_without_momentum():
    optimizer = make_optimizer(nn.Linear(2, 2), TrainConfig(optimizer="sgd", momentum=0.0, nesterov=True))
    assert optimizer.defaults["nesterov"] is False


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_times_temperature_squared(temperature):
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_loss_and_no_gradient_where_student_and_teacher_agree():
    logits = torch.randn(4, 6, requires_grad=True)
    loss = distillation_loss(logits, logits.detach() + 3.0, 2.0)  # a shift of all logits changes nothing
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.allclose(logits.grad, torch.zeros(4, 6), atol=1e-6)


def test_no_gradient_flows_into_the_teacher():
    teacher = torch.randn(4, 6, requires_grad=True)
    student = torch.randn(4, 6, requires_grad=True)
    distillation_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_scale_of_the_gradient_does_not_depend_on_the_temperature():
    student, teacher = torch.zeros(1, 5), 0.01 * torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    grads = []
    for temperature in (4.0, 40.0):
        logits = student.clone().requires_grad_()
        distillation_loss(logits, teacher, temperature).backward()
        grads.append(logits.grad)
    assert torch.allclose(grads[0], grads[1], rtol=0.02, atol=2e-5)
    assert functional.cosine_similarity(grads[0], (student - teacher) - (student - teacher).mean(), dim=1) > 0.999


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"milestones": (0.5, 0.75)}, {0: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
        ({"step_every": 3.0, "factor": 0.5}, {0: 1.0, 29: 1.0, 30: 0.5, 59: 0.5, 60: 0.25, 99: 0.125}),
    ],
)
def test_step_schedule(fields, expected):
    config = TrainConfig(lr=1.0, warmup=0, schedule="step", **fields)
    for step, rate in expected.items():
        assert learning_rate(config, step, 100, 10) == pytest.approx(rate)


def test_presets_are_recipes():
    """Every preset is a valid recipe; the papers' figures are spelled out."""
    recipes = {name: TrainRecipe(**fields) for name, fields in PRESETS.items()}
    assert recipes["crisp"].lr == 0.01
    assert recipes["crisp"].weight_decay == 5e-4
    assert recipes["chipnet"].epochs == 200
    rates = [learning_rate(recipes["chipnet"].config(), epoch * 10, 2000, 10) for epoch in (0, 30, 60, 199)]
    assert rates == pytest.approx([0.05, 0.025, 0.0125, 0.05 * 0.5**6])
    rates = [learning_rate(recipes["hbgs"].config(), epoch * 10, 3000, 10) for epoch in (0, 149, 150, 299)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])
    # HBGS adds the divergence at temperature 2, without its square in front, to the cross-entropy; nothing else.
    recipe = recipes["hbgs"].config()
    assert recipe.temperature == 2
    assert recipe.distil_weight * recipe.temperature**2 == pytest.approx(1 - recipe.distil_weight)
    assert recipe.distil_features == 0
