import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.formats import index_width, pack_bits, packed_bytes, unpack_bits


@st.composite
def streams(draw):
    width = draw(st.integers(0, 16))
    values = draw(st.lists(st.integers(0, (1 << width) - 1), max_size=70))
    return width, values


@given(streams())
def test_packing_is_the_little_endian_number_of_all_values(stream):
    width, values = stream
    number = sum(value << (index * width) for index, value in enumerate(values))
    packed = pack_bits(np.array(values, np.uint32), width)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == number.to_bytes(packed_bytes(len(values), width), "little")


@given(streams())
def test_unpacking_undoes_packing(stream):
    width, values = stream
    unpacked = unpack_bits(pack_bits(np.array(values, np.uint32), width), width, len(values))
    assert unpacked.tolist() == values
    assert unpacked.dtype == (np.uint8 if width <= 8 else np.uint16)


@pytest.mark.parametrize("width", [17, 24, 31, 32])
def test_wide_values(width):
    values = np.array([0, 1, (1 << width) - 1, 5], np.uint64)
    unpacked = unpack_bits(pack_bits(values, width), width, 4)
    assert unpacked.dtype == np.uint32
    assert unpacked.tolist() == values.tolist()


def test_literal_bytes():
    assert pack_bits(np.array([1, 2, 3], np.uint8), 2).tolist() == [0b11_10_01]
    assert pack_bits(np.array([5, 6, 1], np.uint8), 3).tolist() == [0b01_110_101, 0]
    assert pack_bits(np.array([0, 0], np.uint8), 0).tolist() == []


@pytest.mark.parametrize(("choices", "width"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (144, 8), (256, 8), (257, 9)])
def test_index_width_is_ceil_log2(choices, width):
    assert index_width(choices) == width


def test_strided_and_signed_input():
    values = np.arange(12).reshape(3, 4)[:, ::2]
    assert unpack_bits(pack_bits(values, 5), 5, 6).tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("values", "width", "word"),
    [
        ([4], 2, "do not fit"),
        ([1], 0, "do not fit"),
        ([-1], 3, "do not fit"),
        ([1.0], 3, "only integers"),
        ([1], 33, "width"),
        ([1], -1, "width"),
    ],
)
def test_what_cannot_be_packed(values, width, word):
    with pytest.raises(ValueError, match=word):
        pack_bits(np.array(values), width)


@pytest.mark.parametrize(
    ("data", "width", "count", "word"),
    [
        ([0], 2, 5, "take 2 bytes"),
        ([0, 0], 2, 4, "take 1 bytes"),
        ([0], 0, 4, "take 0 bytes"),
        ([0b1000_0000], 3, 2, "unused bits"),
        ([], 3, -1, "negative"),
    ],
)
def test_what_cannot_be_unpacked(data, width, count, word):
    with pytest.raises(ValueError, match=word):
        unpack_bits(np.array(data, np.uint8), width, count)


def test_only_bytes_are_unpacked():
    with pytest.raises(ValueError, match="uint8"):
        unpack_bits(np.zeros(1, np.uint16), 8, 1)


def test_no_choice_has_no_width():
    with pytest.raises(ValueError, match="at least one"):
        index_width(0)
