"""Packed networks: a network's operators with its weights in the patterns that they were pruned in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from billhook.export.lower import Lowered, lower_network
from billhook.formats import PatternInfo, write_network
from billhook.formats.graph import Preprocess


def export_packed(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_shape: tuple[int, int, int],
    patterns: Mapping[str, PatternInfo] | None = None,
    labels: Sequence[str] = (),
    preprocess: Preprocess | None = None,
) -> int:
    """Write a network as the one file that a device needs.

    Args:
        module: The network as it is delivered; it is not changed.
        path: The file; one that exists is replaced, and only by a whole one.
        input_shape: Channels, height and width of its input.
        patterns: How its weights are pruned, by their names in the state dictionary. Masks are carried over as they
            are: folding scales rows, and a kept weight that is zero stays kept. Weights that are not here stay dense,
            and so does one that the network computes from others.
        labels: One per output, or none.
        preprocess: How an image becomes an input.

    Returns:
        The size of the file in bytes.

    Raises:
        InputError: The network is not made of operators of a packed file; see :func:`billhook.export.lower`.
        RunError: The file cannot be written.
    """
    lowered = lower_network(module, input_shape)
    graph = replace(lowered.graph, labels=tuple(labels), preprocess=preprocess)
    return write_network(path, graph, lowered.tensors, carried_over(lowered, patterns or {}))


def carried_over(lowered: Lowered, patterns: Mapping[str, PatternInfo]) -> dict[str, PatternInfo]:
    """The patterns of a network's weights as patterns of its operators' weights.

    A linear layer as a convolution of one pixel, or the other way round, has the same matrix. One over a whole map has
    its columns in another order, in which groups and blocks are none: its mask is kept as it is, without a pattern.

    Args:
        lowered: The network as operators.
        patterns: By the names in its state dictionary.
    """
    found = {}
    for name, origin in lowered.origins.items():
        pattern, shape = patterns.get(origin), lowered.tensors[name].shape
        if pattern is None:
            continue
        mask = np.ascontiguousarray(pattern.mask.reshape(shape))
        taps = (int(np.prod(shape[2:])), int(np.prod(pattern.mask.shape[2:])))
        if taps[0] == taps[1]:
            found[name] = replace(pattern, mask=mask)
        else:
            found[name] = PatternInfo("unstructured", 1, 1, 0, mask)
    return found
