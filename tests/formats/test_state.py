import copy
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from billhook.errors import InputError
from billhook.formats import (
    HybridLayer,
    PatternInfo,
    pack_state,
    packed_tensors,
    read_safetensors,
    size_report,
    unpack_patterns,
    unpack_state,
    write_safetensors,
)
from billhook.formats.state import FREE_WEIGHTS, PACKED_KEY

from .masks import bits_of, hybrid_case

CONV = "layer1.0.conv1.weight"


def to_oihw(matrix, kernel):
    rows, _, inputs = matrix.shape
    return np.ascontiguousarray(matrix.reshape(rows, *kernel, inputs).transpose(0, 3, 1, 2))


def example():
    """A state with one layer of each kind, and its patterns."""
    conv, conv_mask = hybrid_case(0, 20, 9, 24, 2, 4, 16, 7)
    plain, plain_mask = hybrid_case(1, 5, 9, 8, 1, 4, 0, 0)
    head, head_mask = hybrid_case(2, 17, 1, 30, 1, 1, 8, 2)
    rng = np.random.default_rng(3)
    loose = rng.standard_normal((3, 5, 3, 3)).astype(np.float32)
    state = {
        CONV: to_oihw(conv, (3, 3)),
        "plain.weight": to_oihw(plain, (3, 3)),
        "head.weight": head[:, 0],
        "head.bias": rng.standard_normal(17).astype(np.float32),
        "loose.weight": loose,
        "gone.weight": np.ones((16, 16), np.float32),
        "bn.num_batches_tracked": np.array(7),
        "empty": np.empty((0, 3), np.float32),
    }
    patterns = {
        CONV: PatternInfo("hybrid", 2, 4, 16, to_oihw(conv_mask, (3, 3))),
        "plain.weight": PatternInfo("hybrid", 1, 4, 0, to_oihw(plain_mask, (3, 3))),
        "head.weight": PatternInfo("hybrid", 1, 1, 8, head_mask[:, 0]),
        "loose.weight": PatternInfo("unstructured", 1, 1, 0, loose > 0.5),
        "gone.weight": PatternInfo("hybrid", 2, 4, 8, np.zeros((16, 16), bool)),
    }
    return state, patterns


def masked(state, patterns):
    result = dict(state)
    for name, pattern in patterns.items():
        result[name] = np.where(pattern.mask, bits_of(state[name]), np.uint32(0)).view(np.float32)
    return result


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
        assert left[name].tobytes() == right[name].tobytes()


def test_round_trip_through_a_file_is_bit_exact(tmp_path):
    state, patterns = example()
    tensors, metadata = pack_state(state, patterns)
    write_safetensors(tmp_path / "model.safetensors", tensors, metadata)
    tensors, metadata = read_safetensors(tmp_path / "model.safetensors")
    same(unpack_state(tensors, metadata), masked(state, patterns))
    read = unpack_patterns(tensors, metadata)
    assert read.keys() == patterns.keys()
    for name, pattern in patterns.items():
        assert np.array_equal(read[name].mask, pattern.mask)
        assert (read[name].kind, read[name].n, read[name].m, read[name].block) == (
            pattern.kind,
            pattern.n,
            pattern.m,
            pattern.block,
        )


def test_names_types_and_metadata_are_the_documented_ones(tmp_path):
    state, patterns = example()
    tensors, metadata = pack_state(state, patterns)
    assert [name for name in tensors if name.startswith(CONV)] == [
        f"{CONV}.{p}" for p in ("values", "offsets", "columns")
    ]
    document = json.loads(metadata[PACKED_KEY])
    assert document["version"] == 1
    assert document["layers"][CONV] == {
        "pattern": "hybrid",
        "shape": [20, 24, 3, 3],
        "n": 2,
        "m": 4,
        "block": 16,
        "kept": 7,
    }
    assert document["layers"]["loose.weight"] == {"pattern": "unstructured", "shape": [3, 5, 3, 3]}
    write_safetensors(tmp_path / "m", tensors, metadata)
    with safe_open(tmp_path / "m", "np") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(tensors)


