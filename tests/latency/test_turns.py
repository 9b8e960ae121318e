"""Turns: who runs when, and medians, percentiles and ratios of literal times."""

import numpy as np
import pytest

from billhook.latency import turns
from billhook.latency.turns import in_turns, median, ninetieth, ratio


def test_callables_take_turns():
    calls = []
    times = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, blocks=4, block_seconds=0.0)
    # Two runs of each warm up; the first of every turn does not count.
    assert "".join(calls) == "aabb" + 4 * ("a" * (1 + turns.FEWEST) + "b" * (1 + turns.FEWEST))
    assert {name: [len(block) for block in blocks] for name, blocks in times.items()} == {"a": [3] * 4, "b": [3] * 4}


def test_a_turn_never_holds_more_than_the_most_runs(monkeypatch):
    monkeypatch.setattr(turns, "MOST", 7)
    times = in_turns({"a": lambda: None}, blocks=2, block_seconds=1.0)
    assert [len(block) for block in times["a"]] == [7, 7]


def test_milliseconds_are_those_of_the_clock(monkeypatch):
    now = [0.0]

    def run():
        now[0] += 0.004

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    times = in_turns({"a": run}, blocks=2, block_seconds=0.02)
    assert [len(block) for block in times["a"]] in ([5, 5], [4, 4])
    np.testing.assert_allclose(times["a"][0], 4.0)


@pytest.mark.parametrize(
    ("blocks", "p50", "p90"),
    [
        ([[1.0]], 1.0, 1.0),
        ([[3.0, 1.0], [2.0]], 2.0, 3.0),
        ([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], 5.5, 10),
        ([list(range(1, 21))], 10.5, 19),
    ],
)
def test_median_and_ninetieth(blocks, p50, p90):
    assert median(blocks) == p50
    assert ninetieth(blocks) == p90


def test_a_ratio_without_noise_has_no_spread():
    found = ratio(([[6.0, 6.0], [6.0]], [[2.0], [2.0, 2.0]]))
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_what_disturbs_a_whole_turn_cancels():
    """The machine is twice as slow in the third turn, for both."""
    found = ratio(([[6.0], [6.0], [12.0], [6.0]], [[2.0], [2.0], [4.0], [2.0]]))
    assert found.value == 3.0
    # Draws where half of the turns are slow ones: medians 9 and 3.
    assert (found.low, found.high) == (3.0, 3.0)


def test_the_interval_covers_what_turns_say():
    above = [[10.0], [11.0], [12.0], [9.0], [10.5]]
    below = [[5.0]] * 5
    found = ratio((above, below))
    assert found.value == 2.1
    assert 1.8 <= found.low < 2.1 < found.high <= 2.4
    assert ratio((above, below)) == found


def test_links_multiply():
    """a / b in one process, b / c in another; the machine was half as fast there."""
    found = ratio(([[8.0]] * 3, [[4.0]] * 3), ([[8.0]] * 3, [[2.0]] * 3))
    assert (found.value, found.low, found.high) == (8.0, 8.0, 8.0)


def test_nothing_links_to_itself():
    assert ratio() == turns.Ratio(1.0, 1.0, 1.0)
