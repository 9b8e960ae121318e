"""Networks in the formats of others: the operators of a packed file, ONNX, PyTorch's own."""

from billhook.export.lower import Lowered, lower, lower_network
from billhook.export.onnx import onnx_bytes
from billhook.export.packed import carried_over, export_packed
from billhook.export.torch_export import torch_export_bytes

__all__ = [
    "Lowered",
    "carried_over",
    "export_packed",
    "lower",
    "lower_network",
    "onnx_bytes",
    "torch_export_bytes",
]
