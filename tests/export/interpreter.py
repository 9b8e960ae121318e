"""A graph run by PyTorch's functions, operator by operator, in double precision if asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from billhook.formats.graph import Graph, Operator


def interpret(graph: Graph, tensors: Mapping[str, NDArray[Any]], x: Tensor) -> Tensor:
    """What a graph makes of a batch, in the precision of the batch."""
    values = {graph.input: x}
    for operator in graph.operators:
        own = {role: torch.from_numpy(np.array(tensors[name])) for role, name in operator.tensors.items()}
        own = {role: value if role == "index" else value.to(x.dtype) for role, value in own.items()}
        values[operator.output] = apply(operator, [values[name] for name in operator.inputs], own)
    return values[graph.output]


def apply(operator: Operator, inputs: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    """One operator."""
    x, say = inputs[0], operator.settings
    match operator.kind:
        case "conv":
            top, left, bottom, right = say["padding"]
            x = F.pad(x, (left, right, top, bottom))
            bias = tensors.get("bias")
            return F.conv2d(x, tensors["weight"], bias, say["stride"], 0, say["dilation"], say["groups"])
        case "linear":
            return F.linear(x, tensors["weight"], tensors.get("bias"))
        case "add":
            assert inputs[0].shape == inputs[1].shape
            return inputs[0] + inputs[1]
        case "multiply":
            return inputs[0] * inputs[1]
        case "scale":
            shape = (1, -1, 1, 1)[: x.ndim]
            return x * tensors["weight"].view(shape) + tensors["bias"].view(shape)
        case "maxpool":
            return _pool(x, say, float("-inf"), F.max_pool2d)
        case "avgpool":
            if say["count_padding"]:
                return _pool(x, say, 0.0, F.avg_pool2d)
            total = _pool(x, say, 0.0, lambda *given, **more: F.avg_pool2d(*given, **more, divisor_override=1))
            ones = torch.ones_like(x)
            return total / _pool(
                ones, say, 0.0, lambda *given, **more: F.avg_pool2d(*given, **more, divisor_override=1)
            )
        case "globalavgpool":
            return x.mean((2, 3), keepdim=True)
        case "concat":
            return torch.cat(inputs, 1)
        case "gather":
            if x.ndim == 4:
                x = x[:, :, :: say["stride"][0], :: say["stride"][1]]
            zero = torch.zeros_like(x[:, :1])
            index = tensors["index"].long()
            return torch.cat([x, zero], 1)[:, torch.where(index < 0, x.shape[1], index)]
        case "flatten":
            return x.flatten(1)
        case "softmax":
            return x.softmax(1)
    return {"relu": F.relu, "relu6": F.relu6, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid,
            "hardswish": F.hardswish, "silu": F.silu}[operator.kind](x)  # fmt: skip


def _pool(x: Tensor, say: Mapping[str, Any], fill: float, pool: Any) -> Tensor:
    top, left, bottom, right = say["padding"]
    if (top, left) == (bottom, right) and say["ceil"]:
        assert top == left == 0, "a pooling that rounds up has no padding in these tests"
        return pool(x, say["kernel"], say["stride"], 0, ceil_mode=True)
    assert not say["ceil"]
    return pool(F.pad(x, (left, right, top, bottom), value=fill), say["kernel"], say["stride"])
