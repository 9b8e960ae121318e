"""torchvision beside a CPU build of PyTorch whose index has no torchvision of the same build.

The package index's torchvision (0.28) is linked against CUDA. Beside PyTorch's CPU build its operators do not load,
which it tolerates, except that its first lines look for two operators of detection networks:
``RuntimeError: operator torchvision::nms does not exist``. Nothing that classifies images calls them. They are
declared here, without an implementation, when and only when that very error appears; a detection network that
calls one is told by torchvision that its operators are not there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

_Loaded = TypeVar("_Loaded")

# As torchvision 0.28 declares them in C++.
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_COMPLAINT = re.compile(r"operator torchvision::(\w+) does not exist")


def with_operators(load: Callable[[], _Loaded]) -> _Loaded:
    """What ``load`` gives; it imports torchvision, and runs a second time if the operators were what it lacked.

    Raises:
        Exception: Whatever else ``load`` raises, and whatever it raises the second time.
    """
    try:
        return load()
    except RuntimeError as error:
        complaint = _COMPLAINT.match(str(error))
        if complaint is None or complaint[1] not in _SCHEMAS:
            raise
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # they are what is left of an import that failed half-way
    return load()
