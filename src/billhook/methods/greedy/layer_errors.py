"""HBGS: how much the outputs of the layers next to a group suffer when it loses channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from billhook.compensation.moments import compensable, evaluating
from billhook.methods.greedy.changes import Changes, called, cleared
from billhook.methods.greedy.current import Current
from billhook.methods.greedy.shrinking import Loss

HELD = 1 << 29
"""Bytes of original outputs that are held from round to round; more are computed anew."""


class Held:
    """What layers of the original network put out, batch by batch; held for the next time while there is room.

    Args:
        watch: Runs the original network on a batch: outputs by layer.
    """

    def __init__(self, watch: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._watch = watch
        self._outputs: list[dict[str, Tensor]] = []

    def __call__(self, number: int, batch: Tensor) -> dict[str, Tensor]:
        """Of the batch of that number; the same batch with each call."""
        if number < len(self._outputs):
            return self._outputs[number]
        outputs = self._watch(batch)
        size = sum(tensor.numel() * tensor.element_size() for tensor in outputs.values())
        if number == len(self._outputs) and (number + 1) * size <= HELD:
            self._outputs.append(outputs)
        return outputs


class LayerErrors:
    """Relative output errors of layers: current inputs against original outputs.

    A group's error is that of the layers that read it, ``||h(x) - y||^2 / ||y||^2``, averaged over them: ``y`` is what
    a reader put out in the original network, ``x`` what it takes in now, and ``h`` the reader as it is, or as it would
    be with the candidate. Where a normalisation follows directly, the outputs are those behind it: it may have taken
    up a constant. A reader without weights (a padded shortcut) is compared by what it takes in.

    One pass of the current network answers for all candidates: each changes the readers of its own group alone, and
    those see the same input whether it is carried out or not.

    Args:
        original: The network before anything was removed, on the same device.
        current: The network as it is.
        batches: Images to compare on; the same with each call.
        counted: Outputs that count, by layer: of the classifier, those of the kept classes. Of others all do.
    """

    power = 2
    """Errors are ratios of squares."""

    def __init__(
        self,
        original: nn.Module,
        current: Current,
        batches: Callable[[], Iterable[Tensor]],
        counted: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.original, self.current, self.batches = original, current, batches
        self._counted = {layer: list(rows) for layer, rows in (counted or {}).items()}
        self._behind: dict[str, str] = {}
        self._outputs = Held(self._watch)
        groups = current.grouping.groups
        weighted = {name: [m.layer for m in compensable(original, group)] for name, group in groups.items()}
        self._readers = {name: [m.layer for m in group.readers if m.dim is None] for name, group in groups.items()}
        self._weighted = {layer for layers in weighted.values() for layer in layers}

    @torch.no_grad()
    def measure(self, candidates: Mapping[str, Changes]) -> dict[str, Loss]:
        """Errors of candidates, by group: now, and with each of them."""
        module = self.current.module
        sums: dict[tuple[str, str], Tensor] = {}
        wanted = {name: list(self._readers[name]) for name in candidates}
        for number, batch in enumerate(self.batches()):
            outputs = self._outputs(number, batch)
            with ExitStack() as hooks:
                for name, layers in wanted.items():
                    for layer in layers:
                        if layer in outputs:
                            hook = self._hook(sums, name, layer, candidates[name], outputs[layer])
                            hooks.enter_context(module.get_submodule(layer).register_forward_pre_hook(hook))
                evaluated(module, batch)
        found = {}
        for name in candidates:
            errors = [ratios(sums[name, layer]) for layer in wanted[name] if (name, layer) in sums]
            found[name] = as_loss(torch.stack(errors).mean(dim=0) if errors else torch.zeros(2))
        return found

    def _hook(
        self, sums: dict[tuple[str, str], Tensor], name: str, layer: str, change: Changes, target: Tensor
    ) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            taken: Tensor = inputs[0]
            now = self._output(layer, taken, {})
            after = (
                self._output(layer, taken, change.tensors)
                if layer in self._weighted
                else cleared(taken, change.cleared[layer])
            )
            sums[name, layer] = sums.get((name, layer), torch.zeros(3).double()) + squares(now, after, target)

        return hook

    def _output(self, layer: str, taken: Tensor, tensors: Mapping[str, dict[str, Tensor]]) -> Tensor:
        if layer not in self._weighted:
            return taken
        module = self.current.module
        output = self._rows(layer, called(module.get_submodule(layer), tensors.get(layer, {}), taken))
        behind = self._behind.get(layer)
        if behind is not None:
            output = called(module.get_submodule(behind), tensors.get(behind, {}), output)
        return output

    def _rows(self, layer: str, output: Tensor) -> Tensor:
        return output[:, self._counted[layer]] if layer in self._counted else output

    # ------------------------------------------------------------------ the original network
    def _watch(self, batch: Tensor) -> dict[str, Tensor]:
        wrote: dict[str, tuple[Tensor, int]] = {}
        outputs: dict[str, Tensor] = {}

        def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(part: nn.Module, inputs: Any, output: Tensor) -> None:
                if name in self._weighted:
                    wrote[name] = (output, output._version)
                    outputs[name] = self._rows(name, output).clone()
                else:
                    outputs[name] = inputs[0].clone()

            return hook

        def normalised(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(part: nn.Module, inputs: Any, output: Tensor) -> None:
                for reader, (tensor, version) in wrote.items():
                    # The same tensor, untouched since: nothing lies between.
                    if inputs[0] is tensor and tensor._version == version:
                        self._behind[reader] = name
                        outputs[reader] = output.clone()

            return hook

        with ExitStack() as hooks:
            for layer in dict.fromkeys(layer for layers in self._readers.values() for layer in layers):
                hooks.enter_context(self.original.get_submodule(layer).register_forward_hook(after(layer)))
            for name, part in self.original.named_modules():
                if isinstance(part, _BatchNorm) and part.track_running_stats:
                    hooks.enter_context(part.register_forward_hook(normalised(name)))
            evaluated(self.original, batch)
        return outputs


def squares(now: Tensor, after: Tensor, target: Tensor) -> Tensor:
    """``[3]``, on the CPU: squared distances to a target, now and after, and what they are a share of."""
    found = [
        torch.linalg.vector_norm(part.float()).double().square() for part in (now - target, after - target, target)
    ]
    return torch.stack(found).cpu()


def ratios(sums: Tensor) -> Tensor:
    """``[2]``: errors now and after, from sums of :func:`squares`; zero where there was nothing."""
    return sums[:2] / sums[2] if sums[2] > 0 else sums[:2] * 0


def as_loss(errors: Tensor) -> Loss:
    """From ``[2]``."""
    now, after = errors.tolist()
    return now, after


def evaluated(module: nn.Module, batch: Tensor) -> Tensor:
    """What a network puts out in eval mode; its flags come back as they were."""
    with evaluating(module):
        output: Tensor = module(batch)
    return output
