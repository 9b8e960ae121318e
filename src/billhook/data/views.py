"""Decoding many images: what geometry to keep them in, whether they fit in memory, and a pool of threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from billhook.data.decode import BrokenImage, fit, shrink
from billhook.data.preprocess import Preprocess
from billhook.data.source import PROBES, Labels, Pixels, Rows

MEMORY_LIMIT = 2**30


@dataclass(frozen=True)
class Geometry:
    """What is kept of an image.

    Attributes:
        canvas: True: the whole image, its short side at most ``resize`` (for random resized crops). False: the
            evaluation crop.
        resize: Short side in pixels.
        size: Side of the evaluation crop.
    """

    canvas: bool
    resize: int
    size: int

    @classmethod
    def of(cls, preprocess: Preprocess, train: bool) -> Geometry:
        """The geometry that a preprocessing needs."""
        canvas = train and preprocess.augment == "resized-crop"
        return cls(canvas, preprocess.resize, preprocess.input_size)

    def read(self, rows: Rows, index: int) -> Pixels:
        """One image, uint8 [h, w, 3].

        Raises:
            BrokenImage: It cannot be read.
        """
        if self.canvas:
            return np.asarray(shrink(rows.pil(index, at_least=self.resize), self.resize))
        return np.asarray(fit(rows.pil(index), self.resize, self.size))

    def fits_memory(self, rows: Rows, indices: Labels) -> bool:
        """Whether all images, decoded, stay within 1 GiB (estimated from 32 headers where sizes vary)."""
        if not self.canvas:
            return 3 * self.size**2 * len(indices) <= MEMORY_LIMIT
        areas: list[float] = []
        for place in np.unique(np.linspace(0, len(indices) - 1, min(PROBES, len(indices))).astype(int)):
            try:
                height, width = rows.size(int(indices[place]))
            except BrokenImage:
                continue
            areas.append(height * width * min(1.0, self.resize / min(height, width)) ** 2)
        return not areas or 3 * float(np.mean(areas)) * len(indices) <= MEMORY_LIMIT


def read_all(
    rows: Rows, indices: Labels, geometry: Geometry, threads: int
) -> tuple[list[Tensor] | Tensor, list[tuple[int, BrokenImage]]]:
    """Decode all images, in threads (Pillow releases the interpreter lock while it decodes).

    Returns:
        uint8 [n, S, S, 3], or for canvases a list of [h, w, 3]; and the broken ones, with their places. A broken image
        leaves a black one behind.
    """
    count = len(indices)
    whole = None if geometry.canvas else np.zeros((count, geometry.size, geometry.size, 3), dtype=np.uint8)
    parts: list[Pixels] = [np.zeros((1, 1, 3), dtype=np.uint8)] * (count if geometry.canvas else 0)
    broken: list[tuple[int, BrokenImage]] = []

    def work(first: int, last: int) -> None:
        for place in range(first, last):
            try:
                image = geometry.read(rows, int(indices[place]))
            except BrokenImage as error:
                broken.append((place, error))
                continue
            if whole is None:
                parts[place] = image
            else:
                whole[place] = image

    if threads > 1 and rows.parallel:
        edges = np.linspace(0, count, min(count, 8 * threads) + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))
    else:
        work(0, count)
    broken.sort(key=lambda item: item[0])
    held = [torch.from_numpy(part.copy()) for part in parts] if whole is None else torch.from_numpy(whole)
    return held, broken


def read_some(
    rows: Rows, indices: Labels, geometry: Geometry, readers: ThreadPoolExecutor
) -> Sequence[Tensor | BrokenImage]:
    """Decode a few images in the given threads; a broken one comes back as its error."""

    def work(index: int) -> Tensor | BrokenImage:
        try:
            return torch.from_numpy(geometry.read(rows, index).copy())
        except BrokenImage as error:
            return error

    return list(readers.map(work, indices.tolist()))
