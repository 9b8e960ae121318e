"""A network as a list of ATen calls for one image, through ``torch.export``, and where each call stands in the code."""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from billhook.errors import InputError

_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)
_CONTAINERS = ("torch.nn.modules.container.", "torch.nn.modules.module.")


@dataclass(frozen=True)
class Traced:
    """What a forward pass calls, in evaluation mode.

    Attributes:
        input: The node of the image.
        calls: All function calls whose result somebody reads, in order.
        output: The node whose value is the result.
        constants: Parameters, buffers and tensors of the code, by their nodes.
        names: Name in the state dictionary of the nodes that are parameters or buffers.
    """

    input: fx.Node
    calls: tuple[fx.Node, ...]
    output: fx.Node
    constants: dict[fx.Node, Tensor]
    names: dict[fx.Node, str]


def trace(module: nn.Module, shape: tuple[int, int, int]) -> Traced:
    """Follow one image through a network; nothing is changed in place in what comes back.

    Args:
        module: Any network of one input; it is copied.
        shape: Channels, height and width of the image.

    Raises:
        InputError: The network cannot be traced, or returns anything but one tensor.
    """
    # A copy: tracing leaves marks on a module, and the caller's may be in training mode.
    module = copy.deepcopy(module).float().cpu().eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (torch.zeros(1, *shape),), strict=False)
            if any(_changes(node) for node in program.graph.nodes):
                program = program.run_decompositions({})  # decomposes nothing, but no call writes to its inputs
    except Exception as error:  # whatever a user's forward or the tracer may raise
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"{type(module).__name__} cannot be traced for an image of {shape}: {type(error).__name__}: {said}",
            "its forward may not depend on values of the image",
        ) from error
    signature = program.graph_signature
    tensors = {**program.state_dict, **program.constants}
    given = {spec.arg.name: spec for spec in signature.input_specs if hasattr(spec.arg, "name")}
    constants, names, images = {}, {}, []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = given[node.name]
        if spec.kind is InputKind.USER_INPUT:
            images.append(node)
            continue
        constants[node] = tensors[spec.target].detach()
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            names[node] = str(spec.target)
    results = [spec.arg for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    nodes = {node.name: node for node in program.graph.nodes}
    if len(images) != 1 or len(results) != 1 or getattr(results[0], "name", None) not in nodes:
        raise InputError(
            f"{type(module).__name__} takes {len(images)} tensors and returns {len(results)}",
            "wrap it so that one image goes in and one tensor comes out",
        )
    output = nodes[results[0].name]
    return Traced(images[0], _read(output), output, constants, names)


def module_of(node: fx.Node) -> tuple[str, bool]:
    """Name of the innermost module that a call belongs to ("" for the network), and whether that is a layer."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", False
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return str(name), kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)


def source_of(node: fx.Node) -> str:
    """``net.py:12``: the line of the user's code that a call comes from; "" when that is not known."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def refusal(node: fx.Node, reason: str, hint: str = "") -> InputError:
    """An error that says which call, on which line and in which module cannot be lowered."""
    line, (name, _) = source_of(node), module_of(node)
    where = ", ".join(([line] if line else []) + [f"module '{name}'" if name else "the network itself"])
    return InputError(f"{node.target} at {where}: {reason}", hint)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Sizes of a node's tensor; None when it is no tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def _read(output: fx.Node) -> tuple[fx.Node, ...]:
    """The calls that the output depends on, in the order of the graph."""
    needed, pending = set(), [output]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    return tuple(node for node in output.graph.nodes if node in needed and node.op != "placeholder")


def _changes(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
