"""Where values lie: nothing is written over that is needed, halos are zero, parts of concatenations are in place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.runtime.fuse import Fused, Step, fuse, halo
from billhook.runtime.layout import ALIGN, Layout, Options, View, lay_out, place

from .networks import Building

ZERO = -1


def laid(net: Building, output: str, lanes: int = 16, size: int = 4, options: Options | None = None) -> Layout:
    return lay_out(fuse(net.build(output)), lanes, size, 0, options)


def addresses(view: View, size: int, channels: int, border: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.ndarray:
    """Element numbers in the arena, [rows, columns, channels], of a map with a border around it."""
    top, left, bottom, right = border
    y = np.arange(-top, view.height + bottom)[:, None, None]
    x = np.arange(-left, view.width + right)[:, None]
    assert view.offset % size == 0
    found = view.offset // size + y * view.row + x * view.pixel + np.arange(channels)
    assert found.min() >= 0
    return found


class Machine:
    """Runs a layout on markers instead of numbers: whose element it is, or zero."""

    def __init__(self, fused: Fused, layout: Layout, size: int) -> None:
        self.fused, self.layout, self.size = fused, layout, size
        self.names = sorted(fused.shapes)
        self.memory = np.full(layout.arena // size, -2, np.int64)

        self.renamed: dict[str, np.ndarray] = {}

    def marks(self, name: str) -> np.ndarray:
        if name in self.renamed:
            return self.renamed[name]
        channels, height, width = self.fused.shapes[name]
        numbers = np.arange(height * width * channels).reshape(height, width, channels)
        return numbers + (1 + self.names.index(name)) * 1_000_000

    def write(self, name: str) -> set[int]:
        view = self.layout.views[name]
        border = (view.top, view.left, view.bottom, view.right)
        everything = addresses(view, self.size, view.padded, border)
        assert everything.max() < self.memory.size
        inside = addresses(view, self.size, view.channels)
        self.memory[everything] = ZERO
        self.memory[addresses(view, self.size, view.padded)] = -3
        self.memory[inside] = self.marks(name)
        return set(everything.reshape(-1).tolist())

    def read(self, name: str, border: tuple[int, int, int, int] = (0, 0, 0, 0)) -> set[int]:
        view = self.layout.views[name]
        there = (view.top, view.left, view.bottom, view.right)
        assert all(one >= other for one, other in zip(there, border, strict=True))
        np.testing.assert_array_equal(self.memory[addresses(view, self.size, view.channels)], self.marks(name), name)
        around = addresses(view, self.size, view.padded, border)
        edge = np.ones(around.shape[:2], bool)
        edge[border[0] : border[0] + view.height, border[1] : border[1] + view.width] = False
        assert (self.memory[around[edge][:, : view.channels]] == ZERO).all()
        assert (self.memory[around] != -2).all(), "never written"
        return set(around.reshape(-1).tolist())

    def run(self) -> None:
        fused = self.fused
        self.write(fused.input)
        for step in fused.steps:
            made = self.layout.views[step.output]
            reads: set[int] = set()
            for name in step.reads:
                border = (0, 0, 0, 0)
                if step.kind in ("conv", "depthwise") and name == step.inputs[0]:
                    border = halo(step, fused.shapes[name], fused.shapes[step.output])
                area = self.read(name, border)
                apart = step.kind not in ("add", "multiply", "scale", "unary") and name != step.residual
                if apart or self.layout.views[name] != made:
                    reads |= area
            if step.kind == "concat":
                self.joins(step)
                continue
            assert not (self.write(step.output) & reads), f"{step.name} writes over what it reads"
        self.read(fused.output)

    def joins(self, step: Step) -> None:
        """Copies what has to be copied; all parts then are where the whole has them, and lend it their marks."""
        for copy in self.layout.copies.get(step.output, ()):
            view = copy.view
            border = (view.top, view.left, view.bottom, view.right)
            self.memory[addresses(view, self.size, view.padded, border)] = ZERO
            self.memory[addresses(view, self.size, view.channels)] = self.marks(copy.source)
        self.renamed[step.output] = np.concatenate([self.marks(name) for name in step.inputs], axis=2)
        self.read(step.output)


def check(net: Building, output: str, **options: object) -> Layout:
    fused = fuse(net.build(output))
    for lanes, size in ((16, 4), (16, 2), (8, 4)):
        layout = lay_out(fused, lanes, size, 0, Options(**options))  # type: ignore[arg-type]
        assert layout.arena % ALIGN == 0
        for view in layout.views.values():
            assert view.padded % lanes == 0
            assert (view.offset % (16 * size), view.pixel % 16, view.row % 16) == (0, 0, 0)
        Machine(fused, layout, size).run()
    return lay_out(fused, 16, 4, 0, Options(**options))  # type: ignore[arg-type]


def copied(layout: Layout) -> dict[str, list[tuple[str, int]]]:
    return {name: [(copy.source, copy.first) for copy in copies] for name, copies in layout.copies.items()}


def test_a_map_with_its_halo():
    net = Building((3, 5, 6))
    y = net.conv("x", 20, (3, 5), padding=(1, 2, 1, 2), name="a")
    view = laid(net, net.head(y)).views["x"]
    # 16 channels of room, rows of 2 + 6 + 2 pixels; one row and two pixels before the first.
    assert (view.height, view.width, view.channels, view.padded) == (5, 6, 3, 16)
    assert (view.pixel, view.row) == (16, 160)
    assert (view.top, view.left, view.bottom, view.right) == (1, 2, 1, 2)
    assert view.offset % 64 == 0


def test_the_widest_window_says_how_wide_the_halo_is():
    net = Building((4, 9, 9))
    a = net.conv("x", 4, 5, padding=(0, 1, 4, 3))
    b = net.conv("x", 4, 3, padding=1)
    view = laid(net, net.add("concat", [net.head(a), net.head(b)])).views["x"]
    assert (view.top, view.left, view.bottom, view.right) == (1, 1, 4, 3)


def test_pools_need_no_halo():
    net = Building((4, 9, 9))
    view = laid(net, net.head(net.pool("maxpool", "x", 3, 2, 1))).views["x"]
    assert (view.top, view.left, view.bottom, view.right) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("channels", "size", "spread", "pixel"),
    [
        (1024, 4, "aliased", 1040),
        (1024, 2, "aliased", 1024),
        (2048, 2, "aliased", 2080),
        (1024, 4, "never", 1024),
        (64, 4, "aliased", 64),
        (64, 4, "always", 80),
        (64, 2, "always", 96),
        (1000, 4, "aliased", 1008),
    ],
)
def test_pixels_are_spread(channels, size, spread, pixel):
    net = Building((channels, 2, 2))
    assert laid(net, net.head("x"), size=size, options=Options(spread)).views["x"].pixel == pixel


def test_a_single_pixel_is_not_spread():
    net = Building((1024, 1, 1))
    assert laid(net, net.head("x"), options=Options("always")).views["x"].pixel == 1024


def test_lanes_of_eight():
    net = Building((4, 2, 2))
    view = laid(net, net.head("x"), lanes=8).views["x"]
    assert (view.padded, view.pixel) == (8, 16)


def chain(net: Building, length: int, channels: int = 16) -> str:
    x = "x"
    for _ in range(length):
        x = net.conv(x, channels, 1)
    return x


def test_memory_is_used_again():
    net = Building((16, 8, 8))
    layout = check(net, net.head(chain(net, 10)))
    # A map of 8 by 8 pixels and 16 channels takes 4096 bytes; two live at a time.
    assert layout.arena == 2 * 8 * 8 * 16 * 4


def block(net: Building, x: str, channels: int, kernel: int) -> str:
    a = net.add("relu", net.conv(x, channels, kernel, padding=kernel // 2))
    b = net.conv(a, channels, kernel, padding=kernel // 2)
    return net.add("relu", net.add("add", [b, x]))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_sum_takes_the_place_of_its_term(kernel):
    net = Building((16, 8, 8))
    x = net.conv("x", 16, kernel, padding=kernel // 2)
    values = [x]
    for _ in range(3):
        values.append(block(net, values[-1], 16, kernel))
    y = net.head(net.conv(values[-1], 16, kernel, padding=kernel // 2))
    views = check(net, y).views
    assert len({views[value] for value in values}) == 1
    views = check(net, y, overwrite=False).views
    assert len({views[value].offset for value in values}) > 1


def test_a_term_that_is_needed_again_stays():
    net = Building((16, 8, 8))
    x = net.conv("x", 16, 1)
    y = block(net, x, 16, 1)
    z = net.add("add", [net.conv(y, 16, 1), x])
    views = check(net, net.head(z)).views
    assert views[y] != views[x]
    assert views[z] == views[x]


def test_a_term_with_another_halo_stays():
    net = Building((16, 8, 8))
    x = net.conv("x", 16, 1)
    y = net.add("add", [net.conv(net.conv(x, 16, 1), 16, 1), x])
    views = check(net, net.head(net.conv(y, 16, 3, padding=1))).views
    assert views[y].offset != views[x].offset


def test_a_convolution_never_writes_over_its_input():
    net = Building((16, 8, 8))
    x = net.conv("x", 16, 1)
    y = net.add("add", [net.conv(x, 16, 1), x])
    views = check(net, net.head(y)).views
    assert views[y].offset != views[x].offset


def test_a_sum_behind_a_costly_activation_stays_apart():
    """Its convolution makes a second pass over what it wrote."""

    def same(activation):
        net = Building((16, 8, 8))
        x = net.conv("x", 16, 1)
        a = net.add(activation, net.conv(net.conv(x, 16, 1), 16, 1))
        y = net.add("add", [a, x])
        views = check(net, net.head(y)).views
        return views[x] == views[y]

    assert same("relu")
    assert not same("silu")


def test_arithmetic_writes_over_its_input():
    net = Building((16, 8, 8))
    a = net.conv("x", 16, 1)
    b = net.add("sigmoid", net.pool("maxpool", a, 1, 1))
    values = [net.pool("maxpool", b, 2, 2)]
    values.append(net.scale(values[-1]))
    values.append(net.add("multiply", [values[-1], net.add("globalavgpool", values[-1])]))
    values.append(net.add("add", [values[-1], values[-1]]))
    views = check(net, net.head(values[-1])).views
    assert len({views[value] for value in values}) == 1


def test_parts_are_made_in_the_concatenation():
    net = Building((16, 8, 8))
    parts = [net.conv("x", channels, 1) for channels in (32, 16, 5)]
    y = net.add("concat", parts)
    layout = check(net, net.head(net.conv(y, 8, 3, padding=1)))
    assert layout.copies == {}
    assert [layout.views[name].offset - layout.views[y].offset for name in parts] == [0, 128, 192]
    assert {layout.views[name].pixel for name in (*parts, y)} == {64}
    assert {layout.views[name].top for name in (*parts, y)} == {1}
    assert (layout.views[parts[2]].channels, layout.views[parts[2]].padded) == (5, 16)


def test_ragged_parts_are_copied():
    net = Building((16, 8, 8))
    parts = [net.conv("x", channels, 1) for channels in (20, 12, 16)]
    y = net.add("concat", parts)
    layout = check(net, net.head(y))
    # The third begins at channel 32 and needs no copy.
    assert copied(layout) == {y: [(parts[1], 20)]}


def test_one_part_twice():
    net = Building((16, 8, 8))
    a = net.conv("x", 16, 1)
    y = net.add("concat", [a, a])
    assert copied(check(net, net.head(y))) == {y: [(a, 16)]}


def test_a_part_of_two_concatenations():
    net = Building((16, 8, 8))
    a, b, c = (net.conv("x", 16, 1) for _ in range(3))
    y, z = net.add("concat", [a, b]), net.add("concat", [c, b])
    layout = check(net, net.add("concat", [net.head(y), net.head(z)]))
    assert {name: parts for name, parts in copied(layout).items() if name in (y, z)} == {z: [(b, 16)]}


def test_ever_longer_concatenations_share_their_memory():
    """Densely connected: every layer reads all outputs before it."""
    net = Building((16, 8, 8))
    parts = [net.conv("x", 16, 1)]
    for _ in range(4):
        joined = net.add("concat", parts) if len(parts) > 1 else parts[0]
        parts.append(net.conv(net.add("relu", net.scale(joined)), 16, 3, padding=1))
    y = net.add("concat", parts)
    layout = check(net, net.head(y))
    assert layout.copies == {}
    assert layout.views[y].channels == 80


def test_a_concatenation_inside_another():
    net = Building((16, 8, 8))
    a, b, c = (net.conv("x", 16, 1) for _ in range(3))
    inner = net.add("concat", [a, b])
    y = net.add("concat", [c, inner])
    layout = check(net, net.head(y))
    assert layout.copies == {}
    assert [layout.views[name].offset - layout.views[y].offset for name in (c, a, b, inner)] == [0, 64, 128, 64]


def test_the_image_may_be_a_part():
    net = Building((16, 8, 8))
    y = net.add("concat", ["x", net.conv("x", 16, 3, padding=1)])
    assert check(net, net.head(net.add("relu", y))).copies == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 12), st.integers(0, 6)), max_size=14))
def test_placing(items):
    sizes = [size * 64 for size, _, _ in items]
    lives = [(first, first + length) for _, first, length in items]
    offsets, arena = place(sizes, lives)
    assert all(offset % ALIGN == 0 and offset + size <= arena for offset, size in zip(offsets, sizes, strict=True))
    for one, two in itertools.combinations(range(len(items)), 2):
        if lives[one][0] <= lives[two][1] and lives[two][0] <= lives[one][1]:
            assert offsets[one] + sizes[one] <= offsets[two] or offsets[two] + sizes[two] <= offsets[one]
    busiest = max((sum(s for s, (a, b) in zip(sizes, lives, strict=True) if a <= t <= b) for t in range(20)), default=0)
    assert arena >= busiest


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["aliased", "always"]), st.booleans())
def test_any_network(seed, spread, overwrite):
    check(*grown(seed), spread=spread, overwrite=overwrite)


def grown(seed: int) -> tuple[Building, str]:
    rng = np.random.default_rng(seed)
    net = Building((int(rng.integers(1, 40)), int(rng.integers(3, 7)), int(rng.integers(3, 7))), seed)
    values = ["x"]
    for kind in rng.choice(["conv", "add", "relu", "silu", "concat", "concat", "depthwise", "scale"], 14):
        one = str(rng.choice(values[-4:]))
        shape = net.shapes()
        alike = [name for name in values if shape[name] == shape[one]]
        if kind == "conv":
            kernel = int(rng.choice([1, 3]))
            values.append(net.conv(one, int(rng.choice([5, 16, 16, 32, 20])), kernel, padding=kernel // 2))
        elif kind == "depthwise":
            values.append(net.conv(one, shape[one][0], 3, padding=1, groups=shape[one][0]))
        elif kind == "concat":
            values.append(net.add("concat", [str(name) for name in rng.choice(values, rng.integers(2, 4))]))
        elif kind == "add":
            values.append(net.add("add", [one, str(rng.choice(alike))]))
        elif kind == "scale":
            values.append(net.scale(one))
        else:
            values.append(net.add(str(kind), one))
    read = {name for operator in net.operators for name in operator.inputs}
    heads = [net.head(name) for name in values if name not in read]
    return net, heads[0] if len(heads) == 1 else net.add("concat", heads)
