"""``.npz`` files from anywhere: bit-equal when they are whole, one InputError and no memory taken when they are not."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from billhook.errors import InputError
from billhook.formats import arrays, read_npz


def npy(shape, body=b"", descr="<f4"):
    """The bytes of a ``.npy`` file that claims a shape."""
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": descr, "fortran_order": False, "shape": shape})
    return held.getvalue() + body


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_round_trip(tmp_path):
    whole = {
        "mask/layer1.0.conv1": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "names": np.array(["cat", "größer"]),
        "empty": np.zeros((0, 5)),
        "one": np.array(2.5),
    }
    np.savez_compressed(tmp_path / "a.npz", **whole)
    read = read_npz(tmp_path / "a.npz")
    assert read.keys() == whole.keys()
    assert all(np.array_equal(read[name], array) and read[name].dtype == array.dtype for name, array in whole.items())


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.npy": npy((1 << 40,))}, "claims the shape"),
        ({"a.npy": npy((1 << 40, 0))}, "claims the shape"),
        ({"a.npy": npy((300,), b"\0" * 100)}, "claims the shape"),
        ({"a.npy": npy((1,), descr="<U1000000000")}, "cannot be read"),
        ({"a.npy": npy((2,), b"\0" * 16, descr="|O")}, "pickle"),
        ({"a.npy": b"what is this"}, "magic"),
        ({"a.npy": b""}, "cannot be read"),
    ],
)
def test_what_lies_about_itself_takes_no_memory(tmp_path, members, reason):
    path = archive(tmp_path / "a.npz", members)
    tracemalloc.start()
    with pytest.raises(InputError, match=reason) as caught:
        read_npz(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert str(path) in caught.value.message


def test_a_small_file_that_unpacks_to_all_memory(tmp_path, monkeypatch):
    size = 1 << 22
    path = archive(tmp_path / "bomb.npz", {"a.npy": npy((size,), bytes(size), "|u1")})
    assert path.stat().st_size < size // 500
    assert read_npz(path)["a"].size == size
    monkeypatch.setattr(arrays, "MAX_BYTES", size)
    with pytest.raises(InputError, match="take more than"):
        read_npz(path)


@pytest.mark.parametrize("cut", [0, 30, -30])
def test_torn_files(tmp_path, cut):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(100))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:cut])
    with pytest.raises(InputError, match="cannot be read"):
        read_npz(tmp_path / "a.npz")


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(50), b=np.array(["x", "yz"]))
    whole = (tmp_path / "a.npz").read_bytes()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            read_npz(tmp_path / "b.npz")
        except InputError:
            continue


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.npz cannot be read"):
        read_npz(tmp_path / "nowhere.npz")
