"""Which operators become one step, and in which order the steps are run."""

from __future__ import annotations

import numpy as np
import pytest

from billhook.errors import InputError
from billhook.runtime.fuse import Fused, Scaling, Step, Window, fuse, halo

from .networks import Building


def kinds(fused: Fused) -> list[str]:
    return [step.kind for step in fused.steps]


def named(fused: Fused, name: str) -> Step:
    return next(step for step in fused.steps if step.name == name)


def test_an_activation_after_a_convolution_is_part_of_it():
    net = Building((3, 8, 8))
    x = net.add("relu6", net.conv("x", 4, name="a"))
    fused = fuse(net.build(net.head(x)))
    assert kinds(fused) == ["conv", "global", "conv"]
    assert named(fused, "a").activation == "relu6"
    assert named(fused, "a").output == x


@pytest.mark.parametrize("kind", ["add", "multiply", "scale", "maxpool"])
def test_an_activation_after_another_step_is_part_of_it(kind):
    net = Building((4, 8, 8))
    made = {
        "scale": lambda: net.scale("x"),
        "maxpool": lambda: net.pool("maxpool", "x", 2, 2),
    }.get(kind, lambda: net.add(kind, ["x", "x"]))
    x = net.add("relu", made())
    fused = fuse(net.build(net.head(x)))
    assert kinds(fused) == [kind, "global", "conv"]
    assert fused.steps[0].activation == "relu"


def test_an_activation_of_the_input_or_of_joined_channels_stands_alone():
    net = Building((4, 8, 8))
    x = net.add("relu", net.add("concat", ["x", net.add("silu", "x")]))
    assert kinds(fuse(net.build(net.head(x)))) == ["unary", "concat", "unary", "global", "conv"]


def test_of_two_activations_the_second_stands_alone():
    net = Building((4, 8, 8))
    x = net.add("sigmoid", net.add("relu", net.conv("x", 4)))
    fused = fuse(net.build(net.head(x)))
    assert kinds(fused) == ["conv", "unary", "global", "conv"]
    assert [step.activation for step in fused.steps] == ["relu", "sigmoid", "", ""]


def test_what_two_read_is_left_as_it_is():
    net = Building((4, 8, 8))
    x = net.conv("x", 4, 1, name="a")
    y = net.add("add", [net.add("relu", x), net.add("sigmoid", x)])
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["conv", "unary", "unary", "add", "global", "conv"]
    assert not named(fused, "a").activation


def test_the_result_counts_as_a_reader():
    net = Building((4, 1, 1))
    x = net.conv("x", 4, 1)
    flat = net.add("flatten", x)
    relu = net.add("relu", flat)
    y = net.add("add", [flat, relu])
    fused = fuse(net.build(y))
    assert kinds(fused) == ["conv", "unary", "add"]
    assert fused.output == y


def test_a_sum_before_the_activation():
    """A basic block: the second convolution is computed last."""
    net = Building((4, 8, 8))
    x = net.add("relu", net.conv("x", 8, 1, name="stem"))
    a = net.add("relu", net.conv(x, 8, 3, padding=1, name="a"))
    b = net.conv(a, 8, 3, padding=1, name="b")
    y = net.add("relu", net.add("add", [b, x]))
    fused = fuse(net.build(net.head(y)))
    assert [step.name for step in fused.steps][:3] == ["stem", "a", "b"]
    last = named(fused, "b")
    assert (last.residual, last.residual_last, last.activation, last.output) == (x, False, "relu", y)


def test_of_two_convolutions_the_later_one_adds():
    net = Building((4, 8, 8))
    a = net.conv("x", 8, 1, name="a")
    b = net.conv("x", 8, 1, name="b")
    y = net.add("add", [a, b])
    fused = fuse(net.build(net.head(y)))
    assert named(fused, "b").residual == a
    assert not named(fused, "a").residual


def test_a_sum_after_the_activation():
    net = Building((4, 8, 8))
    a = net.add("silu", net.conv("x", 4, 1, name="a"))
    y = net.add("relu", net.add("add", ["x", a]))
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["conv", "unary", "global", "conv"]
    assert (named(fused, "a").residual, named(fused, "a").residual_last) == ("x", True)
    assert named(fused, "a").activation == "silu"


def test_the_convolution_without_an_activation_adds_first():
    net = Building((4, 8, 8))
    a = net.conv("x", 8, 1, name="a")
    b = net.add("relu", net.conv("x", 8, 1, name="b"))
    y = net.add("relu", net.add("add", [a, b]))
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["conv", "conv", "global", "conv"]
    assert [step.name for step in fused.steps][:2] == ["b", "a"]
    assert (named(fused, "a").residual, named(fused, "a").activation) == (b, "relu")


def test_a_convolution_waits_for_what_it_adds():
    """The zero-padded shortcut is written down after the convolution that adds it."""
    net = Building((4, 8, 8))
    a = net.conv("x", 8, 3, 2, padding=1, name="a")
    shortcut = net.gather("x", [-1, -1, 0, 1, 2, 3, -1, -1], 2)
    y = net.add("relu", net.add("add", [a, shortcut]))
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["gather", "conv", "global", "conv"]
    assert named(fused, "a").residual == shortcut


