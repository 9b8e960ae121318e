"""docs/packed.md must describe the bytes that are written, and every operator."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from billhook.formats import KINDS, read_network, read_safetensors, write_network
from billhook.formats.network import NETWORK_KEY
from billhook.runtime.reference import run

from .networks import documented

PAGE = (Path(__file__).parents[2] / "docs" / "packed.md").read_text(encoding="utf-8")


def fenced(kind):
    return re.search(rf"```{kind}\n(.*?)```", PAGE, re.S).group(1)


@pytest.fixture
def path(tmp_path):
    write_network(tmp_path / "net", *documented())
    return tmp_path / "net"


def test_the_description_is_what_is_written(path):
    text = read_safetensors(path)[1][NETWORK_KEY]
    stated = json.loads(fenced("json"))
    assert text == json.dumps(stated, separators=(",", ":"))


def test_the_bytes_are_what_is_written(path):
    written = path.read_bytes()
    assert f"The file has {len(written)} bytes" in PAGE
    assert f"header is {int.from_bytes(written[:8], 'little'):#x} bytes long" in PAGE
    shown = 0
    for line in fenced("hexdump").splitlines():
        if match := re.match(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )+)", line):
            begin, octets = int(match[1], 16), bytes.fromhex(match[2])
            assert written[begin : begin + len(octets)] == octets
            shown += len(octets)
            reached = begin + len(octets)
    assert (shown, reached) == (48 + 82, len(written))


def test_the_table_of_the_example(path):
    tensors, _ = read_safetensors(path)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    rows = re.findall(r"^\| `([\w.]+)` \| (F32|U8) \| ([\d ]+) \| (0x\w+) \| ([-\d., ]+) \|$", PAGE, re.M)
    assert [row[0] for row in rows] == list(tensors)
    for name, kind, shape, begin, content in rows:
        array = tensors[name]
        assert (array.dtype, list(array.shape)) == ({"F32": "<f4", "U8": "u1"}[kind], [int(n) for n in shape.split()])
        assert array.reshape(-1).tolist() == [float(number) for number in content.split(",")]
        assert int(begin, 16) == start
        start += array.nbytes


def test_the_outputs_of_the_example(path):
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2) / 4
    outputs = run(read_network(path), x)[0].tolist()
    assert "gives {} and {}:".format(*outputs) in PAGE


def test_every_operator_is_described():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) ?\| (.*?) ?\| (.*?) \|$", PAGE, re.M)
    described = {row[0]: row for row in rows if row[0] in KINDS}
    assert list(described) == list(KINDS)
    for name, kind in KINDS.items():
        _, inputs, settings, tensors, _ = described[name]
        assert set(re.findall(r"`(\w+)`", settings)) == set(kind.settings)
        assert re.findall(r"`(\w+)`", tensors) == [role.rstrip("?") for role in kind.tensors]
        assert tensors.count("or none") == sum(role.endswith("?") for role in kind.tensors)
        assert {None: "two or more", 2: "two of one shape"}.get(kind.inputs, "") in inputs