def test_unstructured_values_are_channels_last():
    weight = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    tensors, _ = pack_state({"w": weight}, {"w": PatternInfo("unstructured", 1, 1, 0, weight != 3)})
    assert tensors["w.values"].tolist() == [0, 4, 1, 5, 2, 6, 7]
    assert tensors["w.bitmap"].tolist() == [0b1011_1111]


def test_a_state_without_patterns_is_left_alone():
    state = {"a": np.float32([1])}
    assert pack_state(state, {}) == (state, {})
    assert unpack_state(state, {"other": "1"}) == state


def test_size_report_adds_up_to_the_file(tmp_path):
    tensors, metadata = pack_state(*example())
    report = size_report(tensors, metadata)
    path = tmp_path / "m"
    write_safetensors(path, tensors, metadata)
    assert report["total"] == path.stat().st_size
    assert report["total"] == sum(value for key, value in report.items() if key not in ("total", "padding_bits"))
    for part in ("values", "offsets", "columns", "bitmap"):
        assert report[part] == sum(array.nbytes for name, array in tensors.items() if name.endswith(f".{part}"))
    padding = 0
    for item in packed_tensors(tensors, metadata).values():
        if isinstance(item.layer, HybridLayer):
            geometry = item.layer.geometry
            padding += 8 * item.layer.offsets.size - item.layer.values.size * geometry.offset_width
            padding += 8 * item.layer.columns.size - geometry.column_count(item.layer.kept) * geometry.column_width
        else:
            padding += 8 * item.layer.bitmap.size - int(np.prod(item.shape))
    assert report["padding_bits"] == padding > 0


def test_size_report_of_a_dense_file(tmp_path):
    size = write_safetensors(tmp_path / "m", {"a": np.zeros(3)}, {"k": "v"})
    report = size_report({"a": np.zeros(3)}, {"k": "v"})
    assert (report["dense"], report["total"], report["values"]) == (24, size, 0)


@pytest.mark.parametrize(
    ("state", "pattern", "message"),
    [
        ({"v": np.ones((4, 4), np.float32)}, PatternInfo("hybrid", 1, 1, 4, np.ones((4, 4), bool)), "no tensor 'w'"),
        ({"w": np.ones((4, 4), np.float32)}, PatternInfo("hybrid", 1, 1, 4, np.ones((4, 5), bool)), "layer 'w'.*agree"),
        ({"w": np.ones(4, np.float32)}, PatternInfo("hybrid", 1, 1, 4, np.ones(4, bool)), "layer 'w'.*agree"),
        ({"w": np.ones((4, 4))}, PatternInfo("hybrid", 1, 1, 4, np.ones((4, 4), bool)), "layer 'w'.*float32"),
        ({"w": np.ones((4, 4), np.float32)}, PatternInfo("channel", 1, 1, 4, np.ones((4, 4), bool)), "unknown pattern"),
        ({"w": np.ones((4, 4), np.float32)}, PatternInfo("hybrid", 2, 4, 4, np.ones((4, 4), bool)), "layer 'w'.*2:4"),
        (
            {"w": np.ones((4, 4), np.float32), "w.values": np.ones(1)},
            PatternInfo("hybrid", 1, 1, 4, np.ones((4, 4), bool)),
            "two tensors",
        ),
    ],
)
def test_pack_state_refuses_what_does_not_fit(state, pattern, message):
    with pytest.raises(ValueError, match=message):
        pack_state(state, {"w": pattern})


def put(document, *path, value):
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


