"""The matrix view of a weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from billhook.patterns import from_matrix, to_matrix


def test_input_channels_are_fastest():
    weight = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    view = to_matrix(weight)
    assert view.shape == (2, 4, 3)
    for o in range(2):
        for tap in range(4):
            assert view[o, tap].tolist() == weight[o, :, tap // 2, tap % 2].tolist()


def test_a_linear_layer_is_one_tap():
    weight = torch.arange(6).reshape(2, 3)
    assert to_matrix(weight).shape == (2, 1, 3)
    assert torch.equal(to_matrix(weight)[:, 0], weight)


@given(st.lists(st.integers(1, 6), min_size=4, max_size=4), st.booleans())
def test_round_trip(shape, channels_last):
    weight = torch.rand(shape)
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(from_matrix(to_matrix(weight), tuple(shape)), weight)
    flat = weight.reshape(shape[0], -1)
    assert torch.equal(from_matrix(to_matrix(flat), tuple(flat.shape)), flat)


def test_channels_last_is_viewed_without_a_copy_both_ways():
    weight = torch.rand(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    view = to_matrix(weight)
    assert view.data_ptr() == weight.data_ptr()
    assert view.is_contiguous()
    assert from_matrix(view, tuple(weight.shape)).data_ptr() == weight.data_ptr()
    assert from_matrix(view, tuple(weight.shape)).is_contiguous(memory_format=torch.channels_last)


def test_other_weights_have_no_view():
    with pytest.raises(ValueError, match="5 dimensions has no matrix view"):
        to_matrix(torch.rand(1, 1, 1, 1, 1))
