"""From the operators of a packed network to the steps of a run: what follows a convolution is done by it.

A step is one pass over memory. A convolution takes in the activation and the addition that follow it, linear layers are
convolutions, and what moves nothing (flattening a single pixel, a gather of everything) is no step at all.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from billhook.errors import InputError
from billhook.formats import PackedNetwork
from billhook.formats.graph import Operator

ACTIVATIONS = ("relu", "relu6", "sigmoid", "hardsigmoid", "hardswish", "silu")
ACTIVATED = frozenset(("conv", "depthwise", "add", "multiply", "scale", "maxpool", "avgpool", "global"))
"""Kinds of steps that can end in an activation."""

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """Where a window reads. Pairs are (vertical, horizontal); ``padding`` is (top, left) alone."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Scaling:
    """Factors and terms per channel that a convolution takes in: of its outputs, or of its inputs."""

    side: str
    weight: str
    bias: str


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        kind: conv, depthwise, maxpool, avgpool, global, add, multiply, scale, unary, gather, concat, flatten, softmax.
        name: Of the operator that it is named after.
        inputs: Values it reads; of ``multiply`` the one with more pixels comes first.
        output: The value it makes.
        window: Of convolutions and pools.
        groups: Of a convolution.
        activation: One of :data:`ACTIVATIONS`, or empty.
        residual: A value that is added to the result, or empty.
        residual_last: Whether that happens after the activation.
        weight: Name of the tensor; empty where there is none, and for a ``depthwise`` that is the mean of its window.
        bias: The same.
        index: The same.
        flattened: Of a convolution that was a linear layer on a flattened map: the shape of that map.
        scalings: In the order in which they were taken in; those of inputs come before those of outputs.
        count_padding: Of ``avgpool``.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    window: Window = Window()
    groups: int = 1
    activation: str = ""
    residual: str = ""
    residual_last: bool = False
    weight: str = ""
    bias: str = ""
    index: str = ""
    flattened: Shape | None = None
    scalings: tuple[Scaling, ...] = ()
    count_padding: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """All values that must be there before the step."""
        return (*self.inputs, self.residual) if self.residual else self.inputs


@dataclass(frozen=True)
class Fused:
    """A network as steps.

    Attributes:
        input: The value that the image becomes.
        output: The value that is the result; a map is read in the order channels, rows, columns.
        steps: In the order in which they are run.
        shapes: (channels, height, width) of every value that is left; vectors have one pixel.
    """

    input: str
    output: str
    steps: tuple[Step, ...]
    shapes: Mapping[str, Shape]


def fuse(network: PackedNetwork) -> Fused:
    """Turns operators into steps.

    Linear layers of packed weights keep their own order of inputs, and no factors are multiplied into packed weights.
    """
    return _Fusing(network).run()


