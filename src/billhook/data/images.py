"""``ImageSet``: the images of one split of a selection, and the batches that are made of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from billhook.data import transforms
from billhook.data.decode import BrokenImage, report_broken
from billhook.data.preprocess import Preprocess
from billhook.data.source import Labels, Rows
from billhook.data.splits import seed_of
from billhook.data.views import Geometry, read_all, read_some
from billhook.errors import UsageError

AHEAD = 2
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, or one rank's share of it.

    Attributes:
        images: float32 [b, 3, S, S], normalised.
        labels: int64 [b], head-output indices.
        indices: int64 [b], rows of the ImageSet.
        step: Number of the batch within the epoch.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    step: int


class ImageSet:
    """Images of one split, restricted to the kept classes; decoded on first use, and kept when they fit in 1 GiB.

    Args:
        rows: Where the images come from.
        indices: Rows used, int64 [n].
        labels: Head-output indices, int64 [n].
        broken: Names of images that were left out.

    Attributes:
        labels: int64 [n], head-output indices.
        broken: Names of images that cannot be read; those found while decoding are left out of their batches.
    """

    def __init__(self, rows: Rows, indices: Labels, labels: Tensor, broken: Sequence[str] = ()) -> None:
        self.rows = rows
        self.indices = indices
        self.labels = labels
        self.broken: tuple[str, ...] = tuple(broken)
        self._decoded: dict[Geometry, list[Tensor] | Tensor] = {}
        self._dead: dict[int, BrokenImage] = {}
        self._lock = threading.Lock()
        self._parent: tuple[ImageSet, Labels] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Training steps of one epoch: whole batches only, but one batch of everything when there is no whole one."""
        _positive(batch_size)
        return len(self) // batch_size or min(len(self), 1)

    def subset(self, indices: Sequence[int] | Labels | Tensor) -> ImageSet:
        """The images at these places, in this order; what is decoded already is not decoded again."""
        places: Labels = np.asarray(indices, dtype=np.int64)
        part = ImageSet(self.rows, self.indices[places], self.labels[torch.from_numpy(places)], self.broken)
        part._parent = (self, places)
        return part

    def prepare(self, preprocess: Preprocess, *, train: bool = False) -> None:
        """Decode now what :meth:`batches` would decode on first use, where it fits in memory.

        Raises:
            InputError: More than 1 % of the images are broken.
        """
        if self.rows.pixels == "uint8" and len(self):
            self._view(Geometry.of(preprocess, train))

    def batches(
        self,
        batch_size: int,
        preprocess: Preprocess,
        *,
        train: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        channels_last: bool = True,
    ) -> Iterator[Batch]:
        """Batches of one epoch: shuffled and augmented in training, everything in order otherwise.

        The order is a function of (seed, epoch), the augmentation of (seed, epoch, step). Every rank takes rows
        ``rank::world`` of the same global batch and gets as many batches as the others; a share may be empty when a
        batch has fewer images than there are ranks.

        Args:
            batch_size: Images of the global batch.
            preprocess: Sizes, normalisation, augmentation.
            train: Shuffle, augment, drop the last incomplete batch (see :meth:`steps`).
            seed: Randomness of the run.
            epoch: Number of the epoch.
            start: First step to give; the batches are those of an unbroken epoch.
            rank: Of this process.
            world: Number of processes.
            channels_last: Memory format of the images.

        Raises:
            UsageError: A batch size below 1 or a rank outside the world.
            InputError: More than 1 % of the images turn out broken.
        """
        _positive(batch_size)
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} is outside a world of {world}", "ranks run from 0 to world - 1")
        steps = self.steps(batch_size) if train else -(-len(self) // batch_size)
        return self._iterate(
            batch_size, preprocess, range(start, steps), train, (seed, epoch), slice(rank, None, world), channels_last
        )

    def _iterate(
        self,
        batch_size: int,
        preprocess: Preprocess,
        steps: range,
        train: bool,
        key: tuple[int, int],
        share: slice,
        channels_last: bool,
    ) -> Iterator[Batch]:
        if not steps:
            return
        order = torch.arange(len(self))
        if train:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed_of("shuffle", *key)))
        geometry = Geometry.of(preprocess, train)
        floating = self.rows.pixels == "float"
        held = None if floating else self._view(geometry)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        threads = torch.get_num_threads() if self.rows.parallel else 1

        with ThreadPoolExecutor(threads) as readers:

            def make(step: int) -> tuple[Batch, list[tuple[int, BrokenImage]]]:
                chosen = order[step * batch_size : (step + 1) * batch_size]
                draws = transforms.draw(len(chosen), seed_of("augment", *key, step))[share] if train else None
                chosen = chosen[share]
                if floating:
                    alive, planes, broken = self._read_floats(chosen)
                    images = planes
                else:
                    alive, pixels, broken = self._pixels(chosen, geometry, held, readers)
                    images = _transform(pixels, preprocess, None if draws is None else draws[alive])
                chosen = chosen[alive]
                images = images.contiguous(memory_format=memory_format)
                return Batch(images, self.labels[chosen], chosen, step), broken

            # A background thread is worth its second thread team only where a batch is costly to make, or where the
            # processor would otherwise wait for an accelerator.
            light = held is not None and not geometry.canvas and not torch.cuda.is_available()
            for batch, broken in map(make, steps) if light else _ahead(make, steps):
                self._note(broken)
                yield batch

    def _view(self, geometry: Geometry) -> list[Tensor] | Tensor | None:
        """All images decoded, or None when they would not fit in memory."""
        with self._lock:
            if geometry in self._decoded:
                return self._decoded[geometry]
            if self._parent is not None and geometry in self._parent[0]._decoded:
                parent, places = self._parent
                whole = parent._decoded[geometry]
                self._dead |= {i: parent._dead[int(p)] for i, p in enumerate(places) if int(p) in parent._dead}
                part = whole[torch.from_numpy(places)] if isinstance(whole, Tensor) else [whole[p] for p in places]
                self._decoded[geometry] = part
                return part
            if not geometry.fits_memory(self.rows, self.indices):
                return None
            held, broken = read_all(self.rows, self.indices, geometry, torch.get_num_threads())
            self._decoded[geometry] = held
        self._note(broken)
        return held

    def _pixels(
        self, chosen: Tensor, geometry: Geometry, held: list[Tensor] | Tensor | None, readers: ThreadPoolExecutor
    ) -> tuple[Tensor, list[Tensor] | Tensor, list[tuple[int, BrokenImage]]]:
        """(places within ``chosen`` that could be read, their images, the newly broken)."""
        places = chosen.tolist()
        broken: list[tuple[int, BrokenImage]] = []
        if held is None:
            read = read_some(self.rows, self.indices[places], geometry, readers)
            broken = [(place, item) for place, item in zip(places, read, strict=True) if isinstance(item, BrokenImage)]
            good = [number for number, item in enumerate(read) if isinstance(item, Tensor)]
            images = [item for item in read if isinstance(item, Tensor)]
            pixels = images if geometry.canvas else _stack(images, geometry.size)
            return torch.tensor(good, dtype=torch.long), pixels, broken
        alive = torch.tensor([n for n, place in enumerate(places) if place not in self._dead], dtype=torch.long)
        if isinstance(held, Tensor):
            return alive, held.index_select(0, chosen[alive]), broken
        return alive, [held[places[n]] for n in alive.tolist()], broken

    def _read_floats(self, chosen: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, BrokenImage]]]:
        images: list[Tensor] = []
        good: list[int] = []
        broken: list[tuple[int, BrokenImage]] = []
        for number, place in enumerate(chosen.tolist()):
            try:
                images.append(self.rows.tensor(int(self.indices[place])))
                good.append(number)
            except BrokenImage as error:
                broken.append((place, error))
        if not images:
            shape = self.rows.tensor(int(self.indices[0])).shape
            return torch.zeros(0, dtype=torch.long), torch.empty(0, *shape), broken
        return torch.tensor(good), torch.stack(images), broken

    def _note(self, broken: Sequence[tuple[int, BrokenImage]]) -> None:
        new = {place: error for place, error in broken if place not in self._dead}
        if new:
            self._dead |= new
            self.broken += tuple(error.name for error in new.values())
            report_broken(list(self._dead.values()), len(self))


