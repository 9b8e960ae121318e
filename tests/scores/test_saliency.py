"""Saliency: the mean of absolute micro-batch gradients, worked out by hand and by a plain loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from billhook.data import ImageSet, Preprocess, open_source, select
from billhook.scores import mean_absolute_gradient, saliency_images
from training.small import TinyNet, data, pictures, preprocess, room, seeded


def by_hand(module: nn.Module, images: ImageSet, transform: Preprocess, micro_batch: int) -> dict[str, torch.Tensor]:
    """One backward pass per micro-batch, absolute values, then the mean."""
    module = module.eval()
    sums: dict[str, torch.Tensor] = {}
    batches = list(images.batches(micro_batch, transform))
    for batch in batches:
        module.zero_grad()
        functional.cross_entropy(module(batch.images), batch.labels).backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad.abs()
    module.zero_grad(set_to_none=True)
    return {name: total / len(batches) for name, total in sums.items()}


def test_a_linear_network_worked_out_by_hand():
    # Zero weights: both classes have probability 1/2, so dL/dw of the true class is -x/2 and of the other x/2.
    pixels = torch.zeros(4, 3, 1, 1, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor([255, 255, 0, 255], dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    dataset = torch.utils.data.TensorDataset(pixels, labels)
    images = select(open_source((dataset, dataset, dataset))).train
    assert images.labels.tolist() == [0, 1, 0, 1]
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    nn.init.zeros_(net[1].weight)
    plain = Preprocess(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1)
    weight = {"w": net[1].weight}
    # One at a time |g| = 1/2 for the three bright images, 0 for the dark one: 3/8.
    single = mean_absolute_gradient(net, weight, images, plain, room(), micro_batch=1)["w"]
    assert torch.allclose(single[:, 0], torch.tensor([3 / 8, 3 / 8]))
    assert torch.equal(single[:, 1:], torch.zeros(2, 2))
    # Images 0 and 1 cancel; 2 and 3 leave 1/4: the mean of 0 and 1/4.
    pairs = mean_absolute_gradient(net, weight, images, plain, room(), micro_batch=2)["w"]
    assert torch.allclose(pairs[:, 0], torch.tensor([1 / 8, 1 / 8]))
    # All four at once: (-1 + 1 + 0 + 1) / 8.
    whole = mean_absolute_gradient(net, weight, images, plain, room(), micro_batch=4)["w"]
    assert torch.allclose(whole[:, 0], torch.tensor([1 / 8, 1 / 8]))


@pytest.mark.parametrize("micro_batch", [1, 7, 16, 1000])
def test_equals_the_loop(micro_batch):
    net, images = seeded(TinyNet), data().train
    expected = by_hand(net, images, preprocess(), micro_batch)
    found = mean_absolute_gradient(
        net, dict(net.named_parameters()), images, preprocess(), room(), micro_batch=micro_batch
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-8), name


def test_it_is_not_the_absolute_value_of_the_mean():
    net, images = seeded(TinyNet), data().train.subset(range(40))
    parameters = dict(net.named_parameters())
    many = mean_absolute_gradient(net, parameters, images, preprocess(), room(), micro_batch=4)
    one = mean_absolute_gradient(net, parameters, images, preprocess(), room(), micro_batch=1000)
    assert all(torch.all(many[name] >= one[name] * (1 - 1e-4) - 1e-7) for name in many)
    assert many["conv2.weight"].sum() > 1.05 * one["conv2.weight"].sum()


def test_the_network_is_left_as_it_was():
    net = seeded(TinyNet, 4, 0.5).train()
    net.bn1.eval()
    net.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.random.get_rng_state()
    mean_absolute_gradient(net, {"conv2.weight": net.conv2.weight}, data().train, preprocess(), room())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert (net.training, net.bn1.training, net.bn2.training) == (True, False, True)
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_network_is_left_as_it_was_also_after_a_failure():
    class Breaks(TinyNet):
        def forward(self, x):
            raise RuntimeError("broken")

    net = seeded(Breaks).train()
    net.fc.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="broken"):
        mean_absolute_gradient(net, {"conv1.weight": net.conv1.weight}, data().train, preprocess(), room())
    assert net.training
    assert net.conv1.weight.requires_grad
    assert not net.fc.bias.requires_grad


def test_gradients_at_hand_stay():
    net = seeded(TinyNet)
    net.conv2.weight.grad = torch.ones_like(net.conv2.weight)
    mean_absolute_gradient(net, dict(net.named_parameters()), data().train, preprocess(), room())
    assert torch.equal(net.conv2.weight.grad, torch.ones_like(net.conv2.weight))
    assert net.conv1.weight.grad is None


def test_batch_norm_uses_its_running_statistics():
    net, images = seeded(TinyNet), data().train
    base = mean_absolute_gradient(net, {"w": net.conv2.weight}, images, preprocess(), room())["w"]
    net.bn2.running_var.mul_(4)
    assert not torch.allclose(
        base, mean_absolute_gradient(net, {"w": net.conv2.weight}, images, preprocess(), room())["w"], rtol=0.05
    )


def test_a_parameter_used_twice_and_one_never_used():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.never, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.twice(self.twice(self.stem(x)).relu()).mean(dim=(2, 3)))

    net, images = seeded(Shared), data().train
    expected = by_hand(net, images, preprocess(), 16)
    found = mean_absolute_gradient(net, dict(net.named_parameters()), images, preprocess(), room(), micro_batch=16)
    assert torch.allclose(found["twice.weight"], expected["twice.weight"], rtol=1e-5, atol=1e-8)
    assert torch.equal(found["never.weight"], torch.zeros(4, 4, 1, 1))


def test_masked_weights_have_a_gradient_too():
    net, images = seeded(TinyNet), data().train
    with torch.no_grad():
        net.conv2.weight[:, :4] = 0
    found = mean_absolute_gradient(net, {"w": net.conv2.weight}, images, preprocess(), room())["w"]
    assert (found[:, :4] > 0).float().mean() > 0.9


def test_the_images_are_a_function_of_seed_and_draw():
    images = data(200).train
    first = saliency_images(images, 20, seed=3, draw=5)
    assert len(first) == 20
    assert len(set(first.indices.tolist())) == 20
    torch.manual_seed(1)
    assert saliency_images(images, 20, 3, 5).indices.tolist() == first.indices.tolist()
    assert saliency_images(images, 20, 3, 6).indices.tolist() != first.indices.tolist()
    assert saliency_images(images, 20, 4, 5).indices.tolist() != first.indices.tolist()
    assert saliency_images(images, len(images), 3, 5) is images
    assert saliency_images(images, len(images) + 1, 3, 5) is images
    assert saliency_images(images, 7, 3, 5).labels.tolist() == [
        int(pictures(200)[row][1]) for row in saliency_images(images, 7, 3, 5).indices.tolist()
    ]