class _Fusing:
    def __init__(self, network: PackedNetwork) -> None:
        self.graph = network.graph
        self.tensors = network.tensors
        self.packed = network.packed
        self.shapes: dict[str, Shape] = {
            name: (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)
            for name, shape in network.shapes.items()
        }
        # A value that is another one under a new name.
        self.same: dict[str, str] = {}
        # Flattened maps of more than one pixel.
        self.flat: dict[str, str] = {}
        self.steps: dict[str, Step] = {}
        self.position: dict[str, int] = {}
        self.readers: Counter[str] = Counter()

    def run(self) -> Fused:
        lowered = [step for operator in self.graph.operators if (step := self.lower(operator))]
        output = self.name_of(self.graph.output)
        output = self.flat.get(output, output)
        lowered = _needed(lowered, output)
        self.readers.update(name for step in lowered for name in step.reads)
        self.readers[output] += 1
        for position, step in enumerate(lowered):
            self.take(step, position)
        steps = _ordered(self.steps, self.position, self.name_of(self.graph.input))
        left = {self.name_of(self.graph.input), *(step.output for step in steps)}
        return Fused(self.name_of(self.graph.input), output, steps, {name: self.shapes[name] for name in sorted(left)})

    def name_of(self, value: str) -> str:
        while value in self.same:
            value = self.same[value]
        return value

    def lower(self, operator: Operator) -> Step | None:
        """The operator as a step of its own; None when it does nothing."""
        inputs = tuple(self.name_of(name) for name in operator.inputs)
        shape = self.shapes[inputs[0]]
        made = self.shapes[operator.output]
        step = Step(operator.kind, operator.name, inputs, operator.output)
        settings = operator.settings
        tensors = {"weight": "", "bias": "", "index": "", **operator.tensors}
        step = replace(step, weight=tensors["weight"], bias=tensors["bias"], index=tensors["index"])
        if operator.kind in ACTIVATIONS:
            return replace(step, kind="unary", activation=operator.kind)
        if operator.kind == "conv":
            height, width = self.weight_shape(step)[2:]
            groups = int(settings["groups"])
            depthwise = groups > 1 and groups == shape[0] == made[0]
            window = Window((height, width), _pair(settings["stride"]), _pair(settings["padding"]))
            window = replace(window, dilation=_pair(settings["dilation"]))
            return replace(step, kind="depthwise" if depthwise else "conv", window=window, groups=groups)
        if operator.kind == "linear":
            source = self.flat.get(inputs[0])
            if source is None or step.weight in self.packed:
                return replace(step, kind="conv")
            size = self.shapes[source]
            return replace(step, kind="conv", inputs=(source,), window=Window(size[1:]), flattened=size)
        if operator.kind in ("maxpool", "avgpool"):
            window = Window(_pair(settings["kernel"]), _pair(settings["stride"]), _pair(settings["padding"]))
            if window == Window() and made == shape:
                self.same[operator.output] = inputs[0]
                return None
            padded = any(settings["padding"])
            if operator.kind == "avgpool" and window.kernel == shape[1:] and made[1:] == (1, 1) and not padded:
                return replace(step, kind="global")
            if operator.kind == "avgpool" and settings["count_padding"] and self.far_counts(operator, window):
                return replace(step, kind="depthwise", window=window, groups=shape[0])
            return replace(step, window=window, count_padding=bool(settings.get("count_padding", False)))
        if operator.kind == "globalavgpool":
            if shape[1:] == (1, 1):
                self.same[operator.output] = inputs[0]
                return None
            return replace(step, kind="global")
        if operator.kind == "flatten":
            if shape[1:] == (1, 1):
                self.same[operator.output] = inputs[0]
                return None
            self.flat[operator.output] = inputs[0]
            return step
        if operator.kind == "gather":
            stride = _pair(settings["stride"])
            if stride == (1, 1) and np.array_equal(self.tensors[step.index], np.arange(shape[0])):
                self.same[operator.output] = inputs[0]
                return None
            return replace(step, window=Window(stride=stride))
        return step

    def far_counts(self, operator: Operator, window: Window) -> bool:
        """Whether an average counts padding behind the map that is not as wide as that before it.

        A convolution does that, with one factor for all windows.
        """
        before, far = window.padding, _pair(operator.settings["padding"][2:])
        if before == far:
            return False
        sides = zip(
            self.shapes[self.name_of(operator.inputs[0])][1:],
            self.shapes[operator.output][1:],
            before,
            far,
            window.kernel,
            window.stride,
            strict=True,
        )
        reach = [(count - 1) * step + kernel - near - size - far for size, count, near, far, kernel, step in sides]
        if max(reach) > 0:
            raise InputError(
                f"operator {operator.name!r} (avgpool): windows beyond a padding of {operator.settings['padding']}, "
                "which counts, have means of their own",
                "pad the same before and behind, or do not round up",
            )
        return True

    def weight_shape(self, step: Step) -> tuple[int, ...]:
        packed = self.packed.get(step.weight)
        return packed.shape if packed else self.tensors[step.weight].shape

    def take(self, step: Step, position: int) -> None:
        """Adds a step, or lets one that is there already do its work."""
        inputs = [self.steps.get(name) for name in step.inputs]
        if step.kind == "unary" and (before := inputs[0]) and self.may_end_in(before):
            self.put(replace(before, activation=step.activation, output=step.output), before, position)
        elif step.kind == "scale" and (before := inputs[0]) and self.takes_scaling(before):
            scaling = Scaling("outputs", step.weight, step.bias)
            self.put(replace(before, scalings=(*before.scalings, scaling), output=step.output), before, position)
        elif step.kind == "add" and (before := self.adding(step)):
            other = step.inputs[1] if step.inputs[0] == before.output else step.inputs[0]
            last = bool(before.activation)
            self.put(replace(before, residual=other, residual_last=last, output=step.output), before, position)
        elif step.kind == "multiply" and (gate := self.gate(step)):
            del self.steps[gate.output]
            self.readers[gate.inputs[0]] -= 1
            self.take(replace(gate, activation="silu", output=step.output), position)
        elif step.kind == "conv" and (before := inputs[0]) and self.scaled_before(step, before):
            scaling = Scaling("inputs", before.weight, before.bias)
            del self.steps[before.output]
            self.put(replace(step, inputs=before.inputs, scalings=(scaling,)), None, position)
        else:
            self.put(step, None, position)

    def put(self, step: Step, instead: Step | None, position: int) -> None:
        if instead is not None:
            del self.steps[instead.output]
            position = self.position[instead.output]
        self.steps[step.output] = step
        self.position[step.output] = position

    def alone(self, step: Step) -> bool:
        return self.readers[step.output] == 1

    def may_end_in(self, step: Step) -> bool:
        return step.kind in ACTIVATED and not step.activation and not step.residual_last and self.alone(step)

    def takes_scaling(self, step: Step) -> bool:
        free = not step.activation and not step.residual and step.weight not in self.packed
        return step.kind in ("conv", "depthwise") and free and self.alone(step)

    def scaled_before(self, step: Step, scale: Step) -> bool:
        # Padding is zero after the scaling: where there is some, its terms cannot be told from the bias.
        if scale.kind != "scale" or scale.activation or not self.alone(scale) or step.groups > 1:
            return False
        return (
            step.window.padding == (0, 0)
            and not self.overhangs(step)
            and not step.flattened
            and step.weight not in self.packed
        )

    def overhangs(self, step: Step) -> bool:
        sides = zip(self.shapes[step.inputs[0]][1:], self.shapes[step.output][1:], *_sides(step.window), strict=True)
        return any(
            (count - 1) * stride + (kernel - 1) * dilation >= size for size, count, kernel, stride, dilation in sides
        )

    def adding(self, step: Step) -> Step | None:
        """The convolution that can do an addition: of two the later one, first of all one without an activation."""
        if step.inputs[0] == step.inputs[1]:
            return None
        fit = [
            before
            for name in step.inputs
            if (before := self.steps.get(name)) is not None
            and before.kind in ("conv", "depthwise")
            and not before.residual
            and self.alone(before)
        ]
        return max(fit, key=lambda before: (not before.activation, self.position[before.output]), default=None)

    def gate(self, step: Step) -> Step | None:
        """Of x * sigmoid(x), the sigmoid."""
        for one, other in (step.inputs, step.inputs[::-1]):
            gate = self.steps.get(one)
            if gate is None or not self.alone(gate) or gate.inputs != (other,):
                continue
            if gate.kind == "unary" and gate.activation == "sigmoid":
                return gate
        return None


