"""Programs: their structs, what is refused and why, damaged ones, and nets that run side by side."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.machine import every_kind

from billhook.errors import InputError, RunError, UsageError
from billhook.runtime import native
from billhook.runtime.program import BF16, HEADER, STEP, VIEW, Activation, Kind, Weights, header_of, steps_of

needs_library = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.reason()}")

HEADER_FILE = Path(__file__).parents[2] / "native" / "include" / "billhook.h"
USABLE = native.usable() if native.available() else []
SETS = [(isa, 0) for isa in USABLE] + [(isa, BF16) for isa in USABLE if isa == 3]
sets = pytest.mark.parametrize(
    ("isa", "type_"), SETS, ids=[f"{native.ISAS[i]}-{'bf16' if t else 'f32'}" for i, t in SETS]
)


# ---------------------------------------------------------------------- structs
def declared() -> dict[str, dict[str, tuple[int, int]]]:
    """The structs of billhook.h: field → (offset, bytes), as C lays them out."""
    text = re.sub(r"/\*.*?\*/", "", HEADER_FILE.read_text(), flags=re.S)
    sizes = {"char": 1, "int32_t": 4, "int64_t": 8, "float": 4}
    structs: dict[str, dict[str, tuple[int, int]]] = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.S):
        fields, at = {}, 0
        for type_, names in re.findall(r"(\w+) ([^;]+);", body):
            unit = sizes[type_]
            for declarator in names.split(","):
                field, count = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*", declarator).groups()
                width = min(unit, 8)
                at = -(-at // width) * width
                fields[field] = at, unit * int(count or 1)
                at += unit * int(count or 1)
        structs[name] = fields
        sizes[name] = -(-at // 8) * 8
    return structs


@pytest.mark.parametrize(("name", "dtype"), [("bh_view", VIEW), ("bh_step", STEP), ("bh_header", HEADER)])
def test_structs_are_those_of_the_c_header(name, dtype):
    ours = {field: (offset, part.itemsize) for field, (part, offset) in dtype.fields.items()}
    assert ours == declared()[name]
    assert dtype.itemsize == {"bh_view": 56, "bh_step": 296, "bh_header": 128}[name]


def test_numbers_are_those_of_the_c_header():
    constants = dict(re.findall(r"BH_(\w+) = (\d+)", HEADER_FILE.read_text()))
    for kind in Kind:
        assert int(constants[kind.name]) == kind
    assert int(constants["KINDS"]) == len(Kind)
    for activation in Activation:
        assert int(constants[activation.name]) == activation
    assert [int(constants[name.upper()]) for name in native.ISAS] == list(range(len(native.ISAS)))


def test_weights_lie_on_multiples_of_64_and_are_kept_once():
    weights = Weights()
    first, second = np.arange(5, dtype=np.float32), np.arange(70, dtype=np.uint8)
    assert [weights.add(first), weights.add(second), weights.add(first)] == [0, 64, 0]
    assert weights.size == 192
    room = np.full(192, 255, np.uint8)
    weights.write(room)
    assert np.array_equal(room[:20].view(np.float32), first)
    assert np.array_equal(room[64:134], second)


# ---------------------------------------------------------------------- running
def images(shape: tuple[int, int, int], count: int = 2) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, *shape)).astype(np.float32)


@needs_library
@pytest.mark.parametrize("seed", range(6))
def test_instruction_sets_agree(seed):
    results = {}
    for isa in USABLE:
        # The same numbers in vectors of other widths are other programs: those of as many lanes are compared.
        program, shape = every_kind(isa, seed=seed)
        with native.Net(program, isa) as net:
            results[native.lanes(isa), isa] = net.run(images(shape))
    for (lanes, isa), result in results.items():
        assert np.isfinite(result).all()
        assert np.allclose(result.sum(1), 1, atol=1e-5)
        for (others, other), expected in results.items():
            if lanes == others:
                assert np.abs(result - expected).max() < 1e-5, (isa, other)


@needs_library
@sets
def test_threads_and_batches_do_not_change_a_bit(isa, type_, monkeypatch):
    program, shape = every_kind(isa, type_)
    batch = images(shape, 5)
    with native.Net(program, isa) as net:
        expected = np.concatenate([net.run(image[None]) for image in batch])
        assert np.array_equal(net.run(batch), expected)
    monkeypatch.setenv("BILLHOOK_SHARE_ALL", "1")
    for count in (2, 3, 7):
        with native.Net(program, isa, count) as net:
            assert np.array_equal(net.run(batch), expected)
            assert np.array_equal(net.run(batch, out=np.zeros_like(expected)), expected)


@needs_library
def test_profile_times_every_step():
    program, shape = every_kind(USABLE[-1])
    for count in (1, 2):
        with native.Net(program, threads=count, isa=USABLE[-1]) as net:
            seconds = net.profile(images(shape)[0], 3)
            assert seconds.shape == (len(steps_of(program)),)
            assert (seconds > 0).all()


@needs_library
def test_bytes_are_scaled_as_the_header_says():
    program, shape = every_kind(USABLE[-1])
    raw = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
    header = header_of(program)
    scaled = raw * header["scale"][:3, None, None] + header["shift"][:3, None, None]
    with native.Net(program, USABLE[-1]) as net:
        assert np.allclose(net.run(raw), net.run(scaled.astype(np.float32)), atol=1e-6)
        assert np.array_equal(net.run(raw), net.run(raw.transpose(0, 2, 3, 1), layout="NHWC"))
    header["named"] = 0
    with native.Net(program, USABLE[-1]) as net, pytest.raises(RunError, match="normalised"):
        net.run(raw)


@needs_library
def test_arguments_are_checked():
    program, shape = every_kind(USABLE[-1])
    x = images(shape)
    with native.Net(program, USABLE[-1]) as net:
        for wrong in (x[0], x[:, :2], x.astype(np.float64)):
            with pytest.raises(UsageError):
                net.run(wrong)
        with pytest.raises(UsageError):
            net.run(x, out=np.zeros((2, 3), np.float32))
        with pytest.raises(RunError, match="wrong arguments"):
            net.steps(0, 2)  # the first one loads
        with pytest.raises(RunError, match="wrong arguments"):
            net.steps(2, 99)
        assert net.run(x[:0]).shape == (0, 144)
    with pytest.raises(RunError, match="closed"):
        net.run(x)
    net.close()
    with pytest.raises(UsageError):
        native.Net(program, USABLE[-1], threads=0)
    with pytest.raises(InputError, match="100000 threads"):
        native.Net(program, USABLE[-1], threads=100000)
    with pytest.raises(InputError, match="instruction set 9"):
        native.Net(program, 9)


@needs_library
def test_unaligned_programs_are_copied():
    program, shape = every_kind(USABLE[-1])
    room = np.zeros(program.size + 1, np.uint8)
    room[1:] = program
    with native.Net(room[1:], USABLE[-1]) as moved, native.Net(program, USABLE[-1]) as net:
        assert np.array_equal(moved.run(images(shape)), net.run(images(shape)))


# ---------------------------------------------------------------------- side by side
@needs_library
def test_nets_run_side_by_side(monkeypatch):
    monkeypatch.setenv("BILLHOOK_SHARE_ALL", "1")
    program, shape = every_kind(USABLE[-1])
    x = images(shape, 4)
    nets = [native.Net(program, USABLE[-1], 2) for _ in range(2)]
    expected = nets[0].run(x)
    wrong: list[Any] = []

    def work(net: native.Net) -> None:
        for _ in range(50):
            if not np.array_equal(net.run(x), expected):
                wrong.append(net)

    # Two threads per net: those of one take turns.
    workers = [threading.Thread(target=work, args=(net,)) for net in (*nets, *nets)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong
    for net in nets:
        net.close()


def _in_child(net: native.Net, x: np.ndarray, expected: np.ndarray, answer: Any) -> None:
    same = np.array_equal(net.run(x), expected)
    net.close()
    answer.put(bool(same))


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_net_goes_on_after_a_fork(monkeypatch):
    monkeypatch.setenv("BILLHOOK_SHARE_ALL", "1")
    program, shape = every_kind(USABLE[-1])
    x = images(shape)
    with native.Net(program, USABLE[-1], 3) as net:
        expected = net.run(x)
        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(net, x, expected, answer))
        child.start()
        child.join(30)
        if child.is_alive():
            child.kill()
            pytest.fail("the child hangs")
        assert child.exitcode == 0
        assert answer.get()
        assert np.array_equal(net.run(x), expected)


# ---------------------------------------------------------------------- refusals
def refused(program: np.ndarray, isa: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        native.Net(program, isa)


HEADERS = [
    ("magic", b"BILLHOOP", "no program"),
    ("version", 2, "version 2"),
    ("lanes", 4, "lanes"),
    ("type", 5, "type 5"),
    ("steps", 0, "0 steps"),
    ("steps", 1 << 20, "steps end at"),
    ("weights", 128, "weights at 128"),
    ("weights", 1 << 40, "weights at"),
    ("arena", -64, "arena of -64"),
    ("arena", 1 << 50, "arena of"),
    ("arena", 64, "outside the arena|lies at"),
    ("bytes", 100, "the header says 100"),
    ("channels", 0, "images of 0"),
    ("height", 1 << 30, "images of"),
    ("height", 10, "images are 3 x 10 x 7"),
    ("channels", 5, "5 channels"),
    ("outputs", -1, "-1 outputs"),
    ("outputs", 7, "144 x 1 x 1 numbers for 7 outputs"),
    ("named", 2, "scales"),
]


@needs_library
@pytest.mark.parametrize(("field", "value", "reason"), HEADERS)
def test_headers_that_do_not_hold(field, value, reason):
    program, _ = every_kind(USABLE[-1])
    header_of(program)[field] = value
    refused(program, USABLE[-1], reason)


LOAD, DENSE, HYBRID, DEPTHWISE, MAXPOOL, AVGPOOL, ADD, SCALE, UNARY, GATHER, COPY, _, GLOBAL, MULTIPLY, FLATTEN = range(
    15
)
STEPS = [
    (ADD, "kind", 16, "step 6 .*unknown kind 16"),
    (ADD, "kind", -1, "unknown kind -1"),
    (ADD, "activation", 7, r"step 6 \(add\): unknown activation 7"),
    (COPY, "activation", 1, "activation 1"),
    (ADD, "flags", 1, "unknown flags 1"),
    (HYBRID, "flags", 3, "added twice"),
    (DENSE, "groups", 2, "2 groups"),
    (DENSE, "vectors", 3, "3 vectors"),
    (DENSE, "values", -1, "values at -1"),
    (DENSE, "values", 32, "values at 32"),
    (DENSE, "bias", -1, "bias at -1"),
    (DENSE, "bias", 1 << 40, "bias at"),
    (DENSE, "kernel_y", 5, "beyond the halo"),
    (DENSE, "kernel_x", 0, "a window of"),
    (DENSE, "stride_y", 2, "beyond the halo"),
    (DENSE, "stride_x", 1 << 30, "a window of"),
    (DENSE, "dilation_x", 2, "beyond the halo"),
    (DENSE, "pad_left", 2, "beyond the halo"),
    (DENSE, "pad_top", -1, "a window of"),
    (DENSE, "tile", -1, "tile -1"),
    (DENSE, "rows", 1000, "rows 1000"),
    (DENSE, "order", 2, "order 2"),
    (DENSE, "split", 2, "split 2"),
    (DENSE, "reserved", 1, "reserved"),
    (HYBRID, "slots", 3, "3 slots"),
    (HYBRID, "slots", 4, "not inside|of (8|16|32) inputs"),
    (HYBRID, "count", -1, "-1 items"),
    (HYBRID, "count", 1, "items 0 to"),
    (HYBRID, "count", 1 << 40, "items"),
    (HYBRID, "kernel_y", 1, "outside the window"),
    (DEPTHWISE, "values", 1 << 30, "values at"),
    (MAXPOOL, "stride_y", 100, "no pixel"),
    (MAXPOOL, "pad_top", 3, "no pixel"),
    (MAXPOOL, "flags", 4, "unknown flags"),
    (AVGPOOL, "dilation_x", 2, "no dilation"),
    (SCALE, "values", -1, "values at -1"),
    (SCALE, "bias", -2, "bias at -2"),
    (GATHER, "stride_y", 2, "2 x 1-th pixel"),
    (GATHER, "index", -1, "index at -1"),
]
VIEWS = [
    (ADD, "in", "offset", -64, "in lies at -64"),
    (ADD, "in", "offset", 4, "in lies at 4"),
    (ADD, "in", "offset", 1 << 40, "in lies at"),
    (ADD, "out", "height", 0, "out has 0 x"),
    (ADD, "out", "height", 1 << 20, "outside the arena"),
    (ADD, "out", "height", 5, "differ"),
    (ADD, "other", "channels", 3, "differ"),
    (ADD, "out", "padded", 20, "not a multiple"),
    (ADD, "out", "padded", 0, "out has"),
    (ADD, "out", "pixel", 8, "apart"),
    (ADD, "out", "row", 16, "apart"),
    (ADD, "out", "row", 1 << 24, "outside the arena"),
    (ADD, "out", "top", 1 << 20, "outside the arena"),
    (ADD, "out", "left", -1, "halo of"),
    (ADD, "out", "type", 2, "types 0 and 2"),
    (ADD, "other", "type", 1, "types 1 and 0"),
    (ADD, "out", "reserved", 1, "reserved word of out"),
    (DENSE, "out", "channels", 1, "1 outputs padded"),
    (DEPTHWISE, "in", "channels", 19, "19 inputs, 20 outputs"),
    (HYBRID, "other", "width", 6, "differ"),
    (GLOBAL, "out", "width", 2, "out is|apart|outside"),
    (MULTIPLY, "other", "channels", 3, "differ"),
    (FLATTEN, "out", "channels", 3, "12 x 4 x 3 numbers, out has 3"),
    (COPY, "out", "width", 2, "in is 10 x 4 x 3"),
    (LOAD, "out", "channels", 2, "images are 3 x 9 x 7"),
]


@needs_library
@pytest.mark.parametrize(("step", "field", "value", "reason"), STEPS)
def test_steps_that_do_not_hold(step, field, value, reason):
    program, _ = every_kind(USABLE[-1])
    steps_of(program)[step][field] = value
    refused(program, USABLE[-1], reason)


@needs_library
@pytest.mark.parametrize(("step", "view", "field", "value", "reason"), VIEWS)
def test_views_that_do_not_hold(step, view, field, value, reason):
    program, _ = every_kind(USABLE[-1])
    steps_of(program)[view][field][step] = value
    refused(program, USABLE[-1], reason)


@needs_library
def test_items_and_indices_that_do_not_hold():
    isa = USABLE[-1]

    def changed(array: str, step: int, dtype: Any, place: int, value: int) -> np.ndarray:
        program, _ = every_kind(isa)
        start = int(header_of(program)["weights"] + steps_of(program)[step][array])
        program[start : start + 64].view(dtype)[place] = value
        return program

    view = steps_of(every_kind(isa)[0])[HYBRID]["in"]
    refused(changed("index", HYBRID, np.uint8, 3, 16), isa, "index 16")
    refused(changed("first", HYBRID, np.int32, 0, 1), isa, "items 1 to")
    refused(changed("first", HYBRID, np.int32, 1, 99), isa, "items from 99")
    refused(changed("offsets", HYBRID, np.int32, 0, -1), isa, "item 0 reads at -1")
    refused(changed("offsets", HYBRID, np.int32, 1, int(3 * view["row"])), isa, "item 1")
    refused(changed("offsets", HYBRID, np.int32, 0, int(3 * view["pixel"])), isa, "item 0")
    refused(changed("offsets", HYBRID, np.int32, 0, int(view["padded"]) - 15), isa, "item 0")
    refused(changed("index", GATHER, np.int32, 0, 20), isa, "channel 20 of 20")
    refused(changed("index", GATHER, np.int32, 9, -2), isa, "channel -2")


@needs_library
def test_programs_cut_short():
    program, _ = every_kind(USABLE[-1])
    for size in (0, 100, 128, 4000, program.size - 1):
        refused(program[:size], USABLE[-1], "program|bytes")


@needs_library
@sets
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_programs_are_refused_or_run(isa, type_, data):
    program, _ = every_kind(isa, type_)
    # Header, steps, and what the kernels take offsets from; numbers may be anything.
    sensitive = [(0, 128 + steps_of(program).nbytes)]
    start, step = int(header_of(program)["weights"]), steps_of(program)[HYBRID]
    sensitive += [(start + int(step[name]), 64) for name in ("index", "offsets", "first")]
    first, length = data.draw(st.sampled_from(sensitive[:1] * 6 + sensitive[1:]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = first + data.draw(st.integers(0, length - 1))
        program[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError), native.Net(program, isa, threads=2) as net:
        net.run(images(net.shape, 1))


# ---------------------------------------------------------------------- which library
def test_the_library_can_be_left_unused():
    code = "from billhook.runtime import native; print(native.available(), native.reason())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"BILLHOOK_NATIVE": "0"}
    )
    assert done.stdout.split() == ["False", "BILLHOOK_NATIVE=0"]


@needs_library
def test_a_lower_instruction_set_can_be_named(monkeypatch):
    for isa in USABLE:
        monkeypatch.setenv("BILLHOOK_ISA", native.ISAS[isa])
        assert native.best() == isa
        assert native.usable() == USABLE[: isa + 1]
    monkeypatch.setenv("BILLHOOK_ISA", "avx3")
    with pytest.raises(UsageError, match="avx2"):
        native.best()


@needs_library
def test_the_peak_of_a_core():
    peaks = [native.peak(isa) for isa in USABLE]
    assert all(1e9 < peak < 1e12 for peak in peaks)
    if 3 in USABLE:
        assert native.peak(3, bf16=True) > 1.2 * native.peak(3)


@needs_library
def test_calls_let_go_of_pythons_lock():
    assert isinstance(native.library(), ctypes.CDLL)
    assert not isinstance(native.library(), ctypes.PyDLL)


@needs_library
def test_the_library_is_small():
    assert (Path(native.__file__).parent / "_native.so").stat().st_size < 1.6e6
