"""What has to be known of a network, and nothing of the images, to say which budgets a method can meet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from billhook import artifact
from billhook.compensation import pointwise_layers
from billhook.cost import Cost, count
from billhook.errors import InputError
from billhook.formats import PatternInfo
from billhook.models import Network, find_head
from billhook.surgery import Grouping, channel_groups, slice_head


@dataclass(frozen=True)
class Counted:
    """A network that was counted.

    Attributes:
        network: The dense network.
        head: Name of the classifier.
        rows: Outputs that the head will be sliced to, or None for all.
        cost: Of the dense network.
        delivered: Of the dense network with the head as delivered.
        dense: Totals of the dense network, ``bytes`` as its file would have.
        file_bytes: Size of ``model.safetensors`` for a state stored under these patterns.
        groups: Finds the channel groups, on the first call; raises InputError, each time the same, where they cannot
            be traced.
    """

    network: Network
    head: str
    rows: tuple[int, ...] | None
    cost: Cost
    delivered: Cost
    dense: dict[str, Any]
    file_bytes: Callable[[dict[str, PatternInfo]], int]
    groups: Callable[[], Grouping]


def count_network(network: Network, size: int, rows: Sequence[int] | None) -> Counted:
    """Count a network as it is and with the head as delivered: one forward pass of one image for each of the two.

    Args:
        network: The dense network.
        size: Height and width of the image in pixels.
        rows: Outputs that the head will be sliced to, or None for all.

    Raises:
        InputError: No classifier is found, or the network cannot take the image.
    """
    head = find_head(network.module)
    kept = None if rows is None else tuple(rows)
    cost = count(network.module, size)
    small = network.module if kept is None else slice_head(network.module, head, kept)
    delivered = cost if kept is None else count(small, size)

    def file_bytes(patterns: dict[str, PatternInfo]) -> int:
        stored = patterns if kept is None else artifact.slice_patterns(patterns, head, kept)
        return artifact.file_bytes(artifact.state_arrays(small), stored)

    dense = cost.totals() | {"bytes": artifact.file_bytes(artifact.state_arrays(network.module), {})}
    return Counted(network, head, kept, cost, delivered, dense, file_bytes, _once(network, size))


def _once(network: Network, size: int) -> Callable[[], Grouping]:
    """Traces on the first call; a network that cannot be traced is not tried again for every method either."""

    @functools.cache
    def found() -> Grouping | tuple[str, str]:
        if pointwise_layers(network.module):
            # Its artifact would have to say which came first, the channels or the 1x1 convolutions.
            text = "it was pruned with 1x1 convolutions around its layers, and its channels cannot be removed any more"
            return text, "prune the network that it came from"
        try:
            return channel_groups(network.module, size)
        except InputError as error:
            # Its text alone: the error itself holds on to all that the tracer held.
            return error.message, error.hint

    def groups() -> Grouping:
        grouping = found()
        if isinstance(grouping, tuple):
            raise InputError(*grouping)
        return grouping

    return groups
