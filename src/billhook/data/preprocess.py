"""How an image becomes a network input; the same for training, evaluation and ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from billhook.data import transforms
from billhook.data.decode import fit, to_rgb
from billhook.data.source import SMALL, Source
from billhook.errors import InputError, UsageError

LARGE = 224
LARGEST = 4096


@dataclass(frozen=True)
class Preprocess:
    """Sizes, normalisation and augmentation.

    Attributes:
        input_size: Side of the network's input in pixels.
        mean: Three values, of the 0..1 range.
        std: Likewise.
        resize: Short side at evaluation before the centre crop; equal to ``input_size``: nothing but the excess of the
            long side is cut off.
        augment: "crop" pads by ``padding`` and crops; "resized-crop" takes a random area and ratio; "none".
        flip: Mirror half of the training images.
        padding: Pixels on each side, for "crop".

    Raises:
        UsageError: A value out of range.
    """

    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int
    augment: Literal["none", "crop", "resized-crop"] = "none"
    flip: bool = False
    padding: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if self.input_size < 1:
            raise UsageError(f"input size {self.input_size} is not positive", "give the side in pixels")
        if self.input_size > LARGEST or self.resize > 2 * LARGEST or self.padding > self.input_size:
            raise UsageError(
                f"input size {self.input_size}, resize {self.resize} or padding {self.padding} is too large",
                f"they are at most {LARGEST}, {2 * LARGEST} and the input size",
            )
        if self.resize < self.input_size:
            raise UsageError(f"resize {self.resize} is below the input size {self.input_size}", "make it at least that")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise UsageError("mean and std need three values each, std above 0", "give them as r,g,b of the 0..1 range")
        if self.augment not in ("none", "crop", "resized-crop"):
            raise UsageError(f"unknown augmentation '{self.augment}'", "choose none, crop or resized-crop")
        if self.padding < 0:
            raise UsageError(f"padding {self.padding} is negative", "give 0 or more pixels")

    @classmethod
    def for_source(
        cls, source: Source, input_size: int | None, mean: Sequence[float], std: Sequence[float]
    ) -> Preprocess:
        """Defaults for a source.

        Images of one size up to 64 px keep it and are padded and cropped; others are scaled to 224 px, with random
        resized crops and the usual 256 : 224 margin at evaluation. Float tensors pass through untouched.

        Raises:
            InputError: Float tensors that are not square, of several sizes, or not of the size asked for.
        """
        native = source.native_size
        if source.pixels == "float":
            if native is None or input_size not in (None, native):
                raise InputError(
                    f"the tensors of {source.name} are "
                    + (f"{native} px" if native else "not square or not of one size"),
                    "resize them in the dataset, or yield uint8 images",
                )
            return cls(native, tuple(mean), tuple(std), native)
        if native is not None and native <= SMALL and input_size in (None, native):
            padding = max(1, native // 8)
            return cls(native, tuple(mean), tuple(std), native, "crop", source.flips, padding)
        size = LARGE if input_size is None else input_size
        return cls(size, tuple(mean), tuple(std), round(size * 256 / 224), "resized-crop", source.flips)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of :meth:`as_dict`.

        Raises:
            UsageError: A key is unknown or missing.
        """
        known = {field.name for field in fields(cls)}
        wrong = sorted(set(values) - known)
        missing = sorted({"input_size", "mean", "std", "resize"} - set(values))
        if wrong or missing:
            raise UsageError(
                "preprocessing has " + (f"an unknown key '{wrong[0]}'" if wrong else f"no '{missing[0]}'"),
                f"its keys are {', '.join(field.name for field in fields(cls))}",
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    def evaluate(self, images: Tensor) -> Tensor:
        """Evaluation inputs of equally large images.

        Args:
            images: uint8 [b, 3, h, w].

        Returns:
            float32 [b, 3, S, S], channels-last in memory.
        """
        pixels = images.permute(0, 2, 3, 1)
        if self.resize != self.input_size or tuple(pixels.shape[1:3]) != (self.input_size, self.input_size):
            pixels = torch.from_numpy(np.stack([self._fit(Image.fromarray(image.numpy())) for image in pixels]))
        return transforms.normalise(pixels, self.mean, self.std)

    def one_image(self, image: Image.Image) -> Tensor:
        """The evaluation input of one image, float32 [1, 3, S, S]; exactly what a batch would hold."""
        return transforms.normalise(torch.from_numpy(self._fit(to_rgb(image)).copy())[None], self.mean, self.std)

    def _fit(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.asarray(fit(image, self.resize, self.input_size))
