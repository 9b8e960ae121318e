"""``--track tensorboard``: every number of every history line, and the user's own progress untouched."""

import sys
import types

import pytest

from billhook.errors import UsageError
from billhook.progress import Progress
from billhook.track import tracked

EPOCH = {"phase": "prune", "event": "epoch", "epoch": 1.0, "step": 3, "loss": 0.5, "sparsity": 0.25, "note": "text"}
ROUND = {"phase": "prune", "event": "mask", "epoch": 0.5, "step": 1, "round": 1, "returned": 7}


class Noted(Progress):
    def __init__(self):
        self.said, self.lines = [], []

    def say(self, text):
        self.said.append(text)

    def line(self, entry):
        self.lines.append(entry)


@pytest.fixture
def written(monkeypatch):
    """A tensorboard that keeps what it is given."""
    scalars = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            scalars.append((self.folder, name, value, step))

        def flush(self):
            scalars.append("flushed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return scalars


def test_every_number_of_a_line(written, tmp_path):
    inner = Noted()
    progress = tracked(inner, "tensorboard", tmp_path / "run")
    progress.say("hello")
    progress.line(ROUND)
    progress.line(EPOCH)
    with progress.bar("prune", 3) as bar:
        bar.advance(1)
    folder = str(tmp_path / "run" / "tensorboard")
    assert written == [
        (folder, "prune/round", 1, 1),
        (folder, "prune/returned", 7, 1),
        "flushed",
        (folder, "prune/loss", 0.5, 3),
        (folder, "prune/sparsity", 0.25, 3),
        "flushed",
    ]
    assert (inner.said, inner.lines) == (["hello"], [ROUND, EPOCH])
    assert not (tmp_path / "run").exists()


def test_nothing_asked_nothing_wrapped(tmp_path):
    inner = Noted()
    assert tracked(inner, None, tmp_path) is inner


def test_unknown_and_absent_trackers(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"):
        tracked(Noted(), "tensorbord", tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"billhook\[tensorboard\]"):
        tracked(Noted(), "tensorboard", tmp_path)
