"""ATen's poolings as operators of a packed file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from billhook.export.trace import refusal
from billhook.export.values import NO_PADDING, Operand, View

if TYPE_CHECKING:
    from billhook.export.lower import Lowering

_POSITIVE = {"relu", "relu6", "sigmoid", "hardsigmoid"}
_KEEPS_SIGN = {"maxpool", "avgpool", "globalavgpool", "concat", "gather"}


def averaged(low: Lowering, node: fx.Node, view: View) -> View:
    """The mean over all pixels of each channel."""
    name = low.builder.place(view, "map")
    return low.emit("globalavgpool", node, (name,), (low.builder.numbering.shapes[name][0], 1, 1))


def _adaptive_average(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    view = _checked(node, given["self"])
    (channels, *sides), size = view.shape[1:], [int(side) for side in given["output_size"]]
    if size == [1, 1]:
        return averaged(low, node, view)
    if size == sides:
        return view
    if all(side % wanted == 0 for side, wanted in zip(sides, size, strict=True)):
        kernel = [side // wanted for side, wanted in zip(sides, size, strict=True)]
        settings = _settings(kernel, kernel, NO_PADDING, False) | {"count_padding": False}
        return low.emit("avgpool", node, (low.builder.place(view, "map"),), (channels, *size), settings=settings)
    # Windows of unequal sizes: one depthwise convolution over the whole map makes all outputs of a channel. They come
    # out as channels, which is as good as a map to the flatten that is all that ever follows.
    rows, columns = (_windows(side, wanted) for side, wanted in zip(sides, size, strict=True))
    weight = torch.einsum("ih,jw->ijhw", rows, columns).reshape(-1, 1, *sides).repeat(channels, 1, 1, 1)
    one = {"stride": [1, 1], "padding": list(NO_PADDING), "dilation": [1, 1], "groups": channels}
    name = low.builder.place(view, "map")
    made = low.builder.emit("conv", node, (name,), (len(weight), 1, 1), one, {"weight": Operand(weight)})
    return View(node, (1, channels, *size), None, low.builder.numbering.positions(made).view(1, channels, *size))


def _windows(side: int, size: int) -> Tensor:
    """``[size, side]``: what each output is the mean of, as PyTorch's adaptive pooling divides a side."""
    matrix = torch.zeros(size, side, dtype=torch.float64)
    for number in range(size):
        start, end = number * side // size, -(-(number + 1) * side // size)
        matrix[number, start:end] = 1 / (end - start)
    return matrix


