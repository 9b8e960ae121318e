"""Where a network lies: device and memory layout."""

from __future__ import annotations

import torch
from torch import nn


def place(module: nn.Module, device: torch.device | str, channels_last: bool = True) -> nn.Module:
    """Move a network, in place, to a device and a memory layout; returns it."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(device).to(memory_format=layout)  # type: ignore[no-any-return, call-overload]
