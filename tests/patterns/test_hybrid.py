"""The hybrid pattern: golden check 6 of the paper, the checker's refusals, a hand-worked mask."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from billhook.patterns import (
    NM,
    HybridPattern,
    check_hybrid,
    choose_removed,
    hybrid_mask,
    nm_mask,
    rank_columns,
)


def test_a_mask_by_hand():
    # 2 x 2 blocks, 1:2 inside; the score decides first within pairs, then by block over the survivors.
    score = torch.tensor([[9.0, 1, 2, 3], [8, 2, 1, 2], [1, 1, 5, 4], [0, 3, 6, 7]])[:, None, :]
    pattern = HybridPattern(NM(1, 2), 2)
    grid = pattern.grid(4, 1, 4)
    nm = nm_mask(score, pattern.nm)
    assert nm[:, 0].int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    ranks = rank_columns(score * nm, grid, pattern.nm.density)
    # survivors per block: 17, 5 | 4, 12
    assert ranks.order.tolist() == [[1, 0], [0, 1]]
    mask = hybrid_mask(nm, grid, ranks.order, 1)
    assert mask[:, 0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert check_hybrid(mask, pattern) == 1
    assert torch.equal(hybrid_mask(nm, grid, ranks.order, 0), nm)


ratios = st.sampled_from([NM(2, 4), NM(1, 4), NM(3, 4), NM(1, 1), NM(1, 3), NM(2, 3), NM(4, 16), NM(1, 7), NM(5, 6)])


@given(ratios, st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.integers(0, 10**6))
def test_golden_check_6_of_one_layer(nm, outputs, taps, groups, multiple, seed):
    inputs, block = groups * nm.m, multiple * nm.m
    pattern = HybridPattern(nm, block)
    grid = pattern.grid(outputs, taps, inputs)
    score = torch.rand(outputs, taps, inputs, generator=torch.Generator().manual_seed(seed))
    mask_nm = nm_mask(score, nm)
    ranks = rank_columns(score * mask_nm, grid, nm.density)
    for removed in range(grid.columns if block else 1):
        mask = hybrid_mask(mask_nm, grid, ranks.order, removed)
        assert check_hybrid(mask, pattern) == grid.columns - removed
        assert int(mask.sum()) == int(mask_nm.sum()) - int(ranks.cost[:removed].sum())
        if inputs % max(block, 1) == 0:  # no ragged columns
            assert mask.float().mean().item() == pytest.approx(nm.density * (1 - removed / grid.columns))


@given(st.integers(0, 10**6), st.sampled_from([NM(2, 4), NM(1, 4), NM(1, 1)]))
def test_golden_check_6_of_a_network_under_a_rising_target(seed, nm):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 9, 8), (24, 9, 16), (40, 1, 24), (20, 9, 40)]
    pattern = HybridPattern(nm, 8)
    scores = [torch.rand(shape, generator=generator) for shape in shapes]
    grids = [pattern.grid(*shape) for shape in shapes]
    masks = [nm_mask(score, nm) for score in scores]
    ranks = [rank_columns(s * m, g, nm.density) for s, m, g in zip(scores, masks, grids, strict=True)]
    start = sum(int(m.sum()) for m in masks)
    total = sum(score.numel() for score in scores)
    before = [grid.columns for grid in grids]
    for target in (0.0, 0.3, 0.6, 0.8, 0.85, 0.9, 0.92):
        need = max(0.0, start - (1 - target) * total)
        # A huge tolerance is the plain threshold, under which kept counts cannot rise.
        removed = choose_removed(
            [r.score for r in ranks], [r.cost[:, None].astype(float) for r in ranks], np.array([need]), np.array([1e9])
        )
        final = [hybrid_mask(m, g, r.order, p) for m, g, r, p in zip(masks, grids, ranks, removed, strict=True)]
        kept = [check_hybrid(mask, pattern) for mask in final]
        assert all(now <= then for now, then in zip(kept, before, strict=True))
        assert 1 - sum(int(m.sum()) for m in final) / total >= target - 1e-9 or need == 0
        before = kept


def violation(change):
    mask = hybrid_mask(
        nm_mask(torch.rand(8, 1, 16, generator=torch.Generator().manual_seed(0)), NM(2, 4)),
        HybridPattern(NM(2, 4), 4).grid(8, 1, 16),
        torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]),
        1,
    )
    assert check_hybrid(mask, HybridPattern(NM(2, 4), 4)) == 3
    change(mask)
    return mask


def one_too_many(mask):
    closed = (~mask[0, 0, 4:8]).nonzero()[0]
    mask[0, 0, 4 + closed] = True


def one_too_few(mask):
    mask[0, 0, 4 + mask[0, 0, 4:8].nonzero()[0]] = False


def half_a_block(mask):
    mask[0, 0, 4:8] = False


def another_block_closed(mask):
    mask[:4, 0, 4:8] = False


def a_closed_block_opened(mask):
    mask[:4, 0, 0:4] = torch.tensor([True, True, False, False])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_too_many, "group 1 keeps 3 of 4"),
        (one_too_few, "group 1 keeps 1 of 4"),
        (half_a_block, "neither fully closed nor fully open"),
        (another_block_closed, r"unequal numbers of blocks: \[2, 3\]"),
        (a_closed_block_opened, r"unequal numbers of blocks: \[4, 3\]"),
    ],
)
def test_the_checker_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        check_hybrid(violation(change), HybridPattern(NM(2, 4), 4))


@pytest.mark.parametrize(
    ("nm", "block", "message"),
    [(NM(2, 4), 6, "M = 4 does not divide the block size 6"), (NM(2, 4), -4, "block = -4 is negative")],
)
def test_impossible_patterns(nm, block, message):
    with pytest.raises(ValueError, match=message):
        HybridPattern(nm, block)


def test_without_blocks_every_tap_is_one_column():
    assert check_hybrid(nm_mask(torch.rand(5, 9, 12), NM(1, 3)), HybridPattern(NM(1, 3), 0)) == 9
