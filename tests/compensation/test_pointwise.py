"""A convolution between 1x1 convolutions: what it computes after filters went, and what is folded back."""

import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from billhook.compensation import (
    Pointwise,
    PointwiseShape,
    fold_pointwise,
    fp_backward,
    fp_omp,
    input_slices,
    insert_pointwise,
    opened,
    output_filters,
    pointwise_layers,
    pointwise_shapes,
    pointwise_values,
    prunable_convolutions,
    shape_pointwise,
)
from billhook.errors import InputError
from billhook.models import open_network

BOTH = pytest.mark.parametrize("select", [fp_backward, fp_omp])
CONVS = {
    "plain": nn.Conv2d(6, 8, 3, padding=1),
    "strided": nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(0, 2), bias=False),
    "grouped": nn.Conv2d(12, 8, 3, groups=2, dilation=2, padding="same"),
    "circular": nn.Conv2d(6, 8, 3, padding=2, padding_mode="circular"),
    "reflecting": nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect", groups=3, bias=False),
}
EVERY = pytest.mark.parametrize("kind", CONVS)
SIDES = pytest.mark.parametrize("side", ["out", "in"])


def wrapped(kind: str, seed: int = 0) -> Pointwise:
    """Random weights throughout, as after fine-tuning, in double precision."""
    net = nn.Sequential(copy.deepcopy(CONVS[kind]))
    insert_pointwise(net, ["0"])
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net[0]


def image(part: Pointwise) -> torch.Tensor:
    channels = (part.before if isinstance(part.before, nn.Conv2d) else part.conv).in_channels
    return torch.randn(2, channels, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def width(conv: nn.Conv2d, side: str) -> int:
    return conv.out_channels if side == "out" else conv.in_channels


def depend(part: Pointwise, side: str, rank: int) -> None:
    """Filters, or input slices, of each group that are mixtures of ``rank`` of them."""
    weight = part.conv.weight.data
    per = part.conv.out_channels // part.groups
    for number in range(part.groups):
        rows = weight[number * per : (number + 1) * per]
        rows = rows if side == "out" else rows.transpose(0, 1)
        mix = torch.randn(len(rows), rank, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        rows[:] = torch.einsum("ij,j...->i...", mix, rows[:rank].clone())


# Nothing has changed


@EVERY
def test_identities_change_nothing(kind):
    net = nn.Sequential(copy.deepcopy(CONVS[kind])).double()
    x = torch.randn(2, CONVS[kind].in_channels, 7, 8, dtype=torch.float64)
    expected = net(x)
    insert_pointwise(net, ["0"])
    assert isinstance(net[0], Pointwise)
    assert net[0].conv.bias is None
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)
    fold_pointwise(net)
    assert type(net[0]) is nn.Conv2d
    assert torch.equal(net[0].weight, CONVS[kind].weight.double())
    assert (net[0].bias is None) == (CONVS[kind].bias is None)
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)


@EVERY
def test_folding_is_exact_whatever_was_learned(kind):
    part = wrapped(kind)
    plain = part.folded()
    assert type(plain) is nn.Conv2d
    assert (plain.stride, plain.padding, plain.groups) == (CONVS[kind].stride, CONVS[kind].padding, CONVS[kind].groups)
    assert plain.weight.shape == CONVS[kind].weight.shape
    assert torch.allclose(plain(image(part)), part(image(part)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [20])
def test_logits_of_a_network(depth):
    network = open_network(f"resnet{depth}", 10).module.eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x)
        names = prunable_convolutions(network)
        assert len(names) == depth - 2  # all but the stem
        insert_pointwise(network, names)
        assert torch.allclose(network(x), expected, rtol=1e-4, atol=1e-4)
        assert list(pointwise_layers(network)) == list(names)
        fold_pointwise(network)
        assert not pointwise_layers(network)
        assert torch.equal(network(x), expected)


# Filters go


@BOTH
@EVERY
@SIDES
def test_what_depends_on_the_rest_leaves_the_output_as_it_was(kind, side, select):
    part = wrapped(kind)
    depend(part, side, 2)
    small = part.without(side, select(part.rows(side)), 2)
    assert width(small.conv, side) == 2 * part.groups < width(part.conv, side)
    expected = part(image(part))
    assert torch.allclose(small(image(part)), expected, rtol=0, atol=1e-9 * float(expected.detach().abs().max()))


@BOTH
def test_both_sides_again_and_again(select):
    part = wrapped("grouped")
    depend(part, "out", 2)
    depend(part, "in", 2)
    expected = part(image(part))
    for side, count in (("out", 3), ("in", 4), ("out", 2), ("in", 2)):
        part = part.without(side, select(part.rows(side)), count)
        assert torch.allclose(part(image(part)), expected, rtol=0, atol=1e-8 * float(expected.detach().abs().max()))
    assert tuple(part.conv.weight.shape) == (4, 2, 3, 3)
    with pytest.raises(ValueError, match="0 of"):
        part.without("out", select(part.rows("out")), 0)


