"""From encoded bytes to RGB pixels: decoding, the exact evaluation geometry, and what to do with broken images."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from billhook.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
SHOWN = 3
BROKEN_LIMIT = 0.01


class BrokenImageWarning(UserWarning):
    """Some images cannot be read; they are named, counted and left out."""


class BrokenImage(Exception):
    """One image that cannot be read.

    Args:
        name: What a user can find the image by.
        reason: Why it cannot be read.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} ({reason})")
        self.name = name
        self.reason = reason


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image; 16-bit grey keeps its high byte (Pillow alone would clip it to white)."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode(encoded: Path | bytes | memoryview, name: str, at_least: int | None = None) -> Image.Image:
    """Decode one image to RGB.

    Args:
        encoded: A file, or the bytes of one.
        name: What to call the image when it is broken.
        at_least: A short side in pixels that is enough: a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        BrokenImage: The image is missing, truncated, or no image.
    """
    try:
        with Image.open(encoded if isinstance(encoded, Path) else io.BytesIO(encoded)) as image:
            if at_least is not None and min(image.size) > at_least:
                scale = at_least / min(image.size)
                image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise BrokenImage(name, _reason(error)) from error


def header_size(encoded: Path | bytes | memoryview, name: str) -> tuple[int, int]:
    """(height, width) from the header alone.

    Raises:
        BrokenImage: The header cannot be read.
    """
    try:
        with Image.open(encoded if isinstance(encoded, Path) else io.BytesIO(encoded)) as image:
            return image.height, image.width
    except Exception as error:
        raise BrokenImage(name, _reason(error)) from error


def looks_intact(head: bytes, tail: bytes, size: int) -> bool:
    """Whether the first 12 and last 64 bytes of an encoded image of ``size`` bytes show that it is whole.

    False is a suspicion, not a verdict: decode the image to know.
    """
    if head[:3] == b"\xff\xd8\xff":
        return b"\xff\xd9" in tail
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" in tail
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return size >= int.from_bytes(head[4:8], "little") + 8
    return False


def read_image(path: str | Path) -> Image.Image:
    """Read one image file as RGB.

    Raises:
        InputError: The file is missing or is no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no image file at {path}", "give the path of a JPEG, PNG, BMP, WebP, GIF or TIFF file")
    try:
        return decode(path, str(path))
    except BrokenImage as error:
        raise InputError(f"cannot read the image {path}: {error.reason}", "replace the file") from error


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Scale the short side down to ``short_side`` pixels, keeping the aspect ratio; smaller images stay."""
    return _resize_short(image, short_side) if min(image.size) > short_side else image


def fit(image: Image.Image, resize: int, size: int) -> Image.Image:
    """The evaluation geometry: short side to ``resize`` (bicubic, antialiased), centre crop of ``size`` squared.

    Equal to torchvision's ``Resize(resize, BICUBIC)`` + ``CenterCrop(size)`` on PIL images.
    """
    image = _resize_short(image, resize)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def report_broken(broken: Sequence[BrokenImage], needed: int) -> None:
    """Warn about broken images, or refuse when there are too many.

    Raises:
        InputError: More than 1 % of the ``needed`` images are broken.
    """
    if not broken:
        return
    shown = ", ".join(str(item) for item in broken[:SHOWN]) + (", ..." if len(broken) > SHOWN else "")
    message = f"{len(broken)} of {needed} images cannot be read: {shown}"
    if len(broken) > BROKEN_LIMIT * needed:
        raise InputError(message, "repair or remove them; up to 1 % is skipped with a warning")
    warnings.warn(f"{message}; skipped", BrokenImageWarning, stacklevel=3)


def _resize_short(image: Image.Image, short_side: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    if short == short_side:
        return image
    size = (int(short_side * width / short), int(short_side * height / short))
    return image.resize(size, Image.Resampling.BICUBIC)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
