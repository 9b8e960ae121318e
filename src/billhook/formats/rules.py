"""What each operator of a network asks of its inputs, settings and tensors, and the shape of what it makes."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence

from billhook.errors import InputError
from billhook.formats.graph import KINDS, Graph, Operator, Preprocess

Shape = tuple[int, ...]

MAX_SETTING = 1 << 15
"""Of strides, paddings, dilations and kernels."""
MAX_ELEMENTS = 1 << 28
"""Of one value, padding included: 1 GiB as float32."""
MAX_TOTAL = 1 << 31
"""Of all values of a network together."""
MAX_SCALE = 1e6
"""Of means, of standard deviations and of one over these."""
MAX_RESIZE = 4
"""The short side of an image is brought to at most this many times the side that is cut from it."""

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong = 3, 100, 60

_SAME_SHAPE = frozenset(("relu", "relu6", "sigmoid", "hardsigmoid", "hardswish", "silu"))


def window_count(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1, ceil: bool = False
) -> int:
    """Positions of a window along one side.

    Args:
        size: Elements of the side.
        kernel: Elements that the window reads, ``dilation`` apart.
        before: Padding before the first element.
        after: Padding after the last one.
        ceil: Whether a last window that reaches beyond the padding counts. It does when it begins before the padding
            that follows the side, the rule of PyTorch.

    Returns:
        The count; below 1 when the window does not fit.
    """
    room = size + before + after - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def shapes(graph: Graph, weight_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every value of a network, without the batch; checks the whole graph on the way.

    Args:
        graph: Any graph, however wrong.
        weight_shapes: Of the tensors, by name; of a packed one: of the dense weight.

    Returns:
        (channels, height, width) or (features,) by the name of the value; the input's first, then in the graph's order.

    Raises:
        InputError: the graph does not hold together; names the operator and says why.
    """
    _check_input(graph)
    found: dict[str, Shape] = {graph.input: tuple(graph.shape)}
    total = math.prod(graph.shape)
    names: set[str] = set()
    for operator in graph.operators:
        try:
            if operator.name in names:
                raise ValueError("another operator has its name")
            names.add(operator.name)
            shape = _infer(operator, found, weight_shapes)
            elements = math.prod(shape)
            total += elements
            if elements > MAX_ELEMENTS or total > MAX_TOTAL:
                raise ValueError(
                    f"it makes a value of shape {list(shape)}; one may have {MAX_ELEMENTS} elements, "
                    f"all together {MAX_TOTAL}"
                )
        except ValueError as error:
            raise InputError(
                f"operator {short(operator.name)} ({operator.kind if operator.kind in KINDS else 'unknown'}): {error}",
                "write the file again or fetch it again",
            ) from error
        found[operator.output] = shape
    _check_output(graph, found)
    return found


def short(name: object) -> str:
    """Something from a file as it is shown: names quoted, and all of it cut when it is absurdly long or deep."""
    return _BRIEF.repr(name)


def _check_input(graph: Graph) -> None:
    shape = graph.shape
    if len(shape) != 3 or not all(type(side) is int and 1 <= side <= MAX_ELEMENTS for side in shape):
        raise _refused(f"the input's shape {short(list(shape))} is not (channels, height, width), each at least 1")
    if math.prod(shape) > MAX_ELEMENTS:
        raise _refused(f"the input's shape {list(shape)} has more than {MAX_ELEMENTS} elements")
    if graph.preprocess is not None:
        _check_preprocess(graph.preprocess, shape)


def _check_preprocess(preprocess: Preprocess, shape: Shape) -> None:
    size, resize = preprocess.size, preprocess.resize
    if type(size) is not int or shape[1:] != (size, size):
        raise _refused(f"the preprocessing cuts images to {short(size)}, the input's shape is {list(shape)}")
    if type(resize) is not int or not size <= resize <= MAX_RESIZE * size:
        raise _refused(f"the preprocessing resizes to {short(resize)}, which is not {size} to {MAX_RESIZE * size}")
    for what, numbers, least in (("mean", preprocess.mean, -MAX_SCALE), ("std", preprocess.std, 1 / MAX_SCALE)):
        # Comparisons, unlike conversions, take whole numbers of any length; NaN fails them.
        if len(numbers) != shape[0] or not all(
            type(number) in (int, float) and least <= number <= MAX_SCALE for number in numbers
        ):
            raise _refused(f"the preprocessing's {what} is not {shape[0]} numbers from {least:g} to {MAX_SCALE:g}")


