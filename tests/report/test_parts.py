"""Numbers in words, the time line of a run, and the masks' pictures."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from billhook.report import masks, plots, words

from .runs import hybrid_mask


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.count(853018), "853,018"),
        (words.count(0), "0"),
        (words.short_count(125485696), "125.5 M"),
        (words.short_count(1_816_000_000), "1.82 G"),
        (words.short_count(853018), "853,018"),
        (words.size(3451984), "3.45 MB"),
        (words.size(999), "999 bytes"),
        (words.percent(0.934), "93.4 %"),
        (words.percent(0.99999), "99.999 %"),
        (words.percent(1.0), "100.0 %"),
        (words.points(-0.006), "−0.6 points"),
        (words.points(0.0), "±0.0 points"),
        (words.ratio(3451984, 437000, "smaller", "larger"), "7.9× smaller"),
        (words.ratio(100, 150), "1.5× more"),
        (words.ratio(100, 99), "1.010× fewer"),
        (words.ratio(100, 100), "unchanged"),
        (words.ratio(None, 100), ""),
        (words.duration(3.2), "3.2 s"),
        (words.duration(701), "11 min 41 s"),
        (words.duration(3900), "1 h 05 min"),
        (words.scientific(1.2e-6), "1.2 × 10⁻⁶"),
        (words.scientific(14.2), "14.2"),
        (words.in_unit(12, "ms"), "12.00 ms"),
        (words.in_unit(0.5, "ratio", "macs", 1), "50.0 % of dense"),
        (words.in_unit(0.9, "ratio", "sparsity", 1), "90.0 %"),
        (words.joined(["cat"]), "cat"),
        (words.joined(["cat", "dog", "horse"]), "cat, dog and horse"),
    ],
)
def test_words(made: str, expected: str) -> None:
    assert plain(made) == expected


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, "0.9", True, [1]])
def test_what_is_no_number_reads_not_measured(nothing: object) -> None:
    for shown in (words.count, words.short_count, words.size, words.percent, words.points, words.duration,
                  words.scientific):  # fmt: skip
        assert shown(nothing) == "not measured"
    assert words.in_unit(nothing, "ms") == words.in_unit(nothing, "ratio", "macs") == "not measured"


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6), st.integers(1, 8))
def test_ticks_cover_the_span(low: float, length: float, about: int) -> None:
    found = plots.ticks(low, low + length, about)
    slack = 1e-6 * length + 1e-9
    assert found[0] <= low + slack
    assert found[-1] >= low + length - slack
    assert 2 <= len(found) <= about + 3


def test_fine_tuning_that_counts_from_nought_goes_on_where_pruning_ended() -> None:
    lines = [{"phase": "prune", "event": "epoch", "epoch": at} for at in (1, 2)]
    lines += [{"phase": "fine_tune", "event": "epoch", "epoch": at} for at in (1, 2, 3)]
    _, pruning, start = plots.timeline(lines)
    assert [entry["x"] for entry in pruning] == [1, 2, 3, 4, 5]
    assert start == 2


def test_fine_tuning_that_counts_on_stays_where_it_is() -> None:
    lines = [{"phase": "prune", "epoch": 2.5}, {"phase": "fine_tune", "epoch": 3.5}, {"phase": "control", "epoch": 1}]
    control, pruning, start = plots.timeline([*lines, {"phase": "fine_tune"}])
    assert [entry["x"] for entry in pruning] == [2.5, 3.5]
    assert [entry["x"] for entry in control] == [1]
    assert start == 2.5


def test_a_resumed_epoch_counts_once_and_long_runs_are_thinned() -> None:
    lines = [{"phase": "prune", "event": "epoch", "epoch": 1, "val_top1_kept": top1} for top1 in (0.1, 0.9)]
    assert plots.curves(lines).accuracy.count("<circle") == 1
    assert "90.0" in plots.curves(lines).accuracy
    long = [{"phase": "prune", "event": "epoch", "epoch": at, "train_top1": 0.5} for at in range(5000)]
    found = plots.curves(long)
    assert found.measure == "training top-1"
    assert 300 < found.accuracy.split("points=")[1].count(",") <= plots.MOST_POINTS + 1


def test_empty_history_draws_nothing() -> None:
    assert plots.curves([]) == plots.Curves("", plots.Markup(), plots.Markup(), [])


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_mask_pixels_tell_kept_pruned_and_pruned_blocks_apart() -> None:
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.uint8)
    found = masks.mask_picture("conv", mask, np.array([1, 4, 2, 1, 2, 1]))
    assert found is not None
    opacity = decoded(found.uri)[4::8, 4::8, 3]
    assert opacity.tolist() == [[255, 46, 0, 0], [46, 255, 0, 0]]
    assert plain(found.caption) == "2 × 4 · 1:2 · block 2 · keeps 1 of 2 block columns · 75.0 % zero"


def test_wide_masks_are_wrapped_by_kernel_row_with_the_taps_in_place() -> None:
    mask = np.zeros((64, 9 * 64), dtype=np.uint8)
    mask[:, 5 * 64 : 6 * 64] = 1  # tap (1, 2)
    found = masks.mask_picture("conv", mask, np.array([9, 64, 16, 2, 4, 4]))
    assert found is not None
    assert "3 lines, one per row of the 3 × 3 kernel" in found.note
    opacity = decoded(found.uri)[..., 3]
    assert opacity.shape == (found.height, found.width)
    third = found.height // 3
    assert (opacity[third + 10 : 2 * third - 10, 2 * third + 10 :] == 255).all()
    assert (opacity[:third, 2 * third + 10 :] < 255).all()


def test_large_masks_are_averaged_and_small_as_files() -> None:
    mask = hybrid_mask(np.random.default_rng(0), 512, 512, 9, 16, 60)
    found = masks.mask_picture("layer4.1.conv2", mask, np.array([9, 512, 16, 2, 4, 60]))
    assert found is not None
    assert "mean of 4 × 4 weights" in found.note
    assert found.width <= masks.WIDEST
    assert found.height <= masks.HIGHEST
    assert len(found.uri) < 200_000


def test_masks_without_or_with_wrong_meta_are_still_drawn() -> None:
    for meta in (None, np.array([9, 7, 16, 2, 4, 1]), np.array([1])):
        found = masks.mask_picture("conv", np.eye(8, dtype=np.uint8), meta)
        assert found is not None
        assert plain(found.caption) == "8 × 8 · 87.5 % zero"
    assert masks.mask_picture("conv", np.zeros((0, 4)), None) is None
    assert masks.mask_picture("conv", np.zeros(4), None) is None
