"""The planner: it finds the fastest choices, keeps them, and takes no plan that was made for something else."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from billhook.errors import InputError
from billhook.formats import write_network
from billhook.runtime import planner
from billhook.runtime.choice import Choice, kernels
from billhook.runtime.compile import Compiled, Compiler
from billhook.runtime.planner import Key, Plan

from .networks import Building

KEY = Key("a CPU", "avx512", "f32", 2, "1 2", "3 abc")


def network():
    net = Building((3, 14, 14))
    x = net.add("relu", net.conv("x", 32, 3, name="a"))
    x = net.add("relu", net.conv(x, 64, 3, name="b", sparse=(2, 4, 16, 0.4)))
    x = net.conv(x, 64, 3, name="c", groups=4, unstructured=0.5)
    return net, net.head(net.conv(x, 64, 3, groups=64))


@pytest.fixture(scope="module")
def compiler():
    net, output = network()
    return Compiler(net.build(output), 16, threads=2)


def cost(name: str, choice: Choice) -> float:
    """Seconds that depend on the layer and all of the choice, and on nothing else."""
    return 1e-3 + zlib.crc32(f"{name} {choice}".encode()) / 2**32


class Clock:
    def __init__(self, cost=cost) -> None:
        self.runs, self.cost = 0, cost

    def __call__(self, compiled: Compiled) -> np.ndarray:
        self.runs += 1
        return np.array([self.cost(task.name, task.choice) if task.choice else 1.0 for task in compiled.tasks])


def test_the_fastest_kernel_in_its_fastest_order(compiler):
    clock = Clock()
    plan = planner.measure(compiler, clock)
    assert plan.source == "measured"
    assert plan.choices.keys() == compiler.facts.keys() == {"a", "b", "c", "linear8"}
    for name, facts in compiler.facts.items():
        candidates = kernels(facts)
        best = min(candidates, key=lambda choice: cost(name, choice))
        if cost(name, best) < 0.98 * cost(name, candidates[0]):
            orders = [replace(best, order=order, split=split) for order in (0, 1) for split in (0, 1)]
            best = min(orders, key=lambda choice: cost(name, choice)) if facts.width > 1 else best
            assert cost(name, plan.choices[name]) <= cost(name, best) / 0.98
        assert plan.seconds[name] == cost(name, plan.choices[name])


def test_all_layers_are_tried_at_once(compiler):
    clock = Clock()
    planner.measure(compiler, clock)
    most = max(len(kernels(facts)) for facts in compiler.facts.values())
    assert clock.runs <= most + 4 + 6


def test_guesses_stay_when_nothing_is_faster(compiler):
    assert planner.measure(compiler, Clock(lambda name, choice: 1.0)).choices == compiler.guesses()


def test_little_is_gained_by_one_per_cent(compiler):
    guesses = compiler.guesses()
    plan = planner.measure(compiler, Clock(lambda name, choice: 1.0 if choice == guesses[name] else 0.99))
    assert plan.choices == guesses


def test_guesses_stay_when_the_whole_is_slower(compiler):
    """Layers that are fast alone may be in each other's way."""
    guesses = compiler.guesses()

    class Together(Clock):
        def __call__(self, compiled: Compiled) -> np.ndarray:
            times = super().__call__(compiled)
            changed = sum(task.choice != guesses[task.name] for task in compiled.tasks if task.choice)
            times[0] = 100.0 if changed == len(guesses) else 1.0
            return times

    def price(name: str, choice: Choice) -> float:
        return 1.0 if choice == guesses[name] else 0.9

    assert planner.measure(compiler, Together(price)).choices == guesses


def test_a_slow_moment_is_forgotten(compiler):
    """The guesses are slow once, and fast when they are timed again."""
    guesses = compiler.guesses()

    class Busy(Clock):
        def __call__(self, compiled: Compiled) -> np.ndarray:
            return super().__call__(compiled) * (10 if self.runs == 1 else 1)

    plan = planner.measure(compiler, Busy(lambda name, choice: 1.0 if choice == guesses[name] else 1.5))
    assert plan.choices == guesses


