"""PyTorch map-style datasets as a source."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from billhook.data.decode import BrokenImage, to_rgb
from billhook.data.source import Labels, Rows, Source
from billhook.errors import InputError, UsageError

CHANNELS = (1, 3, 4)


class DatasetRows(Rows):
    """Rows of a dataset that yields (image, label). It is read anew every time, so its own transforms stay alive.

    Args:
        dataset: Anything with ``len`` and integer indexing.
        split: "train", "val" or "test", for messages.
    """

    parallel = False  # a user's dataset need not be thread-safe

    def __init__(self, dataset: Any, split: str) -> None:
        self.dataset = dataset
        self.split = split
        image, _ = _pair(dataset, 0, split)
        self.pixels = _kind(image, split)
        super().__init__(_labels(dataset, split))

    def pil(self, index: int, at_least: int | None = None) -> Image.Image:
        """One RGB image."""
        try:
            image, _ = _pair(self.dataset, index, self.split)
            if isinstance(image, Image.Image):
                return to_rgb(image)
        except (OSError, SyntaxError) as error:
            raise BrokenImage(self.name(index), str(error)) from error
        return Image.fromarray(hwc(image))

    def tensor(self, index: int) -> torch.Tensor:
        """One float image [c, h, w], untouched."""
        try:
            image, _ = _pair(self.dataset, index, self.split)
        except OSError as error:
            raise BrokenImage(self.name(index), str(error)) from error
        return torch.as_tensor(image, dtype=torch.float32)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        if self.pixels == "float":
            shape = self.tensor(index).shape
            return int(shape[-2]), int(shape[-1])
        return super().size(index)

    def name(self, index: int) -> str:
        """The split and the index."""
        return f"{self.split} dataset, item {index}"

    def digest(self, indices: Sequence[int] | Labels) -> bytes:
        """A hash of the kind, the indices and the raw content where the dataset shows it.

        Not of the items: a dataset with random transforms gives other ones each time.
        """
        total = hashlib.sha256(type(self.dataset).__name__.encode())
        total.update(np.asarray(indices, dtype=np.int64).tobytes())
        total.update(_content(self.dataset))
        return total.digest()


def open_datasets(datasets: Sequence[Any]) -> Source:
    """Open a pair (train, test) or triple (train, val, test) of datasets.

    Class names come from ``.classes`` where present, else they are "0", "1", ...

    Raises:
        UsageError: Not two or three datasets.
        InputError: A dataset is empty, or its items are not (image, label) in a known form.
    """
    if len(datasets) not in (2, 3):
        raise UsageError(f"{len(datasets)} datasets given", "give (train, test) or (train, val, test)")
    keys = ("train", "test") if len(datasets) == 2 else ("train", "val", "test")
    splits: dict[str, Rows] = {}
    for key, dataset in zip(keys, datasets, strict=True):
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UsageError(
                f"the {key} dataset ({type(dataset).__name__}) is not map-style", "it needs __len__ and __getitem__"
            )
        if len(dataset) == 0:
            raise InputError(f"the {key} dataset is empty", "give a dataset with images")
        splits[key] = DatasetRows(dataset, key)
    if len({rows.pixels for rows in splits.values()}) > 1:
        raise InputError("some datasets yield float tensors and others do not", "give all splits the same transform")
    base = _base(datasets[0])
    names = getattr(datasets[0], "classes", None) or getattr(base, "classes", None)
    highest = max(int(rows.labels.max()) for rows in splits.values())
    lowest = min(int(rows.labels.min()) for rows in splits.values())
    classes = tuple(str(name) for name in names) if names else tuple(str(index) for index in range(highest + 1))
    if lowest < 0 or highest >= len(classes):
        raise InputError(
            f"labels run from {lowest} to {highest}, but there are {len(classes)} classes",
            "labels are class numbers from 0; correct them or .classes",
        )
    return Source(type(base).__name__.lower(), classes, None, splits)


def hwc(image: Any) -> npt.NDArray[np.uint8]:
    """uint8 [h, w, 3] of a uint8 array or tensor: [h, w], CHW or HWC, one, three or four channels.

    Where both readings are possible a tensor is read as CHW and an array as HWC.
    """
    tensor = isinstance(image, torch.Tensor)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    else:
        first, last = pixels.shape[0] in CHANNELS, pixels.shape[-1] in CHANNELS
        if first and (tensor or not last):
            pixels = pixels.transpose(1, 2, 0)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    return np.ascontiguousarray(pixels)


def _kind(image: Any, split: str) -> Literal["uint8", "float"]:
    if isinstance(image, Image.Image):
        return "uint8"
    if isinstance(image, torch.Tensor | np.ndarray):
        floating = image.is_floating_point() if isinstance(image, torch.Tensor) else image.dtype.kind == "f"
        shape = tuple(image.shape)
        if floating and len(shape) == 3:
            return "float"
        eight_bit = image.dtype in (torch.uint8, np.dtype(np.uint8))
        if eight_bit and (len(shape) == 2 or (len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS))):
            return "uint8"
        found = f"{str(image.dtype).removeprefix('torch.')} {list(shape)}"
    else:
        found = type(image).__name__
    raise InputError(
        f"the {split} dataset yields images of an unknown form: {found}",
        "yield PIL images, uint8 CHW or HWC, or normalised float CHW tensors",
    )


def _pair(dataset: Any, index: int, split: str) -> tuple[Any, Any]:
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise InputError(f"item {index} of the {split} dataset is not (image, label)", "yield a tuple of both")
    return item[0], item[1]


def _base(dataset: Any) -> Any:
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return dataset


def _labels(dataset: Any, split: str) -> Labels:
    """All labels; from ``.targets`` and the like where they agree with what the dataset yields, else item by item."""
    shown = _shown_labels(dataset)
    try:
        if shown is not None and len(shown) == len(dataset):
            probes = {0, len(shown) // 2, len(shown) - 1}
            if all(int(_pair(dataset, probe, split)[1]) == shown[probe] for probe in probes):
                return shown
        return np.array([int(_pair(dataset, index, split)[1]) for index in range(len(dataset))], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the {split} dataset yields labels that are not integers", "yield class numbers") from error


def _shown_labels(dataset: Any) -> Labels | None:
    if isinstance(dataset, torch.utils.data.Subset):
        whole = _shown_labels(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    shown = getattr(dataset, "targets", None)
    if shown is None and isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) == 2:
        shown = dataset.tensors[1]
    try:
        labels: Labels | None = None if shown is None else np.asarray(shown, dtype=np.int64)
    except (TypeError, ValueError):
        return None
    return labels if labels is not None and labels.ndim == 1 else None


def _content(dataset: Any) -> bytes:
    if isinstance(dataset, torch.utils.data.Subset):
        return np.asarray(dataset.indices, dtype=np.int64).tobytes() + _content(dataset.dataset)
    content = getattr(dataset, "data", None)
    if isinstance(dataset, torch.utils.data.TensorDataset):
        content = dataset.tensors[0]
    if isinstance(content, torch.Tensor | np.ndarray):
        return str(zlib.crc32(np.ascontiguousarray(content).data)).encode()
    return b""
