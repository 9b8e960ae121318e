"""A choice of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import numpy as np
from numpy.typing import NDArray

from billhook.surgery.groups import ChannelGroup

Kept = dict[str, NDArray[np.int64]]
"""Channels that stay, ascending, by group."""


def how_many(kept: Mapping[str, Sized]) -> dict[str, int]:
    """How many channels stay, by group."""
    return {name: len(channels) for name, channels in kept.items()}


def first_channels(group: ChannelGroup, number: int) -> NDArray[np.int64]:
    """As many channels of a group, the first ones of every section."""
    starts = np.arange(group.sections, dtype=np.int64) * (group.channels // group.sections)
    return (starts[:, None] + np.arange(number // group.sections, dtype=np.int64)).ravel()
