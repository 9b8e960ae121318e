"""A network whose convolutions lose inputs and outputs, each for itself, between 1x1 convolutions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from billhook.compensation import (
    Pointwise,
    PointwiseShape,
    Selection,
    Side,
    fp_backward,
    fp_omp,
    opened,
    pointwise_layers,
    shape_pointwise,
)
from billhook.methods.base import Outcome
from billhook.methods.channel_run import Batches, ChannelRun
from billhook.methods.greedy.changes import Changes, Running
from billhook.methods.greedy.config import Selector
from billhook.methods.greedy.layer_errors import Held, as_loss, evaluated, ratios, squares
from billhook.methods.greedy.shrinking import Loss
from billhook.methods.kept import Kept
from billhook.models import load_into, place
from billhook.surgery import Grouping

SIDES: tuple[Side, Side] = ("in", "out")


def side_names(layer: str) -> tuple[str, str]:
    """What the inputs and the outputs of a convolution are called."""
    return f"{layer}:in", f"{layer}:out"


def kept_shapes(grouping: Grouping, kept: Mapping[str, Sequence[int] | NDArray[np.int64]]) -> dict[str, PointwiseShape]:
    """The structure of a network whose sides keep these channels; convolutions that lost nothing are not in it."""
    shapes = {}
    for layer in dict.fromkeys(group.members[0].layer for group in grouping.groups.values()):
        widths = (
            len(kept[name]) if len(kept[name]) < grouping.groups[name].channels else None for name in side_names(layer)
        )
        shape = PointwiseShape(*widths)
        if shape != PointwiseShape(None, None):
            shapes[layer] = shape
    return shapes


@dataclass(frozen=True)
class SideCandidate:
    """A side of a convolution without some of its channels.

    Attributes:
        kept: Channels that would be left, ascending, as the original network numbers them.
        part: What would stand in the convolution's place.
    """

    kept: NDArray[np.int64]
    part: Pointwise

    @property
    def short(self) -> bool:
        """No images, never too few."""
        return False


class ShrinkingSides:
    """A network that loses inputs and outputs of its convolutions; it is always the smaller one itself.

    Args:
        dense: The network with all channels; left as it is.
        grouping: Sides of its convolutions, as groups.
        selector: How filters and input slices are chosen.
        device: Where it lies.
        channels_last: Its memory layout.
        enlarged: What it costs with 1x1 convolutions on all sides, by quantity.

    Attributes:
        kept: What is left of each side.
    """

    def __init__(
        self,
        dense: nn.Module,
        grouping: Grouping,
        selector: Selector,
        device: torch.device,
        channels_last: bool = True,
        enlarged: Mapping[str, int] | None = None,
    ) -> None:
        self.dense, self.grouping, self._enlarged = dense, grouping, dict(enlarged or {})
        self._select = fp_omp if selector == "omp" else fp_backward
        self._device, self._layout = device, channels_last
        self._module = place(copy.deepcopy(dense), device, channels_last)
        self.kept: Kept = {name: np.arange(group.channels) for name, group in grouping.groups.items()}
        members = {name: group.members[0] for name, group in grouping.groups.items()}
        self._sides: dict[str, tuple[str, Side]] = {
            name: (member.layer, cast(Side, member.side)) for name, member in members.items()
        }
        # Both rest on the weights of one convolution, and hold for as long as those do.
        self._selections: dict[str, Selection] = {}
        self._proposed: dict[str, SideCandidate] = {}

    @property
    def module(self) -> nn.Module:
        """The network as it is now."""
        return self._module

    @property
    def numbers(self) -> NDArray[np.int64]:
        """``[sides]``: channels that are left."""
        return np.array([len(channels) for channels in self.kept.values()], dtype=np.int64)

    def propose(self, wanted: Mapping[str, int]) -> dict[str, SideCandidate]:
        """What is left of sides when they keep so many channels."""
        return {name: self._propose(name, count) for name, count in wanted.items()}

    def _propose(self, name: str, count: int) -> SideCandidate:
        known = self._proposed.get(name)
        if known is not None and len(known.kept) == count:
            return known
        layer, side = self._sides[name]
        part = opened(cast(nn.Conv2d | Pointwise, self._module.get_submodule(layer)), side)
        if name not in self._selections:
            self._selections[name] = self._select(part.rows(side))
        selection, each = self._selections[name], count // part.groups
        less = part.without(side, selection, each)
        place(less, self._device, self._layout)
        self._proposed[name] = SideCandidate(self.kept[name][selection.kept(each)], less)
        return self._proposed[name]

    def changes(self, group: str, candidate: SideCandidate) -> Changes:
        """The convolution, with another in its place."""
        return Changes(parts={self._sides[group][0]: candidate.part})

    def leads(self, group: str, candidate: SideCandidate) -> bool:
        """A convolution keeps an input and an output, and streams their width: always."""
        return True

    def remove(self, group: str, candidate: SideCandidate) -> set[str]:
        """Carry a candidate out; returns both sides of its convolution, whose weights are others now."""
        layer, _ = self._sides[group]
        self._module.set_submodule(layer, candidate.part)
        self.kept[group] = candidate.kept
        near = set(side_names(layer))
        for name in near:
            self._selections.pop(name, None)
            self._proposed.pop(name, None)
        return near

    def lose(self, wanted: Mapping[str, int], in_the_end: Mapping[str, int]) -> bool:
        """Let sides go down to so many channels, one after the other: the second finds what the first has left."""
        for name, count in wanted.items():
            self.remove(name, self._propose(name, count))
        return False

    def forget(self) -> None:
        """Nothing: what is remembered is a function of weights that have not changed."""

    def layer_errors(self, original: nn.Module, batches: Batches, counted: Mapping[str, Sequence[int]]) -> ConvErrors:
        """Errors of the convolutions themselves, never those of a classifier."""
        return ConvErrors(original, self, tuple(dict.fromkeys(layer for layer, _ in self._sides.values())), batches)

    def small(self) -> nn.Module:
        """The network itself."""
        return self._module

    def take_back(self, small: nn.Module) -> None:
        """Continue with the weights of the network that was trained."""
        self._module = place(small, self._device, self._layout)
        self._selections.clear()
        self._proposed.clear()

    def cut(self, run: ChannelRun) -> nn.Module:
        """The network itself."""
        return self._module

    def outcome(self, run: ChannelRun, small: nn.Module) -> Outcome:
        """The smaller network, and one in full width, with zeros where channels were, that computes the same."""
        masked = copy.deepcopy(small)
        for layer, part in pointwise_layers(masked).items():
            if layer in {layer for layer, _ in self._sides.values()}:
                inside, out = (self.kept[name].tolist() for name in side_names(layer))
                masked.set_submodule(layer, part.widened(inside, out))
        return Outcome(small, masked=masked, history=run.history, enlarged=self._enlarged or None)

    def tensors(self) -> dict[str, Tensor]:
        """All weights."""
        return dict(self._module.state_dict())

    def restore(self, kept: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state: what :attr:`kept` and :meth:`tensors` were."""
        self.kept = {name: np.asarray(kept[name], dtype=np.int64) for name in self.grouping.groups}
        module = copy.deepcopy(self.dense)
        shape_pointwise(module, kept_shapes(self.grouping, self.kept))
        load_into(module, tensors, "the search so far")
        self.take_back(module)