METADATA_DAMAGE = {
    "version 2": lambda d: put(d, "version", value=2),
    "version true": lambda d: put(d, "version", value=True),
    "no version": lambda d: {"layers": d["layers"]},
    "a list": lambda d: [d],
    "layers is a list": lambda d: put(d, "layers", value=[]),
    "layer is text": lambda d: put(d, "layers", CONV, value="x"),
    "unknown pattern": lambda d: put(d, "layers", CONV, "pattern", value="channel"),
    "pattern is a list": lambda d: put(d, "layers", CONV, "pattern", value=[]),
    "hybrid as unstructured": lambda d: put(
        d, "layers", CONV, value={"pattern": "unstructured", "shape": [20, 24, 3, 3]}
    ),
    "unknown key": lambda d: put(d, "layers", CONV, "extra", value=1),
    "missing layer": lambda d: put(d, "layers", "ghost", value=d["layers"][CONV]),
    "layer stored dense too": lambda d: put(d, "layers", "head.bias", value=d["layers"][CONV]),
    "wrong shape": lambda d: put(d, "layers", CONV, "shape", value=[20, 20, 3, 3]),
    "more rows": lambda d: put(d, "layers", CONV, "shape", value=[40, 24, 3, 3]),
    "negative side": lambda d: put(d, "layers", CONV, "shape", value=[-20, -24, 3, 3]),
    "fractional side": lambda d: put(d, "layers", CONV, "shape", value=[20.0, 24, 3, 3]),
    "one side": lambda d: put(d, "layers", CONV, "shape", value=[4320]),
    "zero side": lambda d: put(d, "layers", CONV, "shape", value=[0, 24, 3, 3]),
    "shape is a number": lambda d: put(d, "layers", CONV, "shape", value=20),
    "huge shape": lambda d: put(d, "layers", CONV, "shape", value=[1 << 40, 24, 3, 3]),
    "huge shape, nothing kept": lambda d: put(d, "layers", "gone.weight", "shape", value=[1 << 20, 1 << 20]),
    "huge bitmap shape": lambda d: put(d, "layers", "loose.weight", "shape", value=[1 << 62, 1 << 62, 0]),
    "wrong bitmap shape": lambda d: put(d, "layers", "loose.weight", "shape", value=[3, 5, 3, 4]),
    "n 1": lambda d: put(d, "layers", CONV, "n", value=1),
    "n 0": lambda d: put(d, "layers", CONV, "n", value=0),
    "n text": lambda d: put(d, "layers", CONV, "n", value="2"),
    "m 8": lambda d: put(d, "layers", CONV, "m", value=8),
    "m 0": lambda d: put(d, "layers", CONV, "m", value=0),
    "block 0": lambda d: put(d, "layers", CONV, "block", value=0),
    "block 8": lambda d: put(d, "layers", CONV, "block", value=8),
    "block huge": lambda d: put(d, "layers", CONV, "block", value=1 << 80),
    "kept 6": lambda d: put(d, "layers", CONV, "kept", value=6),
    "kept huge": lambda d: put(d, "layers", CONV, "kept", value=1 << 80),
    "kept negative": lambda d: put(d, "layers", CONV, "kept", value=-7),
}


@pytest.mark.parametrize("name", METADATA_DAMAGE)
def test_damaged_metadata_is_an_input_error(name):
    tensors, metadata = pack_state(*example())
    document = METADATA_DAMAGE[name](json.loads(metadata[PACKED_KEY]))
    damaged = {PACKED_KEY: json.dumps(document)}
    with pytest.raises(InputError):
        unpack_state(tensors, damaged)
    with pytest.raises(InputError):
        unpack_patterns(tensors, damaged)


@pytest.mark.parametrize("text", ["", "{", "null", '{"version":1,"version":1,"layers":{}}', "[" * 100_000, "NaN"])
def test_metadata_that_is_no_document(text):
    with pytest.raises(InputError, match=r"billhook\.packed"):
        unpack_state({}, {PACKED_KEY: text})


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        (f"{CONV}.values", lambda a: a[:-1]),
        (f"{CONV}.values", lambda a: a.astype(np.float64)),
        (f"{CONV}.values", lambda a: a.reshape(-1, 1)),
        (f"{CONV}.offsets", lambda a: a[:-1]),
        (f"{CONV}.offsets", lambda a: a * 0),
        (f"{CONV}.offsets", lambda a: a.astype(np.int8)),
        (f"{CONV}.columns", lambda a: a[::-1]),
        (f"{CONV}.columns", lambda a: a | 255),
        (f"{CONV}.columns", lambda a: a[:0]),
        ("loose.weight.bitmap", lambda a: a[:-1]),
        ("loose.weight.bitmap", lambda a: a | 128),
        ("loose.weight.values", lambda a: a[1:]),
    ],
)
def test_damaged_tensors_are_named(tensor, change):
    tensors, metadata = pack_state(*example())
    tensors[tensor] = np.ascontiguousarray(change(tensors[tensor]))
    stem, part = tensor.rsplit(".", 1)
    named = "values|bitmap" if part == "bitmap" else part
    with pytest.raises(InputError, match=rf"tensor '{stem}\.({named})'"):
        unpack_state(tensors, metadata)


