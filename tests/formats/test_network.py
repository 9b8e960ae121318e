"""Packed networks through files: bit-equal round trips, and everything that a reader refuses."""

from __future__ import annotations

import dataclasses
import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.errors import InputError, RunError
from billhook.formats import (
    KINDS,
    Graph,
    Operator,
    PatternInfo,
    Preprocess,
    pack_state,
    read_network,
    read_safetensors,
    shapes,
    window_count,
    write_network,
    write_safetensors,
)
from billhook.formats.graph_json import decode_graph, encode_graph
from billhook.formats.network import NETWORK_KEY
from billhook.formats.rules import MAX_ELEMENTS, MAX_SETTING
from billhook.formats.state import PACKED_KEY

from .networks import CONV, WINDOW, documented, every_kind, op


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


# Round trips


def test_every_kind_is_in_the_example():
    assert {operator.kind for operator in every_kind()[0].operators} == set(KINDS)


@pytest.mark.parametrize("example", [every_kind, documented])
def test_what_was_written_is_read(path, example):
    graph, tensors, patterns = example()
    assert write_network(path, graph, tensors, patterns) == path.stat().st_size
    network = read_network(path)
    assert network.graph == graph
    assert network.packed.keys() == patterns.keys()
    assert network.tensors.keys() == tensors.keys() - patterns.keys()
    assert network.outputs == network.shapes[graph.output][0] == len(graph.labels)
    for name, array in tensors.items():
        kept = patterns[name].mask if name in patterns else np.ones(array.shape, bool)
        read = network.weight(name)
        assert (read.dtype, read.shape, read.flags.c_contiguous) == (array.dtype, array.shape, True)
        assert read.tobytes() == np.where(kept, array, np.zeros(1, array.dtype)).tobytes()


def test_any_bits_of_a_weight_survive(path):
    bits = np.random.default_rng(0).integers(0, 1 << 32, (3, 4), dtype=np.uint32)
    bits[0] = [0x80000000, 0x7FC12345, 0xFF800000, 1]
    operators = (op("flatten", "f", "x"), op("linear", "y", "f", weight="w"))
    for patterns in ({}, {"w": PatternInfo("unstructured", 1, 1, 0, np.ones((3, 4), bool))}):
        write_network(path, Graph("x", (1, 2, 2), operators, "y"), {"w": bits.view(np.float32)}, patterns)
        assert read_network(path).weight("w").view(np.uint32).tolist() == bits.tolist()


def test_writing_what_was_read_gives_the_same_bytes(path, tmp_path):
    graph, tensors, patterns = every_kind()
    write_network(path, graph, tensors, patterns)
    network = read_network(path)
    names = reversed([name for operator in network.graph.operators for name in operator.tensors.values()])
    write_network(tmp_path / "again", network.graph, {name: network.weight(name) for name in names}, patterns)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_lists_do_as_settings_and_come_back_as_tuples(path):
    graph, tensors, patterns = every_kind()
    listed = tuple(
        dataclasses.replace(o, settings={k: list(v) if isinstance(v, tuple) else v for k, v in o.settings.items()})
        for o in graph.operators
    )
    write_network(path, dataclasses.replace(graph, operators=listed), tensors, patterns)
    assert read_network(path).graph == graph


