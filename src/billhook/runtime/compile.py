"""From steps, memory and choices to a program: what the native library runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from billhook.formats import PackedNetwork
from billhook.formats.graph import Graph
from billhook.runtime.choice import Choice, Facts, guess
from billhook.runtime.fuse import Fused, Step, fuse
from billhook.runtime.layout import Layout, Options, lay_out
from billhook.runtime.packing import Stream, pad_vector
from billhook.runtime.program import (
    COUNT_PADDING,
    RESIDUAL,
    RESIDUAL_LAST,
    Activation,
    Kind,
    ProgramStep,
    write_program,
)
from billhook.runtime.weights import ConvWeights, Target

Precision = Literal["f32", "bf16"]

_KINDS = {
    "maxpool": Kind.MAXPOOL,
    "avgpool": Kind.AVGPOOL,
    "global": Kind.GLOBAL,
    "add": Kind.ADD,
    "multiply": Kind.MULTIPLY,
    "scale": Kind.SCALE,
    "unary": Kind.UNARY,
    "gather": Kind.GATHER,
    "flatten": Kind.FLATTEN,
    "softmax": Kind.SOFTMAX,
}


@dataclass(frozen=True)
class Task:
    """What a step of a program is, for people and for planners.

    Attributes:
        name: Of the operator that it is named after; ``image`` and ``result`` for the first and the last.
        kind: dense, hybrid, depthwise, or what else it is.
        shape: (channels, height, width) of what it makes.
        choice: How a convolution is run; None for other steps.
        multiplications: Useful multiply-adds of a convolution: those of the weights that are stored.
        density: Share of its weights that are stored; 1 for other steps.
        efficiency: Useful share of the multiply-adds that its kernel does.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    choice: Choice | None = None
    multiplications: int = 0
    density: float = 1.0
    efficiency: float = 1.0


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program and what its steps are.

    Attributes:
        program: uint8, aligned to 64 bytes.
        tasks: One per step of it.
    """

    program: NDArray[np.uint8]
    tasks: tuple[Task, ...]


class Compiler:
    """Compiles one network, for one kind of CPU, as often as there are choices to try.

    Args:
        network: The network.
        lanes: Of the vectors of the instruction set.
        precision: Of activations and weights.
        threads: That will share every step.
        options: Of the layout.
    """

    def __init__(
        self,
        network: PackedNetwork,
        lanes: int,
        precision: Precision = "f32",
        threads: int = 1,
        options: Options | None = None,
    ) -> None:
        self.network, self.threads, self.precision = network, threads, precision
        bf16 = precision == "bf16"
        self.target = Target(lanes, bf16)
        self.fused: Fused = fuse(network)
        self.layout: Layout = lay_out(
            self.fused, lanes, 2 if bf16 else 4, int(bf16), options, narrow=_read_in_runs(self.fused, network)
        )
        self.weights = {
            step.name: ConvWeights(network, self.fused, step, self.target, self._run(step))
            for step in self.fused.steps
            if step.kind in ("conv", "depthwise")
        }
        self.facts: dict[str, Facts] = {
            name: weights.facts(threads) for name, weights in self.weights.items() if not weights.depthwise
        }

    def _run(self, step: Step) -> bool:
        view = self.layout.views[step.inputs[0]]
        return view.pixel == view.channels and step.window.dilation[1] == 1

    def guesses(self) -> dict[str, Choice]:
        """A choice for every convolution, nothing being measured."""
        return {name: guess(facts) for name, facts in self.facts.items()}

    def compile(self, choices: Mapping[str, Choice] | None = None, keep: bool = False) -> Compiled:
        """A program.

        Args:
            choices: By name of the step; the guess where there is none.
            keep: Whether packed weights are kept for the next call.
        """
        made = list(self._steps(self.guesses() | dict(choices or {}), keep))
        channels, height, width = self.network.graph.shape
        program = write_program(
            [step for step, _ in made],
            lanes=self.target.lanes,
            type_=int(self.target.bf16),
            arena=self.layout.arena,
            image=(channels, height, width),
            outputs=math.prod(self.fused.shapes[self.fused.output]),
            scaling=scaling(self.network.graph),
        )
        if not keep:
            for weights in self.weights.values():
                weights.forget()
        return Compiled(program, tuple(task for _, task in made))

    def _steps(self, choices: Mapping[str, Choice], keep: bool) -> Iterator[tuple[ProgramStep, Task]]:
        views, shapes = self.layout.views, self.fused.shapes
        yield ProgramStep(Kind.LOAD, out=views[self.fused.input]), Task("image", "load", shapes[self.fused.input])
        for step in self.fused.steps:
            if step.kind in ("conv", "depthwise"):
                yield self._convolution(step, choices.get(step.name), keep)
            elif step.kind == "concat":
                for copy in self.layout.copies.get(step.output, ()):
                    yield (
                        ProgramStep(Kind.COPY, in_=views[copy.source], out=copy.view),
                        Task(step.name, "copy", shapes[copy.source]),
                    )
            else:
                yield self._other(step), Task(step.name, step.kind, shapes[step.output])
        yield ProgramStep(Kind.STORE, in_=views[self.fused.output]), Task("result", "store", shapes[self.fused.output])

    def _common(self, step: Step) -> dict[str, Any]:
        views, window = self.layout.views, step.window
        return {
            "activation": Activation[step.activation.upper()] if step.activation else Activation.NONE,
            "kernel": window.kernel,
            "stride": window.stride,
            "dilation": window.dilation,
            "padding": window.padding,
            "in_": views[step.inputs[0]],
            "out": views[step.output],
        }

    def _other(self, step: Step) -> ProgramStep:
        more = self._common(step)
        tensors, padded = self.network.tensors, self.layout.views[step.output].padded
        if len(step.inputs) > 1:
            more["other"] = self.layout.views[step.inputs[1]]
        if step.kind == "scale":
            more |= {"values": pad_vector(tensors[step.weight], padded), "bias": pad_vector(tensors[step.bias], padded)}
        if step.kind == "gather":
            more["index"] = tensors[step.index].astype(np.int32)
        return ProgramStep(_KINDS[step.kind], flags=COUNT_PADDING if step.count_padding else 0, **more)

    def _convolution(self, step: Step, choice: Choice | None, keep: bool) -> tuple[ProgramStep, Task]:
        weights = self.weights[step.name]
        view = self.layout.views[step.inputs[0]]
        more = self._common(step)
        more["bias"] = weights.bias(self.layout.views[step.output].padded)
        if step.residual:
            more |= {
                "other": self.layout.views[step.residual],
                "flags": RESIDUAL_LAST if step.residual_last else RESIDUAL,
            }
        if weights.depthwise:
            pack = weights.pack(None, keep)
            task = Task(step.name, "depthwise", weights.made, None, weights.multiplications, weights.density)
            return ProgramStep(Kind.DEPTHWISE, groups=step.groups, values=pack, **more), task
        assert choice is not None
        pack = weights.pack(choice, keep)
        more |= {"tile": choice.tile, "rows": choice.rows, "order": choice.order, "split": choice.split}
        if isinstance(pack, Stream):
            offsets = pack.offsets(step.window.kernel[1], view.pixel, view.row, step.window.dilation)
            more |= {"index": pack.index, "offsets": offsets, "first": pack.first, "count": len(offsets)}
            kind, done = Kind.HYBRID, pack.values.size
            more |= {"slots": choice.slots, "groups": step.groups}
        else:
            kind, done = Kind.DENSE, pack.size
            more["vectors"] = choice.vectors
        task = Task(
            step.name,
            choice.kernel,
            weights.made,
            choice,
            weights.multiplications,
            weights.density,
            weights.stored / max(1, done),
        )
        return ProgramStep(kind, values=pack.values if isinstance(pack, Stream) else pack, **more), task


def _read_in_runs(fused: Fused, network: PackedNetwork) -> bool:
    """Whether the image meets dense convolutions alone, which read the taps of a row as one run of numbers."""
    readers = [step for step in fused.steps if fused.input in step.reads]
    return fused.output != fused.input and all(
        step.kind == "conv"
        and step.groups == step.window.dilation[1] == 1
        and step.weight not in network.packed
        and step.residual != fused.input
        for step in readers
    )


def scaling(graph: Graph) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Factor and term per channel that bring a byte to the network's range: (x / 255 - mean) / std."""
    preprocess = graph.preprocess
    if preprocess is None or graph.shape[0] > 4:
        return None
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
