"""Which layers take a weight pattern, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from billhook.cost import Cost, LayerCost
from billhook.patterns import HybridPattern, from_matrix, to_matrix

MIN_LINEAR_OUTPUTS = 16
"""Fewer outputs than this leave a linear layer, or any head, dense: nothing would be gained by pruning it."""


@dataclass(frozen=True)
class Target:
    """A layer that takes the pattern.

    Attributes:
        name: Of the layer, ``layer1.0.conv1``.
        shape: Of its weight.
        rows: Rows that will be delivered (a head to be sliced), or None for all; the pattern lies on these.
        positions: Times each weight is used per image (output height × width).
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, ...] | None
    positions: int

    @property
    def parameter(self) -> str:
        """The weight's name in the state dictionary."""
        return f"{self.name}.weight"

    @property
    def outputs(self) -> int:
        """Delivered rows."""
        return len(self.rows) if self.rows is not None else self.shape[0]

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.shape[1]

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.shape[2] * self.shape[3] if len(self.shape) == 4 else 1

    @property
    def weights(self) -> int:
        """Delivered weights."""
        return self.outputs * self.inputs * self.taps

    def matrix(self, tensor: Tensor) -> Tensor:
        """The delivered rows as ``[O, taps, I]``."""
        view = to_matrix(tensor)
        return view if self.rows is None else view[torch.as_tensor(self.rows, device=view.device)]

    def full_mask(self, mask: Tensor) -> Tensor:
        """A mask over the delivered rows back in the weight's own shape; rows to be sliced off stay open."""
        if self.rows is not None:
            whole = torch.ones((self.shape[0], self.taps, self.inputs), dtype=torch.bool, device=mask.device)
            whole[torch.as_tensor(self.rows, device=mask.device)] = mask
            mask = whole
        return from_matrix(mask, self.shape)


def find_targets(
    cost: Cost, head: str, kept: Sequence[int] | None, pattern: HybridPattern | None
) -> tuple[list[Target], list[dict[str, str]]]:
    """Sort the convolutions and linear layers of a network into those that take the pattern and those left dense.

    Args:
        cost: Of the network.
        head: Name of the classifier.
        kept: Rows that the head will be sliced to, or None.
        pattern: The hybrid pattern; None for unstructured sparsity (no divisibility to ask for).

    Returns:
        The targets in execution order, and ``{"name", "reason"}`` for every other convolution or linear layer.
    """
    targets: list[Target] = []
    left: list[dict[str, str]] = []
    seen: set[str] = set()
    for layer in cost.layers:
        if not layer.macs or layer.name in seen:
            continue
        seen.add(layer.name)
        is_head = layer.name == head
        rows = tuple(kept) if kept is not None and is_head else None
        shape = tuple(int(n) for n in layer.weight_shape)
        target = Target(layer.name, shape, rows, round(layer.macs / max(1, _numel(shape))))
        reason = _reason(target, layer, is_head, pattern)
        if reason:
            left.append({"name": layer.name, "reason": reason})
        else:
            targets.append(target)
    return targets, left


def _reason(target: Target, layer: LayerCost, is_head: bool, pattern: HybridPattern | None) -> str:
    if layer.first:
        return "first convolution"
    if layer.kind == "depthwise":
        return "depthwise convolution"
    if layer.kind == "transposed":
        return "transposed convolution"
    if layer.groups > 1:
        return f"grouped convolution ({layer.groups} groups)"
    if len(target.shape) not in (2, 4):
        return f"convolution over {len(target.shape) - 2} dimensions"
    if layer.params < _numel(target.shape):
        return "its weight is shared with an earlier layer"
    if (is_head or len(target.shape) == 2) and target.outputs < MIN_LINEAR_OUTPUTS:
        kind = "head" if is_head else "linear layer"
        return f"{kind} with {target.outputs} outputs (fewer than {MIN_LINEAR_OUTPUTS})"
    if pattern is not None and target.inputs % pattern.nm.m:
        return f"M = {pattern.nm.m} does not divide its {target.inputs} input channels"
    return ""


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product
