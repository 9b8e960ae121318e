"""ONNX, through PyTorch's exporter that stands on ``torch.export``. Weights are written dense, zeros and all."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from billhook.errors import InputError, UsageError
from billhook.export.torch_export import exported_program

NEEDS = ("onnx", "onnxscript")


def onnx_bytes(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[bytes, bool]:
    """An ONNX file of a network in evaluation mode; its input is called ``image``, its output ``logits``.

    Args:
        module: Takes images [N, C, H, W]; it is not changed.
        input_shape: C, H and W.

    Returns:
        The file's content, and whether it takes any number of images; else it takes one.

    Raises:
        UsageError: The packages that write ONNX are not installed.
        InputError: The network cannot be traced, or calls something that ONNX has no operator for.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{missing[0]} is not installed", "pip install 'billhook[onnx]'")
    program, free = exported_program(module, input_shape)
    # The exporter reports its steps on standard output, and complains on standard error before it fails.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        try:
            written = torch.onnx.export(
                program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
            )
        except Exception as error:  # the exporter's own, by way of several libraries
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise InputError(f"the network cannot be written as ONNX: {said}", "--to packed or torch-export") from error
    assert written is not None
    return _tidied(written.model_proto).SerializeToString(), free


def _tidied(model: Any) -> Any:
    """Without the traces that point into the code of this machine; the free dimension under the name ``batch``."""
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    free = {d.dim_param for value in graph.input for d in value.type.tensor_type.shape.dim if d.dim_param}
    for value in (*graph.value_info, *graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in free:
                dimension.dim_param = "batch"
    return model


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
