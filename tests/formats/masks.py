"""Random weights and masks with a hybrid pattern, and a slow packer that follows docs/format.md word by word."""

import numpy as np


def hybrid_case(seed, rows, taps, inputs, n, m, block, kept):
    """A weight full of awkward bit patterns and a valid mask, both [rows, taps, inputs]."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 1 << 32, (rows, taps, inputs), dtype=np.uint32).view(np.float32).copy()
    special = np.array([-0.0, 0.0, 1e-45, -1e-40, np.inf, np.nan], np.float32)
    weight[rng.random(weight.shape) < 0.3] = rng.choice(special)
    order = rng.random((rows, taps, inputs // m, m)).argsort(-1)
    mask = (order < n).reshape(rows, taps, inputs)
    if block:
        per_tap = -(-inputs // block)
        for top in range(0, rows, block):
            chosen = rng.permutation(taps * per_tap)[:kept]
            for column in range(taps * per_tap):
                if column not in chosen:
                    left = column % per_tap * block
                    mask[top : top + block, column // per_tap, left : left + block] = False
    return weight, mask


def slow_pack(weight, mask, n, m, block):
    """(value bits, offsets, columns) as Python lists, one loop per level of the stream order."""
    rows, taps, inputs = weight.shape
    height, width = (block, block) if block else (1, inputs)
    per_tap = -(-inputs // width)
    values, offsets, columns = [], [], []
    for top in range(0, rows, height):
        for column in range(taps * per_tap):
            tap, left = column // per_tap, column % per_tap * width
            if not mask[top : top + height, tap, left : left + width].any():
                continue
            if block:
                columns.append(column)
            for row in range(top, min(top + height, rows)):
                for group in range(left, min(left + width, inputs), m):
                    for offset in range(m):
                        if mask[row, tap, group + offset]:
                            values.append(int(weight[row, tap, group + offset].view(np.uint32)))
                            offsets.append(offset)
    return values, offsets, columns


def bits_of(array):
    """The bit patterns of float32 values, for comparisons that tell -0.0 from 0.0 and NaN from NaN."""
    return np.ascontiguousarray(array).view(np.uint32)