def test_a_sum_of_what_others_read_stands_alone():
    net = Building((4, 8, 8))
    a = net.conv("x", 4, 1)
    y = net.add("add", [net.add("add", [a, "x"]), a])
    assert kinds(fuse(net.build(net.head(y)))) == ["conv", "add", "add", "global", "conv"]


def test_a_value_added_to_itself_stands_alone():
    net = Building((4, 8, 8))
    a = net.conv("x", 4, 1)
    fused = fuse(net.build(net.head(net.add("add", [a, a]))))
    assert kinds(fused) == ["conv", "add", "global", "conv"]
    assert fused.steps[1].inputs == (a, a)


def test_one_convolution_adds_one_value():
    net = Building((4, 8, 8))
    a = net.conv("x", 4, 1)
    y = net.add("add", [net.add("add", [a, "x"]), "x"])
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["conv", "add", "global", "conv"]


def test_linear_on_a_vector_is_a_convolution_of_one_pixel():
    net = Building((4, 8, 8))
    fused = fuse(net.build(net.head("x")))
    assert kinds(fused) == ["global", "conv"]
    assert fused.steps[1].window == Window()
    assert fused.shapes == {"x": (4, 8, 8), "globalavgpool0:out": (4, 1, 1), "linear2:out": (5, 1, 1)}


def test_linear_on_a_flattened_map_has_the_map_as_its_kernel():
    net = Building((4, 3, 5))
    y = net.linear(net.add("flatten", "x"), 6)
    fused = fuse(net.build(y))
    assert kinds(fused) == ["conv"]
    assert (fused.steps[0].window.kernel, fused.steps[0].flattened) == ((3, 5), (4, 3, 5))
    assert fused.steps[0].inputs == ("x",)


def test_packed_linear_keeps_its_order_of_inputs():
    net = Building((4, 3, 5))
    flat = net.add("flatten", "x")
    y = net.add("add", [net.linear(flat, 6, unstructured=0.3, name="a"), net.linear(flat, 6, name="b")])
    fused = fuse(net.build(y))
    assert kinds(fused) == ["flatten", "conv", "conv"]
    assert named(fused, "a").inputs == (flat,)
    assert named(fused, "a").window == Window()
    assert named(fused, "b").inputs == ("x",)


def test_a_result_that_is_a_flattened_map_is_the_map():
    net = Building((4, 3, 5))
    fused = fuse(net.build(net.add("flatten", net.conv("x", 2, name="a"))))
    assert kinds(fused) == ["conv"]
    assert fused.output == "a:out"


def test_a_network_that_does_nothing():
    net = Building((4, 3, 5))
    fused = fuse(net.build(net.add("flatten", "x")))
    assert (fused.steps, fused.input, fused.output) == ((), "x", "x")


def test_what_changes_nothing_is_no_step():
    net = Building((4, 8, 8))
    x = net.gather(net.pool("maxpool", "x", 1, 1), range(4))
    x = net.add("globalavgpool", net.add("globalavgpool", x))
    fused = fuse(net.build(net.linear(net.add("flatten", x), 3)))
    assert kinds(fused) == ["global", "conv"]
    assert fused.steps[0].inputs == ("x",)


def test_a_gather_that_changes_something_is_one():
    net = Building((4, 8, 8))
    values = [net.gather("x", [0, 1, 2]), net.gather("x", [0, 1, 2, 3], 2), net.gather("x", [1, 0, 2, 3])]
    heads = [net.head(value) for value in values]
    fused = fuse(net.build(net.add("concat", heads)))
    assert kinds(fused).count("gather") == 3


def test_an_average_of_the_whole_map_is_the_mean():
    net = Building((4, 8, 6))
    whole = net.pool("avgpool", "x", (8, 6), 1, count_padding=False)
    part = net.pool("avgpool", "x", (8, 5), 1, count_padding=False)
    part = net.pool("avgpool", part, (1, 2), 1, (0, 0, 0, 0), count_padding=True)
    y = net.add("concat", [net.add("flatten", whole), net.add("flatten", part)])
    assert kinds(fuse(net.build(y))) == ["global", "avgpool", "global", "concat"]


def test_a_padded_average_is_not_the_mean():
    net = Building((4, 2, 2))
    y = net.pool("avgpool", "x", (2, 2), 3, 1, count_padding=True)
    assert kinds(fuse(net.build(net.add("flatten", y)))) == ["avgpool"]


def test_an_average_that_counts_uneven_padding_is_a_convolution():
    def made(padding, count=True, ceil=False, kernel=3):
        net = Building((4, 8, 8))
        y = net.pool("avgpool", "x", kernel, 2, padding, ceil, count_padding=count)
        return fuse(net.build(net.head(y))).steps[0]

    assert (made((0, 0, 1, 1)).kind, made((0, 0, 1, 1)).weight, made((0, 0, 1, 1)).groups) == ("depthwise", "", 4)
    assert made((1, 1, 1, 1)).kind == "avgpool"
    assert made((0, 0, 1, 1), count=False).kind == "avgpool"
    with pytest.raises(InputError, match="beyond a padding"):
        made((0, 0, 1, 1), ceil=True, kernel=4)


