"""N:M masks: literal tables, the checker, and a loop over single weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from billhook.patterns import NM, check_nm, nm_mask

from .oracles import nm_oracle


@pytest.mark.parametrize(
    ("nm", "score", "kept"),
    [
        ("1:4", [4, 1, 3, 2], [1, 0, 0, 0]),
        ("2:4", [4, 1, 3, 2], [1, 0, 1, 0]),
        ("3:4", [4, 1, 3, 2], [1, 0, 1, 1]),
        ("4:4", [4, 1, 3, 2], [1, 1, 1, 1]),
        ("1:1", [0, 0, 0, 0], [1, 1, 1, 1]),
        ("1:4", [0, 5, 0, 0, 7, 6, 5, 4], [0, 1, 0, 0, 1, 0, 0, 0]),
        # ties keep the lower index
        ("2:4", [1, 1, 1, 1], [1, 1, 0, 0]),
        ("2:4", [0, 0, 0, 1], [1, 0, 0, 1]),
        ("1:4", [2, 3, 3, 2], [0, 1, 0, 0]),
        ("3:4", [5, 5, 1, 1], [1, 1, 1, 0]),
        # M = 3
        ("1:3", [1, 2, 3, 3, 2, 1], [0, 0, 1, 1, 0, 0]),
        ("2:3", [1, 2, 3, 3, 3, 3], [0, 1, 1, 1, 1, 0]),
        # above M = 8 the masks come from a sort
        ("4:16", [*range(16)], [0] * 12 + [1] * 4),
        ("4:16", [7] * 16, [1] * 4 + [0] * 12),
        ("4:16", [0, 1] * 8, [0, 1, 0, 1, 0, 1, 0, 1] + [0] * 8),
        ("2:9", [0, 9, 0, 0, 0, 0, 0, 9, 9], [0, 1, 0, 0, 0, 0, 0, 1, 0]),
    ],
)
def test_scores_to_masks(nm, score, kept):
    mask = nm_mask(torch.tensor(score, dtype=torch.float32), NM.parse(nm))
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == kept


def test_groups_lie_in_the_last_dimension_of_each_tap():
    score = torch.tensor([[[4.0, 3, 2, 1], [1, 2, 3, 4]], [[1, 4, 1, 4], [0, 0, 0, 0]]])
    assert nm_mask(score, NM(2, 4)).int().tolist() == [[[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 1, 0, 1], [1, 1, 0, 0]]]


@given(
    st.integers(1, 20).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_equals_the_loop_also_with_ties(ratio, outputs, taps, groups, seed):
    n, m = ratio
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (outputs, taps, groups * m), generator=generator).float()
    mask = nm_mask(score, NM(n, m))
    assert torch.equal(mask, nm_oracle(score, n, m))
    check_nm(mask, NM(n, m))
    assert mask.float().mean().item() == pytest.approx(n / m)


def test_the_mask_does_not_depend_on_the_memory_layout():
    score = torch.rand(16, 8, 3, 3).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    assert torch.equal(nm_mask(score, NM(2, 4)), nm_mask(score.contiguous(), NM(2, 4)))


def test_m_must_divide():
    with pytest.raises(ValueError, match="M = 4 does not divide 6"):
        nm_mask(torch.rand(2, 6), NM(2, 4))
    with pytest.raises(ValueError, match="M = 4 does not divide 6"):
        check_nm(torch.ones(2, 6, dtype=torch.bool), NM(2, 4))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 1, 0, 0, 1, 1, 1, 0], "group 1 keeps 3 of 4 weights, not 2 or none"),
        ([1, 0, 0, 0, 1, 1, 0, 0], "group 0 keeps 1 of 4 weights, not 2 or none"),
        ([1, 1, 1, 1, 1, 1, 0, 0], "group 0 keeps 4 of 4"),
    ],
)
def test_the_checker_names_the_first_wrong_group(row, message):
    with pytest.raises(ValueError, match=message):
        check_nm(torch.tensor(row).bool(), NM(2, 4))


def test_the_checker_takes_empty_groups():
    check_nm(torch.tensor([0, 0, 0, 0, 1, 0, 0, 1]).bool(), NM(2, 4))


@pytest.mark.parametrize(("text", "nm"), [("2:4", NM(2, 4)), (" 1 : 16 ", NM(1, 16)), ("3:3", NM(3, 3))])
def test_parse(text, nm):
    assert NM.parse(text) == nm
    assert NM.parse(str(nm)) == nm


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5:4", "N = 5 is larger than M = 4"),
        ("0:4", "at least 1"),
        ("2", "not of the form N:M"),
        ("2:4:8", "not of the form"),
        ("-1:4", "not of the form"),
        ("", "not of the form"),
        ("a:b", "not of the form"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        NM.parse(text)
