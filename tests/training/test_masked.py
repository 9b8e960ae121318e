"""Masked weights: what forward sees, what the latent weights get, and what freezing fixes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from billhook.training.masked import MaskedWeights

from .small import TinyNet, seeded

LR = 0.1


def setting(rate=1.0, decay=0.0):
    net = seeded(TinyNet).eval()
    mask = torch.rand(16, 8, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    masked = MaskedWeights(net, ["conv2.weight"], rate=rate, decay=decay)
    masked.set_masks({"conv2.weight": mask})
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return net, masked, mask, images, torch.arange(6) % 4


def loss_of(net, images, labels):
    return functional.cross_entropy(net(images), labels)


def effective_gradient(net, weight, images, labels):
    """dL/d(mask * latent), by autograd through a functional call."""
    weight = weight.clone().requires_grad_()
    out = torch.func.functional_call(net, {"conv2.weight": weight}, (images,))
    return torch.autograd.grad(functional.cross_entropy(out, labels), weight)[0]


def test_forward_sees_the_masked_weight_and_the_optimiser_the_latent_one():
    net, masked, mask, images, _ = setting()
    latent = net.conv2.weight.detach().clone()
    expected = torch.func.functional_call(net, {"conv2.weight": latent * mask}, (images,))
    masked.close()
    assert torch.equal(net(images), expected)
    assert torch.equal(net.conv2.weight, latent * mask)
    assert isinstance(net.conv2.weight, nn.Parameter)
    masked.open()
    assert torch.equal(net.conv2.weight, latent)
    masked.close()
    masked.open()
    assert torch.equal(net.conv2.weight, latent)


def step(net, masked, images, labels, optimizer):
    masked.close()
    optimizer.zero_grad(set_to_none=True)
    loss_of(net, images, labels).backward()
    masked.open()
    optimizer.step()


def test_closed_positions_get_the_gradient_of_the_effective_weight():
    net, masked, mask, images, labels = setting()
    latent = net.conv2.weight.detach().clone()
    expected = effective_gradient(net, latent * mask, images, labels)
    step(net, masked, images, labels, torch.optim.SGD(net.parameters(), LR))
    assert torch.allclose(net.conv2.weight.grad, expected, atol=1e-7)
    assert net.conv2.weight.grad[~mask].abs().mean() > 0
    assert torch.allclose(net.conv2.weight, latent - LR * expected, atol=1e-6)


def test_the_gradient_at_a_closed_position_by_finite_differences():
    net, masked, mask, images, labels = setting()
    net.double()
    masked = MaskedWeights(net, ["conv2.weight"])
    masked.set_masks({"conv2.weight": mask})
    images = images.double()
    masked.close()
    loss_of(net, images, labels).backward()
    effective = net.conv2.weight.detach().clone()
    masked.open()
    place = tuple((~mask).nonzero()[5].tolist())
    change = torch.zeros_like(effective)
    change[place] = 1e-6
    with torch.no_grad():
        up, down = (
            functional.cross_entropy(torch.func.functional_call(net, {"conv2.weight": w}, (images,)), labels)
            for w in (effective + change, effective - change)
        )
    assert net.conv2.weight.grad[place].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4)


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.0])
def test_one_step_with_rate_and_decay_by_hand(rate):
    decay = 0.3
    net, masked, mask, images, labels = setting(rate, decay)
    latent = net.conv2.weight.detach().clone()
    gradient = effective_gradient(net, latent * mask, images, labels)
    step(net, masked, images, labels, torch.optim.SGD(net.parameters(), LR))
    closed = ~mask
    expected = latent - LR * (gradient * (mask + rate * closed) + decay * closed * latent)
    assert torch.allclose(net.conv2.weight, expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw"])
def test_frozen_weights_stay_exactly_zero_under_momentum_and_decay(optimizer):
    net, masked, mask, images, labels = setting(decay=2e-4)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=0.05),
        "nesterov": lambda p: torch.optim.SGD(p, LR, momentum=0.9, nesterov=True, weight_decay=0.05),
        "adamw": lambda p: torch.optim.AdamW(p, LR, weight_decay=0.05),
    }[optimizer](net.parameters())
    for _ in range(3):
        step(net, masked, images, labels, make)
    masked.freeze()
    assert torch.all(net.conv2.weight[~mask] == 0)
    for _ in range(3):
        masked.close()
        # what forward, backward and evaluation see
        assert torch.all(net.conv2.weight[~mask] == 0)
        make.zero_grad(set_to_none=True)
        loss_of(net, images, labels).backward()
        masked.open()
        assert torch.all(net.conv2.weight.grad[~mask] == 0)
        make.step()
    masked.close()
    assert torch.all(net.conv2.weight[~mask] == 0)
    assert torch.all(net.conv2.weight[mask] != 0)


def test_new_masks_count_changes_and_returns():
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    masked = MaskedWeights(net, ["0.weight"])
    assert masked.set_masks({"0.weight": torch.tensor([[1, 1, 0, 0]]).bool()}) == (0, 0)
    assert masked.set_masks({"0.weight": torch.tensor([[1, 0, 1, 0]]).bool()}) == (2, 1)
    assert masked.set_masks({"0.weight": torch.tensor([[1, 0, 1, 1]]).bool()}) == (1, 1)
    assert masked.set_masks({"0.weight": torch.tensor([[0, 0, 0, 1]]).bool()}) == (2, 0)


def test_a_weight_that_comes_back_brings_its_latent_value():
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    masked = MaskedWeights(net, ["0.weight"])
    latent = net[0].weight.detach().clone()
    masked.set_masks({"0.weight": torch.tensor([[1, 1, 0, 0]]).bool()})
    masked.close()
    assert net[0].weight[0, 2] == 0
    masked.open()
    masked.set_masks({"0.weight": torch.tensor([[0, 0, 1, 1]]).bool()})
    masked.close()
    assert torch.equal(net[0].weight[0, 2:], latent[0, 2:])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_state_goes_round(frozen):
    net, masked, _, images, labels = setting(0.5, 0.01)
    optimizer = torch.optim.SGD(net.parameters(), LR)
    step(net, masked, images, labels, optimizer)
    if frozen:
        masked.freeze()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = seeded(TinyNet, seed=9).eval()
    again = MaskedWeights(other, ["conv2.weight"], rate=0.5, decay=0.01)
    other.load_state_dict(state)
    saved = masked.state_dict()
    assert saved["conv2.weight"].dtype == torch.uint8
    again.load_state_dict(saved, frozen)
    step(net, masked, images, labels, optimizer)
    step(other, again, images, labels, torch.optim.SGD(other.parameters(), LR))
    assert torch.equal(net.conv2.weight, other.conv2.weight)
    assert again.frozen == frozen


def test_channels_last_weights_keep_their_layout():
    net = seeded(TinyNet).to(memory_format=torch.channels_last)
    masked = MaskedWeights(net, ["conv2.weight"])
    masked.set_masks({"conv2.weight": torch.ones(16, 8, 3, 3, dtype=torch.bool)})
    masked.close()
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    masked.open()
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_changes_its_layout_afterwards_keeps_it():
    """The loop places the network after the method was made: memory layout (and device) are those of the placed one."""
    net = seeded(TinyNet)
    masked = MaskedWeights(net, ["conv2.weight"])
    net.to(memory_format=torch.channels_last)
    weight = net.conv2.weight.detach().clone()
    masked.set_masks({"conv2.weight": torch.rand(weight.shape) < 0.5})
    for _ in range(2):
        masked.close()
        assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
        masked.open()
        assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.conv2.weight, weight)
