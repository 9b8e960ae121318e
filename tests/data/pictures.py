"""Pictures to test with."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    """A smooth random picture, so that JPEG keeps it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
