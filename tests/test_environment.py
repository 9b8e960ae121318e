"""What a run says of the machine, and how long it says it will take."""

import subprocess
import sys

import pytest
import torch

from billhook.environment import describe_environment, peak_rss_bytes, versions
from billhook.estimate import along_line, estimate_seconds, in_words, step_seconds
from methods.problems import ready
from training.small import TinyNet


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "1 s"), (44.6, "45 s"), (89.4, "89 s"), (90, "2 min"), (700, "12 min"), (5400, "1.5 h"), (12_600, "3.5 h")],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def test_the_estimate_costs_the_network_nothing():
    prepared = ready(TinyNet(), "crisp", "sparsity>=60%", block=8)
    problem, room = prepared.setting.problem, prepared.setting.room
    before = {name: t.clone() for name, t in problem.network.module.state_dict().items()}
    assert step_seconds(problem, room, distil=True) > 0
    assert all(torch.equal(before[name], t) for name, t in problem.network.module.state_dict().items())
    assert all(p.grad is None for p in problem.network.module.parameters())


@pytest.mark.parametrize(
    ("base", "slope", "count"), [(0.001, 0.001, 64), (0.5, 0.25, 64), (2.0, 0.0, 32), (9.0, 1.0, 6)]
)
def test_long_steps_are_judged_by_short_ones(base, slope, count):
    taken = []

    def once(images):
        taken.append(images)
        return base + slope * images

    assert along_line(once, count, 2) == pytest.approx(base + slope * count)
    assert taken == ([2, 2, 8] if (base, count) in ((0.5, 64), (2.0, 32)) else [2, 2, count, count, count])


def test_the_estimate_adds_up(monkeypatch):
    """Training of both sides, and a third of a step per step's worth of validation images and epoch."""
    monkeypatch.setattr("billhook.estimate.step_seconds", lambda problem, room, distil: 3.0 if distil else 2.0)
    prepared = ready(TinyNet(), "crisp", "sparsity>=60%", block=8, epochs=4.0)
    problem, room = prepared.setting.problem, prepared.setting.room
    validation = 4.0 * len(problem.data.val) / problem.train.batch_size / 3
    own = (10 + validation) * 3.0
    assert estimate_seconds(problem, room, 10, True, "none") == pytest.approx(own)
    assert estimate_seconds(problem, room, 10, True, "run") == pytest.approx(own + (problem.steps + validation) * 2.0)
    assert estimate_seconds(problem, room, 10, False, "none") == pytest.approx((10 + validation) * 2.0)


def test_the_machine():
    found = describe_environment()
    assert found["python"] == versions()["python"] == sys.version.split()[0]
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["cpu"]
    # At least the code of PyTorch, at most what no test machine has.
    assert 10**7 < peak_rss_bytes() < 10**13


def test_a_system_that_tells_no_peak(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_rss_bytes() == 0


def test_a_recipe_is_utf_8_whatever_the_system_writes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes("model: tinycnn\ndata: {source: digits, classes: [größer]}\n".encode())
    code = f"from billhook.recipe import read_recipe; print(ascii(read_recipe({str(recipe)!r})['data']['classes']))"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain)
    assert done.stdout.strip() == ascii(["größer"]), done.stderr
