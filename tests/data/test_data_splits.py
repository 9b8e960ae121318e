"""Literal cases for the seeded, stratified draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.data.splits import apportion, cap, seed_of, split_off


@pytest.mark.parametrize(
    ("total", "counts", "expected"),
    [
        (10, [50, 50], [5, 5]),
        (3, [10, 10], [2, 1]),  # a tie goes to the lower index
        (4, [10, 5, 1], [3, 1, 0]),  # 2.5, 1.25, 0.25
        (7, [3, 3], [3, 3]),  # never above what there is
        (0, [3, 3], [0, 0]),
        (5, [], []),
        (5, [0, 0], [0, 0]),
    ],
)
def test_apportion(total, counts, expected):
    assert apportion(total, counts) == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 200))
def test_apportion_shares_everything_within_one_of_proportion(counts, total):
    shares = apportion(total, counts)
    available = sum(counts)
    assert sum(shares) == min(total, available)
    for share, count in zip(shares, counts, strict=True):
        assert 0 <= share <= count
        assert abs(share - min(total, available) * count / max(available, 1)) < 1


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([100, 100], 0.1, [10, 10]),
        ([2, 1], 0.1, [1, 0]),  # at least one of two, never the only one
        ([4, 4], 0.9, [3, 3]),  # something is always left
        ([15, 15], 0.1, [2, 1]),  # 3 in all
        ([0, 20], 0.15, [0, 3]),
    ],
)
def test_split_off_sizes(counts, fraction, expected):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(labels)) + 7
    rest, part = split_off(rows, labels, ["a", "b"], fraction, seed=0, tag="val")
    assert np.bincount(labels[part - 7], minlength=2).tolist() == expected
    assert sorted([*rest, *part]) == rows.tolist()
    assert (np.diff(rest) > 0).all()
    assert (np.diff(part) > 0).all()


def test_split_off_depends_on_the_seed_and_the_tag_alone():
    labels = np.repeat([0, 1], 40)
    rows = np.arange(80)

    def part(**key):
        return split_off(rows, labels, ["a", "b"], 0.1, **key)[1].tolist()

    assert part(seed=0, tag="val") == part(seed=0, tag="val")
    assert part(seed=0, tag="val") != part(seed=1, tag="val")
    assert part(seed=0, tag="val") != part(seed=0, tag="test")


def test_what_is_drawn_of_a_class_does_not_hang_on_the_others():
    labels = np.repeat([0, 1], 40)
    rows = np.arange(80)
    both = split_off(rows, labels, ["a", "b"], 0.1, seed=0, tag="val")[1]
    alone = split_off(rows[:40], labels[:40], ["a", "b"], 0.1, seed=0, tag="val")[1]
    assert both[both < 40].tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("limit", "per_class", "expected"),
    [
        (None, None, [60, 30, 10]),
        (50, None, [30, 15, 5]),
        (None, 20, [20, 20, 10]),
        (25, 20, [10, 10, 5]),
        (3, None, [1, 1, 1]),  # every class keeps one
        (1000, None, [60, 30, 10]),
    ],
)
def test_cap(limit, per_class, expected):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    drawn = cap(np.arange(100), labels, ["a", "b", "c"], limit=limit, per_class=per_class, seed=3)
    assert np.bincount(labels[drawn], minlength=3).tolist() == expected
    assert (np.diff(drawn) > 0).all()


def test_cap_is_seeded_and_nested():
    labels = np.zeros(100, dtype=np.int64)
    small, large, other = (
        set(cap(np.arange(100), labels, ["a"], limit=n, per_class=None, seed=s).tolist())
        for n, s in ((10, 0), (30, 0), (10, 1))
    )
    assert small < large
    assert small != other


def test_seed_of_is_the_same_everywhere():
    assert seed_of("shuffle", 0, 1) == 0x7FFFFFFFFFFFFFFF & seed_of("shuffle", 0, 1)
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of("a") == int("ca978112ca1bbdca", 16) >> 1  # sha256 of "a"
