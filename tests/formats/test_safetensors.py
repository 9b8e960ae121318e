import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from billhook.errors import InputError, RunError
from billhook.formats import header_bytes, read_safetensors, write_safetensors

TYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def every_type():
    rng = np.random.default_rng(0)
    tensors = {f"t.{code}": (rng.random((3, 5)) * 9).astype(code) for code in TYPES}
    return tensors | {
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
        "naïve/名": np.array([-0.0, 1e-45, np.nan], np.float32),
    }


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].shape == right[name].shape
        assert left[name].tobytes() == right[name].tobytes()


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {"b": "2", "a": 'q"\n'}
    size = write_safetensors(path, every_type(), metadata)
    assert size == path.stat().st_size
    tensors, read = read_safetensors(path)
    same(tensors, every_type())
    assert read == metadata
    assert all(array.flags.aligned and array.flags.writeable for array in tensors.values())
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_safetensors_package_reads_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, every_type(), {"k": "v"})
    same(load_file(path), every_type())


def test_we_read_what_the_safetensors_package_writes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(every_type(), path, metadata={"k": "v"})
    tensors, metadata = read_safetensors(path)
    same(tensors, every_type())
    assert metadata == {"k": "v"}


def test_bf16_comes_as_its_bits(tmp_path):
    path = tmp_path / "a.safetensors"
    save_torch({"w": torch.tensor([1.0, -2.0], dtype=torch.bfloat16)}, path)
    tensors, metadata = read_safetensors(path)
    assert tensors["w"].dtype == np.uint16
    assert tensors["w"].tolist() == [0x3F80, 0xC000]
    assert metadata == {}


def test_torch_reads_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.float32([[1, 2]])}, {})
    assert load_torch(path)["w"].tolist() == [[1.0, 2.0]]


def test_bytes_are_deterministic_and_aligned(tmp_path):
    tensors = {"b": np.uint8([1, 2, 3]), "a": np.float32([1]), "c": np.float64([2]), "d": np.float32([3])}
    write_safetensors(tmp_path / "1", tensors, {"y": "1", "x": "2"})
    write_safetensors(tmp_path / "2", dict(reversed(tensors.items())), {"x": "2", "y": "1"})
    raw = (tmp_path / "1").read_bytes()
    assert raw == (tmp_path / "2").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    assert 8 + length == header_bytes(tensors, {"x": "2", "y": "1"})
    header = json.loads(raw[8 : 8 + length])
    assert list(header) == ["__metadata__", "c", "a", "d", "b"]
    assert [header[name]["data_offsets"] for name in "cadb"] == [[0, 8], [8, 12], [12, 16], [16, 19]]


def test_strided_and_big_endian_arrays(tmp_path):
    array = np.arange(12, dtype=">f4").reshape(3, 4).T[::2]
    write_safetensors(tmp_path / "a", {"w": array}, {})
    assert np.array_equal(load_file(tmp_path / "a")["w"], array)


def test_a_misaligned_foreign_file_is_copied_into_place(tmp_path):
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + b"\7" + np.float32(3.5).tobytes())
    tensors, _ = read_safetensors(tmp_path / "a")
    assert tensors["w"].flags.aligned
    assert tensors["w"].tolist() == [3.5]


def test_an_existing_file_is_replaced_and_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_safetensors(path, {"w": np.float32([1])}, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            write_safetensors(path, {"w": np.float32([2])}, {})
    assert read_safetensors(path)[0]["w"].tolist() == [1]
    assert os.listdir(tmp_path) == ["a"]
    write_safetensors(path, {"w": np.float32([2])}, {})
    assert read_safetensors(path)[0]["w"].tolist() == [2]


def test_a_missing_folder_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        write_safetensors(tmp_path / "no" / "a", {}, {})


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"w": np.zeros(1, np.complex64)}, {}),
        ({"w": np.array(["a"], object)}, {}),
        ({"__metadata__": np.zeros(1)}, {}),
        ({1: np.zeros(1)}, {}),
        ({"\ud800": np.zeros(1)}, {}),
        ({}, {"a": 1}),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path, tensors, metadata):
    with pytest.raises(ValueError):
        write_safetensors(tmp_path / "a", tensors, metadata)
    assert os.listdir(tmp_path) == []