def test_reading_makes_no_dense_weight(path):
    rng = np.random.default_rng(0)
    mask = np.zeros((512, 512, 3, 3), bool)
    mask[:, :16] = rng.permutation(np.arange(16) < 4)[None, :, None, None]
    weight = rng.standard_normal(mask.shape, np.float32)
    operators = (
        op("conv", "c", "x", settings=CONV, weight="w"),
        op("globalavgpool", "p", "c"),
        op("flatten", "y", "p"),
    )
    graph = Graph("x", (512, 9, 9), operators, "y")
    write_network(path, graph, {"w": weight}, {"w": PatternInfo("unstructured", 1, 1, 0, mask)})
    tracemalloc.start()
    try:
        network = read_network(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The bytes of the file, and one byte for each bit of the bitmap while it is counted.
    assert peak < path.stat().st_size + 2 * weight.size + (1 << 20) < weight.nbytes
    assert network.weight("w").tobytes() == np.where(mask, weight, np.float32(0)).tobytes()


def test_weight_names_what_is_missing(path):
    write_network(path, *documented())
    with pytest.raises(InputError, match=r"no tensor 'conv\.weights'"):
        read_network(path).weight("conv.weights")


# What a writer refuses is what a reader would, and leaves no file


def edited(graph, output, **changes):
    """The graph with one operator, named by its output, changed."""
    operators = tuple(
        dataclasses.replace(operator, **changes) if operator.output == output else operator
        for operator in graph.operators
    )
    assert operators != graph.operators
    return dataclasses.replace(graph, operators=operators)


NAN = Preprocess(7, 8, (float("nan"),) * 4, (1,) * 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda g, t, p: (edited(g, "b", settings={"slope": 0.1}), t, p),
            r"'net\.b' \(relu\): its settings are 'slope'",
        ),
        (lambda g, t, p: (dataclasses.replace(g, labels=("\ud800",) * 5), t, p), "half a character"),
        (lambda g, t, p: (g, t | {"stem.bias": t["stem.bias"].astype(np.float64)}, p), "'net.a': its bias is float64"),
        (lambda g, t, p: (g, t | {"stem.weight": t["stem.weight"].astype(np.float16)}, p), "'stem.weight'.*float32"),
        (lambda g, t, p: (g, t | {"more": np.zeros(1, np.float32)}, p), "no operator uses tensor 'more'"),
        (lambda g, t, p: (g, t, p | {"more": p["stem.weight"]}), "no tensor 'more' to pack"),
        (lambda g, t, p: (g, t, p | {"norm.bias": p["stem.weight"]}), "'norm.bias'.*agree"),
        (lambda g, t, p: (edited(g, "a", settings={"stride": np.int64(1)}), t, p), "cannot be written"),
        (
            lambda g, t, p: (dataclasses.replace(g, preprocess=Preprocess(7, 8, (float("nan"),) * 4, (1,) * 4)), t, p),
            "",
        ),
        (lambda g, t, p: (dataclasses.replace(g, shape=(4, 7)), t, p), "input's shape"),
    ],
)
def test_a_network_that_no_reader_would_take_is_not_written(path, change, reason):
    with pytest.raises(InputError, match=rf"net\.safetensors.*{reason}"):
        write_network(path, *change(*every_kind()))
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_is_not_there(path):
    with pytest.raises(RunError, match="cannot write"):
        write_network(path.parent / "no" / "net", *documented())


# Hostile files: the documents of a sound one, changed


def put(*keys, value):
    def change(document):
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        if value is None:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value
        return document

    return change


def setting(output, name, value):
    return at(output, lambda operator: operator["settings"].__setitem__(name, value))


def at(output, change):
    def wrapped(document):
        change(next(operator for operator in document["operators"] if operator["output"] == output))
        return document

    return wrapped


def insert(*operators):
    """Operators before the last one."""

    def change(document):
        document["operators"][-1:-1] = [
            {"kind": k, "name": f"new {o}", "inputs": i, "output": o, "settings": s, "tensors": t}
            for k, o, i, s, t in operators
        ]
        return document

    return change


