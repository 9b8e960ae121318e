"""The numpy reference against PyTorch, operator by operator, and a whole network."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.errors import UsageError
from billhook.formats import Graph, Operator, PackedNetwork, PatternInfo, read_network, shapes, write_network
from billhook.runtime.reference import apply, run

SETTINGS = settings(max_examples=150)


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operator(kind, **stated):
    return Operator(kind, "it", ("x",), "y", stated)


def close(result, expected, tolerance=1e-5):
    """Within ``tolerance`` of the largest number, and float32 of the same shape."""
    expected = expected.numpy() if isinstance(expected, torch.Tensor) else expected
    assert (result.dtype, result.shape) == (np.float32, expected.shape)
    scale = np.abs(expected).max(initial=1e-3)
    assert np.abs(result - expected).max(initial=0) <= tolerance * scale


def padded(x, padding, value=0.0):
    top, left, bottom, right = padding
    return F.pad(torch.from_numpy(x), (left, right, top, bottom), value=value)


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
FOUR = st.tuples(*[st.integers(0, 3)] * 4)
SIDES = st.tuples(st.integers(7, 12), st.integers(7, 12))


@SETTINGS
@given(
    seed=st.integers(0, 1 << 20),
    batch=st.integers(0, 3),
    sides=SIDES,
    groups=st.integers(1, 4),
    per_group=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=PAIR,
    stride=PAIR,
    dilation=PAIR,
    padding=FOUR,
    bias=st.booleans(),
)
def test_conv(seed, batch, sides, groups, per_group, kernel, stride, dilation, padding, bias):
    ins, outs = per_group
    x = numbers(seed, batch, groups * ins, *sides)
    weight = numbers(seed + 1, groups * outs, ins, *kernel)
    tensors = {"weight": weight} | ({"bias": numbers(seed + 2, groups * outs)} if bias else {})
    conv = operator("conv", stride=stride, padding=padding, dilation=dilation, groups=groups)
    expected = F.conv2d(
        padded(x, padding),
        torch.from_numpy(weight),
        torch.from_numpy(tensors["bias"]) if bias else None,
        stride,
        0,
        dilation,
        groups,
    )
    result = apply(conv, [x], tensors)
    close(result, expected)
    shape = shapes_of(conv, x, {role: array.shape for role, array in tensors.items()})
    assert shape == result.shape[1:]


def shapes_of(one, x, tensor_shapes=()):
    """What the validator says about the output of a single operator, which only has to end in a vector."""
    named = Operator(one.kind, "it", ("x",), "y", one.settings, {role: role for role in tensor_shapes})
    ends = (Operator("globalavgpool", "pool", ("y",), "p"), Operator("flatten", "flatten", ("p",), "z"))
    graph = Graph("x", x.shape[1:], (named, *ends), "z")
    return shapes(graph, dict(tensor_shapes))["y"]


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_with_more_outputs_than_inputs(multiplier):
    x, weight = numbers(0, 2, 5, 9, 8), numbers(1, 5 * multiplier, 1, 3, 5)
    conv = operator("conv", stride=(1, 2), padding=(1, 2, 1, 2), dilation=(1, 1), groups=5)
    expected = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), None, (1, 2), (1, 2), 1, 5)
    close(apply(conv, [x], {"weight": weight}), expected)


def test_padding_wider_than_the_kernel():
    x, weight = numbers(0, 1, 2, 3, 3), numbers(1, 4, 2, 1, 1)
    conv = operator("conv", stride=(2, 1), padding=(2, 1, 3, 0), dilation=(1, 1), groups=1)
    expected = F.conv2d(padded(x, (2, 1, 3, 0)), torch.from_numpy(weight), None, (2, 1))
    close(apply(conv, [x], {"weight": weight}), expected)


@given(
    seed=st.integers(0, 1 << 20),
    batch=st.integers(0, 3),
    ins=st.integers(1, 40),
    outs=st.integers(1, 9),
    bias=st.booleans(),
)
def test_linear(seed, batch, ins, outs, bias):
    x, weight, added = numbers(seed, batch, ins), numbers(seed + 1, outs, ins), numbers(seed + 2, outs)
    expected = F.linear(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(added) if bias else None)
    close(apply(operator("linear"), [x], {"weight": weight} | ({"bias": added} if bias else {})), expected)


@st.composite
def pools(draw):
    """Settings that PyTorch has too: the same padding on both sides, at most half the kernel."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    down, along = (draw(st.integers(0, size // 2)) for size in kernel)
    return {
        "kernel": kernel,
        "stride": draw(st.tuples(st.integers(1, 6), st.integers(1, 6))),
        "padding": (down, along, down, along),
        "ceil": draw(st.booleans()),
    }


