"""What a data source is: class names, and per split the labels and a way to read single images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from billhook.data.decode import BrokenImage, decode, header_size

Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
SMALL = 64
PROBES = 32


class Rows(ABC):
    """The images of one split, decoded one at a time on demand.

    Attributes:
        labels: int64 [n], index into the source's classes.
        pixels: "float" when the images are float tensors, already normalised, to be passed through untouched.
        parallel: Whether several threads may read at once.
    """

    pixels: Literal["uint8", "float"] = "uint8"
    parallel = True

    def __init__(self, labels: npt.ArrayLike) -> None:
        self.labels: Labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def pil(self, index: int, at_least: int | None = None) -> Image.Image:
        """One RGB image; a short side of ``at_least`` pixels is enough.

        Raises:
            BrokenImage: It cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What a user can find the image by."""

    @abstractmethod
    def digest(self, indices: Sequence[int] | Labels) -> bytes:
        """Bytes that change when one of the images does; independent of where the data lie."""

    def read(self, index: int) -> Pixels:
        """One image, uint8 [h, w, 3]."""
        return np.asarray(self.pil(index))

    def tensor(self, index: int) -> torch.Tensor:
        """One float image [c, h, w], where ``pixels`` is "float"."""
        raise TypeError(f"{type(self).__name__} holds no float images")

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), without decoding where the format allows it."""
        image = self.pil(index)
        return image.height, image.width

    def intact(self, index: int) -> bool:
        """A cheap look at the encoded bytes; False is a suspicion only."""
        return True


class EncodedRows(Rows):
    """Rows whose images are encoded files or bytes."""

    @abstractmethod
    def encoded(self, index: int) -> bytes | memoryview:
        """The encoded bytes of one image."""

    def pil(self, index: int, at_least: int | None = None) -> Image.Image:
        """One RGB image; a JPEG may come back smaller when ``at_least`` allows it."""
        return decode(self._read(index), self.name(index), at_least)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) from the header."""
        return header_size(self._read(index), self.name(index))

    def _read(self, index: int) -> bytes | memoryview:
        try:
            return self.encoded(index)
        except OSError as error:
            raise BrokenImage(self.name(index), error.strerror or "cannot be read") from error


class ArrayRows(Rows):
    """Images that lie in one array.

    Args:
        images: uint8 [n, h, w, 3].
        labels: int64 [n].
    """

    def __init__(self, images: Pixels, labels: npt.ArrayLike) -> None:
        super().__init__(labels)
        self.images = images

    def pil(self, index: int, at_least: int | None = None) -> Image.Image:
        """One RGB image."""
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        """The row number."""
        return f"image {index}"

    def digest(self, indices: Sequence[int] | Labels) -> bytes:
        """A hash of the pixels."""
        return hashlib.sha256(self.images[np.asarray(indices, dtype=np.int64)].tobytes()).digest()


class PartRows(Rows):
    """Some rows of other rows, in the order given."""

    def __init__(self, rows: Rows, indices: npt.ArrayLike) -> None:
        self.rows = rows
        self.indices: Labels = np.asarray(indices, dtype=np.int64)
        super().__init__(rows.labels[self.indices])
        self.pixels = rows.pixels
        self.parallel = rows.parallel

    def pil(self, index: int, at_least: int | None = None) -> Image.Image:
        """One RGB image."""
        return self.rows.pil(int(self.indices[index]), at_least)

    def name(self, index: int) -> str:
        """The name in the whole."""
        return self.rows.name(int(self.indices[index]))

    def digest(self, indices: Sequence[int] | Labels) -> bytes:
        """The digest of these rows in the whole."""
        return self.rows.digest(self.indices[np.asarray(indices, dtype=np.int64)])

    def tensor(self, index: int) -> torch.Tensor:
        """One float image."""
        return self.rows.tensor(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        return self.rows.size(int(self.indices[index]))

    def intact(self, index: int) -> bool:
        """The cheap look in the whole."""
        return self.rows.intact(int(self.indices[index]))


@dataclass
class Source:
    """A data set, opened: nothing is decoded yet.

    Attributes:
        name: "cifar10", the folder's name, "digits".
        classes: Class names, in label order.
        ids: A second name per class (folder names), where there is one.
        splits: Rows under "train", "val" (only when the data set brings its own) and "test".
        flips: Whether a mirrored image still shows its class (not so for digits).
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...] | None
    splits: dict[str, Rows]
    flips: bool = True

    @property
    def pixels(self) -> Literal["uint8", "float"]:
        """ "float" when the images come as normalised tensors."""
        return self.splits["train"].pixels

    @cached_property
    def native_size(self) -> int | None:
        """The side in pixels when all images (32 are looked at per split) are square and equal, else None."""
        sizes: set[tuple[int, int]] = set()
        for rows in self.splits.values():
            for index in np.unique(np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int)):
                try:
                    sizes.add(rows.size(int(index)))
                except BrokenImage:
                    continue
        if len(sizes) != 1:
            return None
        height, width = sizes.pop()
        return height if height == width else None