def _adaptive_maximum(low: Lowering, node: fx.Node, given: dict[str, Any]) -> tuple[View, None]:
    view = _checked(node, given["self"])
    sides, size = view.shape[2:], [int(side) for side in given["output_size"]]
    if any(side % wanted for side, wanted in zip(sides, size, strict=True)):
        raise refusal(node, f"a pooling of {list(sides)} pixels to {size} has windows of unequal sizes")
    kernel = [side // wanted for side, wanted in zip(sides, size, strict=True)]
    name = low.builder.place(view, "map")
    settings = _settings(kernel, kernel, NO_PADDING, False)
    made = low.builder.emit("maxpool", node, (name,), (view.shape[1], *size), settings)
    return View(node, (1, view.shape[1], *size), made), None


def _maximum(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    view = _checked(node, given["self"])
    kernel, stride, padding = _window(given)
    if _pair(given.get("dilation", 1)) != [1, 1]:
        raise refusal(node, "poolings with gaps are no operators of a packed file")
    output, ceil = _output(view, kernel, stride, padding, bool(given.get("ceil_mode")))
    name, around, lowest = low.builder.place_padded(view)
    total = [own + more for own, more in zip(padding, around, strict=True)]
    # Zeros around a map do not win either where nothing is below zero and every window has a pixel of the map.
    harmless = lowest or _nonnegative(low, name)
    if any(around) and (ceil or not harmless or not _below(total, kernel)):
        name, total = low.builder.place(view, "map"), list(padding)
    made = low.builder.emit("maxpool", node, (name,), (view.shape[1], *output), _settings(kernel, stride, total, ceil))
    return View(node, (1, view.shape[1], *output), made)


def _maximum_of_two(low: Lowering, node: fx.Node, given: dict[str, Any]) -> tuple[View, None]:
    return _maximum(low, node, given), None


def _average(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    view = _checked(node, given["self"])
    kernel, stride, padding = _window(given)
    if given.get("divisor_override"):
        raise refusal(node, "a divisor of its own is no operator of a packed file")
    if kernel == list(view.shape[2:]) and not any(padding):
        return averaged(low, node, view)
    counted = bool(given.get("count_include_pad", True))
    output, ceil = _output(view, kernel, stride, padding, bool(given.get("ceil_mode")))
    name, around, lowest = low.builder.place_padded(view)
    total = [own + more for own, more in zip(padding, around, strict=True)]
    if any(around) and not lowest and not ceil and (counted or not any(padding)) and _below(total, kernel):
        padding, counted = tuple(total), True  # zeros that were put around the map count in the mean
    else:
        name = low.builder.place(view, "map")
    settings = _settings(kernel, stride, padding, ceil) | {"count_padding": counted}
    return low.emit("avgpool", node, (name,), (view.shape[1], *output), settings=settings)


def _window(given: dict[str, Any]) -> tuple[list[int], list[int], tuple[int, ...]]:
    kernel = _pair(given["kernel_size"])
    padding = _pair(given.get("padding", 0))
    return kernel, _pair(given.get("stride") or kernel), (*padding, *padding)


def _output(
    view: View, kernel: list[int], stride: list[int], padding: tuple[int, ...], ceil: bool
) -> tuple[list[int], bool]:
    """Height and width that come out, and whether rounding up made a difference to them."""
    down, up = [], []
    for size, window, step, before in zip(view.shape[2:], kernel, stride, padding[:2], strict=True):
        room = size + 2 * before - window
        down.append(room // step + 1)
        last = -(-room // step)
        up.append(last + 1 if last * step < size + before else last)
    return (up, up != down) if ceil else (down, False)


def _below(padding: list[int], kernel: list[int]) -> bool:
    """Whether every window has a pixel of the map."""
    return all(rows < side for rows, side in zip(padding, kernel * 2, strict=True))


def _settings(kernel: list[int], stride: list[int], padding: Any, ceil: bool) -> dict[str, Any]:
    return {"stride": list(stride), "padding": list(padding), "kernel": list(kernel), "ceil": ceil}


def _pair(value: Any) -> list[int]:
    numbers = [value] * 2 if isinstance(value, int) else list(value)
    return [int(numbers[0]), int(numbers[-1])]


def _checked(node: fx.Node, view: View) -> View:
    if len(view.shape) != 4:
        raise refusal(node, f"a pooling reads maps, not a tensor of shape {list(view.shape)}")
    return view


def _nonnegative(low: Lowering, name: str) -> bool:
    makers = {operator.output: operator for operator in low.builder.operators}
    pending = [name]
    while pending:
        maker = makers.get(pending.pop())
        if maker is None or maker.kind not in _POSITIVE | _KEEPS_SIGN:
            return False
        if maker.kind in _KEEPS_SIGN:
            pending += maker.inputs
    return True


POOLING: dict[str, Callable[[Lowering, fx.Node, dict[str, Any]], Any]] = {
    "adaptive_avg_pool2d": _adaptive_average,
    "_adaptive_avg_pool2d": _adaptive_average,
    "adaptive_max_pool2d": _adaptive_maximum,
    "max_pool2d": _maximum,
    "max_pool2d_with_indices": _maximum_of_two,
    "avg_pool2d": _average,
}
"""By the names of ATen."""
