"""Greedy searches in two processes: each measures its share of the candidates, and both decide alike."""

import json
from pathlib import Path

import pytest

from training.test_two_processes import launch

from .greedy_rank_script import CASES, searched


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    done = launch([str(Path(__file__).with_name("greedy_rank_script.py")), str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_process_takes_the_same_decisions(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert first["chosen"] == second["chosen"]
    assert first["errors"] == second["errors"]
    assert first["state"] == second["state"]
    assert len(first["chosen"]) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in sorted(CASES) if name != "tuned"])
def test_candidates_are_split_and_the_search_is_that_of_one_process(ranks, name):
    alone = searched(name)
    assert alone["chosen"] == ranks[0][name]["chosen"]
    for one, two in zip(alone["errors"], ranks[0][name]["errors"], strict=True):
        assert one == pytest.approx(two, rel=1e-3)
    shares = [rank[name]["looked"] for rank in ranks]
    assert sum(shares) == alone["looked"]
    assert 0.3 * alone["looked"] < min(shares)
