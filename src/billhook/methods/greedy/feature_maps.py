"""Feature maps of a few layers before and after, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from billhook.compensation.moments import evaluating
from billhook.methods.kept import Kept
from billhook.surgery import Grouping

LAYERS = 3
CHANNELS = 12
SIDE = 32
"""Larger maps are averaged down to it."""


def pictured_layers(grouping: Grouping, kept: Kept, *, outer: bool = False) -> dict[str, NDArray[np.bool_]]:
    """A few convolutions that lost outputs, spread over the network: which of their channels still come out.

    Args:
        grouping: Channel groups, or sides of convolutions, from input to output.
        kept: What is left of each.
        outer: Another convolution behind it puts out what a convolution has lost: all of its channels.
    """
    found: dict[str, NDArray[np.bool_]] = {}
    for name, group in grouping.groups.items():
        writer = next((m for m in group.members if m.side == "out" and m.dim is None and m.index.shape[1] == 1), None)
        if writer is not None and len(kept[name]) < group.channels and writer.layer not in found:
            stays = np.full(group.channels, outer)
            stays[kept[name]] = True
            found[writer.layer] = np.ones(int(writer.index.max()) + 1, dtype=bool)
            found[writer.layer][writer.index[:, 0]] = stays
    return {list(found)[place]: found[list(found)[place]] for place in _spread(len(found), LAYERS)}


@torch.no_grad()
def feature_maps(
    before: nn.Module, after: nn.Module, image: Tensor, layers: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.generic]]:
    """What layers put out for one image, in both networks.

    Args:
        before: The dense network.
        after: The pruned network in its old shape.
        image: ``[1, 3, H, W]``.
        layers: Which channels still come out, by layer.

    Returns:
        Arrays for ``report_data.npz``: ``maps/LAYER``, uint8 ``[2, channels, h, w]``, on one scale per channel, and
        ``maps_kept/LAYER``, ``[2, channels]``: the channel's number, and whether it is left. Layers that put out no
        maps, or other ones than before, are left out.
    """
    outputs = [_outputs(module, image, list(layers)) for module in (before, after)]
    found: dict[str, NDArray[np.generic]] = {}
    for layer, left in layers.items():
        pair = [one[layer] for one in outputs if layer in one]
        if len(pair) < 2 or pair[0].shape != pair[1].shape or pair[0].shape[1] != len(left):
            continue
        chosen = _spread(len(left), CHANNELS)
        maps = torch.cat(pair)[:, chosen]
        height, width = (min(SIDE, size) for size in maps.shape[2:])
        maps = functional.adaptive_avg_pool2d(maps, (height, width))
        maps[1, torch.from_numpy(~left[chosen])] = maps[0, torch.from_numpy(~left[chosen])]  # no part of the scale
        low, high = (maps.amin(dim=(0, 2, 3), keepdim=True), maps.amax(dim=(0, 2, 3), keepdim=True))
        shades = ((maps - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).numpy()
        shades[1, ~left[chosen]] = 0
        found[f"maps/{layer}"] = shades
        found[f"maps_kept/{layer}"] = np.array([chosen, left[chosen]], dtype=np.int64)
    return found


def _spread(count: int, most: int) -> list[int]:
    """That many places of a row, or fewer, its ends among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))}) if count else []


def _outputs(module: nn.Module, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    parameter = next(module.parameters(), image)
    parts = dict(module.named_modules())

    def keep(layer: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found[layer] = output.detach().float().cpu().clone()  # what follows may write into it

    handles = [
        parts[layer].register_forward_hook(lambda part, taken, output, layer=layer: keep(layer, output))
        for layer in layers
        if layer in parts
    ]
    try:
        with evaluating(module):
            module(image.to(parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
