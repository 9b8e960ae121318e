"""The block grid, ragged edges included."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from billhook.patterns import BlockGrid

from .oracles import expand_oracle, sums_oracle

grids = st.builds(BlockGrid, st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))


def test_a_ragged_grid_by_hand():
    grid = BlockGrid(outputs=5, taps=2, inputs=3, block=2)
    assert (grid.rows, grid.per_tap, grid.columns) == (3, 2, 4)
    assert grid.heights().tolist() == [2, 2, 1]
    assert grid.widths().tolist() == [2, 1, 2, 1]
    values = torch.arange(30).reshape(5, 2, 3)
    # row 0: 0 1 2 | 3 4 5, row 1: 6 7 8 | 9 10 11, ...
    assert grid.sums(values).tolist() == [[14, 10, 26, 16], [62, 34, 74, 40], [49, 26, 55, 29]]
    kept = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]]).bool()
    mask = grid.expand(kept).int()
    assert mask.reshape(5, 6).tolist() == [
        [1, 1, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 0],
    ]


def test_a_block_larger_than_the_layer_is_one_block_per_tap():
    grid = BlockGrid(outputs=3, taps=9, inputs=4, block=16)
    assert (grid.rows, grid.columns) == (1, 9)
    assert grid.heights().tolist() == [3]
    assert grid.widths().tolist() == [4] * 9
    assert grid.sums(torch.ones(3, 9, 4)).tolist() == [[12.0] * 9]


@given(grids, st.integers(0, 10**6))
def test_sums_equal_the_loop(grid, seed):
    values = torch.randint(
        0, 100, (grid.outputs, grid.taps, grid.inputs), generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(grid.sums(values.float()).double(), sums_oracle(values, grid))
    assert int((grid.heights()[:, None] * grid.widths()[None, :]).sum()) == values.numel()


@given(grids, st.integers(0, 10**6))
def test_expand_equals_the_loop(grid, seed):
    kept = torch.rand(grid.rows, grid.columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(grid.expand(kept), expand_oracle(kept, grid))
