"""Weights under a mask, with a latent weight and a gradient at every position.

The parameter holds ``mask * latent`` during forward and backward, so that autograd sees an ordinary network and its
gradient ``dL/d(mask*latent)`` is dense: the straight-through estimate for the latent weight, closed positions
included. The optimiser then steps the latent weight. Nothing is added to the graph, so a masked step costs a dense
one plus one multiplication per weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class MaskedWeights:
    """Masks over some parameters of a network.

    Args:
        module: The network; its parameters are used in place.
        names: The masked parameters.
        rate: Share of the straight-through gradient that reaches a closed latent weight. 1 is the plain estimator:
            a closed weight then follows a gradient that never feels its own steps, and drifts; 0 keeps it where it is.
        decay: SR-STE's λ: closed latent weights shrink by ``lr * λ`` per step (Zhou et al., 2021).
    """

    def __init__(self, module: nn.Module, names: Iterable[str], rate: float = 1.0, decay: float = 0.0) -> None:
        parameters = dict(module.named_parameters())
        self.parameters: dict[str, nn.Parameter] = {name: parameters[name] for name in names}
        self._latent: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.rate = rate
        self.decay = decay
        self.frozen = False
        self._effective: dict[str, Tensor] = {}
        self._keep: dict[str, Tensor] = {}
        self._gate: dict[str, Tensor] = {}

    @property
    def latent(self) -> dict[str, Tensor]:
        """The weights without their masks; those of the network until it has any."""
        return {name: self._latent.get(name, parameter.data) for name, parameter in self.parameters.items()}

    def set_masks(self, masks: Mapping[str, Tensor]) -> tuple[int, int]:
        """Take new boolean masks in the parameters' own shapes.

        Returns:
            How many mask bits changed, and how many weights came back from a closed position.
        """
        changed = returned = 0
        for name, mask in masks.items():
            # Taken only now: the network may have moved, or changed its memory layout, since it was handed over.
            latent = self._latent.setdefault(name, self.parameters[name].data)
            mask = mask.to(latent.device)
            old = self.masks.get(name)
            if old is not None:
                changed += int((old != mask).sum())
                returned += int((~old & mask).sum())
            self.masks[name] = mask
            # The float twin has the weight's own strides, so that the product below runs over flat memory.
            self._keep[name] = torch.empty_like(latent).copy_(mask)
            self._effective[name] = torch.empty_like(latent)
            # 1 for an open weight, the rate for a closed one.
            self._gate[name] = self._keep[name] * (1 - self.rate) + self.rate
        return changed, returned

    def freeze(self) -> None:
        """Fix the masks for good: closed weights become zero and get no gradient from here on."""
        self.frozen = True
        for name, keep in self._keep.items():
            self._latent[name].mul_(keep)

    @torch.no_grad()
    def close(self) -> None:
        """Put ``mask * latent`` into the parameters: what forward and backward (and evaluation) see."""
        for name, keep in self._keep.items():
            if self.frozen:
                # Without a gradient, the optimiser's momentum from before the freeze still moves closed weights.
                self._latent[name].mul_(keep)
                continue
            torch.mul(self._latent[name], keep, out=self._effective[name])
            self.parameters[name].data = self._effective[name]

    @torch.no_grad()
    def open(self) -> None:
        """Put the latent weights back for the optimiser and turn the gradient into the straight-through one."""
        for name, keep in self._keep.items():
            parameter, latent = self.parameters[name], self._latent[name]
            if parameter.grad is not None:
                if self.frozen:
                    parameter.grad.mul_(keep)
                elif self.rate < 1:
                    parameter.grad.mul_(self._gate[name])
                if self.decay and not self.frozen:
                    # lambda * (1 - m) * w, with m * w at hand from close()
                    parameter.grad.add_(latent, alpha=self.decay).sub_(self._effective[name], alpha=self.decay)
            parameter.data = latent

    def state_dict(self) -> dict[str, Tensor]:
        """The masks as uint8 tensors, named like their parameters (latent weights live in the network's state)."""
        return {name: mask.to(torch.uint8) for name, mask in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], frozen: bool) -> None:
        """Take the masks of a saved run back; the latent weights must be in the parameters."""
        self._latent = {}
        self.set_masks({name: mask.bool() for name, mask in state.items()})
        self.frozen = frozen
