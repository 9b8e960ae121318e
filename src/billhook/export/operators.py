"""ATen functions that compute, each as operators of a packed file."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from billhook.export.movements import is_pointwise
from billhook.export.numbering import ZERO
from billhook.export.pooling import POOLING, averaged
from billhook.export.trace import refusal, shape_of
from billhook.export.values import Form, Operand, View

if TYPE_CHECKING:
    from billhook.export.lower import Lowering

Handler = Callable[["Lowering", fx.Node, dict[str, Any]], Any]
Numbers = Tensor | float


def unary(low: Lowering, node: fx.Node, given: dict[str, Any], kind: str) -> View:
    """An activation: every element on its own."""
    name = low.builder.place(given["self"], "any")
    return low.emit(kind, node, (name,), low.builder.numbering.shapes[name])


def _clamped(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    """``hardtanh``, ``clamp``: a ReLU or ReLU6, by its bounds."""
    bounds = (given.get("min", given.get("min_val")), given.get("max", given.get("max_val")))
    kinds = {(0.0, None): "relu", (0.0, 6.0): "relu6"}
    if any(isinstance(bound, Tensor | View) for bound in bounds) or bounds not in kinds:
        raise refusal(node, f"only the bounds 0 and 6, or 0 alone, are operators of a packed file, not {bounds}")
    return unary(low, node, given, kinds[bounds])


# ---------------------------------------------------------------------- layers
def _conv(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    view, weight = given["input"], _constant(node, given["weight"], "weight")
    if weight.ndim != 4 or len(view.shape) != 4:
        raise refusal(node, "only convolutions of maps are operators of a packed file")
    if given.get("transposed"):
        raise refusal(node, "transposed convolutions are no operators of a packed file")
    stride, dilation = pair(given["stride"]), pair(given["dilation"])
    padding = _conv_padding(given["padding"], (int(weight.shape[2]), int(weight.shape[3])), dilation)
    operands = _operands(low, node, given)
    if is_pointwise(node) and node not in low.points:
        name = low.builder.place(view, "vector")
        operands["weight"] = Operand(weight.flatten(1), operands["weight"].origin)
        return low.emit("linear", node, (name,), (int(weight.shape[0]),), tensors=operands)
    name, around, lowest = low.builder.place_padded(view)
    if lowest:
        name, around = low.builder.place(view, "map"), (0, 0, 0, 0)
    settings = {
        "stride": list(stride),
        "padding": [own + more for own, more in zip(padding, around, strict=True)],
        "dilation": list(dilation),
        "groups": int(given["groups"]),
    }
    return low.emit("conv", node, (name,), _map_of(node), settings=settings, tensors=operands)


def _conv_padding(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    if padding == "same":
        vertical, horizontal = (step * (side - 1) for side, step in zip(kernel, dilation, strict=True))
        return vertical // 2, horizontal // 2, vertical - vertical // 2, horizontal - horizontal // 2
    top, left = (0, 0) if padding == "valid" else pair(padding)
    return top, left, top, left


def _linear(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    view, weight = given["input"], _constant(node, given["weight"], "weight")
    if len(view.shape) != 2:
        raise refusal(node, f"a linear layer reads a vector, not a tensor of shape {list(view.shape)}")
    operands = _operands(low, node, given)
    outputs = int(weight.shape[0])
    if node not in low.points:
        name = low.builder.place(view, "vector")
        return low.emit("linear", node, (name,), (outputs,), tensors=operands)
    whole = low.builder.whole(view)
    maps = whole is not None and len(low.builder.numbering.shapes[whole]) == 3
    name = whole if maps and whole is not None else low.builder.place(view, "map")
    kernel = weight.reshape(outputs, *low.builder.numbering.shapes[name])
    operands["weight"] = Operand(kernel, operands["weight"].origin)
    settings = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
    return low.emit("conv", node, (name,), (outputs, 1, 1), settings=settings, tensors=operands)


def _batch_norm(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    mean, variance = given["running_mean"], given["running_var"]
    if given.get("training") or mean is None or variance is None:
        raise refusal(node, "it normalises by the statistics of the batch", "train it with running statistics")
    weight = 1 / torch.sqrt(_constant(node, variance, "variance").double() + given["eps"])
    if given["weight"] is not None:
        weight = weight * _constant(node, given["weight"], "weight").double()
    shift = -_constant(node, mean, "mean").double() * weight
    if given["bias"] is not None:
        shift = shift + _constant(node, given["bias"], "bias").double()
    return scaled(low, node, given["input"], weight, shift)


def _batch_norm_of_three(low: Lowering, node: fx.Node, given: dict[str, Any]) -> tuple[View | None, ...]:
    return _batch_norm(low, node, given), None, None


def scaled(low: Lowering, node: fx.Node, view: View, weight: Tensor, shift: Tensor) -> View:
    """``view * weight + shift``, both [C] or of one value."""
    name = low.builder.place(view, "any")
    shape = low.builder.numbering.shapes[name]
    tensors = {"weight": Operand(weight.double().expand(shape[0])), "bias": Operand(shift.double().expand(shape[0]))}
    made = low.builder.emit("scale", node, (name,), shape, tensors=tensors)
    return View(node, view.shape, made)


# ---------------------------------------------------------------------- arithmetic
def _add(low: Lowering, node: fx.Node, given: dict[str, Any], sign: float = 1.0) -> View:
    first, second, times = given["self"], given["other"], sign * float(given.get("alpha", 1))
    if not isinstance(first, View):
        weight = torch.tensor([times], dtype=torch.float64)
        return scaled(low, node, second, weight, _per_channel(node, first, second))
    if not isinstance(second, View):
        shift = times * _per_channel(node, second, first)
        return scaled(low, node, first, torch.ones(1), shift)
    # A shortcut whose channels were all removed adds zeros alone.
    if first.shape == second.shape and _is_zero(second):
        return first
    if first.shape == second.shape and times == 1 and _is_zero(first):
        return second
    if times != 1:
        second = scaled(low, node, second, torch.tensor([times], dtype=torch.float64), torch.zeros(1))
    return _of_two(low, node, "add", first, second)


def _is_zero(view: View) -> bool:
    return view.index is not None and bool((view.index == ZERO).all())


def _sub(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    return _add(low, node, given, -1.0)


def _rsub(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    return _add(low, node, {**given, "self": given["other"], "other": given["self"]}, -1.0)


def _mul(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    first, second = given["self"], given["other"]
    if isinstance(first, View) and isinstance(second, View):
        return _of_two(low, node, "multiply", _unexpanded(first), _unexpanded(second))
    view, numbers = (first, second) if isinstance(first, View) else (second, first)
    return scaled(low, node, view, _per_channel(node, numbers, view), torch.zeros(1))


def _div(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    if not isinstance(given["self"], View) or isinstance(given["other"], View) or given.get("rounding_mode"):
        raise refusal(node, "only divisions by what is the same for every image are operators of a packed file")
    return scaled(low, node, given["self"], 1 / _per_channel(node, given["other"], given["self"]), torch.zeros(1))


def _neg(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    return scaled(low, node, given["self"], -torch.ones(1), torch.zeros(1))


def _per_channel(node: fx.Node, numbers: Numbers, view: View) -> Tensor:
    """What is added to or multiplied with every channel: float64, [C] or of one value.

    Raises:
        InputError: It differs within a channel.
    """
    tensor = torch.as_tensor(numbers, dtype=torch.float64)
    if tensor.numel() == 1:
        return tensor.reshape(1)
    shape = shape_of(node)
    if shape != view.shape or len(shape) < 2 or shape[0] != 1:
        raise refusal(node, f"a tensor of shape {list(tensor.shape)} for one of {list(view.shape)}")
    every = tensor.expand(shape).reshape(shape[1], -1)
    if not torch.equal(every, every[:, :1].expand_as(every)):
        raise refusal(node, "numbers that differ from pixel to pixel are no operator of a packed file")
    return every[:, 0]


def _of_two(low: Lowering, node: fx.Node, kind: str, first: View, second: View) -> View:
    shape, shapes = shape_of(node), low.builder.numbering.shapes
    if kind == "multiply" and first.shape != shape:
        first, second = second, first
    broadcast = kind == "multiply" and len(second.shape) == 4 and second.shape == (*first.shape[:2], 1, 1)
    if first.shape != shape or not (second.shape == shape or broadcast):
        raise refusal(
            node,
            f"tensors of shape {list(first.shape)} and {list(second.shape)}: a packed file knows operators of two "
            "tensors of one shape, and of a map and one value per channel",
        )
    point = math.prod(shape) == shape[1]
    form: Form = "any" if point and node not in low.points else "map"
    names = [low.builder.place(view, form) for view in (first, second)]
    if len({len(shapes[name]) for name in names}) > 1:
        names = [low.builder.place(view, "vector") for view in (first, second)]
    return low.emit(kind, node, (names[0], names[1]), shapes[names[0]])


def _unexpanded(view: View) -> View:
    """One value per channel that was spread over a map, as the one value."""
    if view.index is None or len(view.shape) != 4:
        return view
    corner = view.index[..., :1, :1]
    return View(view.node, tuple(corner.shape), None, corner) if bool((view.index == corner).all()) else view


def _softmax(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    view, rank = given["self"], len(given["self"].shape)
    if math.prod(view.shape) != view.shape[1] or given["dim"] not in (1, 1 - rank):
        raise refusal(node, "only the softmax over all values of a vector is an operator of a packed file")
    name = low.builder.place(view, "vector")
    return low.emit("softmax", node, (name,), low.builder.numbering.shapes[name])


def _mean(low: Lowering, node: fx.Node, given: dict[str, Any]) -> View:
    """A mean over all pixels, in whichever shape: a global pooling."""
    view, rank = given["self"], len(given["self"].shape)
    dims = sorted(dim % rank for dim in given.get("dim") or ())
    if rank == 4 and dims == [2, 3]:
        return averaged(low, node, view)
    index = low.builder.positions(view)
    index = index.permute(*(dim for dim in range(rank) if dim not in dims), *dims)
    index = index.reshape(-1, math.prod(view.shape[dim] for dim in dims))
    sources = low.builder.numbering.sources(index)
    plane = low.builder.numbering.shapes[sources[0]][1:] if len(sources) == 1 else ()
    if not dims or len(plane) != 2 or math.prod(plane) != index.shape[1]:
        raise refusal(node, "only the mean over all pixels of a channel is an operator of a packed file")
    index = index.view(1, -1, *plane)
    return averaged(low, node, View(view.node, tuple(index.shape), None, index))


# ---------------------------------------------------------------------- small things
def _operands(low: Lowering, node: fx.Node, given: dict[str, Any]) -> dict[str, Operand]:
    """Weight and bias of a layer, the weight with its name in the state dictionary."""
    operands = {"weight": Operand(_constant(node, given["weight"], "weight"), low.origin(node.args[1]))}
    if given["bias"] is not None:
        operands["bias"] = Operand(_constant(node, given["bias"], "bias"))
    return operands


def _constant(node: fx.Node, value: Any, role: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise refusal(node, f"its {role} depends on the image")
    return value


def pair(value: Any) -> tuple[int, int]:
    """One number for both directions, or two."""
    numbers = [int(value)] * 2 if isinstance(value, int) else [int(number) for number in value]
    return (numbers[0], numbers[-1])


def _map_of(node: fx.Node) -> tuple[int, ...]:
    shape = shape_of(node)
    assert shape is not None
    return shape[1:]


OPERATORS: dict[str, Handler] = {
    **{kind: partial(unary, kind=kind) for kind in ("relu", "relu6", "sigmoid", "hardsigmoid", "hardswish", "silu")},
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), _clamped),
    **dict.fromkeys(("conv2d", "convolution"), _conv),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "native_batch_norm": _batch_norm_of_three,
    "_native_batch_norm_legit_no_training": _batch_norm_of_three,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    "mean": _mean,
    **POOLING,
}
"""By the names of ATen."""