HOSTILE = {
    # The document
    "version 2": (put("version", value=2), "has version 2, this billhook reads 1"),
    "version true": (put("version", value=True), "states no version"),
    "version missing": (put("version", value=None), "states no version"),
    "a list": (lambda d: [d], "states no version"),
    "a key more": (put("comment", value="hello"), "not an object of input, labels"),
    "a key less": (put("labels", value=None), "not an object of input, labels"),
    "operators an object": (put("operators", value={}), "operators is no list"),
    "operator a number": (put("operators", 3, value=7), "operator 3 is 7, not an object"),
    "operator key more": (at("c", lambda o: o.__setitem__("x", 1)), r"operator 2 \('net.c'\) is"),
    "operator key less": (at("c", lambda o: o.pop("tensors")), r"operator 2 \('net.c'\) is"),
    "name a number": (at("c", lambda o: o.__setitem__("name", 7)), "operator 2: name is 7, not text"),
    "inputs text": (at("c", lambda o: o.__setitem__("inputs", "b")), "inputs is 'b', not a list"),
    "input a list": (at("c", lambda o: o.__setitem__("inputs", [["b"]])), r"inputs is \['b'\], not text"),
    "output null": (at("c", lambda o: o.__setitem__("output", None)), "output is None, not text"),
    "settings a list": (at("c", lambda o: o.__setitem__("settings", [])), "settings and tensors are objects"),
    "tensor a number": (at("c", lambda o: o.__setitem__("tensors", {"weight": 3})), "tensor 'weight' is 3, not text"),
    "labels text": (put("labels", value="abcde"), "labels is 'abcde', not a list"),
    "a label a number": (put("labels", value=["a", "b", "c", "d", 5]), "labels is 5, not text"),
    "half a character": (put("labels", value=["\ud800"] * 5), "labels holds half a character"),
    "input a number": (put("input", value=1), "input is 1, not text"),
    # The input and what belongs to it
    "shape text": (put("shape", value="477"), "shape is '477', not a list"),
    "shape of two": (put("shape", value=[4, 7]), r"shape \[4, 7\] is not"),
    "shape with zero": (put("shape", value=[4, 0, 7]), r"\[4, 0, 7\] is not"),
    "shape fractional": (put("shape", value=[4, 7.0, 7]), "is not"),
    "shape of truth": (put("shape", value=[4, True, 7]), "is not"),
    "shape negative": (put("shape", value=[4, -7, -7]), "is not"),
    "shape huge": (put("shape", value=[10**30, 7, 7]), "is not"),
    "shape too large": (put("shape", value=[1 << 14, 1 << 14, 2]), "has more than 268435456 elements"),
    "shape nested": (put("shape", value=[[[[[4]]]], 7, 7]), "is not"),
    "size": (put("preprocess", "size", value=8), "cuts images to 8"),
    "size fractional": (put("preprocess", "size", value=7.0), "cuts images to 7.0"),
    "resize below": (put("preprocess", "resize", value=6), "resizes to 6, which is not 7 to 28"),
    "resize huge": (put("preprocess", "resize", value=29), "resizes to 29"),
    "resize truth": (put("preprocess", "resize", value=True), "resizes to True"),
    "mean of three": (put("preprocess", "mean", value=[0, 0, 0]), "mean is not 4 numbers"),
    "mean infinite": (put("preprocess", "mean", value=[1e308, 0, 0, 0]), "mean is not 4 numbers"),
    "mean a huge whole number": (put("preprocess", "mean", value=[10**400, 0, 0, 0]), "mean is not 4 numbers"),
    "mean text": (put("preprocess", "mean", value=["0", 0, 0, 0]), "mean is not 4 numbers"),
    "mean a number": (put("preprocess", "mean", value=0.5), "mean is 0.5, not a list"),
    "std zero": (put("preprocess", "std", value=[0, 1, 1, 1]), "std is not 4 numbers from 1e-06"),
    "std tiny": (put("preprocess", "std", value=[1e-40, 1, 1, 1]), "std is not 4 numbers from 1e-06"),
    "preprocess a list": (put("preprocess", value=[]), r"preprocess is \[\], not an object"),
    "preprocess key": (put("preprocess", "mode", value=1), "preprocess is"),
    "labels of four": (put("labels", value=["a"] * 4), "4 labels for 5 outputs"),
    "no operators": (put("operators", value=[]), "the result 'y' is made by no operator"),
    # The order
    "unknown result": (put("output", value="z"), "the result 'z' is made by no operator"),
    "the input as result": (put("output", value="x"), r"the result 'x' has the shape \[4, 7, 7\]"),
    "an early result": (put("output", value="v"), r"'net.y' \(softmax\): nothing uses its output"),
    "later value": (at("b", lambda o: o.__setitem__("inputs", ["c"])), r"'net.b' \(relu\): its input 'c' is not made"),
    "own value": (at("b", lambda o: o.__setitem__("inputs", ["b"])), "its input 'b' is not made before it"),
    "value made twice": (at("b", lambda o: o.__setitem__("output", "a")), "its output 'a' is taken"),
    "input made again": (at("b", lambda o: o.__setitem__("output", "x")), "its output 'x' is taken"),
    "name taken": (
        at("b", lambda o: o.__setitem__("name", "net.a")),
        r"'net.a' \(relu\): another operator has its name",
    ),
    "value not used": (insert(("relu", "z", ["v"], {}, {})), r"'new z' \(relu\): nothing uses its output"),
    # Operators
    "unknown kind": (at("b", lambda o: o.__setitem__("kind", "gelu")), r"'net.b' \(unknown\): there is no kind 'gelu'"),
    "two inputs": (at("b", lambda o: o.__setitem__("inputs", ["a", "a"])), "it has 2 inputs, 1 are needed"),
    "concat of one": (at("r", lambda o: o.__setitem__("inputs", ["q"])), "it has 1 inputs, two or more"),
    "no input": (at("l", lambda o: o.__setitem__("inputs", [])), "it has 0 inputs, 2 are needed"),
    "setting missing": (at("a", lambda o: o["settings"].pop("stride")), "its settings are"),
    "setting more": (setting("b", "slope", 0.1), "its settings are 'slope', needed are none"),
    "tensor missing": (
        at("a", lambda o: o["tensors"].pop("weight")),
        "its tensors are 'bias', needed are weight, bias[?]",
    ),
    "role more": (at("b", lambda o: o.__setitem__("tensors", {"weight": "stem.weight"})), "needed are none"),
    "no such tensor": (at("a", lambda o: o["tensors"].__setitem__("bias", "stem")), "there is no tensor 'stem'"),
    "part of a packed tensor": (
        at("a", lambda o: o["tensors"].__setitem__("bias", "stem.weight.values")),
        "there is no tensor 'stem.weight.values'",
    ),
    "weight as bias": (at("d", lambda o: o["tensors"].__setitem__("bias", "depth.weight")), "its bias"),
    "a tensor that nobody uses": (at("t", lambda o: o["tensors"].pop("bias")), "no operator uses tensor 'head.bias'"),
    # Settings
    "stride zero": (setting("a", "stride", [0, 1]), "stride is .* not 2 whole numbers from 1 to 32768"),
    "stride negative": (setting("a", "stride", [-1, 1]), "stride is"),
    "stride of three": (setting("a", "stride", [1, 1, 1]), "stride is"),
    "stride fractional": (setting("a", "stride", [1.0, 1]), "stride is"),
    "stride a number": (setting("a", "stride", 2), "stride is 2, not 2 whole numbers"),
    "stride null": (setting("a", "stride", None), "stride is None"),
    "stride truth": (setting("a", "stride", [True, True]), "stride is"),
    "stride beyond": (setting("a", "stride", [1, MAX_SETTING + 1]), "stride is"),
    "stride an object": (setting("a", "stride", {"0": 1, "1": 1}), "stride is"),
    "stride digits": (setting("a", "stride", "11"), "stride is '11'"),
    "dilation zero": (setting("a", "dilation", [1, 0]), "dilation is"),
    "dilation huge": (setting("a", "dilation", [1, MAX_SETTING]), "its window does not fit"),
    "padding negative": (setting("a", "padding", [0, 0, -1, 0]), "padding is"),
    "padding of two": (setting("a", "padding", [1, 1]), "padding is .* not 4 whole numbers from 0"),
    "padding beyond": (setting("a", "padding", [0, 0, 0, 10**30]), "padding is"),
    "padding too large": (setting("a", "padding", [MAX_SETTING] * 4), "padded input has more than 268435456 elements"),
    "groups zero": (setting("a", "groups", 0), "groups is 0, not a count"),
    "groups text": (setting("a", "groups", "1"), "groups is '1'"),
    "groups truth": (setting("a", "groups", True), "groups is True"),
    "groups do not divide": (setting("p", "groups", 4), "in 4 groups does not fit 8 channels"),
    "groups huge": (setting("a", "groups", 10**30), "groups does not fit 4 channels"),
    "kernel zero": (setting("m", "kernel", [0, 2]), "kernel is"),
    "kernel too large": (
        setting("m", "kernel", [7, 2]),
        "its window does not fit into the padded input, 4 [+] 1 [+] 1",
    ),
    "kernel in padding": (setting("m", "padding", [2, 0, 0, 0]), "padding of 2 takes a whole window of 2"),
    "ceil a number": (setting("m", "ceil", 1), "ceil is 1, not true or false"),
    "count_padding null": (setting("o", "count_padding", None), "count_padding is None, not true or false"),
    # Shapes
    "linear on an image": (
        at("t", lambda o: o.__setitem__("inputs", ["r"])),
        "a vector is needed; flatten comes before",
    ),
    "linear too narrow": (insert(("linear", "z", ["s"], {}, {"weight": "tail.weight"})), "does not fit 72 inputs"),
    "conv on a vector": (
        insert(("conv", "z", ["t"], CONV, {"weight": "squeeze.weight"})),
        r"'new z' \(conv\): its input has the shape \[5\], not \(channels, height, width\)",
    ),
    "conv of a matrix": (at("g", lambda o: o["tensors"].__setitem__("weight", "tail.weight")), "its weight"),
    "conv of a vector": (
        insert(("conv", "z", ["e"], CONV, {"weight": "norm.bias"})),
        r"its weight has the shape \[8\]",
    ),
    "pool of a vector": (
        insert(("maxpool", "z", ["t"], WINDOW | {"kernel": [1, 1], "ceil": False}, {})),
        r"its input has the shape \[5\]",
    ),
    "add of two shapes": (
        at("l", lambda o: o.__setitem__("inputs", ["k", "j"])),
        r"\[8, 4, 6\] and \[8, 1, 1\], equal",
    ),
    "multiply of two shapes": (at("k", lambda o: o.__setitem__("inputs", ["e", "h"])), "or one with a single pixel"),
    "concat of two sizes": (at("r", lambda o: o.__setitem__("inputs", ["q", "m"])), "only channels may differ"),
    "concat of a vector": (at("r", lambda o: o.__setitem__("inputs", ["q", "f"])), "only channels may differ"),
    "scale too narrow": (at("d", lambda o: o.__setitem__("inputs", ["x"])), r"\[8\], \[4\] is needed"),
    "index of a matrix": (
        insert(("gather", "z", ["m"], {"stride": [1, 1]}, {"index": "tail.weight"})),
        "its index has",
    ),
    "index as bias": (
        insert(("linear", "z", ["s"], {}, {"weight": "head.weight", "bias": "shortcut.index"})),
        "its bias",
    ),
    "stride of a vector": (
        insert(("gather", "z", ["t"], {"stride": [1, 2]}, {"index": "shortcut.index"})),
        "a vector has no pixels to leave out",
    ),
    "flatten of a vector": (insert(("flatten", "z", ["t"], {}, {})), r"'new z' \(flatten\): its input has the shape"),
    "softmax of an image": (insert(("softmax", "z", ["r"], {}, {})), "a vector is needed"),
    "values too large": (
        # Each doubles its channels: 72 * 2^22 elements are beyond what one value may have.
        insert(
            ("concat", "z0", ["s", "s"], {}, {}),
            *(("concat", f"z{k}", [f"z{k - 1}"] * 2, {}, {}) for k in range(1, 30)),
        ),
        r"'new z21' \(concat\): it makes a value of shape",
    ),
    "values too many": (
        insert(
            ("concat", "z0", ["s", "s"], {}, {}),
            *(("concat", f"z{k}", [f"z{k - 1}"] * 2, {}, {}) for k in range(1, 21)),
            *(("relu", f"z{k}", [f"z{k - 1}"], {}, {}) for k in range(21, 40)),
        ),
        r"'new z33' \(relu\): it makes .* all together 2147483648",
    ),
}


