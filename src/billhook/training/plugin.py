"""What a pruning method may add to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Plugin:
    """Does nothing; a method overrides what it needs. Each call is about the step with that index."""

    def parameters(self) -> list[dict[str, Any]]:
        """Groups of further parameters for the optimiser; ``scale`` multiplies the learning rate."""
        return []

    def before_step(self, step: int) -> list[dict[str, Any]]:
        """Before forward; may choose new masks. Returns history events."""
        return []

    def loss(self, step: int) -> Tensor | None:
        """A scalar beside the loss on the outputs, on the device of the network."""
        return None

    def after_backward(self, step: int) -> None:
        """Between backward and the optimiser's step."""

    def before_evaluate(self) -> None:
        """Make the parameters hold what the delivered network would hold."""

    def after_evaluate(self) -> None:
        """Make the parameters trainable again."""

    def after_epoch(self, step: int) -> list[dict[str, Any]]:
        """When an epoch (or the phase) is over and its line is written. Returns history events."""
        return []

    def describe(self) -> dict[str, Any]:
        """Entries for every epoch's history line."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON to resume from."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take them back; the network's parameters are loaded already."""
