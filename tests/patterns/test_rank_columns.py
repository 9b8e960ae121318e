"""Rank columns and the global threshold: worked examples, loops, and what a choice must satisfy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from billhook.patterns import BlockGrid, choose_removed, hybrid_mask, rank_columns

from .oracles import rank_columns_oracle


def from_blocks(blocks, block=2):
    """A score ``[O, 1, I]`` whose blocks hold these values in every weight."""
    rows = torch.tensor(blocks, dtype=torch.float32)
    return rows.repeat_interleave(block, 0).repeat_interleave(block, 1)[:, None, :]


def test_rows_are_sorted_apart_and_lose_different_columns():
    # Two block rows of three blocks, 2 x 2 weights each; values are means per weight.
    score = from_blocks([[5, 1, 3], [2, 6, 4]])
    grid = BlockGrid(4, 1, 6, 2)
    ranks = rank_columns(score, grid)
    assert ranks.order.tolist() == [[1, 2, 0], [0, 2, 1]]
    # ranks: weakest (1, 2), then (3, 4), then (5, 6); the mean over rows of equal height
    assert ranks.score.tolist() == [1.5, 3.5, 5.5]
    assert ranks.cost.tolist() == [8, 8, 8]
    mask = hybrid_mask(torch.ones(4, 1, 6, dtype=torch.bool), grid, ranks.order, 1)
    assert mask[:, 0].int().tolist() == [[1, 1, 0, 0, 1, 1]] * 2 + [[0, 0, 1, 1, 1, 1]] * 2


def test_raw_sums_as_published():
    ranks = rank_columns(from_blocks([[5, 1, 3], [2, 6, 4]]), BlockGrid(4, 1, 6, 2), normalise="sum")
    assert ranks.score.tolist() == [4 * 1 + 4 * 2, 4 * 3 + 4 * 4, 4 * 5 + 4 * 6]


def test_ragged_blocks_count_by_mean_or_by_sum():
    # 3 outputs x 3 inputs, B = 2: blocks of 4, 2, 2 and 1 weights.
    score = torch.tensor([[1.0, 1, 3], [1, 1, 3], [2, 2, 1]])[:, None, :]
    grid = BlockGrid(3, 1, 3, 2)
    weight = rank_columns(score, grid)
    # means: row 0 has 1 and 3, row 1 has 2 and 1; heights 2 and 1
    assert weight.order.tolist() == [[0, 1], [1, 0]]
    assert weight.score.tolist() == pytest.approx([(1 * 2 + 1 * 1) / 3, (3 * 2 + 2 * 1) / 3])
    assert weight.cost.tolist() == [4 + 1, 2 + 2]
    summed = rank_columns(score, grid, normalise="sum")
    # sums: row 0 has 4 and 6, row 1 has 4 and 1
    assert summed.order.tolist() == [[0, 1], [1, 0]]
    assert summed.score.tolist() == [4 + 1, 6 + 4]


def test_weight_and_sum_order_a_row_differently():
    # The narrow block has the larger mean and the smaller sum.
    score = torch.tensor([[2.0, 2, 2, 2, 3]])[:, None, :]
    grid = BlockGrid(1, 1, 5, 4)
    assert rank_columns(score, grid).order.tolist() == [[0, 1]]
    assert rank_columns(score, grid, normalise="sum").order.tolist() == [[1, 0]]


def test_the_cost_counts_survivors_of_nm():
    ranks = rank_columns(torch.ones(4, 1, 8), BlockGrid(4, 1, 8, 4), density=0.5)
    assert ranks.cost.tolist() == [8, 8]


def test_of_equal_blocks_the_later_goes_first():
    assert rank_columns(torch.ones(2, 1, 8), BlockGrid(2, 1, 8, 2)).order.tolist() == [[3, 2, 1, 0]]


@given(
    st.builds(BlockGrid, st.integers(1, 8), st.integers(1, 3), st.integers(1, 8), st.integers(1, 4)),
    st.sampled_from(["weight", "sum"]),
    st.sampled_from([1.0, 0.5, 0.25]),
    st.integers(0, 10**6),
)
def test_equals_the_loop(grid, normalise, density, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 5, (grid.outputs, grid.taps, grid.inputs), generator=generator).float()
    ranks = rank_columns(score, grid, density, normalise)
    order, scores, costs = rank_columns_oracle(score, grid, density, normalise)
    assert ranks.order.tolist() == order
    assert ranks.score.tolist() == pytest.approx(scores)
    assert ranks.cost.tolist() == costs
    assert np.all(np.diff(ranks.score) >= 0)


# ---------------------------------------------------------------------- the global threshold


def one(costs):
    """Costs of one quantity."""
    return [np.array(c, dtype=float)[:, None] for c in costs]


def arrays(scores):
    return [np.array(s, dtype=float) for s in scores]


@pytest.mark.parametrize(
    ("scores", "costs", "need", "tolerance", "removed"),
    [
        # equal columns: as many as are needed, weakest first over both layers
        ([[1, 4, 9], [2, 3, 9]], [[10, 10, 10], [10, 10, 10]], 30, 0, [1, 2]),
        ([[1, 4, 9], [2, 3, 9]], [[10, 10, 10], [10, 10, 10]], 21, 0, [1, 2]),
        ([[1, 4, 9], [2, 3, 9]], [[10, 10, 10], [10, 10, 10]], 0, 0, [0, 0]),
        ([[1, 4, 9], [2, 3, 9]], [[10, 10, 10], [10, 10, 10]], -5, 0, [0, 0]),
        # a layer never loses its last column
        ([[1, 2, 3], [7, 8, 9]], [[10, 10, 10], [10, 10, 10]], 40, 0, [2, 2]),
        # the crossing column is too large; a small one further up does it
        ([[1, 9], [2, 9], [3, 9]], [[10, 10], [100, 100], [5, 5]], 15, 0, [1, 0, 1]),
        # within the tolerance the threshold order stands
        ([[1, 9], [2, 9], [3, 9]], [[10, 10], [100, 100], [5, 5]], 15, 95, [1, 1, 0]),
        # none fits: the smallest goes, and of equals the weakest
        ([[1, 9], [2, 9], [3, 9]], [[40, 40], [100, 100], [50, 50]], 45, 0, [1, 0, 1]),
        ([[1, 9], [2, 9], [3, 9]], [[30, 30], [30, 30], [30, 30]], 20, 0, [1, 0, 0]),
    ],
)
def test_chosen_by_hand(scores, costs, need, tolerance, removed):
    chosen = choose_removed(arrays(scores), one(costs), np.array([float(need)]), np.array([float(tolerance)]))
    assert chosen == removed


def test_every_quantity_is_met():
    # The first saves only of the first quantity, the second only of the other.
    scores = arrays([[1, 2, 9], [5, 6, 9]])
    costs = [np.array([[10.0, 0]] * 3), np.array([[0, 10.0]] * 3)]
    assert choose_removed(scores, costs, np.array([10.0, 20.0]), np.zeros(2)) == [2, 2]
    assert choose_removed(scores, costs, np.array([10.0, -1.0]), np.zeros(2)) == [1, 0]


def test_out_of_reach():
    with pytest.raises(ValueError, match="below what one rank column per layer leaves"):
        choose_removed(arrays([[1, 2]]), one([[10, 10]]), np.array([11.0]), np.zeros(1))


layers = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=7), min_size=1, max_size=5
)


@given(layers, st.floats(0, 1), st.sampled_from([0, 1, 5, 10**9]), st.integers(0, 2))
def test_what_a_choice_must_satisfy(columns, share, tolerance, keep):
    scores = arrays([sorted(s for s, _ in layer) for layer in columns])
    costs = one([[c for _, c in layer] for layer in columns])
    removable = sum(float(c[: max(len(c) - keep, 0)].sum()) for c in costs)
    need = share * removable
    removed = choose_removed(scores, costs, np.array([need]), np.array([float(tolerance)]), keep)

    saved = sum(float(c[:p].sum()) for c, p in zip(costs, removed, strict=True))
    assert saved >= need - 1e-9
    # A layer may have fewer columns than it must keep: then it keeps them all.
    assert all(0 <= p <= max(len(s) - keep, 0) for s, p in zip(scores, removed, strict=True))
    if need > 0:
        # Beyond the tolerance, the last column to go was the smallest that any layer could still give.
        following = [float(c[p, 0]) if p < len(c) - keep else np.inf for c, p in zip(costs, removed, strict=True)]
        last = []
        for i, (c, p) in enumerate(zip(costs, removed, strict=True)):
            if p:
                unit, others = float(c[p - 1, 0]), [np.inf, *following[:i], *following[i + 1 :]]
                last.append(saved - unit < need and unit <= min(others))
        assert saved - need <= tolerance + 1e-9 or any(last)
    else:
        assert removed == [0] * len(scores)
    if tolerance == 10**9:
        gone = [float(s[k]) for s, p in zip(scores, removed, strict=True) for k in range(p)]
        stay = [float(s[k]) for s, p in zip(scores, removed, strict=True) for k in range(p, max(len(s) - keep, 0))]
        assert not gone or not stay or max(gone) <= min(stay)


@given(layers, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_need_never_keeps_more_columns_of_a_layer_under_the_plain_threshold(columns, first, second):
    scores = arrays([sorted(s for s, _ in layer) for layer in columns])
    costs = one([[c for _, c in layer] for layer in columns])
    removable = sum(float(c[:-1].sum()) for c in costs)
    low, high = sorted((first, second))
    less, more = (
        choose_removed(scores, costs, np.array([share * removable]), np.array([1e9])) for share in (low, high)
    )
    assert all(a <= b for a, b in zip(less, more, strict=True))
