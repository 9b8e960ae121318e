"""The graph of a packed network as a JSON document, and back; see docs/packed.md."""

from __future__ import annotations

import json
from typing import Any

from billhook.errors import InputError
from billhook.formats.graph import GRAPH_VERSION, Graph, Operator, Preprocess
from billhook.formats.rules import short
from billhook.formats.safetensors import load_json

_GRAPH_KEYS = {"version", "input", "shape", "operators", "output", "preprocess", "labels"}
_OPERATOR_KEYS = {"kind", "name", "inputs", "output", "settings", "tensors"}
_PREPROCESS_KEYS = {"size", "resize", "mean", "std"}


def encode_graph(graph: Graph) -> str:
    """The document of a graph; equal graphs give equal text.

    Raises:
        InputError: the graph holds something that JSON has no word for; :func:`billhook.formats.shapes` finds the rest.
    """
    preprocess = graph.preprocess
    document = {
        "version": GRAPH_VERSION,
        "input": graph.input,
        "shape": list(graph.shape),
        "operators": [
            {
                "kind": operator.kind,
                "name": operator.name,
                "inputs": list(operator.inputs),
                "output": operator.output,
                "settings": dict(sorted(operator.settings.items())),
                "tensors": dict(sorted(operator.tensors.items())),
            }
            for operator in graph.operators
        ],
        "output": graph.output,
        "preprocess": None
        if preprocess is None
        else {
            "size": preprocess.size,
            "resize": preprocess.resize,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        },
        "labels": list(graph.labels),
    }
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the graph cannot be written: {error}", "whole numbers, finite numbers and text only"
        ) from error


def decode_graph(text: str) -> Graph:
    """Undoes :func:`encode_graph` on untrusted text: structure and types are checked, the rest is for ``shapes``.

    Returns:
        The graph; settings that are lists become tuples.

    Raises:
        InputError: the text is no such document, or one of a later version.
    """
    try:
        document = load_json(text)
    except ValueError as error:
        raise _damaged(f"it is not valid JSON: {error}") from error
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise _damaged("it states no version")
    if document["version"] != GRAPH_VERSION:
        raise InputError(
            f"the network has version {short(document['version'])}, this billhook reads {GRAPH_VERSION}",
            "install the version of billhook that wrote the file, or a later one",
        )
    _keys("it", document, _GRAPH_KEYS)
    operators = document["operators"]
    if not isinstance(operators, list):
        raise _damaged("operators is no list")
    return Graph(
        input=_text("input", document["input"]),
        shape=_tuple("shape", document["shape"]),
        operators=tuple(_operator(number, entry) for number, entry in enumerate(operators)),
        output=_text("output", document["output"]),
        preprocess=None if document["preprocess"] is None else _preprocess(document["preprocess"]),
        labels=_texts("labels", document["labels"]),
    )


def _operator(number: int, entry: Any) -> Operator:
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"operator {number}" + (f" ({short(name)})" if isinstance(name, str) else "")
    _keys(where, entry, _OPERATOR_KEYS)
    settings, tensors = entry["settings"], entry["tensors"]
    if not isinstance(settings, dict) or not isinstance(tensors, dict):
        raise _damaged(f"{where}: settings and tensors are objects")
    return Operator(
        kind=_text(f"{where}: kind", entry["kind"]),
        name=_text(f"{where}: name", name),
        inputs=_texts(f"{where}: inputs", entry["inputs"]),
        output=_text(f"{where}: output", entry["output"]),
        settings={key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()},
        tensors={role: _text(f"{where}: tensor {short(role)}", value) for role, value in tensors.items()},
    )


def _preprocess(entry: Any) -> Preprocess:
    _keys("preprocess", entry, _PREPROCESS_KEYS)
    mean, std = (_tuple(f"preprocess: {key}", entry[key]) for key in ("mean", "std"))
    return Preprocess(entry["size"], entry["resize"], mean, std)


def _keys(where: str, entry: Any, keys: set[str]) -> None:
    if not isinstance(entry, dict) or entry.keys() != keys:
        found = short(sorted(entry)) if isinstance(entry, dict) else short(entry)
        raise _damaged(f"{where} is {found}, not an object of {', '.join(sorted(keys))}")


def _tuple(where: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _damaged(f"{where} is {short(value)}, not a list")
    return tuple(value)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(where, item) for item in _tuple(where, value))


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _damaged(f"{where} is {short(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _damaged(f"{where} holds half a character") from error
    return value


def _damaged(reason: str) -> InputError:
    return InputError(f"the network's description is damaged: {reason}", "write the file again or fetch it again")
