"""Fewer operators that compute the same: BatchNorm goes into weights, what nobody reads goes altogether."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from billhook.formats.graph import Operator

Tensors = dict[str, NDArray[Any]]
_Rule = Callable[["_Rewriting", Operator], "Operator | str | None"]
_FOLDS = ("conv", "linear", "scale")
_GATED = {"sigmoid": "silu", "hardsigmoid": "hardswish"}


def simplify(
    operators: Sequence[Operator],
    tensors: Mapping[str, NDArray[Any]],
    output: str,
    precision: type[np.floating[Any]] = np.float32,
) -> tuple[list[Operator], Tensors, str]:
    """Fold, fuse and drop.

    Args:
        operators: In an order in which they can be run.
        tensors: Theirs, floats of any width.
        output: The value that is the result.
        precision: Of the floats that come out.

    Returns:
        What is left: the operators, their tensors as ``precision`` and int32, and the value that is the result.
    """
    work = _Rewriting(operators, dict(tensors), output)
    work.rewrite()
    used = {key for operator in work.operators for key in operator.tensors.values()}
    stored = {
        name: np.ascontiguousarray(array, precision if array.dtype.kind == "f" else np.int32)
        for name, array in work.tensors.items()
        if name in used
    }
    return work.operators, stored, work.output


class _Rewriting:
    def __init__(self, operators: Sequence[Operator], tensors: Tensors, output: str) -> None:
        self.operators, self.tensors, self.output = list(operators), tensors, output
        self.makers: dict[str, Operator] = {}
        self.readers: Counter[str] = Counter()
        self.renamed: dict[str, str] = {}

    def rewrite(self) -> None:
        """From front to back: what is folded into has been looked at before what is folded."""
        self._drop_unread()
        for rules in ((_written_out, _gate), (_fold,)):  # a shift of 3 is not known any more once it is part of a bias
            self._apply(*rules)
            self._drop_unread()

    def _apply(self, *rules: _Rule) -> None:
        self._count()
        self.makers, self.renamed = {}, {}
        kept: dict[str, Operator] = {}
        for operator in self.operators:
            operator = replace(operator, inputs=tuple(self.renamed.get(name, name) for name in operator.inputs))
            for rule in rules:
                done = rule(self, operator)
                if isinstance(done, str):  # another value is as good as this one
                    self.renamed[operator.output] = done
                    self.readers[done] += self.readers[operator.output] - 1
                    break
                operator = operator if done is None else done
            else:
                self.makers[operator.output] = operator
                kept[operator.output] = operator
        self.operators = [self.makers[name] for name in kept]
        self.output = self.renamed.get(self.output, self.output)

    def _count(self) -> None:
        self.readers = Counter(name for operator in self.operators for name in operator.inputs)
        self.readers[self.output] += 1

    def _drop_unread(self) -> None:
        needed, kept = {self.output}, []
        for operator in reversed(self.operators):
            if operator.output in needed:
                kept.append(operator)
                needed.update(operator.inputs)
        self.operators = kept[::-1]

    def values(self, operator: Operator, role: str) -> NDArray[np.float64]:
        """A tensor of an operator in double precision."""
        return np.asarray(self.tensors[operator.tensors[role]], np.float64)

    def constant(self, name: str, weight: float, bias: float) -> Operator | None:
        """The operator that makes a value, when it multiplies and adds just this, and nobody else reads it."""
        maker = self.makers.get(name)
        if maker is None or maker.kind != "scale" or self.readers[name] != 1:
            return None
        same = np.allclose(self.values(maker, "weight"), weight, rtol=1e-6, atol=0)
        return maker if same and np.allclose(self.values(maker, "bias"), bias, rtol=1e-6, atol=0) else None


def _fold(work: _Rewriting, operator: Operator) -> str | None:
    """A ``scale`` into the operator before it."""
    if operator.kind != "scale":
        return None
    weight, bias = work.values(operator, "weight"), work.values(operator, "bias")
    if np.all(weight == 1) and not bias.any():
        return operator.inputs[0]
    maker = work.makers.get(operator.inputs[0])
    if maker is None or maker.kind not in _FOLDS or work.readers[maker.output] != 1:
        return None
    key = maker.tensors["weight"]
    rows = weight.reshape(-1, *[1] * (work.tensors[key].ndim - 1))
    work.tensors[key] = np.asarray(work.tensors[key], np.float64) * rows
    bias_key = maker.tensors.get("bias", f"{maker.name}.bias")
    old = np.asarray(work.tensors[bias_key], np.float64) if "bias" in maker.tensors else 0.0
    work.tensors[bias_key] = old * weight + bias
    work.makers[maker.output] = replace(maker, tensors={**maker.tensors, "bias": bias_key})
    return maker.output


def _gate(work: _Rewriting, operator: Operator) -> Operator | None:
    """``x * sigmoid(x)`` is SiLU, ``x * hardsigmoid(x)`` is hard-swish."""
    if operator.kind != "multiply":
        return None
    for value, gate in (operator.inputs, operator.inputs[::-1]):
        maker = work.makers.get(gate)
        if maker is not None and maker.kind in _GATED and maker.inputs == (value,):
            return replace(operator, kind=_GATED[maker.kind], inputs=(value,))
    return None


def _written_out(work: _Rewriting, operator: Operator) -> Operator | None:
    """``relu6(x + 3) / 6`` is a hard sigmoid, ``x * relu6(x + 3) / 6`` is hard-swish."""
    if operator.kind != "scale":
        return None
    if not np.allclose(work.values(operator, "weight"), 1 / 6, rtol=1e-6) or work.values(operator, "bias").any():
        return None
    maker = work.makers.get(operator.inputs[0])
    if maker is None or work.readers[maker.output] != 1:
        return None
    pairs = [(None, maker.output)] if maker.kind == "relu6" else []
    if maker.kind == "multiply":
        pairs = [maker.inputs, maker.inputs[::-1]]  # type: ignore[list-item]
    for value, gate in pairs:
        clamp = work.makers.get(gate)
        shifted = work.constant(clamp.inputs[0], 1.0, 3.0) if clamp is not None and clamp.kind == "relu6" else None
        if shifted is not None and value in (None, shifted.inputs[0]) and work.readers[gate] == 1:
            kind = "hardsigmoid" if value is None else "hardswish"
            return replace(operator, kind=kind, inputs=shifted.inputs, tensors={})
    return None