@SETTINGS
@given(seed=st.integers(0, 1 << 20), sides=st.tuples(st.integers(5, 12), st.integers(5, 12)), pool=pools())
def test_maxpool(seed, sides, pool):
    x = numbers(seed, 2, 3, *sides) - 5  # all below zero: padding would win if it were zero
    expected = F.max_pool2d(
        torch.from_numpy(x), pool["kernel"], pool["stride"], pool["padding"][:2], ceil_mode=pool["ceil"]
    )
    result = apply(operator("maxpool", **pool), [x], {})
    assert np.array_equal(result, expected.numpy())
    assert shapes_of(operator("maxpool", **pool), x) == result.shape[1:]


@SETTINGS
@given(
    seed=st.integers(0, 1 << 20),
    sides=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    pool=pools(),
    counted=st.booleans(),
)
def test_avgpool(seed, sides, pool, counted):
    x = numbers(seed, 2, 3, *sides)
    expected = F.avg_pool2d(
        torch.from_numpy(x),
        pool["kernel"],
        pool["stride"],
        pool["padding"][:2],
        ceil_mode=pool["ceil"],
        count_include_pad=counted,
    )
    pool = pool | {"count_padding": counted}
    result = apply(operator("avgpool", **pool), [x], {})
    close(result, expected)
    assert shapes_of(operator("avgpool", **pool), x) == result.shape[1:]


def slow_pool(x, kernel, stride, padding, ceil, counted=None):
    """Window by window; ``counted`` None: the maximum."""
    height, width = x.shape
    top, left, bottom, right = padding

    def starts(size, span, step, before, after):
        begin, found = -before, []
        while begin + span <= size + after:
            found.append(begin)
            begin += step
        reaches = found[-1] + span < size + after
        return [*found, begin] if ceil and reaches and begin < size else found

    rows = []
    for y in starts(height, kernel[0], stride[0], top, bottom):
        rows.append([])
        for x0 in starts(width, kernel[1], stride[1], left, right):
            real = x[max(y, 0) : y + kernel[0], max(x0, 0) : x0 + kernel[1]]
            if counted is None:
                rows[-1].append(real.max())
                continue
            area = min(y + kernel[0], height + bottom) - y, min(x0 + kernel[1], width + right) - x0
            rows[-1].append(real.sum() / (area[0] * area[1] if counted else real.size))
    return np.float32(rows)


@SETTINGS
@given(data=st.data())
def test_pools_with_sides_padded_apart(data):
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pool = {
        "kernel": kernel,
        "stride": data.draw(PAIR),
        "padding": tuple(data.draw(st.integers(0, kernel[axis % 2] - 1)) for axis in range(4)),
        "ceil": data.draw(st.booleans()),
    }
    x = numbers(data.draw(st.integers(0, 99)), 1, 1, *data.draw(st.tuples(st.integers(4, 9), st.integers(4, 9))))
    result = apply(operator("maxpool", **pool), [x], {})
    assert np.array_equal(result[0, 0], slow_pool(x[0, 0], **pool))
    assert shapes_of(operator("maxpool", **pool), x) == result.shape[1:]
    for counted in (False, True):
        result = apply(operator("avgpool", **pool, count_padding=counted), [x], {})
        close(result[0, 0], slow_pool(x[0, 0], **pool, counted=counted))


UNARY = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
}


