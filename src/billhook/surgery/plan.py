"""A plan: what stays in every layer, as plain data, carried out wherever it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from billhook.surgery.tensors import Positions

Role = Literal["silent", "idle", "constant"]
"""What is left of a layer of a branch that is gone: nothing comes out, nothing happens, or a constant comes out."""

LONGEST = 1 << 20
"""Channels of one layer that a plan may speak of."""


@dataclass(frozen=True)
class LayerCut:
    """What stays of one layer.

    Attributes:
        out: Output channels that stay; None: all.
        inside: Input channels that stay; None: all. Empty, and the constant of a branch that is gone is zero.
        dim: Of a parameter that stands on its own: the dimension that ``out`` is about.
        gather: The channels of the stream that the layer reads, put in front of it; None: the stream as it comes.
        scatter: For each channel of the stream, the layer's output that goes there, or -1; None: its outputs as they
            are.
        role: Of a layer in a branch that is gone.
    """

    out: Positions | None = None
    inside: Positions | None = None
    dim: int | None = None
    gather: Positions | None = None
    scatter: Positions | None = None
    role: Role | None = None


@dataclass(frozen=True)
class ChannelPlan:
    """What stays of a network, layer by layer; layers that are not named stay as they are."""

    layers: Mapping[str, LayerCut] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            name: {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in vars(cut).items()
                if value is not None
            }
            for name, cut in self.layers.items()
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ChannelPlan:
        """Read what :meth:`as_dict` wrote. Whether it fits a network, :func:`billhook.surgery.check.check_plan` says.

        Raises:
            ValueError: Something else.
        """
        if not isinstance(content, Mapping):
            raise ValueError("channels are not understood")
        layers = {}
        for name, entry in content.items():
            if not (isinstance(name, str) and isinstance(entry, Mapping)):
                raise ValueError(f"the channels of '{name}' are not understood")
            fields: dict[str, Any] = {}
            for key, value in entry.items():
                if (key == "role" and value in ("silent", "idle", "constant")) or (key == "dim" and type(value) is int):
                    fields[key] = value
                elif key in ("out", "inside", "gather", "scatter") and _positions(value):
                    fields[key] = tuple(value)
                else:
                    raise ValueError(f"'{key}' of '{name}' is not understood")
            layers[name] = LayerCut(**fields)
        return cls(layers)


def _positions(value: Any) -> bool:
    # type(), because a bool is an int to isinstance.
    return isinstance(value, list) and len(value) <= LONGEST and all(type(number) is int for number in value)
