"""Which entries of a layer's tensors stay, against cutting by hand and against running the layer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from billhook.models import PadShortcut
from billhook.surgery.tensors import TensorCut, is_depthwise, layer_channels, layer_cuts, resize


@st.composite
def some(draw, total, least=1):
    """Some positions out of a number of them, ascending."""
    return tuple(sorted(draw(st.sets(st.integers(0, total - 1), min_size=least, max_size=total))))


@st.composite
def tensor_cuts(draw):
    """A shape and a cut of it: any dimensions, each at most once."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    chosen = draw(st.sets(st.integers(0, len(shape) - 1)))
    return shape, TensorCut(tuple((dim, draw(some(shape[dim]))) for dim in sorted(chosen)))


@st.composite
def grouped_cuts(draw):
    """A grouped convolution and outputs and inputs of it, equally many in each of its groups."""
    groups, width, height = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    layer = nn.Conv2d(groups * width, groups * height, 3, groups=groups, bias=draw(st.booleans()))
    kept = []
    for size in (height, width):
        count = draw(st.integers(1, size))
        sections = [sorted(draw(st.permutations(range(size)))[:count]) for _ in range(groups)]
        kept.append(tuple(group * size + at for group, section in enumerate(sections) for at in section))
    return layer, kept[0], kept[1]


def numbered(shape):
    return torch.arange(1.0, 1 + np.prod(shape)).reshape(shape)


@given(tensor_cuts())
def test_put_is_the_right_inverse_of_take(case):
    shape, cut = case
    large = numbered(shape)
    small = cut.take(large)
    grid = np.ix_(*[dict(cut.dims).get(dim, range(size)) for dim, size in enumerate(shape)])
    np.testing.assert_array_equal(small.numpy(), large.numpy()[grid])
    back = cut.put(small, large)
    assert back.shape == large.shape
    assert torch.equal(cut.take(back), small)
    expected = np.zeros(shape)
    expected[grid] = large.numpy()[grid]
    np.testing.assert_array_equal(back.numpy(), expected)
    assert torch.equal(large, numbered(shape))  # neither changes what it was given
    cut.clear(large)
    np.testing.assert_array_equal(large.numpy(), expected)


@given(grouped_cuts())
def test_the_rows_of_a_grouped_convolution(case):
    layer, out, inside = case
    cut = layer_cuts(layer, out, inside)["weight"]
    height, width = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    large = numbered(layer.weight.shape)
    small = cut.take(large)
    for row, output in enumerate(out):
        mine = [position % width for position in inside if position // width == output // height]
        assert torch.equal(small[row], large[output, mine])
    back = cut.put(small, large)
    assert torch.equal(cut.take(back), small)
    assert back.count_nonzero() == small.numel()
    assert torch.equal(back[back != 0], large[back != 0])
    cut.clear(large)
    assert torch.equal(large, back)


@given(grouped_cuts(), st.integers(0, 5))
def test_a_smaller_grouped_convolution_computes_what_the_masked_one_does(case, seed):
    layer, out, inside = case
    layer = layer.double()
    image = torch.randn(2, layer.in_channels, 5, 5, generator=torch.Generator().manual_seed(seed)).double()
    masked = torch.zeros_like(image)
    masked[:, list(inside)] = image[:, list(inside)]
    expected = layer(masked)[:, list(out)]
    resize(layer, out, inside)
    found = layer(image[:, list(inside)])
    torch.testing.assert_close(found, expected)


LAYERS = {
    "conv": (nn.Conv2d(5, 4, 3), (1, 3), (0, 2, 4)),
    "transposed": (nn.ConvTranspose2d(5, 4, 3), (1, 3), (0, 2, 4)),
    "linear": (nn.Linear(5, 4), (0, 3), (1, 2)),
    "only outputs": (nn.Conv2d(5, 4, 3, bias=False), (2,), None),
    "only inputs": (nn.Linear(5, 4), None, (4,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_smaller_layer_computes_what_the_masked_one_does(name):
    layer, out, inside = LAYERS[name]
    layer = layer.double()
    image = torch.randn(2, 5, *(() if name in ("linear", "only inputs") else (6, 6))).double()
    read = list(range(5)) if inside is None else list(inside)
    masked = torch.zeros_like(image)
    masked[:, read] = image[:, read]
    expected = layer(masked)[:, list(range(4)) if out is None else list(out)]
    resize(layer, out, inside)
    torch.testing.assert_close(layer(image[:, read]), expected)
    assert (layer_channels(layer, "out"), layer_channels(layer, "in")) == (expected.shape[1], len(read))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(5),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5, track_running_stats=False),
        nn.InstanceNorm2d(5, affine=True),
        nn.InstanceNorm2d(5),
        nn.PReLU(5),
        nn.Conv2d(5, 5, 3, groups=5),
        nn.ConvTranspose2d(5, 5, 3, groups=5),
    ],
)
def test_layers_that_work_on_each_channel_alone(layer):
    layer = layer.double().eval()
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5)
    image = torch.randn(2, 5, 6, 6).double()
    expected = layer(image)[:, [0, 3]]
    resize(layer, (0, 3), None)
    torch.testing.assert_close(layer(image[:, [0, 3]]), expected)
    assert layer_channels(layer, "out") == layer_channels(layer, "in") == 2


def test_frozen_parameters_stay_frozen_and_buffers_stay_buffers():
    layer = nn.BatchNorm2d(4)
    layer.weight.requires_grad_(False)
    resize(layer, (1, 2), None)
    assert isinstance(layer.weight, nn.Parameter)
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (False, True)
    assert dict(layer.named_buffers()).keys() == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_padding_shortcut_follows_its_channels():
    shortcut = PadShortcut(4, 2, 2, 1)  # outputs: 0 0 a b c d 0 0
    shortcut.keep((1, 2, 4, 5, 7), (0, 3))
    image = torch.tensor([1.0, 4.0]).reshape(1, 2, 1, 1)
    assert shortcut(image).flatten().tolist() == [0, 1, 0, 4, 0]
    assert (layer_channels(shortcut, "in"), layer_channels(shortcut, "out")) == (2, 5)


def test_layers_without_channels_are_refused():
    for layer in (nn.ReLU(), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Sequential(), nn.LSTM(3, 4)):
        with pytest.raises(TypeError, match=type(layer).__name__):
            layer_cuts(layer, (0,), None)
        with pytest.raises(TypeError, match=type(layer).__name__):
            layer_channels(layer, "out")


def test_depthwise():
    assert is_depthwise(nn.Conv2d(4, 4, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(4, 4, 3, groups=2))
    assert not is_depthwise(nn.Conv2d(1, 1, 3))
