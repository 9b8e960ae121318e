"""Distillation from the dense network: of its outputs (Hinton et al., 2015), of its maps (Romero et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened outputs, times T² so that its gradient keeps its scale for any T.

    Args:
        student: Logits ``[b, classes]``.
        teacher: Logits ``[b, classes]``; no gradient flows into them.
        temperature: T.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    with torch.no_grad():
        log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
    return functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2


class Hints:
    """Distillation of feature maps: the last map of every resolution, student against teacher.

    The student is a pruned copy of the teacher, so the maps need no regressor between them. One whose shape differs
    (channels were removed) gives no hint.

    Args:
        student: The network that is trained.
        teacher: The dense network, in evaluation mode.
        images: One batch, on the networks' device, to find the maps with.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        self.maps: dict[tuple[str, str], Tensor] = {}
        mine, theirs = _last_maps(student, images), _last_maps(teacher, images)
        self.layers = tuple(name for name, shape in theirs.items() if mine.get(name) == shape)
        self._handles = [
            network.get_submodule(name).register_forward_hook(self._keep(who, name))
            for who, network in (("student", student), ("teacher", teacher))
            for name in self.layers
        ]

    def loss(self) -> Tensor | float:
        """Mean over the maps of the squared difference, in variances of the teacher's map; of the last forward."""
        terms = []
        for name in self.layers:
            student = self.maps.pop(("student", name)).float()
            teacher = self.maps.pop(("teacher", name)).detach().float()
            terms.append((student - teacher).square().mean() / teacher.var().clamp(min=1e-6))
        return torch.stack(terms).mean() if terms else 0.0

    def close(self) -> None:
        """Leave the networks as they were."""
        for handle in self._handles:
            handle.remove()
        self.maps.clear()

    def _keep(self, who: str, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.maps[who, name] = output

        return hook


def _last_maps(network: nn.Module, images: Tensor) -> dict[str, torch.Size]:
    """The last layer that puts out a map of each resolution above one pixel, and the shape of one map."""
    found: dict[tuple[int, ...], tuple[str, torch.Size]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if name and isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
                found[tuple(output.shape[2:])] = (name, output.shape[1:])

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in network.named_modules()]
    flags = [(layer, layer.training) for layer in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(images[:1])
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in flags:
            layer.training = training
    return dict(found.values())
