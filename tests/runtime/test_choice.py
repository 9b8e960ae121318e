"""Guesses and candidates: they fit the map, the weights and the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.runtime.choice import Choice, Facts, guess, kernels, orders

SPARSE = Facts(256, 14, 14, 0.1, 8.0, dense=True, sparse=True, lanes=16, bf16=False, threads=1)
STEM = replace(SPARSE, outputs=64, height=112, width=112, density=1.0, fill=3.0, sparse=False)

# Kernels that exist: one row of up to 16 pixels, and these (rows, tile).
SEVERAL = {(2, 7), (2, 8), (2, 4), (4, 4), (4, 2)}


@pytest.mark.parametrize(
    ("change", "slots"),
    [
        ({"fill": 8.0}, 4),
        ({"fill": 4.0}, 4),
        ({"fill": 3.2}, 4),
        ({"fill": 2.0}, 2),
        ({"fill": 0.4}, 1),
        ({"fill": 8.0, "bf16": True}, 4),
        ({"fill": 4.0, "bf16": True}, 2),
        ({"fill": 2.0, "bf16": True}, 1),
    ],
)
def test_slots_hold_what_an_output_has_of_a_vector(change, slots):
    assert guess(replace(SPARSE, **change)).slots == slots


@pytest.mark.parametrize(
    ("width", "lanes", "tile"),
    [
        (56, 16, (1, 16)),
        (14, 16, (1, 16)),
        (8, 16, (2, 8)),
        (7, 16, (2, 7)),
        (4, 16, (4, 4)),
        (2, 16, (1, 16)),
        (1, 16, (1, 16)),
        (4, 8, (2, 4)),
        (7, 8, (1, 16)),
    ],
)
def test_tiles_of_narrow_maps_have_several_rows(width, lanes, tile):
    found = guess(replace(SPARSE, height=width, width=width, lanes=lanes))
    assert (found.rows, found.tile) == tile


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "hybrid"),
        ({"density": 0.5}, "hybrid"),
        ({"density": 0.6}, "dense"),
        ({"density": 0.6, "dense": False}, "hybrid"),
        ({"sparse": False, "density": 1.0}, "dense"),
        ({"sparse": False, "density": 1.0, "dense": False}, "hybrid"),
    ],
)
def test_which_kernel(change, kernel):
    assert guess(replace(SPARSE, **change)).kernel == kernel


@pytest.mark.parametrize(("size", "order"), [(56, 0), (14, 0), (7, 1), (1, 1)])
def test_small_maps_keep_the_weights_in_the_cache(size, order):
    assert guess(replace(SPARSE, height=size, width=size)).order == order


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({}, 0),
        ({"threads": 2}, 0),
        ({"threads": 2, "height": 7, "width": 7}, 1),
        ({"threads": 2, "height": 56, "width": 56}, 0),
        ({"threads": 2, "outputs": 32, "height": 3, "width": 3}, 1),
        ({"threads": 16, "height": 28, "width": 28}, 1),
    ],
)
def test_how_threads_share(change, split):
    assert guess(replace(SPARSE, **change)).split == split


def test_candidates_of_a_sparse_layer():
    found = kernels(SPARSE)
    assert found[0] == guess(SPARSE)
    assert {choice.slots for choice in found} == {1, 2, 4}
    assert {choice.kernel for choice in found} == {"hybrid"}
    assert "dense" in {choice.kernel for choice in kernels(replace(SPARSE, density=0.4))}


def test_candidates_of_a_dense_layer():
    found = kernels(STEM)
    assert {choice.kernel for choice in found} == {"dense"}
    assert {choice.vectors for choice in found} == {1, 2, 4}
    assert {choice.vectors for choice in kernels(replace(STEM, outputs=16))} == {1}


def test_no_slots_that_stay_empty():
    assert {choice.slots for choice in kernels(replace(SPARSE, fill=1.0))} == {1}
    assert {choice.slots for choice in kernels(replace(SPARSE, fill=2.0, bf16=True))} == {1}


@given(
    st.builds(
        Facts,
        outputs=st.integers(1, 3000),
        height=st.integers(1, 230),
        width=st.integers(1, 230),
        density=st.floats(0, 1),
        fill=st.floats(0, 16),
        dense=st.booleans(),
        sparse=st.booleans(),
        lanes=st.sampled_from([8, 16]),
        bf16=st.booleans(),
        threads=st.integers(1, 64),
    )
)
def test_candidates_can_be_run(facts):
    found = kernels(facts)
    assert found[0] == guess(facts)
    found = [other for choice in found for other in orders(choice, facts)]
    assert len(found) <= 100
    for choice in found:
        assert choice.rows == 1 or (choice.rows, choice.tile) in SEVERAL
        assert choice.kernel == "hybrid" or facts.dense
        assert Choice.from_dict(choice.as_dict()) == choice
        assert str(choice).startswith(choice.kernel)


def test_orders_without_threads_or_pixels():
    choice = guess(SPARSE)
    assert orders(choice, SPARSE) == [choice, replace(choice, order=1)]
    assert len(orders(choice, replace(SPARSE, threads=2))) == 4
    one = replace(SPARSE, height=1, width=1)
    assert orders(guess(one), one) == [guess(one)]


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "fast"},
        {"slots": 3},
        {"tile": 17},
        {"tile": 1.0},
        {"order": True},
        {"rows": 0},
        {"split": 2},
        {"more": 1},
        {"vectors": None},
    ],
)
def test_a_damaged_choice_is_refused(change):
    with pytest.raises(ValueError):
        Choice.from_dict(Choice("hybrid").as_dict() | change)
