"""The inputs of the fuzzer that are kept, and a short run of its loop with a fixed seed."""

from __future__ import annotations

import random

import pytest

from .fuzz_packed import CORPUS, check, join, mutate, seeds, split

FILES = sorted(path for path in CORPUS.iterdir() if path.is_file())
assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_kept_input(tmp_path, file):
    where, _ = check(file.read_bytes(), tmp_path / "net")
    assert (where == "sound") == file.name.startswith("sound")


def test_damaged_copies(tmp_path):
    rng = random.Random(1)
    sound = [data for data, file in zip(seeds(CORPUS), FILES, strict=True) if file.name.startswith("sound")]
    outcomes = {check(mutate(rng.choice(sound), rng), tmp_path / "net") for _ in range(400)}
    # The mutations get behind the header: to descriptions, operators, packed layers.
    lines = {where for where, _ in outcomes}
    assert "sound" in lines
    for module, least in {"rules.py": 10, "graph_json.py": 5, "state.py": 4, "network.py": 2}.items():
        assert sum(line.startswith(module) for line in lines) >= least, (module, lines)


def test_splitting_and_joining_is_lossless(tmp_path):
    for data, file in zip(seeds(CORPUS), FILES, strict=True):
        parts = split(data)
        if file.name.startswith("sound"):
            assert parts is not None
            assert split(join(*parts)) == parts
            assert check(join(*parts), tmp_path / "net")[0] == "sound"
