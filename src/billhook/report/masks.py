"""Small raster pictures (masks, large confusion matrices) as PNG data URIs: a path per weight would be megabytes."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# CSS pixels: the page's width, half of it for a picture of several lines, and a height that fits a screen
PAGE = 1032
WIDEST = 600
HIGHEST = 600
RULE = 2
# the picture's own colours, over a background that the style sheet gives: they read on light and on dark pages
KEPT = (11, 122, 106)
LINE = (128, 140, 150, 190)


@dataclass(frozen=True)
class MaskPicture:
    """One layer's mask.

    Attributes:
        name: The layer.
        caption: Shape, pattern, blocks and zeros in words.
        uri: The PNG.
        width: Width in CSS pixels, a whole number of pixels per weight.
        height: Height in CSS pixels.
        note: How the picture is to be read where it is wrapped or averaged; else empty.
    """

    name: str
    caption: str
    uri: str
    width: int
    height: int
    note: str


def png(rgba: npt.NDArray[np.uint8]) -> str:
    """An image [h, w, 4] as a data URI, at most 256 colours."""
    held = io.BytesIO()
    whole = np.ascontiguousarray(rgba).view(np.uint32)[..., 0]
    values, index = np.unique(whole, return_inverse=True)
    colours = values.view(np.uint8).reshape(-1, 4)
    if len(colours) <= 256:
        image = Image.fromarray(index.reshape(rgba.shape[:2]).astype(np.uint8), mode="P")
        image.putpalette(colours[:, :3].tobytes())
        image.save(held, "PNG", optimize=True, transparency=colours[:, 3].astype(np.uint8).tobytes())
    else:
        Image.fromarray(rgba, mode="RGBA").save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def _blocks_alive(mask: npt.NDArray[np.bool_], taps: int, channels: int, block: int) -> npt.NDArray[np.bool_]:
    """Per weight [O, taps·I]: whether its block (B output × B input channels of one tap) holds any kept weight."""
    alive = np.zeros_like(mask)
    for top in range(0, mask.shape[0], block):
        for tap in range(taps):
            for left in range(tap * channels, (tap + 1) * channels, block):
                right = min(left + block, (tap + 1) * channels)
                alive[top : top + block, left:right] = mask[top : top + block, left:right].any()
    return alive


def mask_picture(name: str, mask: npt.NDArray[Any], meta: npt.NDArray[Any] | None) -> MaskPicture | None:
    """The picture of one hybrid mask.

    Args:
        name: The layer.
        mask: 0/1 [O, taps·I], columns in channels-last order.
        meta: [taps, I, block, N, M, kept block columns per block row], or None when it is not known.

    Returns:
        None when the matrix is empty or not a matrix.
    """
    if mask.ndim != 2 or mask.size == 0:
        return None
    kept = mask != 0
    rows, columns = kept.shape
    known = meta is not None and meta.size >= 6 and int(meta[0]) * int(meta[1]) == columns and int(meta[2]) > 0
    taps, channels, block, n, m, kept_columns = [int(value) for value in meta[:6]] if known and meta is not None else (
        1, columns, max(rows, columns), 0, 0, 0
    )  # fmt: skip
    alive = _blocks_alive(kept, taps, channels, block)
    # one level per weight: 0 in a pruned block, 1 pruned by N:M, 2 kept
    level = alive.astype(np.float64) + kept

    # a wide matrix is wrapped into one line per row of the kernel
    side = math.isqrt(taps)
    lines = side if side * side == taps and columns > PAGE // 3 else 1
    per_line = taps // lines
    widest = PAGE if lines == 1 else WIDEST
    wide_rules, high_rules = RULE * (per_line - 1), RULE * (lines - 1)
    factor = 1
    while (
        per_line * math.ceil(channels / factor) + wide_rules > widest
        or lines * math.ceil(rows / factor) + high_rules > HIGHEST
    ) and factor < max(rows, channels):
        factor *= 2
    tiles = [_averaged(level[:, tap * channels : (tap + 1) * channels], factor) for tap in range(taps)]
    high, wide = tiles[0].shape[:2]
    # drawn at full size, so that the lines between taps stay thin whatever the size of a weight
    scale = max(1, min((widest - wide_rules) // (per_line * wide), (HIGHEST - high_rules) // (lines * high), 8))
    high, wide = high * scale, wide * scale
    canvas = np.empty((lines * (high + RULE) - RULE, per_line * (wide + RULE) - RULE, 4), dtype=np.uint8)
    canvas[:] = LINE
    for tap, tile in enumerate(tiles):
        top, left = tap // per_line * (high + RULE), tap % per_line * (wide + RULE)
        canvas[top : top + high, left : left + wide] = tile.repeat(scale, axis=0).repeat(scale, axis=1)

    shape = f"{rows} × {columns}" + (f" ({taps} taps × {channels} channels)" if taps > 1 else "")
    words = [shape]
    if known:
        per_row = taps * math.ceil(channels / block)
        words += [f"{n}:{m}", f"block {block}", f"keeps {kept_columns} of {per_row} block columns"]
    words.append(f"{100 * (1 - kept.mean()):.1f}\u00a0% zero")
    notes = []
    if lines > 1:
        notes.append(f"Shown in {lines} lines, one per row of the {side} × {side} kernel.")
    if factor > 1:
        notes.append(f"Each dot is the mean of {factor} × {factor} weights.")
    return MaskPicture(name, " · ".join(words), png(canvas), canvas.shape[1], canvas.shape[0], " ".join(notes))


def _averaged(level: npt.NDArray[np.float64], factor: int) -> npt.NDArray[np.uint8]:
    """Levels [h, w] in [0, 2] as RGBA [⌈h/f⌉, ⌈w/f⌉, 4]; ragged edges average what there is."""
    high, wide = (-(-length // factor) for length in level.shape)
    padded = np.full((high * factor, wide * factor), np.nan)
    padded[: level.shape[0], : level.shape[1]] = level
    mean = np.nanmean(padded.reshape(high, factor, wide, factor), axis=(1, 3))
    opacity = np.where(mean <= 1, 46 * mean, 46 + 209 * (mean - 1))
    rgba = np.empty((high, wide, 4), dtype=np.uint8)
    rgba[..., :3] = KEPT
    rgba[..., 3] = np.round(opacity)
    return rgba


def heat_picture(shares: npt.NDArray[np.float64]) -> tuple[str, int]:
    """A matrix of shares [k, k] in [0, 1] as a picture: (data URI, side in CSS pixels)."""
    rgba = np.empty((*shares.shape, 4), dtype=np.uint8)
    rgba[..., :3] = KEPT
    # the square root lifts the rare confusions, which are what one looks for
    rgba[..., 3] = np.round(255 * np.sqrt(np.clip(shares, 0, 1)))
    return png(rgba), shares.shape[0] * max(1, WIDEST // shares.shape[0])