def _transform(pixels: list[Tensor] | Tensor, preprocess: Preprocess, draws: Tensor | None) -> Tensor:
    """Augment (when there are draws) and normalise; the result is float32 [b, 3, S, S]."""
    if isinstance(pixels, list):
        assert draws is not None  # only training sees whole images
        if not pixels:
            return torch.empty(0, 3, preprocess.input_size, preprocess.input_size)
        boxes = transforms.crop_boxes(torch.tensor([image.shape[:2] for image in pixels]), draws)
        canvas, boxes = _cut(pixels, boxes)
        mirrored = transforms.flips(draws) if preprocess.flip else None
        planes = transforms.resized_crop(canvas, boxes, preprocess.input_size, mirrored)
        return transforms.normalise_planes(planes, preprocess.mean, preprocess.std)
    if draws is not None:
        if preprocess.augment == "crop":
            pixels = transforms.pad_crop(pixels, draws, preprocess.padding)
        if preprocess.flip:
            pixels = transforms.flip(pixels, transforms.flips(draws))
    return transforms.normalise(pixels, preprocess.mean, preprocess.std)


def _cut(images: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes' pixels, each in the top left corner of a canvas, and the boxes there.

    The canvas is bounded by the widest ratio of a box; one very long image would blow up a canvas of whole images.
    """
    canvas = torch.zeros(len(images), int(boxes[:, 2].max()), int(boxes[:, 3].max()), 3, dtype=torch.uint8)
    for target, image, (top, left, tall, wide) in zip(canvas, images, boxes.tolist(), strict=True):
        target[:tall, :wide] = image[top : top + tall, left : left + wide]
    moved = boxes.clone()
    moved[:, :2] = 0
    return canvas, moved


def _stack(images: list[Tensor], size: int) -> Tensor:
    return torch.stack(images) if images else torch.empty(0, size, size, 3, dtype=torch.uint8)


def _ahead(make: Callable[[int], T], steps: range) -> Iterator[T]:
    """Make items in one background thread, up to two ahead of their use, in order."""
    worker = ThreadPoolExecutor(1)
    waiting: deque[Future[T]] = deque()
    try:
        for step in steps:
            waiting.append(worker.submit(make, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)


def _positive(batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is not positive", "give at least 1")