def rewritten(path, *, network=None, packed=None, tensors=None):
    """Damages the file of :func:`every_kind` below its header, which stays in order."""
    graph, arrays, patterns = every_kind()
    stored, metadata = pack_state(arrays, patterns)
    metadata[NETWORK_KEY] = encode_graph(graph)
    for key, change in ((NETWORK_KEY, network), (PACKED_KEY, packed)):
        if change is not None:
            metadata[key] = json.dumps(change(json.loads(metadata[key])))
    if tensors is not None:
        tensors(stored)
    write_safetensors(path, stored, metadata)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_with_a_reason(path, name):
    change, reason = HOSTILE[name]
    rewritten(path, network=change)
    with pytest.raises(InputError, match=rf"net\.safetensors: .*({reason})") as caught:
        read_network(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("null", "states no version"),
        ("[" * 100_000, "nested too deeply"),
        ('{"version":1,"version":1}', "a key is given twice"),
        ('{"version":NaN}', "NaN is not JSON"),
        ('{"version":' + "9" * 5000 + "}", "not valid JSON"),
        ('{"version":' + "9" * 4000 + "}", "has version 9"),
        ('{"version":1,"operators":' + "[" * 900 + "]" * 900 + "}", "not an object of"),
    ],
)
def test_text_that_is_no_document(path, text, reason):
    write_safetensors(path, {}, {NETWORK_KEY: text})
    with pytest.raises(InputError, match=rf"net\.safetensors: .*{reason}"):
        read_network(path)