@pytest.mark.parametrize("part", ["values", "offsets", "columns"])
def test_a_missing_tensor_is_named(part):
    tensors, metadata = pack_state(*example())
    del tensors[f"{CONV}.{part}"]
    with pytest.raises(InputError, match=rf"{part}' is missing"):
        unpack_state(tensors, metadata)


def test_a_tiny_file_cannot_ask_for_all_memory():
    entry = {"pattern": "hybrid", "n": 1, "m": 1, "block": 1 << 16, "kept": 0}
    tensors = {
        "w.values": np.empty(0, np.float32),
        "w.offsets": np.empty(0, np.uint8),
        "w.columns": np.empty(0, np.uint8),
    }
    tracemalloc.start()
    try:
        for shape in ([FREE_WEIGHTS + 1, 1], [1, 1 << 50], [1 << 60, 1 << 60]):
            metadata = {PACKED_KEY: json.dumps({"version": 1, "layers": {"w": entry | {"shape": shape}}})}
            with pytest.raises(InputError, match="far more weights"):
                unpack_state(tensors, metadata)
        # Within the allowance, but with kept blocks that are not there: refused before the weight is made.
        big = {"shape": [1 << 13, 1 << 13], "block": 1, "kept": 1}
        metadata = {PACKED_KEY: json.dumps({"version": 1, "layers": {"w": entry | big}})}
        with pytest.raises(InputError, match=r"w\.columns"):
            unpack_state(tensors, metadata)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_pack_state_writes_nothing_that_a_reader_would_refuse():
    weight = np.zeros((4, 2), np.float32)
    pattern = PatternInfo("unstructured", 1, 1, 0, np.zeros((4, 2), bool))
    state = {f"w{index}": weight for index in range(2)}
    tensors, metadata = pack_state(state, dict.fromkeys(state, pattern))
    assert json.loads(metadata[PACKED_KEY])["layers"].keys() == state.keys()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("billhook.formats.state.FREE_WEIGHTS", 15)
        with pytest.raises(ValueError, match="too few"):
            pack_state(state, dict.fromkeys(state, pattern))
        with pytest.raises(InputError, match="far more weights"):
            unpack_state(tensors, metadata)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_raise_anything_but_input_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "m"
    weight, mask = hybrid_case(0, 6, 1, 12, 2, 3, 6, 1)
    state = {"w": weight[:, 0], "u": np.ones((3, 3), np.float32)}
    patterns = {
        "w": PatternInfo("hybrid", 2, 3, 6, mask[:, 0]),
        "u": PatternInfo("unstructured", 1, 1, 0, np.eye(3, dtype=bool)),
    }
    write_safetensors(path, *pack_state(state, patterns))
    raw = bytearray(path.read_bytes())
    # Half the flips go to digits, which leave the JSON whole and the numbers wrong.
    digits = [index for index, byte in enumerate(raw[8:-40], 8) if chr(byte).isdigit()]
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            raw[data.draw(st.sampled_from(digits))] = ord("0") + data.draw(st.integers(0, 9))
        else:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try:
        tensors, metadata = read_safetensors(path)
        size_report(tensors, metadata)
        result = unpack_state(tensors, metadata)
    except InputError:
        return
    assert sum(array.size for array in result.values()) < 10_000
