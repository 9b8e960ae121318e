"""Programs: what the native library makes of a network equals what numpy makes of it, whatever the choices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.formats import PackedNetwork
from billhook.formats.graph import Preprocess
from billhook.runtime import native, reference
from billhook.runtime.choice import Choice, kernels, orders
from billhook.runtime.compile import Compiler
from billhook.runtime.layout import Options
from billhook.runtime.program import BF16, F32, Kind, header_of, steps_of

from .networks import Building
from .test_layout import grown

needs_library = pytest.mark.skipif(not native.available(), reason=native.reason() or "no library")
ISAS = native.usable() if native.available() else []


def outputs(
    network: PackedNetwork, x: np.ndarray, isa: int, precision: str = "f32", threads: int = 1, **more
) -> np.ndarray:
    choices = more.pop("choices", None)
    compiler = Compiler(network, native.lanes(isa), precision, threads, **more)
    with native.Net(compiler.compile(choices).program, isa, threads) as net:
        return net.run(x)


def images(network: PackedNetwork, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, *network.graph.shape), np.float32)


def compare(network: PackedNetwork, tolerance: float = 1e-5, **more) -> None:
    """All instruction sets, f32; bf16 where there is one."""
    x = images(network)
    expected = reference.run(network, x)
    size = np.abs(expected).max()
    for isa in ISAS:
        np.testing.assert_allclose(outputs(network, x, isa, **more), expected, rtol=0, atol=tolerance * size)
    if native.ISAS.index("avx512_bf16") in ISAS:
        # Two to the minus eight for every rounding of an activation.
        found = outputs(network, x, native.ISAS.index("avx512_bf16"), "bf16", **more)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * size)


def small(
    make: Callable[[Building], str], shape: tuple[int, int, int] = (3, 9, 9), pool: bool = False
) -> PackedNetwork:
    net = Building(shape)
    value = make(net)
    return net.build(net.head(value) if pool else net.add("flatten", value))


# ---------------------------------------------------------------------- programs
def test_the_header_and_the_steps():
    net = Building((3, 8, 8))
    x = net.add("relu", net.conv("x", 20, 3, 2, 1, name="a"))
    network = net.build(net.head(x), Preprocess(8, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)))
    compiled = Compiler(network, 16).compile()
    header, steps = header_of(compiled.program), steps_of(compiled.program)
    assert (header["lanes"], header["type"], header["steps"], header["named"]) == (16, F32, 5, 1)
    assert (header["channels"], header["height"], header["width"], header["outputs"]) == (3, 8, 8, 5)
    np.testing.assert_allclose(header["scale"][:3] * 255 * [0.2, 0.25, 0.5], 1, rtol=1e-6)
    np.testing.assert_allclose(header["shift"][:3], [-2.5, -1.6, -0.6], rtol=1e-6)
    assert [Kind(kind) for kind in steps["kind"]] == [Kind.LOAD, Kind.DENSE, Kind.GLOBAL, Kind.DENSE, Kind.STORE]
    assert [task.kind for task in compiled.tasks] == ["load", "dense", "global", "dense", "store"]
    assert [task.name for task in compiled.tasks] == ["image", "a", "globalavgpool2", "linear4", "result"]
    conv = steps[1]
    assert (conv["activation"], conv["stride_y"], conv["pad_left"], conv["out"]["padded"]) == (1, 2, 1, 32)
    assert compiled.tasks[1].multiplications == 20 * 3 * 9 * 16
    # An image that only dense convolutions read is not filled up; pairs may end behind the last window.
    assert (conv["in"]["pixel"], conv["in"]["padded"], conv["in"]["right"]) == (3, 3, 1)
    assert header_of(Compiler(network, 16, "bf16").compile().program)["type"] == BF16


def test_an_image_that_others_read_fills_vectors():
    for make in (
        lambda net: net.pool("maxpool", "x", 2, 2),
        lambda net: net.conv("x", 16, unstructured=0.5),
        lambda net: net.conv("x", 3, groups=3),
        lambda net: net.add("add", ["x", net.conv("x", 3, 1)]),
    ):
        network = small(make, pool=True)
        assert Compiler(network, 16).layout.views["x"].padded == 16


def test_no_scaling_without_preprocessing():
    assert header_of(Compiler(small(lambda net: net.conv("x", 4)), 16).compile().program)["named"] == 0


def test_tasks_say_what_is_useful():
    network = small(lambda net: net.conv("x", 64, 1, sparse=(2, 4, 16, 0.5), name="a"), (64, 6, 6))
    task = Compiler(network, 16).compile().tasks[1]
    stored = 64 * 64 // 4
    assert (task.kind, task.multiplications, task.density, task.efficiency) == ("hybrid", stored * 36, 0.25, 1.0)
    # All eight non-zeros of a lane in two items of four slots, or in one item of eight pairs.
    assert task.choice is not None
    assert task.choice.slots == 4
    ragged = small(lambda net: net.conv("x", 60, 1, unstructured=0.1, name="a"), (60, 6, 6))
    assert 0 < Compiler(ragged, 16).compile().tasks[1].efficiency < 1


def test_packs_are_kept_when_that_is_asked_for():
    network = small(lambda net: net.conv("x", 64, 1, sparse=(2, 4, 16, 0.5), name="a"), (64, 6, 6))
    compiler = Compiler(network, 16)
    weights = compiler.weights["a"]
    choice = Choice("hybrid", slots=2)
    compiler.compile({"a": choice}, keep=True)
    assert weights.pack(choice) is weights.pack(replace(choice, tile=8))
    compiler.compile()
    assert weights.pack(choice) is not weights.pack(choice)


# ---------------------------------------------------------------------- operators
@needs_library
@pytest.mark.parametrize(
    "make",
    {
        "conv": lambda net: net.conv("x", 20, 3, padding=1),
        "uneven padding": lambda net: net.conv("x", 20, (3, 5), (2, 1), (0, 1, 2, 3)),
        "dilation": lambda net: net.conv("x", 20, 3, padding=2, dilation=2),
        "no bias": lambda net: net.conv("x", 20, bias=False),
        "depthwise": lambda net: net.conv(net.conv("x", 24, 1), 24, 3, padding=1, groups=24),
        "depthwise 5x5": lambda net: net.conv(net.conv("x", 24, 1), 24, 5, 2, padding=2, groups=24),
        "depthwise sparse": lambda net: net.conv(net.conv("x", 24, 1), 24, 3, groups=24, unstructured=0.5),
        "groups": lambda net: net.conv(net.conv("x", 24, 1), 36, 3, padding=1, groups=6),
        "groups sparse": lambda net: net.conv(net.conv("x", 32, 1), 32, 3, padding=1, groups=2, sparse=(2, 4, 16, 0.5)),
        "multiplier": lambda net: net.conv(net.conv("x", 6, 1), 24, 3, padding=1, groups=6),
        "hybrid": lambda net: net.conv(net.conv("x", 64, 1), 32, 3, padding=1, sparse=(2, 4, 16, 0.4)),
        "hybrid ragged": lambda net: net.conv(net.conv("x", 40, 1), 28, 3, padding=1, sparse=(1, 4, 16, 0.4)),
        "M of two vectors": lambda net: net.conv(net.conv("x", 96, 1), 40, 3, 2, padding=1, sparse=(2, 32, 32, 0.4)),
        "M that divides no vector": lambda net: net.conv(net.conv("x", 36, 1), 30, sparse=(3, 6, 12, 0.4)),
        "blocks of 8": lambda net: net.conv(net.conv("x", 40, 1), 24, 3, padding=1, sparse=(1, 4, 8, 0.4)),
        "blocks of 24": lambda net: net.conv(net.conv("x", 48, 1), 40, (1, 5), 1, padding=1, sparse=(2, 4, 24, 0.4)),
        "blocks of 7": lambda net: net.conv(net.conv("x", 40, 1), 24, 3, padding=1, sparse=(1, 1, 7, 0.4)),
        "hybrid image": lambda net: net.conv("x", 28, 3, 2, padding=1, sparse=(1, 3, 0, 1)),
        "N:M alone": lambda net: net.conv(net.conv("x", 32, 1), 32, 3, padding=1, sparse=(1, 8, 0, 1)),
        "unstructured": lambda net: net.conv(net.conv("x", 30, 1), 50, 3, 2, unstructured=0.1),
        "empty": lambda net: net.conv(net.conv("x", 30, 1), 50, 3, unstructured=0.0),
        "dense packed": lambda net: net.conv(net.conv("x", 32, 1), 32, 3, unstructured=0.9),
        "maxpool": lambda net: net.pool("maxpool", "x", 3, 2, 1, True),
        "maxpool relu": lambda net: net.add("relu", net.pool("maxpool", "x", (2, 3), 2)),
        "avgpool": lambda net: net.pool("avgpool", "x", 3, 2, 1, True, count_padding=False),
        "avgpool counts": lambda net: net.pool("avgpool", "x", 3, 2, 1, True, count_padding=True),
        "avgpool uneven": lambda net: net.pool("avgpool", "x", 3, 2, (0, 0, 1, 1), count_padding=True),
        "global": lambda net: net.add("globalavgpool", "x"),
        "add": lambda net: net.add("relu", net.add("add", ["x", net.add("sigmoid", "x")])),
        "multiply": lambda net: net.add("multiply", [net.conv("x", 3, 1), net.add("sigmoid", "x")]),
        "scale": lambda net: net.add("relu", net.scale("x")),
        "scaled conv": lambda net: net.scale(net.scale(net.conv(net.scale("x"), 20))),
        "scaled depthwise": lambda net: net.scale(net.conv("x", 3, groups=3)),
        "gather": lambda net: net.gather("x", [2, -1, 0, 0, 1] * 5, 2),
        "concat": lambda net: net.add("concat", [net.conv("x", 16, 1), net.conv("x", 5, 1)]),
        "concat ragged": lambda net: net.add("concat", [net.conv("x", 5, 1), "x", net.conv("x", 30, 1)]),
        "linear map": lambda net: net.linear(net.add("flatten", net.conv("x", 20)), 7),
        "flatten": lambda net: net.linear(net.add("flatten", net.conv("x", 20)), 7, unstructured=0.1),
        "linear hybrid": lambda net: net.linear(net.add("flatten", net.conv("x", 20)), 36, sparse=(2, 4, 16, 0.3)),
        "softmax": lambda net: net.add("softmax", net.head(net.conv("x", 20), 21)),
        "nothing": lambda net: "x",
    }.items(),
    ids=lambda item: item[0],
)
def test_every_operator(make):
    net = Building((3, 9, 9))
    value = make[1](net)
    network = net.build(value if len(net.shapes()[value]) == 1 else net.add("flatten", value))
    compare(network)


@needs_library
@pytest.mark.parametrize("activation", ["relu", "relu6", "sigmoid", "hardsigmoid", "hardswish", "silu"])
@pytest.mark.parametrize("place", ["alone", "conv", "depthwise", "hybrid", "before", "after"])
def test_activations_wherever_they_are(activation, place):
    net = Building((16, 5, 6))
    if place == "alone":
        y = net.add(activation, "x")
    elif place in ("before", "after"):
        y = net.conv("x", 16, 3, padding=1, unstructured=0.3)
        y = net.add("add", [y, "x"]) if place == "before" else net.add(activation, y)
        y = net.add(activation, y) if place == "before" else net.add("add", [y, "x"])
    else:
        groups = 16 if place == "depthwise" else 1
        y = net.add(activation, net.conv("x", 16, 3, groups=groups, unstructured=0.3 if place == "hybrid" else None))
    compare(net.build(net.add("flatten", y)))


@needs_library
@pytest.mark.parametrize("bits", range(4))
def test_every_choice(bits):
    """All kernels that a planner tries, on maps of all kinds of width."""
    width, sparse = [(7, True), (18, True), (7, False), (18, False)][bits]
    pattern = (2, 4, 16, 0.6) if sparse else None
    net = Building((16, width, width))
    y = net.conv("x", 40, 3, padding=1, sparse=pattern, name="a")
    network = net.build(net.add("flatten", y))
    x = images(network, 1)
    expected = reference.run(network, x)
    for isa in ISAS:
        for threads in (1, 2):
            compiler = Compiler(network, native.lanes(isa), threads=threads)
            facts = compiler.facts["a"]
            found = {other for choice in kernels(facts) for other in orders(choice, facts)}
            assert len(found) > 4
            for choice in sorted(found, key=str):
                with native.Net(compiler.compile({"a": choice}, keep=True).program, isa, threads) as net_:
                    np.testing.assert_allclose(net_.run(x), expected, atol=2e-5, err_msg=f"{isa} {choice}")


@needs_library
@pytest.mark.parametrize(("spread", "overwrite"), list(itertools.product(["always", "never"], [True, False])))
def test_options_change_nothing(spread, overwrite):
    net = Building((3, 8, 8))
    x = net.add("relu", net.conv("x", 32, 3, padding=1))
    for _ in range(3):
        a = net.add("relu", net.conv(x, 32, 3, padding=1, sparse=(2, 4, 16, 0.5)))
        x = net.add("relu", net.add("add", [net.conv(a, 32, 3, padding=1), x]))
    compare(net.build(net.head(x)), options=Options(spread, overwrite))


@needs_library
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3]))
def test_any_network(seed, threads):
    net, output = grown(seed)
    network = net.build(output)
    x = images(network, 3)
    expected = reference.run(network, x)
    size = np.abs(expected).max() + 1e-6
    for isa in ISAS:
        np.testing.assert_allclose(outputs(network, x, isa, threads=threads), expected, rtol=0, atol=5e-5 * size)
