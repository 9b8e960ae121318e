"""Recipes as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from billhook.errors import UsageError
from billhook.methods import make_config
from billhook.recipe import read_recipe


def test_ratio_needs_no_quotes(tmp_path: Path) -> None:
    """YAML 1.1 would read 2:4 as the base-60 number 124."""
    path = tmp_path / "r.yaml"
    path.write_text("method: {name: crisp, nm: 2:4, block: 16}\nseed: -3\nlr: 1.5\non: true\n")
    content = read_recipe(path)
    assert content["method"] == {"name": "crisp", "nm": "2:4", "block": 16}
    assert content["seed"] == -3
    assert content["lr"] == 1.5


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("block-only", {"nm": "2:4"}, "no N:M"),
        ("block-only", {"block": 0}, "block size"),
        ("nm-only", {"block": 16}, "no blocks"),
        ("crisp", {"nm": "2:3"}, "does not divide the block size"),
        ("crisp", {"nm": "5:4"}, "larger than"),
    ],
)
def test_patterns_that_contradict_their_method(name: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_config(name, fields)
