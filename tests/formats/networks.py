"""Small networks for tests of the packed file: one with every kind of operator, one for the documentation."""

import numpy as np

from billhook.formats import Graph, Operator, PatternInfo, Preprocess

WINDOW = {"stride": (1, 1), "padding": (0, 0, 0, 0)}
CONV = WINDOW | {"dilation": (1, 1), "groups": 1}


def op(kind, output, *inputs, settings=None, **tensors):
    return Operator(kind, f"net.{output}", inputs, output, settings or {}, tensors)


def hybrid_mask(rng, rows, taps, inputs, n, m, block, kept):
    """bool [rows, taps, inputs] with ``n`` of ``m`` in ``kept`` blocks of every block row."""
    mask = rng.random((rows, taps, inputs // m, m)).argsort(-1) < n
    mask = mask.reshape(rows, taps, inputs)
    per_tap = -(-inputs // block)
    for top in range(0, rows, block):
        for column in rng.permutation(taps * per_tap)[kept:]:
            left = column % per_tap * block
            mask[top : top + block, column // per_tap, left : left + block] = False
    return mask


def as_weight(mask, *kernel):
    rows, _, inputs = mask.shape
    return np.ascontiguousarray(mask.reshape(rows, *kernel, inputs).transpose(0, -1, *range(1, 1 + len(kernel))))


def every_kind(seed=0):
    """graph, tensors, patterns: each kind of operator at least once, each form of a weight too."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {
        "stem.weight": normal(8, 4, 3, 2),
        "stem.bias": normal(8),
        "depth.weight": normal(8, 1, 3, 3),
        "squeeze.weight": normal(4, 8, 1, 1),
        "excite.weight": normal(8, 4, 1, 1),
        "excite.bias": normal(8),
        "grouped.weight": normal(6, 4, 1, 1),
        "norm.weight": normal(8),
        "norm.bias": normal(8),
        "shortcut.index": np.array([3, -1, 0, 7, 7, -1], np.int32),
        "head.weight": normal(5, 72),
        "head.bias": normal(5),
        "tail.weight": normal(5, 5),
    }
    patterns = {
        "stem.weight": PatternInfo("hybrid", 2, 4, 4, as_weight(hybrid_mask(rng, 8, 6, 4, 2, 4, 4, 3), 3, 2)),
        "squeeze.weight": PatternInfo("unstructured", 1, 1, 0, rng.random((4, 8, 1, 1)) < 0.4),
        "head.weight": PatternInfo("hybrid", 1, 1, 5, as_weight(hybrid_mask(rng, 5, 1, 72, 1, 1, 5, 3))),
    }
    wide = {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2), "groups": 1}
    deep = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 8}
    pool = {"stride": (2, 2), "padding": (1, 0, 1, 0), "kernel": (2, 2), "ceil": True}
    mean = pool | {"padding": (1, 0, 0, 0), "stride": (2, 1), "kernel": (2, 1), "count_padding": False}
    operators = (
        op("conv", "a", "x", settings=wide, weight="stem.weight", bias="stem.bias"),
        op("relu", "b", "a"),
        op("conv", "c", "b", settings=deep, weight="depth.weight"),
        op("scale", "d", "c", weight="norm.weight", bias="norm.bias"),
        op("hardswish", "e", "d"),
        op("globalavgpool", "f", "e"),
        op("conv", "g", "f", settings=CONV, weight="squeeze.weight"),
        op("silu", "h", "g"),
        op("conv", "i", "h", settings=CONV, weight="excite.weight", bias="excite.bias"),
        op("hardsigmoid", "j", "i"),
        op("multiply", "k", "e", "j"),
        op("add", "l", "k", "b"),
        op("maxpool", "m", "l", settings=pool),
        op("gather", "n", "m", settings={"stride": (2, 1)}, index="shortcut.index"),
        op("avgpool", "o", "m", settings=mean),
        op("conv", "p", "o", settings=CONV | {"groups": 2}, weight="grouped.weight"),
        op("relu6", "q", "p"),
        op("concat", "r", "q", "n"),
        op("flatten", "s", "r"),
        op("linear", "t", "s", weight="head.weight", bias="head.bias"),
        op("sigmoid", "u", "t"),
        op("linear", "v", "u", weight="tail.weight"),
        op("softmax", "y", "v"),
    )
    labels = ("tench", "goldfish", "гусь", "鶴", "")
    preprocess = Preprocess(7, 8, (0.5, 0.25, 0.1, 1 / 3), (0.2, 1, 0.25, 1 / 3))
    return Graph("x", (4, 7, 7), operators, "y", preprocess, labels), tensors, patterns


def documented():
    """The worked example of docs/packed.md."""
    mask = np.zeros((4, 4, 1, 2), bool)
    # (output, input, column) of the survivors of section 8 of docs/format.md.
    weights = {
        (0, 1, 0): 2, (0, 2, 1): 7, (1, 0, 0): 9, (1, 3, 1): 16,
        (2, 2, 0): 19, (2, 1, 1): 22, (3, 3, 0): 28, (3, 1, 1): 30,
    }  # fmt: skip
    weight = np.zeros(mask.shape, np.float32)
    for (row, channel, column), value in weights.items():
        mask[row, channel, 0, column] = True
        weight[row, channel, 0, column] = value
    tensors = {
        "conv.weight": weight,
        "conv.bias": np.float32([0.5, 0, 0, -1]),
        "fc.weight": np.float32([[1, 0, 0, 0], [0, 0, 0, 0.5]]),
    }
    operators = (
        Operator("conv", "conv", ("x",), "conv", CONV, {"weight": "conv.weight", "bias": "conv.bias"}),
        Operator("globalavgpool", "pool", ("conv",), "pool"),
        Operator("flatten", "flatten", ("pool",), "flatten"),
        Operator("linear", "fc", ("flatten",), "fc", {}, {"weight": "fc.weight"}),
    )
    graph = Graph("x", (4, 2, 2), operators, "fc", Preprocess(2, 3, (0.5,) * 4, (0.25,) * 4), ("cat", "dog"))
    return graph, tensors, {"conv.weight": PatternInfo("hybrid", 1, 2, 2, mask)}
