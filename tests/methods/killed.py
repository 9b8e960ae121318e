"""Searches that are killed in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from billhook.methods import Outcome
from billhook.methods.greedy.search import _Search
from billhook.pipeline import Prepared
from billhook.progress import Progress
from billhook.training.checkpoint import Journal

from .problems import carry_out


class Killed(Exception):
    """Nobody catches it."""


def resumed(make: Callable[[], Prepared], stop: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What comes of a search that dies before a round and is begun again, saved as often as can be."""

    def run() -> Outcome:
        prepared = make()
        module = prepared.setting.problem.network.module
        return prepared.plan.run(module, None, Journal(directory), Progress(), lambda history: None)

    real = _Search._round

    def dying(self: _Search) -> None:
        if self.state.round == stop:
            raise Killed
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr("billhook.methods.greedy.search.SAVE_EVERY", 0.0)
        patch.setattr(_Search, "_round", dying)
        with pytest.raises(Killed):
            run()
    return run()


def check_killed_runs(
    make: Callable[[], Prepared], stops: tuple[int, ...], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before these rounds, counted from the end where negative, a search ends in the same network."""
    whole = carry_out(make()).outcome
    rounds = sum(line["event"] == "round" for line in whole.history)
    assert rounds > 6
    for stop in stops:
        outcome = resumed(make, stop % rounds, directory / f"{stop}", monkeypatch)
        expected, found = whole.module.state_dict(), outcome.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        chosen = [
            [line["group"] for line in history if line["event"] == "round"]
            for history in (whole.history, outcome.history)
        ]
        assert chosen[0] == chosen[1]