def test_an_empty_file_of_tensors(tmp_path):
    write_safetensors(tmp_path / "a", {}, {})
    assert read_safetensors(tmp_path / "a") == ({}, {})


def raw_file(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def one(**changes):
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


U8 = {"dtype": "U8", "shape": [4]}
HOSTILE = {
    "empty": b"",
    "short": b"\0\0\0",
    "no header": (9).to_bytes(8, "little"),
    "huge header": raw_file(one(), bytes(8), 1 << 63),
    "header over 100 MB": raw_file(one(), bytes(8), 100_000_001),
    "header longer than the file": raw_file(one(), bytes(8), 400),
    "header length 0": raw_file(b"", bytes(8)),
    "not an object": raw_file(b"[]", b""),
    "leading space": raw_file(b" {}", b""),
    "broken JSON": raw_file(b'{"w":', b""),
    "not UTF-8": raw_file(b'{"\xff":1}', b""),
    "UTF-16": raw_file('{"w":1}'.encode("utf-16-le"), b""),
    "half character": raw_file(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "deep": raw_file(b'{"w":' + b"[" * 200_000, b""),
    "long number": raw_file(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)),
    "NaN": raw_file(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "repeated key": raw_file(
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
    ),
    "repeated field": raw_file(b'{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "entry is no object": raw_file({"w": 3}),
    "no dtype": raw_file({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": raw_file(one(dtype="F8_E4M3"), bytes(8)),
    "dtype is no text": raw_file(one(dtype=["F32"]), bytes(8)),
    "negative size": raw_file(one(shape=[-2]), bytes(8)),
    "two negative sizes": raw_file(one(shape=[-1, -2]), bytes(8)),
    "fractional size": raw_file(one(shape=[2.0]), bytes(8)),
    "boolean size": raw_file(one(shape=[True, 2]), bytes(8)),
    "shape is no list": raw_file(one(shape=2), bytes(8)),
    "too many dimensions": raw_file(one(shape=[1] * 65 + [2]), bytes(8)),
    "shape too large": raw_file(one(shape=[3]), bytes(8)),
    "huge shape": raw_file(one(shape=[1 << 62, 1 << 62]), bytes(8)),
    "huge empty shape": raw_file(one(shape=[1 << 62, 1 << 62, 0], data_offsets=[0, 0])),
    "negative offset": raw_file(one(data_offsets=[-8, 0]), b""),
    "reversed offsets": raw_file(one(data_offsets=[8, 0]), bytes(8)),
    "three offsets": raw_file(one(data_offsets=[0, 8, 8]), bytes(8)),
    "offsets beyond the file": raw_file(one(data_offsets=[0, 8]), bytes(4)),
    "bytes after the tensors": raw_file(one(), bytes(9)),
    "hole at the start": raw_file(one(data_offsets=[4, 12]), bytes(12)),
    "hole": raw_file({"a": U8 | {"data_offsets": [0, 4]}, "b": U8 | {"data_offsets": [5, 9]}}, bytes(9)),
    "overlap": raw_file({"a": U8 | {"data_offsets": [0, 4]}, "b": U8 | {"data_offsets": [2, 6]}}, bytes(6)),
    "alias": raw_file({"a": U8 | {"data_offsets": [0, 4]}, "b": U8 | {"data_offsets": [0, 4]}}, bytes(4)),
    "metadata is no object": raw_file({"__metadata__": [1]}),
    "metadata is no text": raw_file({"__metadata__": {"a": 1}}),
    "false boolean": raw_file({"w": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_input_errors_that_name_the_file(tmp_path, name):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"evil\.safetensors is not a valid safetensors file"):
        read_safetensors(path)


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_file_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError, match="cannot read"):
        read_safetensors(tmp_path / name)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_headers_never_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "a"
    write_safetensors(path, {"w": np.float32([1, 2]), "m": np.array([True]), "e": np.empty((0, 3))}, {"k": "v"})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) if data.draw(st.booleans()) else len(raw) :]
    path.write_bytes(raw)
    try:
        tensors, metadata = read_safetensors(path)
    except InputError:
        return
    assert sum(array.nbytes for array in tensors.values()) < len(raw)
    assert all(isinstance(value, str) for value in metadata.values())
