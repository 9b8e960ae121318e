"""A packed network run by plain numpy: the oracle of the kernels, and what works where nothing was compiled.

Values are float32 [N, C, H, W] or [N, F]; sums are made in float32. The rules are those of PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.errors import UsageError
from billhook.formats import Operator, PackedNetwork, window_count

Floats = NDArray[np.float32]
_Rule = Callable[[Operator, Sequence[Floats], Mapping[str, NDArray[Any]]], Floats]


def run(network: PackedNetwork, x: Floats, weights: Mapping[str, NDArray[Any]] | None = None) -> Floats:
    """The network's outputs for a batch of images.

    A value is let go as soon as nothing needs it any more.

    Args:
        network: As :func:`billhook.formats.read_network` returns it.
        x: float32 [N, C, H, W], normalised; N may be 0.
        weights: Tensors by name, dense (``network.weight``), for those who run more than once. Those that are missing
            are unpacked when their operator runs, and let go after it.

    Returns:
        float32 [N, outputs].

    Raises:
        UsageError: ``x`` has another shape or type.
    """
    graph = network.graph
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != graph.shape:
        found = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
        raise UsageError(f"the network takes float32 [N, {', '.join(map(str, graph.shape))}], this is {found}")
    prepared = weights or {}
    pending = Counter(name for operator in graph.operators for name in operator.inputs)
    values: dict[str, Floats] = {graph.input: x}
    for operator in graph.operators:
        tensors = {
            role: prepared[name] if name in prepared else network.weight(name)
            for role, name in operator.tensors.items()
        }
        values[operator.output] = apply(operator, [values[name] for name in operator.inputs], tensors)
        pending.subtract(operator.inputs)
        for name in set(operator.inputs):
            if not pending[name] and name != graph.output:
                del values[name]
    return values[graph.output]


def apply(operator: Operator, inputs: Sequence[Floats], tensors: Mapping[str, NDArray[Any]]) -> Floats:
    """One operator. Shapes are not checked here: :func:`billhook.formats.shapes` says which are possible.

    Args:
        operator: Of any kind; its names do not matter.
        inputs: float32 [N, C, H, W] or [N, F], as many as its kind takes. Not modified.
        tensors: By role, dense: ``weight``, ``bias``, ``index``.

    Returns:
        float32, with the batch first; may share memory with an input.
    """
    # Infinities and NaN go through as they do in PyTorch, without a warning for each.
    with np.errstate(all="ignore"):
        return _RULES[operator.kind](operator, inputs, tensors)


def _conv(operator: Operator, inputs: Sequence[Floats], tensors: Mapping[str, NDArray[Any]]) -> Floats:
    weight, groups = tensors["weight"], operator.settings["groups"]
    stride, dilation = operator.settings["stride"], operator.settings["dilation"]
    outputs, per_group, *kernel = weight.shape
    height, width = _counts(operator, inputs[0], kernel)
    x = _padded(inputs[0], operator.settings["padding"], 0)
    batch = x.shape[0]
    # One product for each tap: no copy of the image for each of them at once, and contiguous weights.
    taps = np.ascontiguousarray(weight.transpose(2, 3, 0, 1)).reshape(*kernel, groups, outputs // groups, per_group)
    result = np.zeros((batch, groups, outputs // groups, height * width), np.float32)
    for down, along in np.ndindex(*kernel):
        rows = _strided(down * dilation[0], stride[0], height)
        columns = _strided(along * dilation[1], stride[1], width)
        seen = x[:, :, rows, columns].reshape(batch, groups, per_group, height * width)
        # Products of one by one: numpy is faster without BLAS.
        result += taps[down, along] * seen if per_group == 1 else taps[down, along] @ seen
    result = result.reshape(batch, outputs, height, width)
    if "bias" in tensors:
        result += _per_channel(tensors["bias"], result)
    return result


def _linear(_: Operator, inputs: Sequence[Floats], tensors: Mapping[str, NDArray[Any]]) -> Floats:
    result: Floats = inputs[0] @ tensors["weight"].T
    if "bias" in tensors:
        result += tensors["bias"]
    return result


def _scale(_: Operator, inputs: Sequence[Floats], tensors: Mapping[str, NDArray[Any]]) -> Floats:
    result: Floats = inputs[0] * _per_channel(tensors["weight"], inputs[0])
    result += _per_channel(tensors["bias"], result)
    return result


def _maxpool(operator: Operator, inputs: Sequence[Floats], _: Mapping[str, NDArray[Any]]) -> Floats:
    return _pooled(operator, inputs[0], -np.inf, np.maximum)


def _avgpool(operator: Operator, inputs: Sequence[Floats], _: Mapping[str, NDArray[Any]]) -> Floats:
    kernel, stride, padding = (operator.settings[name] for name in ("kernel", "stride", "padding"))
    result = _pooled(operator, inputs[0], 0, np.add)
    counted = operator.settings["count_padding"]
    sizes = []
    for axis in (0, 1):
        size, before, after = inputs[0].shape[2 + axis], padding[axis], padding[2 + axis]
        first = np.arange(result.shape[2 + axis]) * stride[axis] - before
        # What a last window has beyond the padding never counts.
        end = np.minimum(first + kernel[axis], size + after if counted else size)
        sizes.append(end - (first if counted else np.maximum(first, 0)))
    result /= np.outer(*sizes).astype(np.float32)
    return result


def _pooled(operator: Operator, x: Floats, empty: float, join: np.ufunc) -> Floats:
    """All elements of each window joined; ``empty`` stands in the padding."""
    kernel, stride = operator.settings["kernel"], operator.settings["stride"]
    height, width = _counts(operator, x, kernel)
    top, left, *_ = operator.settings["padding"]
    # A last window may reach beyond the padding that is stated, or leave some of it out.
    reach = (height - 1) * stride[0] + kernel[0] - top, (width - 1) * stride[1] + kernel[1] - left
    bottom, right = (max(0, end - side) for end, side in zip(reach, x.shape[2:], strict=True))
    x = _padded(x, (top, left, bottom, right), empty)
    result = np.full((*x.shape[:2], height, width), empty, np.float32)
    for down, along in np.ndindex(*kernel):
        join(result, x[:, :, _strided(down, stride[0], height), _strided(along, stride[1], width)], out=result)
    return result


def _multiply(_: Operator, inputs: Sequence[Floats], __: Mapping[str, NDArray[Any]]) -> Floats:
    return inputs[0] * inputs[1]


def _gather(operator: Operator, inputs: Sequence[Floats], tensors: Mapping[str, NDArray[Any]]) -> Floats:
    index = tensors["index"]
    x = inputs[0]
    if x.ndim == 4:
        x = x[:, :, :: operator.settings["stride"][0], :: operator.settings["stride"][1]]
    result = x[:, index]
    result[:, index < 0] = 0
    return result


def _softmax(_: Operator, inputs: Sequence[Floats], __: Mapping[str, NDArray[Any]]) -> Floats:
    powers = np.exp(inputs[0] - inputs[0].max(1, keepdims=True))
    result: Floats = powers / powers.sum(1, keepdims=True)
    return result


def _sigmoid(x: Floats) -> Floats:
    # The power of a number below zero never overflows.
    small = np.exp(-np.abs(x))
    result: Floats = np.where(x >= 0, np.float32(1), small) / (1 + small)
    return result


def _relu6(x: Floats) -> Floats:
    result: Floats = np.minimum(np.maximum(x, 0), 6)
    return result


def _hardsigmoid(x: Floats) -> Floats:
    result = _relu6(x + np.float32(3))
    result /= 6
    return result


def _each(function: Callable[[Floats], Floats]) -> _Rule:
    return lambda _, inputs, __: function(inputs[0])


_RULES: dict[str, _Rule] = {
    "conv": _conv,
    "linear": _linear,
    "add": lambda _, inputs, __: inputs[0] + inputs[1],
    "multiply": _multiply,
    "scale": _scale,
    "relu": _each(lambda x: np.maximum(x, 0)),
    "relu6": _each(_relu6),
    "sigmoid": _each(_sigmoid),
    "hardsigmoid": _each(_hardsigmoid),
    "hardswish": _each(lambda x: x * _hardsigmoid(x)),
    "silu": _each(lambda x: x * _sigmoid(x)),
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "globalavgpool": _each(lambda x: x.mean((2, 3), keepdims=True)),
    "concat": lambda _, inputs, __: np.concatenate(inputs, 1),
    "gather": _gather,
    "flatten": _each(lambda x: x.reshape(len(x), int(np.prod(x.shape[1:])))),
    "softmax": _softmax,
}


def _counts(operator: Operator, x: Floats, kernel: Sequence[int]) -> tuple[int, int]:
    """Positions of the window down and along."""
    stride, padding = operator.settings["stride"], operator.settings["padding"]
    dilation, ceil = operator.settings.get("dilation", (1, 1)), operator.settings.get("ceil", False)
    down, along = (
        window_count(x.shape[2 + i], kernel[i], stride[i], padding[i], padding[2 + i], dilation[i], ceil)
        for i in (0, 1)
    )
    return down, along


def _padded(x: Floats, padding: Sequence[int], value: float) -> Floats:
    top, left, bottom, right = padding
    if not any(padding):
        return x
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _strided(first: int, step: int, count: int) -> slice:
    return slice(first, first + (count - 1) * step + 1, step)


def _per_channel(numbers: NDArray[Any], x: Floats) -> NDArray[Any]:
    return numbers.reshape(-1, *(1,) * (x.ndim - 2))