def test_nesting_of_any_depth_is_refused_and_shown():
    """Parsing and showing have limits of their own; neither may be met by the other's surprise."""
    graph, arrays, _ = every_kind()
    text = encode_graph(graph)
    for depth in range(100, 1000, 7):
        with pytest.raises(InputError, match=r"groups is \(\[\[\[\.\.\.|nested too deeply"):
            shapes(
                decode_graph(text.replace('"groups":1', '"groups":' + "[" * depth + "]" * depth, 1)),
                {name: array.shape for name, array in arrays.items()},
            )


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (
            lambda t: t.__setitem__("shortcut.index", np.int32([0, 8] * 3)),
            "'net.n': its index goes from 0 to 8, -1 to 7 is",
        ),
        (lambda t: t.__setitem__("shortcut.index", np.int32([-2, 7] * 3)), "goes from -2 to 7"),
        (lambda t: t.__setitem__("shortcut.index", np.empty(0, np.int32)), r"its index has the shape \[0\]"),
        (lambda t: t.__setitem__("shortcut.index", np.int64([0] * 6)), "its index is int64, not int32"),
        (lambda t: t.__setitem__("shortcut.index", np.float32([0] * 6)), "its index is float32, not int32"),
        (lambda t: t.__setitem__("shortcut.index", np.uint32([0] * 6)), "its index is uint32, not int32"),
        (lambda t: t.__setitem__("stem.bias", np.zeros(8)), "'net.a': its bias is float64, not float32"),
        (lambda t: t.__setitem__("stem.bias", np.zeros(8, np.int32)), "its bias is int32, not float32"),
        (lambda t: t.__setitem__("stem.bias", np.zeros((8, 1), np.float32)), r"its bias has the shape \[8, 1\]"),
        (lambda t: t.__setitem__("depth.weight", np.zeros((8, 1, 0, 3), np.float32)), "its weight has the shape"),
        (lambda t: t.__setitem__("depth.weight", np.zeros((0, 1, 3, 3), np.float32)), "its weight has the shape"),
        (lambda t: t.__setitem__("depth.weight", np.zeros((8, 2, 3, 3), np.float32)), "in 8 groups does not fit"),
        (lambda t: t.__setitem__("tail.weight", np.zeros((0, 5), np.float32)), "does not fit 5 inputs"),
        (lambda t: t.__setitem__("extra", np.zeros(5, np.float32)), "no operator uses tensor 'extra'"),
        (lambda t: t.pop("tail.weight"), "there is no tensor 'tail.weight'"),
        (lambda t: t.__setitem__("stem.weight", np.zeros((8, 4, 3, 2), np.float32)), "both packed and dense"),
        (lambda t: t.pop("stem.weight.values"), "'stem.weight.values' is missing"),
        (lambda t: t["stem.weight.offsets"].fill(0), "'stem.weight.offsets': the offsets of a group"),
        (lambda t: t["stem.weight.columns"].__setitem__(0, 255), "'stem.weight.columns': column 7 is beyond the 6"),
        (lambda t: t.__setitem__("stem.weight.values", t["stem.weight.values"][1:]), "'stem.weight.values': float32"),
        (lambda t: t["squeeze.weight.bitmap"].fill(255), "'squeeze.weight.values': float32"),
        (lambda t: t.__setitem__("squeeze.weight.bitmap", np.zeros(3, np.uint8)), "'squeeze.weight.bitmap': "),
    ],
)
def test_damaged_tensors_are_refused_with_a_reason(path, tensors, reason):
    rewritten(path, tensors=tensors)
    with pytest.raises(InputError, match=rf"net\.safetensors: .*{reason}"):
        read_network(path)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (put("version", value=2), "packed layers have version 2"),
        (put("layers", "stem.weight", "shape", value=[8, 4, 6]), "its weight has the shape"),
        (put("layers", "stem.weight", "shape", value=[8, 4, 2, 3]), r"'net\.r' \(concat\)|'net\.t' \(linear\)"),
        (put("layers", "stem.weight", "m", value=3), "'stem.weight': M = 3"),
        (put("layers", "stem.weight", value=None), "there is no tensor 'stem.weight'"),
        (put("layers", "squeeze.weight", "shape", value=[8, 4, 1, 1]), "does not fit 8 channels"),
        (put("layers", "head.weight", "shape", value=[1 << 40, 72]), "far more weights"),
    ],
)
def test_damaged_packed_layers_are_refused_with_a_reason(path, packed, reason):
    rewritten(path, packed=packed)
    with pytest.raises(InputError, match=rf"net\.safetensors: .*({reason})"):
        read_network(path)


