"""Every kind of step against numpy: random maps, ragged channels, odd sizes, every instruction set, 1 to 3 threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.machine import Machine, activated, up, windows

from billhook.runtime import native
from billhook.runtime.packing import from_bf16, pack_dense, pack_depthwise, to_bf16
from billhook.runtime.program import (
    BF16,
    COUNT_PADDING,
    F32,
    RESIDUAL,
    RESIDUAL_LAST,
    Activation,
    Kind,
    ProgramStep,
)

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.reason()}")

USABLE = native.usable() if native.available() else []
SETS = [(isa, F32) for isa in USABLE] + [(isa, BF16) for isa in USABLE if isa == 3]
sets = pytest.mark.parametrize(
    ("isa", "type_"), SETS, ids=[f"{native.ISAS[i]}-{'bf16' if t else 'f32'}" for i, t in SETS]
)
few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)
threads = st.integers(1, 3)


@pytest.fixture(autouse=True, scope="module")
def share_everything():
    """Threads share even what is not worth it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BILLHOOK_SHARE_ALL", "1")
        yield


def some(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def shape(rng: np.random.Generator, side: int = 9, channels: int = 70) -> tuple[int, int, int]:
    return some(rng, 1, side), some(rng, 1, side), some(rng, 1, channels)


def window(rng: np.random.Generator, largest: int = 5) -> dict[str, Any]:
    pair = lambda low, high: (some(rng, low, high), some(rng, low, high))  # noqa: E731
    return {"kernel": pair(1, largest), "stride": pair(1, 3), "dilation": pair(1, 2)}


class Convolution:
    """A convolution's maps: an input with just the halo that it needs, or more, and perhaps something to add."""

    def __init__(
        self, machine: Machine, inputs: int, outputs: int, settings: dict[str, Any], loose: bool = False
    ) -> None:
        rng = machine.rng
        self.machine, self.settings = machine, settings
        kernel, stride, dilation = settings["kernel"], settings["stride"], settings["dilation"]
        reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        padding = settings.setdefault("padding", (some(rng, 0, reach[0]), some(rng, 0, reach[1])))
        size = [some(rng, 1, 9), some(rng, 1, 9)]
        past = [some(rng, 0, 2), some(rng, 0, 2)]
        size = [max(s, r + 1 - p - f) for s, r, p, f in zip(size, reach, padding, past, strict=True)]
        out = [(s + p + f - r - 1) // t + 1 for s, p, f, r, t in zip(size, padding, past, reach, stride, strict=True)]
        halo = (padding[0] + some(rng, 0, 1), padding[1] + some(rng, 0, 1), past[0], past[1])
        self.in_ = machine.map((size[0], size[1], inputs), halo, loose=loose)
        self.out = machine.view(out[0], out[1], outputs)
        self.flags = int(rng.choice([0, RESIDUAL, RESIDUAL_LAST]))
        self.other = machine.map((out[0], out[1], outputs), zeros=False) if self.flags else None
        self.activation = some(rng, 0, 6)
        self.bias = np.zeros(self.out.padded, np.float32)
        self.bias[:outputs] = rng.standard_normal(outputs)

    def taps(self) -> np.ndarray:
        size = self.out.height, self.out.width
        return windows(self.machine.values(self.in_), size, **self.settings)

    def finished(self, sums: np.ndarray) -> np.ndarray:
        sums = sums + self.bias[: self.out.channels]
        if self.flags == RESIDUAL:
            sums = sums + self.machine.values(self.other)
        sums = activated(sums, self.activation)
        return sums + self.machine.values(self.other) if self.flags == RESIDUAL_LAST else sums

    def common(self) -> dict[str, Any]:
        common = {"in_": self.in_, "out": self.out, "other": self.other, "bias": self.bias, "flags": self.flags}
        return common | self.settings | {"activation": self.activation}


@sets
@few
@given(seed=seeds, threads=threads)
def test_dense_convolutions(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    inputs, outputs, settings = some(rng, 1, 40), some(rng, 1, 80), window(rng)
    conv = Convolution(machine, inputs, outputs, settings)
    weight = machine.rounded(rng.standard_normal((outputs, inputs, *settings["kernel"])) / np.sqrt(inputs))
    vectors = int(rng.choice([1, 2, 4]))
    tile, rows = (int(v) for v in rng.choice([(some(rng, 0, 17), 1), (7, 2), (8, 2), (4, 2), (4, 4), (2, 4), (3, 3)]))
    step = ProgramStep(
        Kind.DENSE,
        values=pack_dense(weight, machine.lanes, vectors, type_ == BF16),
        vectors=vectors,
        tile=tile,
        rows=rows,
        order=some(rng, 0, 1),
        split=some(rng, 0, 1),
        **conv.common(),
    )
    sums = np.einsum("abyxi,oiab->yxo", conv.taps(), weight.astype(np.float64))
    machine.check(step, conv.finished(sums), threads, 1e-5 if type_ == F32 else None)


@sets
@few
@given(seed=seeds, threads=threads)
def test_a_first_layer_whose_channels_fill_no_vector(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    settings = window(rng)
    conv = Convolution(machine, 3, 20, settings, loose=True)
    if type_ == BF16 and conv.in_.padded < 4:
        return
    weight = machine.rounded(rng.standard_normal((20, 3, *settings["kernel"])))
    step = ProgramStep(
        Kind.DENSE, values=pack_dense(weight, machine.lanes, 2, type_ == BF16), vectors=2, tile=8, **conv.common()
    )
    sums = np.einsum("abyxi,oiab->yxo", conv.taps(), weight.astype(np.float64))
    machine.check(step, conv.finished(sums), threads, 1e-5 if type_ == F32 else None)


@sets
@few
@given(seed=seeds, threads=threads)
def test_hybrid_convolutions(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    inputs, outputs, settings = some(rng, 1, 70), some(rng, 1, 70), window(rng)
    conv = Convolution(machine, inputs, outputs, settings)
    lanes, view, pair = machine.lanes, conv.in_, 2 if type_ == BF16 else 1
    groups, slots = up(outputs, lanes) // lanes, int(rng.choice([1, 2, 4]))
    per_group = rng.integers(0, 5, groups)
    first = np.r_[0, np.cumsum(per_group)].astype(np.int32)
    count = int(first[-1])
    ky, kx = rng.integers(0, settings["kernel"][0], count), rng.integers(0, settings["kernel"][1], count)
    # What is loaded ends inside the pixel, what is chosen inside the channels.
    channel = rng.integers(0, min(view.padded, view.pixel - lanes * pair + 1), count)
    channel = np.minimum(channel, view.padded - 1 if pair == 2 else view.padded - lanes)
    down, along = settings["dilation"]
    offsets = (ky * down * view.row + kx * along * view.pixel + channel).astype(np.int32)
    limit = np.minimum(lanes * pair, view.padded - channel)[:, None, None, None]
    index = rng.integers(0, np.broadcast_to(limit, (count, slots, lanes, pair))).astype(np.uint8)
    values = machine.rounded(rng.standard_normal(index.shape))
    # Outputs and inputs that only fill vectors up have zero weights.
    column = channel[:, None, None, None] + index
    values[column >= inputs] = 0
    owner = np.repeat(np.arange(groups), per_group)
    output = np.broadcast_to((owner[:, None] * lanes + np.arange(lanes))[:, None, :, None], index.shape)
    values[output >= outputs] = 0
    weight = np.zeros((groups * lanes, *settings["kernel"], view.padded))
    tap = [np.broadcast_to(k[:, None, None, None], index.shape) for k in (ky, kx)]
    np.add.at(weight, (output, *tap, column), values)
    step = ProgramStep(
        Kind.HYBRID,
        values=to_bf16(values) if pair == 2 else values,
        index=index,
        offsets=offsets,
        first=first,
        count=count,
        slots=slots,
        tile=some(rng, 0, 17),
        rows=int(rng.choice([1, 1, 2, 4])),
        order=some(rng, 0, 1),
        split=some(rng, 0, 1),
        **conv.common(),
    )
    sums = np.einsum("abyxi,oabi->yxo", conv.taps(), weight[:outputs, ..., :inputs])
    machine.check(step, conv.finished(sums), threads, 1e-5 if type_ == F32 else None)


@sets
@few
@given(seed=seeds, threads=threads, side=st.sampled_from([0, 3, 3, 5]))
def test_depthwise_convolutions(isa, type_, seed, threads, side):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    settings = window(rng)
    if side:
        settings |= {"kernel": (side, side), "dilation": (1, 1)}
        if rng.random() < 0.7:
            settings["stride"] = (1, 1)
    channels = some(rng, 1, 70)
    conv = Convolution(machine, channels, channels, settings)
    weight = rng.standard_normal((channels, 1, *settings["kernel"])).astype(np.float32)
    step = ProgramStep(
        Kind.DEPTHWISE, values=pack_depthwise(weight, machine.lanes), split=some(rng, 0, 1), **conv.common()
    )
    sums = np.einsum("abyxc,cab->yxc", conv.taps(), weight[:, 0].astype(np.float64))
    machine.check(step, conv.finished(sums), threads)


def pooled(machine: Machine, rng: np.random.Generator, dilated: bool) -> tuple[dict[str, Any], Any, Any]:
    settings = window(rng, 4)
    if not dilated:
        settings["dilation"] = (1, 1)
    kernel, stride, dilation = settings["kernel"], settings["stride"], settings["dilation"]
    size = [some(rng, k * d, 11) for k, d in zip(kernel, dilation, strict=True)]
    padding = settings["padding"] = (some(rng, 0, kernel[0] // 2), some(rng, 0, kernel[1] // 2))
    out = []
    for s, k, t, d, p in zip(size, kernel, stride, dilation, padding, strict=True):
        # Ceil mode: one window more, as long as it begins inside.
        count = (s + 2 * p - d * (k - 1) - 1) // t + 1
        more = count * t - p < s and rng.random() < 0.5 and d == 1
        out.append(count + int(more))
    channels = some(rng, 1, 150)
    in_ = machine.map((size[0], size[1], channels), zeros=False)
    return settings, in_, machine.view(out[0], out[1], channels)


@sets
@few
@given(seed=seeds, threads=threads)
def test_maxima_over_clipped_windows(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    settings, in_, out = pooled(machine, rng, dilated=True)
    taps = windows(machine.values(in_), (out.height, out.width), **settings, outside=-np.inf)
    activation = some(rng, 0, 2)
    step = ProgramStep(Kind.MAXPOOL, in_=in_, out=out, activation=activation, **settings)
    machine.check(step, activated(taps.max((0, 1)), activation), threads, 0.0)


@sets
@few
@given(seed=seeds, threads=threads, padding=st.booleans())
def test_means_over_clipped_windows(isa, type_, seed, threads, padding):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    settings, in_, out = pooled(machine, rng, dilated=False)
    size = out.height, out.width
    taps = windows(machine.values(in_), size, **settings)
    # What counts: pixels of the map, or of the map with as much padding behind it as before it.
    around = settings["padding"] if padding else (0, 0)
    counted = np.ones((in_.height + 2 * around[0], in_.width + 2 * around[1], 1))
    shifted = settings | {"padding": (0, 0) if padding else settings["padding"]}
    expected = taps.sum((0, 1)) / windows(counted, size, **shifted).sum((0, 1))
    step = ProgramStep(Kind.AVGPOOL, in_=in_, out=out, flags=COUNT_PADDING if padding else 0, **settings)
    machine.check(step, expected, threads)


@sets
@few
@given(seed=seeds, threads=threads)
def test_means_over_maps(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    in_ = machine.map(shape(rng, channels=150), zeros=False)
    step = ProgramStep(Kind.GLOBAL, in_=in_, out=machine.view(1, 1, in_.channels))
    machine.check(step, machine.values(in_).astype(np.float64).mean((0, 1), keepdims=True), threads)


@sets
@few
@given(seed=seeds, threads=threads, activation=st.sampled_from(Activation))
def test_sums(isa, type_, seed, threads, activation):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size = shape(rng)
    a, b = machine.map(size, zeros=False), machine.map(size, zeros=False)
    step = ProgramStep(Kind.ADD, in_=a, other=b, out=machine.view(*size), activation=activation)
    machine.check(step, activated(machine.values(a) + machine.values(b), activation), threads)


@sets
@few
@given(seed=seeds, threads=threads, one=st.booleans(), activation=st.sampled_from(Activation))
def test_products(isa, type_, seed, threads, one, activation):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size = shape(rng)
    a, b = machine.map(size, zeros=False), machine.map((1, 1, size[2]) if one else size, zeros=False)
    step = ProgramStep(Kind.MULTIPLY, in_=a, other=b, out=machine.view(*size), activation=activation)
    machine.check(step, activated(machine.values(a) * machine.values(b), activation), threads)


@sets
@few
@given(seed=seeds, threads=threads, biased=st.booleans(), activation=st.sampled_from(Activation))
def test_scales(isa, type_, seed, threads, biased, activation):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size = shape(rng)
    in_, out = machine.map(size, zeros=False), machine.view(*size)
    scale, bias = rng.standard_normal((2, out.padded)).astype(np.float32)
    step = ProgramStep(Kind.SCALE, in_=in_, out=out, values=scale, bias=bias if biased else None, activation=activation)
    expected = machine.values(in_) * scale[: size[2]] + (bias[: size[2]] if biased else 0)
    machine.check(step, activated(expected, activation), threads)


@sets
@few
@given(seed=seeds, threads=threads, activation=st.sampled_from(Activation))
def test_activations(isa, type_, seed, threads, activation):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size = shape(rng)
    in_ = machine.map(size, zeros=False)
    machine.values(in_)[:] = machine.rounded(machine.values(in_) * 8)
    step = ProgramStep(Kind.UNARY, in_=in_, out=machine.view(*size), activation=activation)
    machine.check(step, activated(machine.values(in_), activation), threads)


@sets
def test_activations_of_large_and_small_numbers(isa, type_):
    machine = Machine(np.random.default_rng(0), isa, type_)
    numbers = np.r_[np.linspace(-120, 120, 4001), -1e30, 1e30, -1e-30, 1e-30, 0]
    for activation in Activation:
        in_ = machine.map((1, numbers.size, 1), zeros=False)
        machine.values(in_)[0, :, 0] = machine.rounded(numbers)
        x = machine.values(in_).astype(np.float64)
        with np.errstate(over="ignore"):
            expected = activated(x, activation)
        found = machine.run(
            ProgramStep(Kind.UNARY, in_=in_, out=machine.view(1, numbers.size, 1), activation=activation)
        )
        limit = 1e-6 if type_ == F32 else 4e-3
        # x / 6 + 1/2 cancels near -3; a sigmoid below 1e-30 is as good as zero.
        least = 1e-7 if activation in (Activation.HARDSIGMOID, Activation.HARDSWISH) else 1e-30
        assert (np.abs(found - expected) <= limit * np.abs(expected) + least * np.maximum(1, np.abs(x))).all()


@sets
@few
@given(seed=seeds, threads=threads)
def test_channels_chosen(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size, stride = shape(rng), (some(rng, 1, 3), some(rng, 1, 3))
    in_ = machine.map(size, zeros=False)
    index = rng.integers(-1, size[2], some(rng, 1, 70)).astype(np.int32)
    values = machine.values(in_)[:: stride[0], :: stride[1]]
    out = machine.view(*values.shape[:2], index.size)
    expected = np.where(index < 0, 0, values[:, :, index])
    machine.check(ProgramStep(Kind.GATHER, in_=in_, out=out, stride=stride, index=index), expected, threads, 0.0)


@sets
@few
@given(seed=seeds, threads=threads, loose=st.booleans())
def test_channels_copied(isa, type_, seed, threads, loose):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size = shape(rng)
    in_, out = machine.map(size, loose=loose, zeros=False), machine.view(*size, loose=not loose)
    machine.check(ProgramStep(Kind.COPY, in_=in_, out=out), machine.values(in_), threads, 0.0)


@sets
@few
@given(seed=seeds, threads=threads)
def test_maps_made_vectors(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    in_ = machine.map(shape(rng), zeros=False)
    values = machine.values(in_)
    step = ProgramStep(Kind.FLATTEN, in_=in_, out=machine.view(1, 1, values.size))
    machine.check(step, values.transpose(2, 0, 1).reshape(1, 1, -1), threads, 0.0)


@sets
@few
@given(seed=seeds, threads=threads)
def test_softmax(isa, type_, seed, threads):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    size = shape(rng, 4)
    in_ = machine.map(size, zeros=False)
    machine.values(in_)[:] = machine.rounded(machine.values(in_) * 40)
    powers = np.exp(machine.values(in_).astype(np.float64) - machine.values(in_).max(2, keepdims=True))
    step = ProgramStep(Kind.SOFTMAX, in_=in_, out=machine.view(*size))
    machine.check(step, powers / powers.sum(2, keepdims=True), threads)


@sets
@few
@given(seed=seeds, threads=threads, loose=st.booleans(), layout=st.sampled_from(["NCHW", "NHWC"]), raw=st.booleans())
def test_images_loaded_and_results_stored(isa, type_, seed, threads, loose, layout, raw):
    rng = np.random.default_rng(seed)
    machine = Machine(rng, isa, type_)
    height, width, channels = shape(rng, channels=4 if raw else 20)
    out = machine.view(height, width, channels, loose=loose)
    scale, shift = rng.standard_normal((2, channels)).astype(np.float32)
    program = machine.program(
        [ProgramStep(Kind.LOAD, out=out), ProgramStep(Kind.STORE, in_=out)],
        image=(channels, height, width),
        outputs=channels * height * width,
        scaling=(scale, shift) if raw else None,
    )
    images = rng.standard_normal((3, channels, height, width)).astype(np.float32)
    expected = images
    if raw:
        images = rng.integers(0, 256, images.shape).astype(np.uint8)
        expected = images * scale[:, None, None] + shift[:, None, None]
    with native.Net(program, isa, threads) as net:
        arena = net.arena
        machine.fill(arena)
        found = net.run(images if layout == "NCHW" else images.transpose(0, 2, 3, 1), layout=layout)
        whole = machine.loaded(machine.window(arena, out, halo=True, padded=True))
    limit = 1e-6 if type_ == F32 else 4e-3
    assert np.abs(found.reshape(expected.shape) - expected).max() <= limit * max(1, np.abs(expected).max())
    inside = whole[out.top :, out.left :][: out.height, : out.width]
    assert not inside[..., channels:].any()
    inside[:] = 0
    assert not whole.any()


def test_bf16_rounds_to_nearest_even():
    if 3 not in USABLE:
        pytest.skip("no bf16 here")
    machine = Machine(np.random.default_rng(0), 3, BF16)
    numbers = np.random.default_rng(1).standard_normal((1, 500, 16)).astype(np.float32)
    out = machine.view(1, 500, 16)
    program = machine.program(
        [ProgramStep(Kind.LOAD, out=out), ProgramStep(Kind.STORE, in_=out)], image=(16, 1, 500), outputs=8000
    )
    with native.Net(program, 3) as net:
        found = net.run(numbers[None], layout="NHWC").reshape(16, 1, 500).transpose(1, 2, 0)
    assert np.array_equal(found, from_bf16(to_bf16(numbers)))