def test_depthwise_and_other_groups():
    net = Building((8, 8, 8))
    x = net.conv(net.conv(net.conv("x", 8, groups=8), 16, groups=8), 8, groups=2)
    fused = fuse(net.build(net.head(x)))
    assert kinds(fused) == ["depthwise", "conv", "conv", "global", "conv"]
    assert [step.groups for step in fused.steps[:3]] == [8, 8, 2]


def test_factors_after_a_convolution():
    net = Building((4, 8, 8))
    x = net.add("relu", net.scale(net.conv("x", 4, name="a"), name="s"))
    fused = fuse(net.build(net.head(x)))
    assert named(fused, "a").scalings == (Scaling("outputs", "s.weight", "s.bias"),)
    assert (named(fused, "a").activation, named(fused, "a").output) == ("relu", x)


def test_factors_before_a_convolution():
    def first(padding):
        net = Building((4, 8, 8))
        return fuse(net.build(net.head(net.conv(net.scale("x", name="s"), 4, padding=padding, name="a")))).steps[0]

    assert first(0).scalings == (Scaling("inputs", "s.weight", "s.bias"),)
    assert first(0).inputs == ("x",)
    assert first(1).kind == "scale"
    assert first((0, 0, 1, 0)).kind == "scale"


def test_factors_around_a_packed_weight_stand_alone():
    net = Building((4, 8, 8))
    x = net.scale(net.conv(net.scale("x"), 4, unstructured=0.5))
    assert kinds(fuse(net.build(net.head(x)))) == ["scale", "conv", "scale", "global", "conv"]


def test_x_times_its_sigmoid_is_silu():
    net = Building((4, 8, 8))
    a = net.conv("x", 4, name="a")
    y = net.add("multiply", [a, net.add("sigmoid", a)])
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["conv", "global", "conv"]
    assert (named(fused, "a").activation, named(fused, "a").output) == ("silu", y)


def test_squeeze_and_excitation():
    net = Building((4, 8, 8))
    x = net.add("relu", net.conv("x", 8, name="a"))
    s = net.add("relu", net.conv(net.add("globalavgpool", x), 2, 1, name="fc1"))
    s = net.add("hardsigmoid", net.conv(s, 8, 1, name="fc2"))
    y = net.conv(net.add("hardswish", net.add("multiply", [x, s])), 4, 1)
    fused = fuse(net.build(net.head(y)))
    assert kinds(fused) == ["conv", "global", "conv", "conv", "multiply", "conv", "global", "conv"]
    assert named(fused, "fc2").activation == "hardsigmoid"
    assert (fused.steps[4].inputs, fused.steps[4].activation) == ((x, s), "hardswish")


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "expected"),
    [
        (8, 3, 1, 1, 1, (1, 1, 1, 1)),
        (8, 3, 2, 1, 1, (1, 1, 0, 0)),
        (9, 3, 2, 1, 1, (1, 1, 1, 1)),
        (8, 7, 2, 3, 1, (3, 3, 2, 2)),
        (8, 1, 1, 0, 1, (0, 0, 0, 0)),
        (8, 1, 2, 0, 1, (0, 0, 0, 0)),
        (8, 3, 1, 2, 2, (2, 2, 2, 2)),
        (8, 3, 1, (0, 1, 2, 1), 1, (0, 1, 2, 1)),
        (8, 1, 1, 1, 1, (1, 1, 1, 1)),
    ],
)
def test_the_halo_is_what_windows_read(size, kernel, stride, padding, dilation, expected):
    net = Building((4, size, size))
    y = net.conv("x", 4, kernel, stride, padding, dilation)
    fused = fuse(net.build(net.head(y)))
    assert halo(fused.steps[0], fused.shapes["x"], fused.shapes[y]) == expected


def grown(seed: int) -> Fused:
    """Twelve operators on any values there are, and the sum of what nobody read."""
    rng = np.random.default_rng(seed)
    net = Building((4, 6, 6), seed)
    values = ["x"]
    for kind in rng.choice(["conv", "add", "relu", "gather"], 12):
        one, two = rng.choice(values, 2)
        if kind == "conv":
            values.append(net.conv(one, 4, 3, padding=1))
        elif kind == "gather":
            values.append(net.gather(one, [3, 2, 1, 0]))
        else:
            values.append(net.add(kind, [one, two] if kind == "add" else one))
    read = {name for operator in net.operators for name in operator.inputs}
    y, *others = [value for value in values if value not in read]
    for value in others:
        y = net.add("add", [y, value])
    return fuse(net.build(net.head(y)))


@pytest.mark.parametrize("seed", range(20))
def test_steps_come_after_what_they_read(seed):
    fused = grown(seed)
    there = {"x"}
    for step in fused.steps:
        assert set(step.reads) <= there
        there.add(step.output)
    assert fused.output in there
    assert there == set(fused.shapes)