class ConvErrors:
    """Relative output errors of convolutions, as published: current inputs against original outputs.

    A candidate's error is ``||h(x) - y||^2 / ||y||^2``: ``y`` is what the convolution put out in the original network,
    ``x`` what reaches it now, and ``h`` the convolution with the candidate, its 1x1 convolutions included. One pass of
    the current network answers for all candidates.

    Args:
        original: The network before anything was removed, on the same device.
        current: The network as it is.
        layers: The convolutions.
        batches: Images to compare on; the same with each call.
    """

    power = 2
    """Errors are ratios of squares."""

    def __init__(self, original: nn.Module, current: Running, layers: Sequence[str], batches: Batches) -> None:
        self.original, self.current, self.layers, self.batches = original, current, layers, batches
        self._outputs = Held(self._watch)

    @torch.no_grad()
    def measure(self, candidates: Mapping[str, Changes]) -> dict[str, Loss]:
        """Errors of candidates, by side: now, and with each of them."""
        sums = {name: torch.zeros(3, dtype=torch.float64) for name in candidates}
        parts: dict[str, dict[str, nn.Module]] = {}
        for name, change in candidates.items():
            for layer, part in change.parts.items():
                parts.setdefault(layer, {})[name] = part
        for number, batch in enumerate(self.batches()):
            targets = self._outputs(number, batch)

            def compare(layer: str, targets: dict[str, Tensor] = targets) -> _Hook:
                def hook(part: nn.Module, inputs: Any, output: Tensor) -> None:
                    for name, other in parts[layer].items():
                        sums[name] += squares(output, other(inputs[0]), targets[layer])

                return hook

            _hooked(self.current.module, batch, {layer: compare(layer) for layer in parts})
        return {name: as_loss(ratios(found)) for name, found in sums.items()}

    def _watch(self, batch: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def keep(layer: str) -> _Hook:
            def hook(part: nn.Module, inputs: Any, output: Tensor) -> None:
                outputs[layer] = output.clone()  # what follows may write into it

            return hook

        _hooked(self.original, batch, {layer: keep(layer) for layer in self.layers})
        return outputs


_Hook = Callable[[nn.Module, Any, Tensor], None]


def _hooked(module: nn.Module, batch: Tensor, hooks: Mapping[str, _Hook]) -> None:
    with ExitStack() as stack:
        for layer, hook in hooks.items():
            stack.enter_context(module.get_submodule(layer).register_forward_hook(hook))
        evaluated(module, batch)