# ---------------------------------------------------------------------- kept plans
@pytest.fixture
def plan(compiler):
    return planner.measure(compiler, Clock())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BILLHOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plan_is_kept_beside_the_file(tmp_path, cache, compiler, plan):
    file = tmp_path / "packed.safetensors"
    kept = planner.write(file, KEY, plan)
    assert kept.path is not None
    assert kept.path.parent == tmp_path
    assert kept.path.name == f"packed.{KEY.name}.f32.2.plan.json"
    assert [path.name for path in tmp_path.iterdir()] == [kept.path.name]
    read = planner.read(file, KEY, compiler)
    assert read is not None
    assert (read.choices, read.seconds, read.source, read.path) == (plan.choices, plan.seconds, "cached", kept.path)


@pytest.mark.parametrize(
    "change",
    [{"cpu": "another"}, {"isa": "avx2"}, {"precision": "bf16"}, {"threads": 1}, {"library": "new"}, {"file": "4 abc"}],
)
def test_a_plan_for_something_else_is_not_taken(tmp_path, cache, compiler, plan, change):
    file = tmp_path / "packed.safetensors"
    planner.write(file, KEY, plan)
    assert planner.read(file, replace(KEY, **change), compiler) is None


def test_a_folder_that_cannot_be_written(tmp_path, cache, compiler, plan):
    file = tmp_path / "not there" / "packed.safetensors"
    kept = planner.write(file, KEY, plan)
    assert kept.path is not None
    assert kept.path.parent == cache / "plans"
    read = planner.read(file, KEY, compiler)
    assert read is not None
    assert read.choices == plan.choices
    other = replace(KEY, file="5 def")
    assert planner.read(file, other, compiler) is None


def test_nowhere_to_write(tmp_path, monkeypatch, plan):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BILLHOOK_CACHE", str(tmp_path / "file" / "cache"))
    assert planner.write(tmp_path / "not there" / "packed.safetensors", KEY, plan) == plan


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: [],
        lambda document: {"steps": []},
        lambda document: document | {"steps": {}},
        lambda document: document | {"steps": document["steps"] | {"more": {}}},
        lambda document: document | {"steps": document["steps"] | {"a": 1}},
        lambda document: document | {"steps": document["steps"] | {"a": document["steps"]["a"] | {"tile": 99}}},
        lambda document: document | {"steps": document["steps"] | {"a": document["steps"]["a"] | {"seconds": "1"}}},
        lambda document: document | {"steps": document["steps"] | {"c": document["steps"]["c"] | {"kernel": "dense"}}},
    ],
)
def test_a_damaged_plan_is_made_anew_or_refused(tmp_path, cache, compiler, plan, damage):
    file = tmp_path / "packed.safetensors"
    kept = planner.write(file, KEY, plan).path
    assert kept is not None
    kept.write_text(json.dumps(damage(json.loads(kept.read_text()))))
    assert planner.read(file, KEY, compiler) is None
    with pytest.raises(InputError, match="cannot be used"):
        planner.read_stated(kept, compiler)


def test_a_stated_plan(tmp_path, compiler, plan):
    kept = planner.write(tmp_path / "packed.safetensors", replace(KEY, cpu="any"), plan).path
    assert kept is not None
    assert planner.read_stated(kept, compiler).choices == plan.choices
    for text in ("", "{", "[" * 100_000, '{"steps": 1}'):
        kept.write_text(text)
        with pytest.raises(InputError, match="plan"):
            planner.read_stated(kept, compiler)
    with pytest.raises(InputError, match="No such file"):
        planner.read_stated(tmp_path / "none", compiler)


def test_the_same_header_and_size_is_the_same_file(tmp_path):
    def written(seed: int, name: str) -> Path:
        net = Building((3, 14, 14), seed)
        output = net.head(net.conv("x", 32, 3))
        built = net.build(output)
        write_network(tmp_path / name, built.graph, net.tensors, net.patterns)
        return tmp_path / name

    assert planner.fingerprint(written(0, "a")) == planner.fingerprint(written(1, "b"))
    net, output = network()
    write_network(tmp_path / "c", net.build(output).graph, net.tensors, net.patterns)
    assert planner.fingerprint(tmp_path / "c") != planner.fingerprint(tmp_path / "a")


def test_names_tell_machines_apart():
    assert len({KEY.name, replace(KEY, cpu="b").name, replace(KEY, isa="avx2").name}) == 3
    assert replace(KEY, threads=1).name == KEY.name


def test_the_processor_has_a_name():
    assert planner.cpu_name()


def test_plans_are_plain_values(plan):
    assert Plan(plan.choices).source == "guessed"
    assert all(Choice.from_dict(choice.as_dict()) == choice for choice in plan.choices.values())
