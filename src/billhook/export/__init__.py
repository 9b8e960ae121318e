"""Networks in the formats of others: the operators of a packed file, ONNX, PyTorch's own."""

from billhook.export.lower import Lowered, lower, lower_network

__all__ = ["Lowered", "lower", "lower_network"]