@pytest.mark.parametrize("kind", UNARY)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 11), (0, 4)])
def test_activations(kind, shape):
    x = numbers(0, *shape) * 6
    kept = x.copy()
    close(apply(operator(kind), [x], {}), UNARY[kind](torch.from_numpy(x)))
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("kind", UNARY)
def test_activations_keep_relative_precision_and_take_any_number(kind):
    x = np.float32([[-200, -90, -20, -8, -3, -1e-6, -0.0, 0, 1e-6, 2.5, 3, 6, 50, 100, 3e38, np.inf, np.nan]])
    expected = UNARY[kind](torch.from_numpy(x).double()).float().numpy()
    with np.errstate(all="raise"):
        result = apply(operator(kind), [x], {})
    # hard-swish of infinity and the like are left to PyTorch's own arithmetic.
    finite = np.isfinite(expected)
    np.testing.assert_allclose(result[finite], expected[finite], rtol=1e-5, atol=1e-38)
    assert np.isnan(result[0, -1])


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 11)])
def test_add_multiply_scale(shape):
    x, other = numbers(0, *shape), numbers(1, *shape)
    weight, bias = numbers(2, shape[1]), numbers(3, shape[1])
    assert np.array_equal(apply(operator("add"), [x, other], {}), x + other)
    assert np.array_equal(apply(operator("multiply"), [x, other], {}), x * other)
    channel = (slice(None), *(None,) * (len(shape) - 2))
    expected = x * weight[channel] + bias[channel]
    close(apply(operator("scale"), [x], {"weight": weight, "bias": bias}), expected)


def test_a_gate_multiplies_every_pixel():
    x, gate = numbers(0, 2, 3, 5, 7), numbers(1, 2, 3, 1, 1)
    for inputs in ([x, gate], [gate, x]):
        result = apply(operator("multiply"), inputs, {})
        assert np.array_equal(result, (torch.from_numpy(x) * torch.from_numpy(gate)).numpy())


def test_global_pool_concat_flatten_softmax():
    x, other = numbers(0, 2, 3, 5, 7), numbers(1, 2, 4, 5, 7)
    close(apply(operator("globalavgpool"), [x], {}), F.adaptive_avg_pool2d(torch.from_numpy(x), 1))
    joined = apply(operator("concat"), [x, other, x], {})
    assert np.array_equal(joined, torch.cat([torch.from_numpy(array) for array in (x, other, x)], 1).numpy())
    assert np.array_equal(apply(operator("flatten"), [x], {}), torch.from_numpy(x).flatten(1).numpy())
    assert apply(operator("flatten"), [x[:0]], {}).shape == (0, 105)
    for scale in (1, 1000):
        vector = x.reshape(2, -1) * np.float32(scale)
        close(apply(operator("softmax"), [vector], {}), torch.softmax(torch.from_numpy(vector), 1))


@given(seed=st.integers(0, 99), stride=PAIR, index=st.lists(st.integers(-1, 4), min_size=1, max_size=9))
def test_gather(seed, stride, index):
    x = numbers(seed, 2, 5, 6, 7)
    gather = operator("gather", stride=stride)
    result = apply(gather, [x], {"index": np.int32(index)})
    thinned = x[:, :, :: stride[0], :: stride[1]]
    for channel, source in enumerate(index):
        expected = np.zeros_like(thinned[:, 0]) if source < 0 else thinned[:, source]
        assert np.array_equal(result[:, channel], expected)
    assert shapes_of(gather, x, {"index": (len(index),)}) == result.shape[1:]
    vector = apply(operator("gather", stride=(1, 1)), [x[:, :, 0, 0]], {"index": np.int32(index)})
    assert np.array_equal(vector, apply(operator("gather", stride=(9, 9)), [x], {"index": np.int32(index)})[:, :, 0, 0])


# Whole networks


