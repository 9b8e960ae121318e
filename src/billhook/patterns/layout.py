"""The matrix view of a weight: ``[O, taps, I]``, input channel fastest."""

from __future__ import annotations

from torch import Tensor


def to_matrix(weight: Tensor) -> Tensor:
    """View a convolution ``[O, I, kh, kw]`` or linear ``[O, I]`` weight as ``[O, kh*kw, I]``.

    A convolution in channels-last memory format is viewed without a copy.

    Raises:
        ValueError: The weight is neither of the two.
    """
    if weight.dim() == 2:
        return weight.unsqueeze(1)
    if weight.dim() == 4:
        outputs, inputs, height, width = weight.shape
        return weight.permute(0, 2, 3, 1).reshape(outputs, height * width, inputs)
    raise ValueError(f"a weight of {weight.dim()} dimensions has no matrix view (convolution: 4, linear: 2)")


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`to_matrix`: ``[O, kh*kw, I]`` back to ``shape``."""
    if len(shape) == 2:
        return matrix.reshape(shape)
    outputs, inputs, height, width = shape
    return matrix.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)
