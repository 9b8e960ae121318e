"""ATen functions that compute nothing, and which vectors have to stay maps of one pixel."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from billhook.export.trace import shape_of

# fmt: off
SAME = frozenset(
    {
        "alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "feature_alpha_dropout",
        "feature_dropout", "lift_fresh", "lift_fresh_copy", "positive", "_to_copy", "to", "type_as",
    }
)
# fmt: on
"""Their output is their input (dropout: in evaluation mode)."""

# fmt: off
MOVES = frozenset(
    {
        "view", "_unsafe_view", "reshape", "_reshape_copy", "view_as", "flatten", "unflatten", "transpose",
        "permute", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint", "slice", "select", "narrow",
        "split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsqueeze", "squeeze", "expand",
        "expand_as", "cat", "concat", "concatenate", "stack", "hstack", "index_select", "index",
        "constant_pad_nd", "pad", "channel_shuffle", "native_channel_shuffle", "pixel_shuffle",
        "pixel_unshuffle", "flip", "roll", "slice_scatter", "select_scatter", "index_copy", "repeat",
        "repeat_interleave", "tile", "copy",
    }
)
# fmt: on
"""They put elements elsewhere."""

# fmt: off
FILLS = frozenset(
    {
        "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "fill", "zero",
    }
)
# fmt: on
"""They look at the shape of a tensor only."""

# fmt: off
ELEMENTWISE = frozenset(
    {
        "relu", "relu6", "hardtanh", "clamp", "clamp_min", "sigmoid", "hardsigmoid", "hardswish", "silu",
        "batch_norm", "cudnn_batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit", "add", "sub", "rsub", "mul", "div", "neg",
    }
)
# fmt: on


def packet(node: fx.Node) -> str:
    """``relu`` for ``aten.relu.default``; "getitem" for that of Python; empty for what is none of ATen's."""
    target: Any = node.target
    if getattr(target, "namespace", "aten") != "aten":
        return ""
    return str(getattr(getattr(target, "overloadpacket", target), "__name__", ""))


def one_pixel(calls: tuple[fx.Node, ...]) -> set[fx.Node]:
    """Calls whose result has one value per channel, and is needed as a map [C, 1, 1] because of what reads it.

    Squeeze-and-excitation passes through linear layers on its way back to a map. There is no operator that makes a map
    of a vector: those layers are lowered as convolutions of one pixel, and all others as linear ones.
    """
    needed: set[fx.Node] = set()
    inside = set(calls)
    for node in reversed(calls):
        if any(_needs_map(node, user, needed) for user in node.users if user in inside):
            needed.add(node)
    return needed


def _needs_map(node: fx.Node, user: fx.Node, needed: set[fx.Node]) -> bool:
    name, shape = packet(user), shape_of(user)
    if name in ("softmax", "_softmax"):
        return False
    if name in ("getitem", "native_batch_norm", "_native_batch_norm_legit_no_training"):
        return user in needed or any(_needs_map(user, reader, needed) for reader in user.users)
    if shape is None or not is_point(shape):
        return True
    if name in SAME or name in ELEMENTWISE or name == "linear":
        return user in needed
    if name in ("conv2d", "convolution"):
        return user in needed or not is_pointwise(user)
    before = shape_of(node)
    if name in MOVES and name not in ("permute", "transpose", "t", "flip", "roll", "cat", "stack"):
        return user in needed or before is None or math.prod(before) != math.prod(shape)
    return True


def is_point(shape: tuple[int, ...]) -> bool:
    """[1, N], [1, N, 1, 1]: one value per channel."""
    return len(shape) >= 2 and math.prod(shape) == shape[1]


def is_pointwise(conv: fx.Node) -> bool:
    """Whether a convolution of one pixel is a linear layer."""
    weight, image = (shape_of(argument) for argument in conv.all_input_nodes[1::-1])
    result = shape_of(conv)
    if weight is None or image is None or result is None or len(weight) != 4 or len(image) != 4:
        return False
    return image[2:] == (1, 1) and result[2:] == (1, 1) and weight[2:] == (1, 1) and weight[1] == image[1]
