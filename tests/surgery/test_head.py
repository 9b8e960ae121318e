"""Head slicing."""

import copy

import pytest
import torch
from torch import nn

from billhook.models import build, find_head
from billhook.surgery import slice_head


def conv_headed():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU())
        self.classifier = nn.ModuleDict({"out": nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 7, bias=False))})

    def forward(self, x):
        return self.classifier["out"](self.body(x))


@pytest.mark.parametrize(
    ("make", "head", "size"),
    [
        (lambda: build("tinycnn"), "fc", 8),
        (lambda: build("resnet20"), None, 8),
        (lambda: build("mobilenet_v2,width=0.25", 12), None, 32),
        (conv_headed, "2", 4),
        (Nested, "classifier.out.1", 4),
    ],
)
@pytest.mark.parametrize("kept", [(1, 4), (4, 1, 0), (3,)])
def test_outputs_are_the_rows(make, head, size, kept):
    net = make().eval()
    head = head or find_head(net)
    before = copy.deepcopy(net.state_dict())
    small = slice_head(net, head, kept)
    images = torch.rand(3, 3, size, size)
    assert torch.allclose(small(images), net(images)[:, list(kept)], atol=1e-6)
    assert small(images).shape == (3, len(kept))
    # the original is untouched, and shares no memory with the copy
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_head_says_its_new_size_and_keeps_its_flags():
    net = Nested()
    net.eval()
    net.classifier["out"][1].weight.requires_grad_(False)
    small = slice_head(net, "classifier.out.1", [0, 2])
    head = small.get_submodule("classifier.out.1")
    assert (head.out_features, head.in_features, head.bias) == (2, 5, None)
    assert not head.training
    assert not head.weight.requires_grad
    assert net.classifier["out"][1].out_features == 7
    conv = slice_head(conv_headed(), "2", [5]).get_submodule("2")
    assert (conv.out_channels, tuple(conv.weight.shape), tuple(conv.bias.shape)) == (1, (1, 8, 1, 1), (1,))


def test_a_head_of_the_users_own_class_stays_one():
    class Cosine(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    net = nn.Sequential(nn.Flatten(), Cosine(48, 5, bias=False))
    images = torch.rand(2, 3, 4, 4)
    assert torch.allclose(slice_head(net, "1", [4, 2])(images), net(images)[:, [4, 2]], atol=1e-6)


def test_a_network_that_is_its_own_head():
    net = nn.Linear(4, 3)
    assert torch.equal(slice_head(net, "", [2])(torch.ones(1, 4)), net(torch.ones(1, 4))[:, 2:])


@pytest.mark.parametrize("head", [nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1, groups=2), nn.BatchNorm2d(8)])
def test_other_heads_are_refused(head):
    with pytest.raises(TypeError, match="not a linear layer or a 1x1 convolution"):
        slice_head(nn.Sequential(head), "0", [0])
