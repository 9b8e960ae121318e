"""An image file as a network's input: Pillow alone, the same pixels as in training's evaluation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from billhook.errors import InputError, UsageError
from billhook.formats.graph import Preprocess

if TYPE_CHECKING:
    from PIL import Image


def pixels(image: Any, preprocess: Preprocess, channels: int) -> NDArray[np.uint8]:
    """The part of an image that a network looks at.

    Args:
        image: A path, the bytes of an image file, a Pillow image, or uint8 [H, W, 3], [H, W, 1] or [H, W].
        preprocess: Sizes.
        channels: 3 or 1 (grey).

    Returns:
        uint8 [size, size, channels].

    Raises:
        UsageError: ``image`` is nothing of that kind, or Pillow is missing.
        InputError: The file is missing or is no readable image.
    """
    if channels not in (1, 3):
        raise UsageError(f"no image file has {channels} channels", "call the network with an array")
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "reading images needs Pillow", "pip install pillow, or call the network with arrays"
        ) from error
    opened = _open(image, Image)
    fitted = _fit(_converted(opened, channels, Image), preprocess.resize, preprocess.size, Image)
    return np.array(fitted, np.uint8).reshape(preprocess.size, preprocess.size, channels)


def _open(image: Any, module: Any) -> Image.Image:
    if isinstance(image, module.Image):
        return image  # type: ignore[no-any-return]
    if isinstance(image, np.ndarray):
        flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if image.dtype != np.uint8 or not (flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] == 3)) or not image.size:
            raise UsageError(f"{image.dtype} {list(image.shape)} is no image", "give uint8 [H, W, 3] or [H, W]")
        return module.fromarray(flat)  # type: ignore[no-any-return]
    if isinstance(image, bytes | bytearray | memoryview):
        import io

        name, source = "the image", io.BytesIO(image)
    elif isinstance(image, str | os.PathLike):
        name, source = str(image), image  # type: ignore[assignment]
        if not os.path.isfile(image):
            raise InputError(f"no image file at {name}", "give the path of a JPEG, PNG, BMP, WebP, GIF or TIFF file")
    else:
        raise UsageError(f"a {type(image).__name__} is no image", "give a path, bytes, a Pillow image or a uint8 array")
    try:
        with module.open(source) as opened:
            opened.load()
            return opened.copy()  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        reason = "not an image" if isinstance(error, module.UnidentifiedImageError) else str(error)
        raise InputError(
            f"cannot read the image {name}: {reason or type(error).__name__}", "replace the file"
        ) from error


def _converted(image: Image.Image, channels: int, module: Any) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow alone would clip 16-bit grey to white.
        image = module.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, resize: int, size: int, module: Any) -> Image.Image:
    """Short side to ``resize`` (bicubic, antialiased), centre cut of ``size`` squared."""
    width, height = image.size
    short = min(width, height)
    if short != resize:
        to = (int(resize * width / short), int(resize * height / short))
        image = image.resize(to, module.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))
