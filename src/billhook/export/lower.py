"""From any network made of known operators to the list of operators of a packed file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from billhook.errors import InputError
from billhook.export.fold import simplify
from billhook.export.movements import FILLS, MOVES, SAME, one_pixel, packet
from billhook.export.numbering import LOWEST, ZERO
from billhook.export.operators import OPERATORS
from billhook.export.trace import Traced, refusal, shape_of, trace
from billhook.export.values import Builder, View
from billhook.formats.graph import Graph


@dataclass(frozen=True)
class Lowered:
    """A network as operators.

    Attributes:
        graph: The operators; nothing is said about images and labels.
        tensors: Their weights, biases (float32) and indices (int32), by the names that the operators give.
        origins: Of each weight that is one of the network's own, its name in the state dictionary. It may have another
            shape here (a linear layer as a convolution of one pixel), and its rows may be scaled.
    """

    graph: Graph
    tensors: dict[str, NDArray[Any]]
    origins: dict[str, str]


def lower(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Graph, dict[str, NDArray[Any]]]:
    """The operators that a network consists of, and their tensors.

    BatchNorm is folded into the convolution or linear layer before it where nothing else reads that, dropout and
    whatever only moves elements about vanish or become a gather, flatten or concat. The result is what the network
    computes in evaluation mode, up to the rounding of the folded weights.

    Args:
        module: Takes one batch of images [N, C, H, W]; it is not changed.
        input_shape: C, H and W.

    Raises:
        InputError: The network cannot be traced, or calls something that is no operator of a packed file; names
            the ATen function, the line of the user's code and the module.
    """
    lowered = lower_network(module, input_shape)
    return lowered.graph, lowered.tensors


def lower_network(
    module: nn.Module, input_shape: tuple[int, int, int], precision: type[np.floating[Any]] = np.float32
) -> Lowered:
    """Like :func:`lower`, with the names that weights have in the network.

    Args:
        precision: Of weights and biases; a file holds float32, float64 tells rounding from errors.

    Raises:
        InputError: As :func:`lower`.
    """
    traced = trace(module, input_shape)
    lowering = Lowering(traced, input_shape)
    with torch.no_grad():
        for node in traced.calls:
            lowering.call(node)
    output = lowering.values[traced.output]
    if not isinstance(output, View):
        raise InputError(f"{type(module).__name__} returns the same for every image", "there is nothing to run")
    result = lowering.builder.place(output, "vector")
    operators, tensors, result = simplify(lowering.builder.operators, lowering.builder.tensors, result, precision)
    graph = Graph("input", input_shape, tuple(operators), result)
    origins = {name: origin for name, origin in lowering.builder.origins.items() if name in tensors}
    return Lowered(graph, tensors, origins)


class Lowering:
    """One network on its way.

    Attributes:
        builder: The operators so far.
        values: What each node gives: a view, a tensor that is the same for every image, or several of them.
        points: Calls whose vector has to stay a map of one pixel.
    """

    def __init__(self, traced: Traced, shape: tuple[int, int, int]) -> None:
        self.builder = Builder(shape)
        self.values: dict[fx.Node, Any] = {traced.input: View(traced.input, (1, *shape), "input"), **traced.constants}
        self.points = one_pixel(traced.calls)
        self.names = dict(traced.names)

    def call(self, node: fx.Node) -> None:
        """Lower one call.

        Raises:
            InputError: It is none that is known.
        """
        arguments = _bound(node)
        given = fx.node.map_arg(arguments, lambda n: self.values[n])
        name = packet(node)
        if name == "getitem":
            self.values[node] = given["0"][given["1"]]
        elif name in FILLS:
            self.values[node] = _carry_out(node, self._blank, node.args)
        elif not any(isinstance(self.values[argument], View | tuple) for argument in node.all_input_nodes):
            self._constant(node, name)
        elif name in SAME:
            self._same(node, given)
        elif name in OPERATORS:
            self.values[node] = OPERATORS[name](self, node, given)
        elif name in MOVES:
            self._move(node)
        else:
            raise refusal(node, "no operator of a packed file does that", "replace it, or export to ONNX")

    def origin(self, node: Any) -> str:
        """The name in the state dictionary of a parameter."""
        return self.names.get(node, "") if isinstance(node, fx.Node) else ""

    def emit(self, kind: str, node: fx.Node, inputs: tuple[str, ...], shape: tuple[int, ...], **more: Any) -> View:
        """Append an operator and look at its output as PyTorch does."""
        seen = shape_of(node)
        assert seen is not None
        return View(node, seen, self.builder.emit(kind, node, inputs, shape, **more))

    def _blank(self, node: fx.Node) -> Any:
        value = self.values[node]
        return torch.zeros(value.shape) if isinstance(value, View) else value

    def _constant(self, node: fx.Node, name: str) -> None:
        self.values[node] = _carry_out(node, self.values.__getitem__, node.args)
        if name in SAME and node.all_input_nodes[0] in self.names:
            self.names[node] = self.names[node.all_input_nodes[0]]

    def _same(self, node: fx.Node, given: dict[str, Any]) -> None:
        view = next(value for value in given.values() if isinstance(value, View))
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype != torch.float32:
            raise refusal(node, f"it makes numbers of type {value.dtype}", "leave the network in float32")
        if given.get("train") or given.get("training"):
            raise refusal(node, "it is random in evaluation mode too")
        self.values[node] = view

    def _move(self, node: fx.Node) -> None:
        if packet(node) in ("cat", "concat", "concatenate"):
            joined = self._concat(node)
            if joined is not None:
                self.values[node] = joined
                return
        result = _carry_out(node, self._positions, self._marked(node))
        if isinstance(result, Tensor):
            self.values[node] = View(node, tuple(result.shape), None, result)
        else:
            self.values[node] = tuple(View(node, tuple(part.shape), None, part) for part in result)

    def _marked(self, node: fx.Node) -> Any:
        """The arguments of a call, with the mark of what it pads with in place of the number."""
        if packet(node) not in ("pad", "constant_pad_nd"):
            return node.args
        arguments = _bound(node)
        mode = arguments.get("mode", "constant")
        value = arguments.get("value")
        marks = {0.0: ZERO, float("-inf"): LOWEST}
        if mode != "constant":
            raise refusal(node, f"padding of mode '{mode}' is no operator of a packed file", "pad with zeros")
        if float(value or 0) not in marks:
            raise refusal(node, f"padding with {value} is no operator of a packed file", "pad with zeros")
        mark = marks[float(value or 0)]
        before = (arguments["self"], arguments["pad"])
        return (*before, "constant", mark) if packet(node) == "pad" else (*before, mark)

    def _positions(self, node: fx.Node) -> Any:
        value = self.values[node]
        if isinstance(value, View):
            return self.builder.positions(value).contiguous()  # any view of it is possible
        if isinstance(value, Tensor) and value.is_floating_point():
            if bool(value.any()):
                raise refusal(node, "numbers that are the same for every image are put between those of the image")
            return torch.full(value.shape, ZERO)
        return value

    def _concat(self, node: fx.Node) -> View | None:
        """A concatenation of several values along channels as the operator; None for one that only moves."""
        parts, shape = [self.values[n] for n in node.all_input_nodes], shape_of(node)
        arguments = _bound(node)
        named = list(arguments["tensors"])
        if len(named) != len(parts):  # one of them twice
            parts = [self.values[n] for n in named]
        if shape is None or len(shape) not in (2, 4) or arguments.get("dim", 0) not in (1, 1 - len(shape)):
            return None
        views = [part for part in parts if isinstance(part, View) and len(part.shape) == len(shape)]
        sources = [self.builder.sources(view) for view in views]
        if len(views) != len(parts) or any(len(s) != 1 for s in sources):
            return None
        if len(set(sources)) == 1 and self._chosen(views):
            return None
        names = tuple(self.builder.place(view, "map") for view in views)
        return self.emit("concat", node, names, (*shape[1:], 1, 1)[:3])

    def _chosen(self, views: list[View]) -> bool:
        """Whether all of them together are channels of one value, which a gather takes out."""
        index = torch.cat([self.builder.positions(view) for view in views], 1)
        return self.builder.numbering.select(index.view(*index.shape[1:], *[1] * (4 - index.ndim))) is not None


def _bound(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names of the function's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(number): argument for number, argument in enumerate(node.args)}
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return bound | dict(node.kwargs)


def _carry_out(node: fx.Node, find: Callable[[fx.Node], Any], args: Any) -> Any:
    """What the function of a call returns, given what ``find`` has for its inputs."""
    target: Any = node.target
    try:
        return target(*fx.node.map_arg(args, find), **fx.node.map_arg(node.kwargs, find))
    except (RuntimeError, TypeError, NotImplementedError, IndexError) as error:
        raise refusal(node, f"it cannot be followed: {str(error).splitlines()[0]}") from error
