"""docs/format.md must describe the bytes that are written."""

import re
from pathlib import Path

import numpy as np
import pytest

from billhook.formats import (
    PatternInfo,
    hybrid_columns,
    hybrid_offsets,
    pack_state,
    packed_tensors,
    read_safetensors,
    unpack_state,
    write_safetensors,
)

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
BIAS = np.float32([0.5, 0, 0, -1])


def fenced(kind):
    return re.search(rf"```{kind}\n(.*?)```", PAGE, re.S).group(1)


@pytest.fixture
def file_bytes():
    return bytes.fromhex("".join(line[6:53] for line in fenced("hexdump").splitlines()))


@pytest.fixture
def weight_and_mask():
    cells = [line.replace("|", " ").split() for line in fenced("matrix").splitlines() if not line.startswith("-")]
    mask = np.array([[cell != "." for cell in row] for row in cells])
    weight = np.array([[0 if cell == "." else float(cell) for cell in row] for row in cells], np.float32)
    return tuple(array.reshape(4, 1, 2, 4).transpose(0, 3, 1, 2) for array in (weight, mask))


def test_the_example_is_what_is_written(tmp_path, file_bytes, weight_and_mask):
    weight, mask = weight_and_mask
    tensors, metadata = pack_state(
        {"conv.weight": weight, "conv.bias": BIAS}, {"conv.weight": PatternInfo("hybrid", 1, 2, 2, mask)}
    )
    assert write_safetensors(tmp_path / "model.safetensors", tensors, metadata) == len(file_bytes) == 506
    assert (tmp_path / "model.safetensors").read_bytes() == file_bytes


def test_the_example_reads_back(tmp_path, file_bytes, weight_and_mask):
    (tmp_path / "m").write_bytes(file_bytes)
    tensors, metadata = read_safetensors(tmp_path / "m")
    state = unpack_state(tensors, metadata)
    assert np.array_equal(state["conv.weight"], weight_and_mask[0])
    assert np.array_equal(state["conv.bias"], BIAS)


def test_the_table_of_the_example(tmp_path, file_bytes):
    (tmp_path / "m").write_bytes(file_bytes)
    tensors, metadata = read_safetensors(tmp_path / "m")
    layer = packed_tensors(tensors, metadata)["conv.weight"].layer
    rows = dict(re.findall(r"^\| `(columns|values|offsets)` \| ([\d, and]*\d)", PAGE, re.M))
    stated = {part: [int(number) for number in re.findall(r"\d+", text)] for part, text in rows.items()}
    assert stated["columns"] == hybrid_columns(layer).reshape(-1).tolist()
    assert stated["values"] == layer.values.tolist()
    assert stated["offsets"] == hybrid_offsets(layer).reshape(-1).tolist()
    assert tensors["conv.weight.columns"].tobytes().hex() == "9c"
    assert tensors["conv.weight.offsets"].tobytes().hex() == "e9"