def test_other_metadata_is_refused(path):
    write_network(path, *documented())
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, tensors, metadata | {"format": "pt"})
    with pytest.raises(InputError, match="metadata entry 'format' belongs to no packed network"):
        read_network(path)


def test_a_file_of_weights_is_no_network(path):
    write_safetensors(path, {"w": np.zeros(3)}, {})
    with pytest.raises(InputError, match=r"net\.safetensors holds no packed network"):
        read_network(path)


def test_no_file(path):
    with pytest.raises(InputError, match="cannot read"):
        read_network(path)


def test_a_tiny_file_cannot_ask_for_all_memory(path):
    """A weight with nothing kept takes no bytes: neither its sides nor the values they lead to are allocated."""
    wide = 1 << 26
    operators = (op("conv", "c", "x", settings=CONV, weight="w"), op("flatten", "y", "c"))
    layer = {"pattern": "hybrid", "shape": [wide, 1, 1, 1], "n": 1, "m": 1, "block": 1, "kept": 0}
    nothing = {"w.values": np.empty(0, np.float32)} | dict.fromkeys(("w.offsets", "w.columns"), np.empty(0, np.uint8))
    write_network(path, Graph("x", (1, 2, 2), operators, "y"), {"w": np.zeros((3, 1, 1, 1), np.float32)}, {})
    _, metadata = read_safetensors(path)
    metadata[PACKED_KEY] = json.dumps({"version": 1, "layers": {"w": layer}})
    write_safetensors(path, nothing, metadata)
    tracemalloc.start()
    try:
        assert read_network(path).outputs == 4 * wide == MAX_ELEMENTS
        layer["kept"] = 1
        write_safetensors(path, nothing, metadata | {PACKED_KEY: json.dumps({"version": 1, "layers": {"w": layer}})})
        with pytest.raises(InputError, match=r"'w\.values': \[0\] stored, 67108864 or more"):
            read_network(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# Bytes of any kind


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_never_raise_anything_but_input_errors(path, seed):
    write_network(path, *(every_kind() if seed % 2 else documented()))
    sound = path.read_bytes()
    rng = random.Random(seed)
    sane = 0
    for _ in range(60):
        raw = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(raw))
            if raw[place : place + 1].isdigit() and rng.random() < 0.8:
                raw[place] = ord(rng.choice("0123456789"))
            else:
                raw[place] = rng.randrange(256)
        if rng.random() < 0.2:
            del raw[rng.randrange(len(raw)) :]
        path.write_bytes(raw)
        try:
            network = read_network(path)
        except InputError:
            continue
        sane += 1
        assert all(network.weight(name).size < 1 << 20 for name in (*network.tensors, *network.packed))
    assert sane  # values may be anything


