"""PyTorch's own format: an exported program, which runs without the code that made it."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from billhook.errors import InputError


def torch_export_bytes(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[bytes, bool]:
    """A ``.pt2`` file of a network in evaluation mode.

    Args:
        module: Takes images [N, C, H, W]; it is not changed.
        input_shape: C, H and W.

    Returns:
        The file's content, and whether it takes any number of images; else it takes one.

    Raises:
        InputError: The network cannot be traced.
    """
    program, free = exported_program(module, input_shape)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue(), free


def exported_program(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[ExportedProgram, bool]:
    """A network traced for any number of images, or for one where its code settles the number.

    Raises:
        InputError: The network cannot be traced.
    """
    module = copy.deepcopy(module).cpu().eval()
    failure: Exception | None = None
    for batch, dynamic in ((2, {0: Dim("batch")}), (1, None)):
        shapes: Any = None if dynamic is None else (dynamic,)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = torch.zeros(batch, *input_shape)
                return torch.export.export(module, (image,), dynamic_shapes=shapes, strict=False), batch > 1
        except Exception as error:  # whatever a user's forward or the tracer may raise
            failure = error
    said = next((line.strip() for line in str(failure).splitlines() if line.strip()), "")
    raise InputError(
        f"{type(module).__name__} cannot be traced for an image of {input_shape}: {type(failure).__name__}: {said}",
        "its forward may not depend on values of the image",
    ) from failure
