"""One global threshold over single weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from billhook.patterns import choose_saving_mask, choose_threshold_mask

from .oracles import threshold_oracle


@pytest.mark.parametrize(
    ("scores", "remove", "kept"),
    [
        ([[3, 1, 2], [5, 4, 0]], 0, [[1, 1, 1], [1, 1, 1]]),
        ([[3, 1, 2], [5, 4, 0]], 2, [[1, 0, 1], [1, 1, 0]]),
        ([[3, 1, 2], [5, 4, 0]], 4, [[1, 0, 0], [1, 0, 0]]),
        # a layer keeps its best, however weak
        ([[1, 2, 3], [70, 80, 90]], 4, [[0, 0, 1], [0, 0, 1]]),
        # ties close the earlier position, over layers and within
        ([[1, 1, 1], [1, 1, 1]], 2, [[0, 0, 1], [1, 1, 1]]),
        ([[1, 1, 1], [1, 1, 1]], 3, [[0, 0, 1], [0, 1, 1]]),
        ([[1, 1, 1], [1, 1, 1]], 4, [[0, 0, 1], [0, 0, 1]]),
        ([[0, 7, 7], [7, 7, 9]], 3, [[0, 0, 1], [0, 1, 1]]),
    ],
)
def test_scores_to_masks(scores, remove, kept):
    masks = choose_threshold_mask([torch.tensor(s, dtype=torch.float32) for s in scores], remove)
    assert [mask.int().tolist() for mask in masks] == kept


def test_more_than_may_go():
    with pytest.raises(ValueError, match="more weights than may be removed"):
        choose_threshold_mask([torch.ones(3), torch.ones(2)], 4)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(0, 3),
    st.integers(0, 10**6),
)
def test_equals_the_loop_with_many_ties(shapes, share, keep, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 3, shape, generator=generator).float() for shape in shapes]
    before = [score.clone() for score in scores]
    removable = sum(max(score.numel() - keep, 0) for score in scores)
    remove = int(share * removable)
    masks = choose_threshold_mask(scores, remove, keep)
    assert sum(int((~mask).sum()) for mask in masks) == remove
    for mask, expected in zip(masks, threshold_oracle(scores, remove, keep), strict=True):
        assert torch.equal(mask, expected)
    assert all(torch.equal(a, b) for a, b in zip(scores, before, strict=True))


def test_no_more_than_the_need_and_weights_of_different_worth():
    # The second layer's weights are worth ten times the first's.
    scores = [torch.tensor([1.0, 2, 3, 9]), torch.tensor([1.5, 2.5, 9])]
    worth = np.array([[1.0], [10.0]])
    for need, closed in ((0, 0), (1, 1), (2, 2), (11, 2), (12, 3), (13, 4), (22, 4), (22.5, 5)):
        masks = choose_saving_mask(scores, worth, np.array([float(need)]))
        assert sum(int((~m).sum()) for m in masks) == closed, need
    both = choose_saving_mask(scores, np.array([[1.0, 1], [10.0, 1]]), np.array([1.0, 4.0]))
    assert sum(int((~m).sum()) for m in both) == 4
    with pytest.raises(ValueError, match="more weights than may be removed"):
        choose_saving_mask(scores, worth, np.array([24.0]))