# Positions of windows


def slow_count(size, kernel, stride, before, after, dilation, ceil):
    """Windows counted one by one."""
    span = dilation * (kernel - 1) + 1
    count, begin = 0, -before
    while begin + span <= size + after:
        count += 1
        begin += stride
    # In ceil mode one more reaches beyond the end, when some of the side is left for it and it begins before the end.
    rest = size + after - (begin - stride + span) if count else 0
    return count + bool(ceil and rest > 0 and begin < size)


@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 5),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
)
def test_windows_are_counted(size, kernel, stride, before, after, dilation, ceil):
    if ceil:  # of pools, whose padding is less than a window
        before, after = min(before, kernel - 1), min(after, kernel - 1)
    if dilation * (kernel - 1) + 1 > size + before + after:
        assert window_count(size, kernel, stride, before, after, dilation) < 1
    else:
        expected = slow_count(size, kernel, stride, before, after, dilation, ceil)
        assert window_count(size, kernel, stride, before, after, dilation, ceil) == expected


def test_shapes_without_a_file():
    operators = (op("flatten", "f", "x"), op("linear", "y", "f", weight="w"))
    graph = Graph("x", (2, 3, 4), operators, "y")
    assert shapes(graph, {"w": (5, 24)}) == {"x": (2, 3, 4), "f": (24,), "y": (5,)}
    with pytest.raises(InputError, match=r"^operator 'net.y' \(linear\): a weight of shape \[5, 23\] does not fit 24"):
        shapes(graph, {"w": (5, 23)})


def test_a_gate_may_come_first():
    operators = (
        op("globalavgpool", "g", "x"),
        op("multiply", "m", "g", "x"),
        op("flatten", "f", "m"),
        Operator("concat", "twice", ("f", "f"), "y"),
    )
    assert shapes(Graph("x", (2, 3, 4), operators, "y"), {})["m"] == (2, 3, 4)
