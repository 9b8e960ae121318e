"""What a few layers put out for one image before pruning and after, as small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from billhook.report import masks
from billhook.report.read import Run

MOST = 3
TILE = 72
GAP = 4


@dataclass(frozen=True)
class MapPicture:
    """Two rows of maps of one layer.

    Attributes:
        name: The layer.
        caption: Which channels are shown, and which of them are gone.
        uri: The PNG.
        width: Width in CSS pixels.
        height: Height in CSS pixels.
    """

    name: str
    caption: str
    uri: str
    width: int
    height: int


def map_pictures(run: Run) -> list[MapPicture]:
    """Pictures of the layers whose maps the run kept, in the network's order; none when it kept none."""
    found = []
    for key in [key for key in run.data if key.startswith("maps/")][:MOST]:
        name = key.removeprefix("maps/")
        picture = _picture(name, run.data[key], run.data.get(f"maps_kept/{name}"))
        found += [picture] if picture is not None else []
    return found


def _picture(name: str, maps: npt.NDArray[Any], kept: npt.NDArray[Any] | None) -> MapPicture | None:
    if maps.ndim != 4 or maps.shape[0] != 2 or not maps.size or maps.dtype != np.uint8:
        return None
    number, high, wide = maps.shape[1:]
    if kept is None or kept.shape != (2, number) or kept.dtype.kind not in "iu":
        return None
    scale = max(1, TILE // max(high, wide))
    tall, across = high * scale, wide * scale
    canvas = np.zeros((2 * tall + GAP, number * (across + GAP) - GAP, 4), dtype=np.uint8)
    canvas[..., :3] = masks.KEPT
    for row in range(2):
        for column in range(number):
            top, left = row * (tall + GAP), column * (across + GAP)
            tile = maps[row, column].repeat(scale, axis=0).repeat(scale, axis=1)
            area = canvas[top : top + tall, left : left + across]
            if row and not kept[1, column]:
                # A frame where there is no map any more.
                area[[0, -1]] = area[:, [0, -1]] = masks.LINE
            else:
                area[..., 3] = tile
    gone = int((kept[1] == 0).sum())
    caption = f"channels {', '.join(str(channel) for channel in kept[0].tolist())}"
    caption += f"; {gone} of these {'is' if gone == 1 else 'are'} gone" if gone else ""
    return MapPicture(name, caption, masks.png(canvas), canvas.shape[1], canvas.shape[0])