@SIDES
def test_independent_filters_leave_what_least_squares_leave(side):
    """The three layers compute the convolution whose filters are projected on those that stay."""
    part = wrapped("plain")
    selection = fp_backward(part.rows(side))
    small = part.without(side, selection, 3)
    rows = part.rows(side)[0].numpy()
    kept = selection.kept(3)
    projected = torch.from_numpy(np.linalg.lstsq(rows[kept].T, rows.T, rcond=None)[0].T @ rows[kept])
    twin = copy.deepcopy(part)
    shape = twin.conv.weight.shape
    if side == "out":
        twin.conv.weight.data = projected.reshape(shape)
    else:
        twin.conv.weight.data = projected.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()
    assert torch.allclose(small(image(part)), twin(image(part)), rtol=0, atol=1e-9)
    assert (small.before is part.before) == (side == "out")


@EVERY
@SIDES
def test_only_the_side_that_lost_nothing_is_folded(kind, side):
    part = wrapped(kind)
    part = part.without(side, fp_backward(part.rows(side)), 2)
    folded = part.folded()
    assert isinstance(folded, Pointwise)
    assert isinstance(folded.before, nn.Identity if side == "out" else nn.Conv2d)
    assert isinstance(folded.after, nn.Conv2d if side == "out" else nn.Identity)
    assert torch.allclose(folded(image(part)), part(image(part)), rtol=1e-10, atol=1e-9)
    assert torch.allclose(folded.folded()(image(part)), part(image(part)), rtol=1e-10, atol=1e-9)
    other = "in" if side == "out" else "out"
    with pytest.raises(ValueError, match=f"the {other}put side was folded"):
        folded.without(other, fp_backward(folded.rows(other)), 2)


# Structure as data


