"""The network of a packed file: a list of operators over named values, and the shapes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GRAPH_VERSION = 1


@dataclass(frozen=True)
class Kind:
    """What an operator of one kind consists of.

    Attributes:
        inputs: How many values it takes; None: two or more.
        tensors: Roles of its tensors; a ``?`` at the end marks one that may be missing.
        settings: Names of its settings, all of them required.
    """

    inputs: int | None = 1
    tensors: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


WINDOW = ("stride", "padding")
KINDS: dict[str, Kind] = {
    # weight [O, I / groups, kh, kw], bias [O]; BatchNorm is folded into both.
    "conv": Kind(1, ("weight", "bias?"), (*WINDOW, "dilation", "groups")),
    # On a vector [I]; weight [O, I], bias [O].
    "linear": Kind(1, ("weight", "bias?")),
    # Of two values of one shape; ``multiply`` also [C, H, W] by [C, 1, 1], either first (squeeze and excitation).
    "add": Kind(2),
    "multiply": Kind(2),
    # Per channel, where no convolution takes it in: x * weight + bias, both [C].
    "scale": Kind(1, ("weight", "bias")),
    "relu": Kind(),
    "relu6": Kind(),
    "sigmoid": Kind(),
    "hardsigmoid": Kind(),
    "hardswish": Kind(),
    "silu": Kind(),
    # Padding never wins the maximum. ``count_padding``: padded zeros count in the mean.
    "maxpool": Kind(1, (), (*WINDOW, "kernel", "ceil")),
    "avgpool": Kind(1, (), (*WINDOW, "kernel", "ceil", "count_padding")),
    # The mean over height and width: [C, 1, 1].
    "globalavgpool": Kind(),
    # Along channels.
    "concat": Kind(None),
    # Output channel c is input channel index[c], or zero where index[c] is -1 (I32 [C]); of every stride-th pixel,
    # from the first. Gather, scatter and the zero-padded shortcut are all of this kind.
    "gather": Kind(1, ("index",), ("stride",)),
    # [C, H, W] to a vector [C * H * W], in that order.
    "flatten": Kind(),
    # Over the vector.
    "softmax": Kind(),
}
"""All operators. Pairs are (vertical, horizontal); ``padding`` is (top, left, bottom, right)."""


@dataclass(frozen=True)
class Operator:
    """One step of the network.

    Attributes:
        kind: A key of :data:`KINDS`.
        name: Of the module it came from; unique in the file.
        inputs: Values it takes: the network's input, or outputs of operators before it.
        output: The value it makes.
        settings: As :data:`KINDS` says: ``stride``, ``dilation``, ``kernel``: (vertical, horizontal); ``padding``:
            (top, left, bottom, right); ``groups``: a count; ``ceil``, ``count_padding``: true or false. Lists do as
            well; they come back from a file as tuples.
        tensors: Role to the tensor's name in the file.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an input: short side to ``resize`` (bicubic), centre cut to ``size``, normalised.

    Attributes:
        size: Side of the input in pixels.
        resize: Pixels of the short side before the cut; equal to ``size``: only the excess of the long side is cut.
        mean: Per channel, of values in 0..1.
        std: The same.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Graph:
    """A network as a list of operators.

    Attributes:
        input: Name of its one input.
        shape: Of that input without the batch: (channels, height, width).
        operators: In an order in which they can be run.
        output: The value that is the result.
        preprocess: None when nobody said.
        labels: One per output; may be empty.
    """

    input: str
    shape: tuple[int, int, int]
    operators: tuple[Operator, ...]
    output: str
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