def _check_output(graph: Graph, found: Mapping[str, Shape]) -> None:
    if graph.output not in found:
        raise _refused(f"the result {short(graph.output)} is made by no operator")
    shape = found[graph.output]
    if len(shape) != 1:
        raise _refused(f"the result {short(graph.output)} has the shape {list(shape)}, a vector is needed")
    if graph.labels and len(graph.labels) != shape[0]:
        raise _refused(f"there are {len(graph.labels)} labels for {shape[0]} outputs")
    used = {name for operator in graph.operators for name in operator.inputs}
    for operator in graph.operators:
        if operator.output not in used and operator.output != graph.output:
            raise _refused(f"operator {short(operator.name)} ({operator.kind}): nothing uses its output")


def _infer(operator: Operator, found: Mapping[str, Shape], weight_shapes: Mapping[str, Shape]) -> Shape:
    """The shape of the operator's output. Raises ValueError with the reason."""
    kind = KINDS.get(operator.kind)
    if kind is None:
        raise ValueError(f"there is no kind {short(operator.kind)}; there are {', '.join(KINDS)}")
    count = len(operator.inputs)
    if count < 2 if kind.inputs is None else count != kind.inputs:
        raise ValueError(f"it has {count} inputs, {kind.inputs or 'two or more'} are needed")
    for name in operator.inputs:
        if name not in found:
            raise ValueError(f"its input {short(name)} is not made before it")
    if operator.output in found:
        raise ValueError(f"its output {short(operator.output)} is taken")
    if operator.settings.keys() != set(kind.settings):
        raise ValueError(
            f"its settings are {_listed(operator.settings)}, needed are {', '.join(kind.settings) or 'none'}"
        )
    roles = {role.rstrip("?") for role in kind.tensors}
    needed = {role for role in kind.tensors if not role.endswith("?")}
    if not needed <= operator.tensors.keys() <= roles:
        raise ValueError(f"its tensors are {_listed(operator.tensors)}, needed are {', '.join(kind.tensors) or 'none'}")
    for name in operator.tensors.values():
        if name not in weight_shapes:
            raise ValueError(f"there is no tensor {short(name)}")
    _check_settings(operator)
    tensors = {role: tuple(weight_shapes[name]) for role, name in operator.tensors.items()}
    inputs = [found[name] for name in operator.inputs]
    return inputs[0] if operator.kind in _SAME_SHAPE else _RULES[operator.kind](operator, inputs, tensors)


def _check_settings(operator: Operator) -> None:
    for name, value in operator.settings.items():
        if name in ("ceil", "count_padding"):
            if type(value) is not bool:
                raise ValueError(f"{name} is {short(value)}, not true or false")
        elif name == "groups":
            if type(value) is not int or value < 1:
                raise ValueError(f"groups is {short(value)}, not a count of 1 or more")
        else:
            length, least = (4, 0) if name == "padding" else (2, 1)
            if (
                not isinstance(value, list | tuple)
                or len(value) != length
                or not all(type(number) is int and least <= number <= MAX_SETTING for number in value)
            ):
                raise ValueError(f"{name} is {short(value)}, not {length} whole numbers from {least} to {MAX_SETTING}")


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"its input has the shape {list(shape)}, not (channels, height, width)")
    return shape[0], shape[1], shape[2]


def _vector(shape: Shape) -> int:
    if len(shape) != 1:
        raise ValueError(f"its input has the shape {list(shape)}, a vector is needed; flatten comes before")
    return shape[0]


def _windows(operator: Operator, shape: Shape, kernel: Sequence[int], pool: bool) -> tuple[int, int]:
    """Height and width of the output of a window that moves over the image."""
    channels, *sides = _image(shape)
    top, left, bottom, right = operator.settings["padding"]
    dilation = operator.settings.get("dilation", (1, 1))
    ceil = operator.settings.get("ceil", False)
    if channels * (sides[0] + top + bottom) * (sides[1] + left + right) > MAX_ELEMENTS:
        raise ValueError(f"its padded input has more than {MAX_ELEMENTS} elements")
    counts = []
    for axis, (before, after) in enumerate(((top, bottom), (left, right))):
        if pool and max(before, after) >= kernel[axis]:
            raise ValueError(f"padding of {max(before, after)} takes a whole window of {kernel[axis]}")
        if dilation[axis] * (kernel[axis] - 1) + 1 > sides[axis] + before + after:
            raise ValueError(f"its window does not fit into the padded input, {sides[axis]} + {before} + {after}")
        stride = operator.settings["stride"][axis]
        counts.append(window_count(sides[axis], kernel[axis], stride, before, after, dilation[axis], ceil))
    return counts[0], counts[1]