@pytest.mark.parametrize(
    ("spec", "classes", "plain", "inserted", "halved"),
    [
        ("resnet32", 10, 464_154, 567_834, 170_394),
        ("resnet32", 100, 470_004, 573_684, 176_244),
        ("resnet56", 10, 853_018, 1_042_714, 311_962),
        ("resnet56", 100, 858_868, 1_048_564, 317_812),
    ],
)
def test_published_parameter_counts(spec, classes, plain, inserted, halved):
    def size(module):
        return sum(parameter.numel() for parameter in module.parameters())

    network = open_network(spec, classes).module
    assert size(network) == plain
    names = prunable_convolutions(network)
    convs = {name: network.get_submodule(name) for name in names}
    full = copy.deepcopy(network)
    insert_pointwise(full, names)
    assert size(full) == inserted
    shape_pointwise(network, {n: PointwiseShape(c.in_channels // 2, c.out_channels // 2) for n, c in convs.items()})
    assert size(network) == halved


@EVERY
def test_a_structure_is_made_again_from_what_was_said_of_it(kind):
    net = nn.Sequential(wrapped(kind))
    net[0] = net[0].without("out", fp_omp(net[0].rows("out")), 2)
    for fold in (False, True):
        if fold:
            fold_pointwise(net)
        said = json.loads(json.dumps({name: asdict(shape) for name, shape in pointwise_shapes(net).items()}))
        again = nn.Sequential(copy.deepcopy(CONVS[kind])).double()
        shape_pointwise(again, {name: PointwiseShape(**shape) for name, shape in said.items()})
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(image(net[0])), net(image(net[0])))


def test_matrices_of_layers():
    conv = CONVS["grouped"]
    assert output_filters(conv).shape == (2, 4, 6 * 9)
    assert input_slices(conv).shape == (2, 6, 4 * 9)
    assert torch.equal(output_filters(conv)[1, 2], conv.weight[6].double().flatten())
    assert torch.equal(input_slices(conv)[1, 2], conv.weight[4:, 2].double().flatten())
    turned = nn.ConvTranspose2d(6, 4, 3, groups=2)
    assert torch.equal(output_filters(turned)[1, 1], turned.weight[3:, 1].double().flatten())
    assert torch.equal(input_slices(turned)[1, 1], turned.weight[4].double().flatten())
    linear = nn.Linear(5, 3)
    assert torch.equal(output_filters(linear)[0], linear.weight.double())
    assert torch.equal(input_slices(linear)[0], linear.weight.double().T)


def test_what_is_refused():
    net = nn.ModuleDict({"deep": nn.Conv2d(4, 4, 3, groups=4), "line": nn.Linear(3, 3), "conv": nn.Conv2d(4, 4, 3)})
    for name, what in (("deep", "a depthwise"), ("line", "no two-dimensional"), ("none", "no two-dimensional")):
        with pytest.raises(InputError, match=f"'{name}' is {what}"):
            insert_pointwise(net, [name])
    for inside in (0, 5):
        with pytest.raises(InputError, match=f"{inside} of 4"):
            shape_pointwise(net, {"conv": PointwiseShape(inside, None)})
    assert prunable_convolutions(open_network("mobilenet_v2,width=0.5", 10).module) == ()
    part = wrapped("plain")
    with pytest.raises(ValueError, match="of 1 x 8"):
        part.without("out", fp_omp(part.rows("in")), 2)


@BOTH
@EVERY
def test_in_full_width_it_computes_the_same(kind, select):
    """Zeros where filters and inputs went: the shapes of the identities that were put in, outputs as they are."""
    part = wrapped(kind)
    inputs, outputs = part.conv.in_channels, part.conv.out_channels
    out, inside = select(part.rows("out")), select(part.rows("in"))
    for small, kept in (
        (part.without("out", out, 2), (range(inputs), out.kept(2))),
        (part.without("in", inside, 2), (inside.kept(2), range(outputs))),
    ):
        large = small.widened(*(list(map(int, side)) for side in kept))
        assert [p.shape for p in large.parameters()] == [p.shape for p in part.parameters()]
        assert torch.allclose(large(image(part)), small(image(part)), rtol=0, atol=1e-9)
    gone = out.removed(2)
    large = part.without("out", out, 2).widened(range(inputs), out.kept(2).tolist())
    assert not large.conv.weight[torch.from_numpy(gone)].any()
    assert large.conv.weight[torch.from_numpy(out.kept(2))].any()
    folded = part.without("out", out, 2).folded()
    large = folded.widened(range(inputs), out.kept(2).tolist())
    assert isinstance(large.before, nn.Identity)
    assert torch.allclose(large(image(part)), folded(image(part)), rtol=0, atol=1e-9)


@EVERY
def test_sides_are_opened_one_by_one(kind):
    conv = copy.deepcopy(CONVS[kind]).double()
    x = torch.randn(2, conv.in_channels, 7, 8, dtype=torch.float64)
    expected, weight = conv(x), conv.weight.clone()
    for first, second in (("in", "out"), ("out", "in")):
        one = opened(conv, first)
        assert [isinstance(side, nn.Conv2d) for side in (one.before, one.after)] == [first == "in", first == "out"]
        assert opened(one, first) is one
        both = opened(one, second)
        for part in (one, both):
            assert torch.allclose(part(x), expected, rtol=0, atol=1e-12)
    assert torch.equal(conv.weight, weight)
    assert torch.allclose(conv(x), expected)


@BOTH
@EVERY
@SIDES
def test_one_side_alone_loses_what_depends_on_the_rest(kind, side, select):
    """No 1x1 on the other side, so the bias may still be the convolution's own."""
    part = opened(copy.deepcopy(CONVS[kind]).double(), side)
    depend(part, side, 2)
    x = image(part)
    expected = part(x).detach()
    selection = select(part.rows(side))
    small = part.without(side, selection, 2)
    assert torch.allclose(small(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    kept = selection.kept(2).tolist()
    inside = kept if side == "in" else range(part.conv.in_channels)
    large = small.widened(inside, kept if side == "out" else range(part.conv.out_channels))
    assert torch.allclose(large(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_what_is_added_is_counted_before_it_is_made():
    net = open_network("resnet20", 10).module
    names = prunable_convolutions(net)
    plain = sum(parameter.numel() for parameter in net.parameters())
    shapes = {name: PointwiseShape(net.get_submodule(name).in_channels, None) for name in names[::2]}
    shapes |= {name: PointwiseShape(None, net.get_submodule(name).out_channels) for name in names[1::2]}
    added = pointwise_values(net, shapes)
    shape_pointwise(net, shapes)
    assert sum(parameter.numel() for parameter in net.parameters()) == plain + added
    with pytest.raises(InputError, match="cannot have 99"):
        pointwise_values(open_network("resnet20", 10).module, {names[0]: PointwiseShape(99, None)})


@pytest.mark.parametrize(
    "wrong", [None, 3, {}, {"inside": 3}, {"inside": None, "out": None}, {"inside": True, "out": 3},
              {"inside": "3", "out": None}, {"inside": 2.0, "out": 1}, {"inside": 1, "out": 1, "more": 1}]
)  # fmt: skip
def test_data_that_are_no_shapes(wrong):
    with pytest.raises(ValueError, match="1x1"):
        PointwiseShape.from_dict(wrong)
    assert PointwiseShape.from_dict({"inside": None, "out": 3}) == PointwiseShape(None, 3)
