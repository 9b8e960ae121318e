"""Which way to run each convolution, found by timing them inside the whole network, and kept beside the file.

All layers change their kernels at once: a network of fifty layers with eight candidates each is timed eight times, not
four hundred times, and each layer is timed with the caches as the layers before it leave them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError
from billhook.formats import load_json
from billhook.runtime.choice import Choice, kernels, orders
from billhook.runtime.compile import Compiled, Compiler

PLAN_VERSION = 1
LARGEST_PLAN = 1 << 24
CONFIRMED = 3
"""Turns in which what was found meets the guesses."""
BETTER = 0.98
"""A choice takes the place of another when it needs at most this share of its time."""

Profile = Callable[[Compiled], NDArray[np.float64]]
"""Seconds of every step of a program, the shortest of a few runs."""


@dataclass(frozen=True)
class Plan:
    """Choices for the convolutions of a network.

    Attributes:
        choices: By name of the operator.
        seconds: What they took when they were chosen, by the same names; empty for guesses.
        source: ``measured``, ``cached`` or ``guessed``.
        path: Where it is kept, if it is.
    """

    choices: Mapping[str, Choice]
    seconds: Mapping[str, float] = field(default_factory=dict)
    source: str = "guessed"
    path: Path | None = None


def measure(compiler: Compiler, profile: Profile) -> Plan:
    """The fastest choice of every convolution.

    First kernels and tiles are tried, then orders of the fastest. In the end the whole network is timed with what was
    found and with the guesses, in turns: other work on the machine may have slowed one of them down, and layers share
    caches. The guesses stay if they are faster.

    Args:
        compiler: Of the network.
        profile: Times a program.
    """
    guesses = compiler.guesses()
    search = _Search(compiler, profile, guesses)
    search.try_all({name: kernels(facts) for name, facts in compiler.facts.items()})
    search.try_all({name: orders(search.best[name], facts) for name, facts in compiler.facts.items()})
    found = dict(search.best)
    turns = [(search.run(found), search.run(guesses)) for _ in range(CONFIRMED)]
    ours, theirs = (np.min(times, axis=0) for times in zip(*turns, strict=True))
    choices = guesses if ours.sum() > theirs.sum() else {name: search.best[name] for name in guesses}
    return Plan(choices, {name: search.seconds[name, choice] for name, choice in choices.items()}, "measured")


class _Search:
    def __init__(self, compiler: Compiler, profile: Profile, start: Mapping[str, Choice]) -> None:
        self.compiler, self.profile = compiler, profile
        self.best = dict(start)
        self.seconds: dict[tuple[str, Choice], float] = {}

    def try_all(self, candidates: Mapping[str, list[Choice]]) -> None:
        """Times candidate after candidate of all convolutions; one that has no more runs as is best so far."""
        for turn in range(max(map(len, candidates.values()), default=0)):
            self.run(
                {name: found[turn] if turn < len(found) else self.best[name] for name, found in candidates.items()}
            )

    def run(self, choices: Mapping[str, Choice]) -> NDArray[np.float64]:
        """Times a program; the shortest time of each choice counts."""
        compiled = self.compiler.compile(choices, keep=True)
        times = self.profile(compiled)
        for task, seconds in zip(compiled.tasks, times.tolist(), strict=True):
            if task.choice is not None:
                key = task.name, task.choice
                self.seconds[key] = min(seconds, self.seconds.get(key, float("inf")))
        for name, choice in choices.items():
            if self.seconds[name, choice] < BETTER * self.seconds.get((name, self.best[name]), float("inf")):
                self.best[name] = choice
        return times


@dataclass(frozen=True)
class Key:
    """What a plan holds for.

    Attributes:
        cpu: Model name.
        isa: Instruction set.
        precision: f32 or bf16.
        threads: Of a run.
        library: Of the kernels: a change of theirs asks for new plans.
        file: Bytes of the network's file and a hash of its header.
    """

    cpu: str
    isa: str
    precision: str
    threads: int
    library: str
    file: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"version": PLAN_VERSION} | self.__dict__

    @property
    def name(self) -> str:
        """A few letters that tell machines apart."""
        words = "\n".join((self.cpu, self.isa, self.library, str(PLAN_VERSION)))
        return hashlib.sha256(words.encode()).hexdigest()[:8]


def places(path: Path, key: Key) -> list[Path]:
    """Where a plan may be kept: beside the network's file, else in the user's cache folder."""
    tail = f"{key.name}.{key.precision}.{key.threads}.plan.json"
    whole = hashlib.sha256(f"{key.file}\n{key.name}".encode()).hexdigest()[:16]
    return [path.with_name(f"{path.stem}.{tail}"), cache_directory() / "plans" / f"{whole}.{tail}"]


def read(path: Path, key: Key, compiler: Compiler) -> Plan | None:
    """A plan that was kept for the same network and machine; None when there is none."""
    for place in places(path, key):
        with contextlib.suppress(OSError, ValueError):
            return load(place, compiler, key)
    return None


def load(place: Path, compiler: Compiler, key: Key | None = None) -> Plan:
    """A plan from a file.

    Args:
        place: The file.
        compiler: Of the network that it must fit.
        key: What it must have been made for; None: anything.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no plan, or one for another network or machine.
    """
    with open(place, "rb") as file:
        text = file.read(LARGEST_PLAN + 1)
    if len(text) > LARGEST_PLAN:
        raise ValueError("it is too large")
    document = load_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("steps"), dict):
        raise ValueError("it lists no steps")
    if key is not None and document.get("for") != key.as_dict():
        raise ValueError("it was made for something else")
    steps = document["steps"]
    if steps.keys() != compiler.facts.keys():
        raise ValueError("its steps are not those of this network")
    choices, seconds = {}, {}
    for name, entry in steps.items():
        if not isinstance(entry, dict) or type(entry.get("seconds")) not in (int, float):
            raise ValueError(f"step {name!r} has no time")
        choices[name] = Choice.from_dict({item: value for item, value in entry.items() if item != "seconds"})
        seconds[name] = float(entry["seconds"])
        if choices[name].kernel == "dense" and not compiler.facts[name].dense:
            raise ValueError(f"step {name!r} has groups")
    return Plan(choices, seconds, "cached", place)


def read_stated(place: Path, compiler: Compiler) -> Plan:
    """A plan that the user names.

    Raises:
        InputError: It cannot be read or is for another network.
    """
    try:
        return load(place, compiler)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the plan {place} cannot be used: {reason}", "plan='auto' makes a new one") from error


def write(path: Path, key: Key, plan: Plan) -> Plan:
    """Keeps a plan where that is possible, silently nowhere else.

    Returns:
        The plan, with its path.
    """
    steps = {name: choice.as_dict() | {"seconds": plan.seconds[name]} for name, choice in plan.choices.items()}
    text = json.dumps({"for": key.as_dict(), "steps": steps}, indent=1)
    for place in places(path, key):
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
        try:
            if place.parent != path.parent:
                place.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, place)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            continue
        return Plan(plan.choices, plan.seconds, plan.source, place)
    return plan


def fingerprint(path: Path) -> str:
    """The file's bytes and a hash of its header: kernels depend on shapes and patterns, not on values."""
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), LARGEST_PLAN))
        size = os.fstat(file.fileno()).st_size
    return f"{size} {hashlib.sha256(length + header).hexdigest()[:32]}"


def cpu_name() -> str:
    """The processor's model name, as the system gives it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_directory() -> Path:
    """``$BILLHOOK_CACHE``, else ``$XDG_CACHE_HOME/billhook``, else ``~/.cache/billhook``."""
    stated = os.environ.get("BILLHOOK_CACHE")
    if stated:
        return Path(stated)
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        base = os.path.join(os.environ.get("LOCALAPPDATA", "~") if sys.platform == "win32" else "~", ".cache")
    return Path(base).expanduser() / "billhook"