def residual(seed=0):
    """A small residual network in PyTorch, and the same as a packed one: hybrid, unstructured and dense weights."""
    rng = np.random.default_rng(seed)
    tensors = {
        "stem": numbers(seed, 16, 3, 3, 3) / 5,
        "stem.bias": numbers(seed + 1, 16),
        "body": numbers(seed + 2, 16, 16, 3, 3) / 12,
        "down": numbers(seed + 3, 32, 16, 1, 1) / 4,
        "index": np.int32([*range(16), *[-1] * 16]),
        "head": numbers(seed + 4, 10, 32) / 5,
        "head.bias": numbers(seed + 5, 10),
    }
    inside = np.zeros((16, 3, 3, 16), bool)
    inside[:, 1] = np.tile([True, False, False, True], 4)
    patterns = {
        "body": PatternInfo("hybrid", 2, 4, 16, np.ascontiguousarray(inside.transpose(0, 3, 1, 2))),
        "head": PatternInfo("unstructured", 1, 1, 0, rng.random((10, 32)) < 0.3),
    }
    conv = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    graph = Graph(
        "image",
        (3, 9, 11),
        (
            Operator("conv", "stem", ("image",), "a", conv, {"weight": "stem", "bias": "stem.bias"}),
            Operator("relu", "relu", ("a",), "b"),
            Operator("conv", "body", ("b",), "c", conv, {"weight": "body"}),
            Operator("add", "add", ("c", "b"), "d"),
            Operator("conv", "down", ("d",), "e", conv | {"stride": (2, 2), "padding": (0,) * 4}, {"weight": "down"}),
            Operator("gather", "shortcut", ("d",), "f", {"stride": (2, 2)}, {"index": "index"}),
            Operator("add", "join", ("e", "f"), "g"),
            Operator("globalavgpool", "pool", ("g",), "h"),
            Operator("flatten", "flatten", ("h",), "i"),
            Operator("linear", "head", ("i",), "logits", {}, {"weight": "head", "bias": "head.bias"}),
        ),
        "logits",
    )

    def forward(x):
        weight = {
            name: torch.from_numpy(np.where(patterns[name].mask, array, 0) if name in patterns else array)
            for name, array in tensors.items()
        }
        first = F.conv2d(torch.from_numpy(x), weight["stem"], weight["stem.bias"], padding=1).relu()
        inner = F.conv2d(first, weight["body"], padding=1) + first
        joined = F.conv2d(inner, weight["down"], stride=2) + F.pad(inner[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
        return F.linear(joined.mean((2, 3)), weight["head"], weight["head.bias"])

    return graph, tensors, patterns, forward


@pytest.fixture
def network(tmp_path):
    graph, tensors, patterns, forward = residual()
    write_network(tmp_path / "net", graph, tensors, patterns)
    return read_network(tmp_path / "net"), forward


@pytest.mark.parametrize("batch", [0, 1, 3, 8])
def test_a_network_as_in_pytorch(network, batch):
    packed, forward = network
    x = numbers(7, batch, 3, 9, 11)
    result = run(packed, x)
    assert result.shape == (batch, packed.outputs)
    close(result, forward(x))


def test_an_image_does_not_depend_on_its_batch(network):
    x = numbers(7, 5, 3, 9, 11)
    whole = run(network[0], x)
    close(np.concatenate([run(network[0], x[i : i + 1]) for i in range(5)]), whole, 1e-6)


def test_prepared_weights_are_used(network):
    packed, forward = network
    x = numbers(7, 2, 3, 9, 11)
    weights = {name: packed.weight(name) for name in (*packed.tensors, *packed.packed)}
    assert np.array_equal(run(packed, x, weights), run(packed, x))
    weights["head.bias"] = weights["head.bias"] + 1
    close(run(packed, x, weights), forward(x) + 1)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.zeros((1, 3, 9, 11)), r"float64 \[1, 3, 9, 11\]"),
        (np.zeros((3, 9, 11), np.float32), r"float32 \[3, 9, 11\]"),
        (np.zeros((1, 9, 11, 3), np.float32), r"float32 \[1, 9, 11, 3\]"),
        ([[1.0]], "list"),
    ],
)
def test_other_inputs_are_refused(network, x, found):
    with pytest.raises(UsageError, match=rf"takes float32 \[N, 3, 9, 11\], this is {found}"):
        run(network[0], x)


def test_values_are_let_go():
    """Thirty maps of a megabyte each, two at a time."""
    steps = tuple(Operator("relu", f"r{i}", (f"v{i}",), f"v{i + 1}") for i in range(30))
    ends = (Operator("globalavgpool", "p", ("v30",), "p"), Operator("flatten", "f", ("p",), "y"))
    graph = Graph("v0", (64, 64, 64), steps + ends, "y")
    packed = PackedNetwork(graph, {}, {}, shapes(graph, {}))
    x = np.ones((1, 64, 64, 64), np.float32)
    tracemalloc.start()
    try:
        run(packed, x)
        assert tracemalloc.get_traced_memory()[1] < 3.5 * x.nbytes
    finally:
        tracemalloc.stop()


def test_the_room_loads_nothing_but_numpy():
    code = (
        "import sys, billhook.runtime.reference\n"
        "print([name for name in ('torch', 'safetensors', 'PIL') if name in sys.modules], 'load' in "
        "dir(billhook.runtime))\n"
        "try:\n    billhook.runtime.lode\nexcept AttributeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True", "module 'billhook.runtime' has no attribute 'lode'"]