def _conv(operator: Operator, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
    channels = _image(inputs[0])[0]
    weight = tensors["weight"]
    groups = operator.settings["groups"]
    if len(weight) != 4 or min(weight) < 1:
        raise ValueError(f"its weight has the shape {list(weight)}, not [outputs, inputs, height, width]")
    if weight[0] % groups or weight[1] * groups != channels:
        raise ValueError(f"a weight of shape {list(weight)} in {groups} groups does not fit {channels} channels")
    _check_bias(weight[0], tensors)
    return (weight[0], *_windows(operator, inputs[0], weight[2:], pool=False))


def _linear(_: Operator, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
    features = _vector(inputs[0])
    weight = tensors["weight"]
    if len(weight) != 2 or weight[0] < 1 or weight[1] != features:
        raise ValueError(f"a weight of shape {list(weight)} does not fit {features} inputs")
    _check_bias(weight[0], tensors)
    return (weight[0],)


def _check_bias(outputs: int, tensors: Mapping[str, Shape]) -> None:
    if tensors.get("bias", (outputs,)) != (outputs,):
        raise ValueError(f"its bias has the shape {list(tensors['bias'])}, [{outputs}] is needed")


def _add(_: Operator, inputs: Sequence[Shape], __: Mapping[str, Shape]) -> Shape:
    if inputs[0] != inputs[1]:
        raise ValueError(f"its inputs have the shapes {list(inputs[0])} and {list(inputs[1])}, equal ones are needed")
    return inputs[0]


def _multiply(_: Operator, inputs: Sequence[Shape], __: Mapping[str, Shape]) -> Shape:
    # The larger first: sorted by pixels, of which a vector has none.
    second, first = sorted(inputs, key=lambda shape: math.prod(shape[1:]))
    if first != second and not (len(first) == 3 and second == (first[0], 1, 1)):
        raise ValueError(
            f"its inputs have the shapes {list(inputs[0])} and {list(inputs[1])}; equal ones, or one with a single "
            "pixel and as many channels, are needed"
        )
    return first


def _scale(_: Operator, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
    channels = inputs[0][0]
    for role, shape in tensors.items():
        if shape != (channels,):
            raise ValueError(f"its {role} has the shape {list(shape)}, [{channels}] is needed")
    return inputs[0]


def _pool(operator: Operator, inputs: Sequence[Shape], _: Mapping[str, Shape]) -> Shape:
    return (inputs[0][0], *_windows(operator, inputs[0], operator.settings["kernel"], pool=True))


def _global(_: Operator, inputs: Sequence[Shape], __: Mapping[str, Shape]) -> Shape:
    return (_image(inputs[0])[0], 1, 1)


def _concat(_: Operator, inputs: Sequence[Shape], __: Mapping[str, Shape]) -> Shape:
    if any(shape[1:] != inputs[0][1:] for shape in inputs):
        raise ValueError(f"its inputs have the shapes {short(inputs)}; only channels may differ")
    return (sum(shape[0] for shape in inputs), *inputs[0][1:])


def _gather(operator: Operator, inputs: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
    index = tensors["index"]
    stride = tuple(operator.settings["stride"])
    if len(index) != 1 or index[0] < 1:
        raise ValueError(f"its index has the shape {list(index)}, one number per output channel is needed")
    if len(inputs[0]) == 1 and stride != (1, 1):
        raise ValueError("a vector has no pixels to leave out")
    return (index[0], *(-(-side // step) for side, step in zip(inputs[0][1:], stride, strict=False)))


def _flatten(_: Operator, inputs: Sequence[Shape], __: Mapping[str, Shape]) -> Shape:
    return (math.prod(_image(inputs[0])),)


def _softmax(_: Operator, inputs: Sequence[Shape], __: Mapping[str, Shape]) -> Shape:
    return (_vector(inputs[0]),)


_RULES: dict[str, Callable[[Operator, Sequence[Shape], Mapping[str, Shape]], Shape]] = {
    "conv": _conv,
    "linear": _linear,
    "add": _add,
    "multiply": _multiply,
    "scale": _scale,
    "maxpool": _pool,
    "avgpool": _pool,
    "globalavgpool": _global,
    "concat": _concat,
    "gather": _gather,
    "flatten": _flatten,
    "softmax": _softmax,
}


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(short(name) for name in list(names)[:8]) or "none"


def _refused(reason: str) -> InputError:
    return InputError(reason, "write the file again or fetch it again")
