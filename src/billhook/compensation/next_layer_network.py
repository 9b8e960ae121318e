"""Compensation by the next layers for many channel groups of a network at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.compensation.moments import Moments, collect_moments, compensable
from billhook.compensation.next_layer import ReaderMap, absorb, fit_reader
from billhook.surgery import ChannelGroup, Grouping

MOST = 1 << 30
"""Bytes of second moments that are held at the same time; for more the images run through again."""

FOLDS = 4


def make_up(
    module: nn.Module,
    grouping: Grouping,
    kept: Mapping[str, NDArray[np.int64]],
    batches: Callable[[], Iterable[Tensor]],
) -> bool:
    """Let all readers make up for the channels that groups will lose, in place.

    Every map is fitted on the network as it comes, so one pass of the calibration images serves all groups; what
    the other maps get wrong by then is not made up for.

    Args:
        module: The network, with all its channels; afterwards they may be removed.
        grouping: Its channel groups.
        kept: Channels that stay, by group; groups that are not named keep all.
        batches: Calibration images, anew with each call, where the network is.

    Returns:
        Whether a map rests on fewer samples than it has channels.
    """
    losing = [name for name, channels in kept.items() if len(channels) < grouping.groups[name].channels]
    maps: dict[str, tuple[ReaderMap, ...]] = {}
    for part in in_parts(module, grouping, losing):
        moments = collect_moments(module, grouping, batches(), part, folds=FOLDS)
        maps |= {name: reader_maps(kept[name], moments.get(name, {})) for name in part}
    for name, found in maps.items():
        absorb(module, grouping.groups[name], found)
    return any(one.short for found in maps.values() for one in found)


def in_parts(module: nn.Module, grouping: Grouping, names: Sequence[str]) -> Iterator[list[str]]:
    """Groups whose moments fit into :data:`MOST` bytes together."""
    part: list[str] = []
    held = 0
    for name in names:
        group = grouping.groups[name]
        blocks = [int(getattr(module.get_submodule(m.layer), "groups", 1)) for m in compensable(module, group)]
        size = sum(8 * FOLDS * group.channels**2 // count for count in blocks)
        if part and held + size > MOST:
            yield part
            part, held = [], 0
        part.append(name)
        held += size
    if part:
        yield part


def reader_maps(kept: NDArray[np.int64], readers: Mapping[str, Moments]) -> tuple[ReaderMap, ...]:
    """What the readers of a group take up when so much of it stays.

    Args:
        kept: Channels that stay; may be none.
        readers: Moments of each reader.
    """
    return tuple(fit_reader(moments, kept) if len(kept) else _constants(moments, kept) for moments in readers.values())


def no_maps(module: nn.Module, group: ChannelGroup, kept: NDArray[np.int64]) -> tuple[ReaderMap, ...]:
    """The same when nothing is made up for."""
    return tuple(_nothing(member.layer, group.channels, kept) for member in compensable(module, group))


def _nothing(layer: str, channels: int, kept: NDArray[np.int64]) -> ReaderMap:
    gone = np.setdiff1d(np.arange(channels), kept)
    return ReaderMap(layer, kept, gone, np.zeros((len(gone), len(kept))), None, None, 0.0, 1.0, None, False)


def _constants(moments: Moments, kept: NDArray[np.int64]) -> ReaderMap:
    """Where no channel is left: their means, if the reader has a place for them."""
    bare = _nothing(moments.member.layer, moments.channels, kept)
    if moments.shift is None:
        return bare
    means = moments.first.sum(dim=0) / moments.count.sum()
    return replace(bare, constant=means.flatten().numpy(), shift=moments.shift)