def halo(step: Step, shape: Shape, made: Shape) -> tuple[int, int, int, int]:
    """Pixels beyond the input that the windows of a convolution read: (top, left, bottom, right)."""
    top, left = step.window.padding
    after = [
        max(0, (count - 1) * stride - before + (kernel - 1) * dilation - (size - 1))
        for size, count, before, kernel, stride, dilation in zip(
            shape[1:], made[1:], step.window.padding, *_sides(step.window), strict=True
        )
    ]
    return top, left, after[0], after[1]


def _sides(window: Window) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    return window.kernel, window.stride, window.dilation


def _pair(values: list[int] | tuple[int, ...]) -> tuple[int, int]:
    """The first two: of a padding (top, left)."""
    return int(values[0]), int(values[1])


def _needed(steps: list[Step], output: str) -> list[Step]:
    """The steps whose values somebody reads."""
    wanted = {output}
    kept = []
    for step in reversed(steps):
        if step.output in wanted:
            wanted.update(step.reads)
            kept.append(step)
    return kept[::-1]


def _ordered(steps: Mapping[str, Step], position: Mapping[str, int], given: str) -> tuple[Step, ...]:
    """Steps such that what is read was made before, otherwise by position."""
    missing = {name: sum(1 for read in set(step.reads) if read != given) for name, step in steps.items()}
    readers: dict[str, list[str]] = {}
    for name, step in steps.items():
        for read in set(step.reads):
            readers.setdefault(read, []).append(name)
    ready = [(position[name], name) for name, count in missing.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, name = heapq.heappop(ready)
        order.append(steps[name])
        for reader in readers.get(name, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, (position[reader], reader))
    return tuple(order)
