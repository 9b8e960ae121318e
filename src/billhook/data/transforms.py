"""Vectorised transforms on uint8 batches. Images are stored as [b, h, w, 3], so that a crop copies whole pixel rows and
the float result is channels-last without another copy. All randomness comes in as uniform numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

ATTEMPTS = 10
COLUMNS = 3 + 2 * ATTEMPTS
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


def draw(count: int, seed: int) -> Tensor:
    """Uniform numbers for ``count`` images, float64 [count, 23]: flip, two positions, ten (area, ratio) attempts."""
    return torch.rand(count, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flips(draws: Tensor) -> Tensor:
    """Which images to mirror, bool [b]."""
    return draws[:, 0] < 0.5


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: [b, h, w, c], written to.
        chosen: bool [b].
    """
    rows = chosen.nonzero().squeeze(1)
    images[rows] = images[rows].flip(2)
    return images


def pad_crop(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad with zeros on all sides and cut the original size out again, at a random place.

    Args:
        images: uint8 [b, h, w, c].
        draws: Of :func:`draw`.
        padding: Pixels on each side.

    Returns:
        uint8 [b, h, w, c], contiguous.
    """
    count, height, width, _ = images.shape
    if padding == 0:
        return images.clone()
    places = (draws[:, 1:3] * (2 * padding + 1)).long()
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    # every window of every image as a view, [b, 2p+1, 2p+1, c, h, w]: picking one copies, nothing else does
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(count), places[:, 0], places[:, 1]].contiguous()


def crop_boxes(sizes: Tensor, draws: Tensor) -> Tensor:
    """Boxes of random area (8 to 100 %) and aspect ratio (3/4 to 4/3, log-uniform), as torchvision draws them.

    The first of ten attempts that fits is taken, else the largest centred box within the ratios.

    Args:
        sizes: int64 [b, 2], height and width of each image.
        draws: Of :func:`draw`.

    Returns:
        int64 [b, 4]: top, left, height, width.
    """
    full = sizes.double()
    attempts = draws[:, 3:].reshape(-1, ATTEMPTS, 2)
    area = full.prod(1, keepdim=True) * (AREA[0] + attempts[..., 0] * (AREA[1] - AREA[0]))
    low, high = torch.tensor(RATIO, dtype=torch.float64).log()
    ratio = (low + attempts[..., 1] * (high - low)).exp()
    boxes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=2)
    fits = ((boxes > 0) & (boxes <= full[:, None])).all(2)
    first = fits.to(torch.uint8).argmax(1)
    extent = boxes[torch.arange(len(boxes)), first]
    place = (draws[:, 1:3] * (full - extent + 1)).floor()
    height, width = full.unbind(1)
    largest = torch.stack(
        [torch.minimum(height, (width / RATIO[0]).round()), torch.minimum(width, (height * RATIO[1]).round())], 1
    )
    none = ~fits.any(1, keepdim=True)
    extent = torch.where(none, largest, extent)
    place = torch.where(none, ((full - largest) / 2).floor(), place)
    return torch.cat([place, extent], dim=1).long()


def resized_crop(images: Tensor, boxes: Tensor, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and scale it to ``size`` squared, bilinear; the box alone is seen, as after a crop.

    Args:
        images: uint8 [b, h, w, 3]; smaller images may sit in the top left corner.
        boxes: int64 [b, 4]: top, left, height, width.
        size: Output side in pixels.
        mirrored: bool [b], images to mirror.

    Returns:
        float32 [b, 3, size, size], values 0..255.
    """
    height, width = images.shape[1:3]
    top, left, tall, wide = boxes.float()[:, :, None].unbind(1)
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    across = centres.expand(len(boxes), size)
    if mirrored is not None:
        across = torch.where(mirrored[:, None], across.flip(1), across)
    x = left + torch.minimum((across * wide - 0.5).clamp(min=0), wide - 1)
    y = top + torch.minimum((centres * tall - 0.5).clamp(min=0), tall - 1)
    x, y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1  # pixel centres in grid_sample's -1..1
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std.

    Args:
        images: uint8 [b, h, w, 3].
        mean: Per channel, in units of the 0..1 range.
        std: Likewise.

    Returns:
        float32 [b, 3, h, w], channels-last in memory.
    """
    count, height, width, channels = images.shape
    scale, shift = _affine(mean, std)
    # whole pixel rows as the inner dimension: broadcasting over three channels would run loops of length three
    out = images.reshape(count * height, width * channels).to(torch.float32)
    out.mul_(scale.repeat(width)).add_(shift.repeat(width))
    return out.view(count, height, width, channels).permute(0, 3, 1, 2)


def normalise_planes(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """As :func:`normalise`, in place, for float32 [b, 3, h, w] with values 0..255."""
    scale, shift = _affine(mean, std)
    return images.mul_(scale[:, None, None]).add_(shift[:, None, None])


def _affine(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = 1 / (255 * deviation)
    return scale.float(), (-torch.tensor(mean, dtype=torch.float64) / deviation).float()
