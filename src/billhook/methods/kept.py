"""A choice of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import numpy as np
from numpy.typing import NDArray

Kept = dict[str, NDArray[np.int64]]
"""Channels that stay, ascending, by group."""


def how_many(kept: Mapping[str, Sized]) -> dict[str, int]:
    """How many channels stay, by group."""
    return {name: len(channels) for name, channels in kept.items()}
