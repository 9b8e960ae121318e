"""The page of the docs is what the script writes today."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "accelerator.py"))


def test_a_section_of_the_docs_is_up_to_date(script: dict[str, Any]) -> None:
    spec = "vgg16_bn"
    section = "\n".join(script["network"](spec, script["NETWORKS"][spec]))
    assert section in script["PAGE"].read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_sweep_in_the_docs_is_up_to_date(script: dict[str, Any]) -> None:
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"]()
