"""What a run leaves on disk, and reading it back. No pickle; nothing in it names code to run."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import billhook
from billhook.compensation import PointwiseShape, pointwise_layers, pointwise_shapes, pointwise_values, shape_pointwise
from billhook.data import Data, Preprocess
from billhook.data.labels import parse_labels
from billhook.errors import BillhookError, InputError, RunError, UsageError
from billhook.formats import (
    PatternInfo,
    header_bytes,
    load_json,
    pack_state,
    read_safetensors,
    unpack_state,
    write_safetensors,
)
from billhook.formats.state import FREE_WEIGHTS
from billhook.models import REGISTRY, Network, load_into, open_network, place
from billhook.surgery import ChannelPlan, remove_channels, slice_head

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"
SUMMARY = "summary.json"
RECIPE = "recipe.yaml"
HISTORY = "history.jsonl"
REPORT_DATA = "report_data.npz"
SIMULATION = "simulation.json"
BENCH = "bench.json"
GATES = "gates.safetensors"
LATENCY = "latency.json"
PARTIAL = ".partial"
FILES = (
    WEIGHTS,
    ARCHITECTURE,
    SUMMARY,
    RECIPE,
    HISTORY,
    REPORT_DATA,
    SIMULATION,
    BENCH,
    "report.html",
    GATES,
    LATENCY,
    "packed.safetensors",
    "model.onnx",
    "model.pt2",
)
"""Everything that billhook writes into a run directory."""

MOST_CLASSES = 1 << 17
"""Outputs of a head that an artifact may ask for; the largest public sets have a few ten thousand classes."""


@dataclass(frozen=True)
class Contents:
    """What goes into a run directory beside the network and its summary.

    Attributes:
        described: ``architecture.json``, see :func:`architecture`.
        patterns: How the masked weights are stored.
        recipe: ``recipe.yaml``.
        report_data: ``report_data.npz``.
        more: Further safetensors files of the method: tensors and metadata, by name.
        documents: Further JSON files of the method, by name.
    """

    described: dict[str, Any]
    patterns: dict[str, PatternInfo]
    recipe: str
    report_data: dict[str, NDArray[Any]]
    more: dict[str, tuple[dict[str, NDArray[Any]], dict[str, str]]] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)


def state_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """The state dictionary as numpy arrays; floats as float32, counters of BatchNorm left out (they carry nothing)."""
    arrays = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        value = tensor.detach().cpu()
        arrays[name] = (value.float() if value.is_floating_point() else value).contiguous().numpy()
    return arrays


def as_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Arrays read from a file as tensors of their own memory."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def state_hash(module: nn.Module) -> str:
    """SHA-256 over names and values of the state dictionary."""
    digest = hashlib.sha256()
    for name, array in sorted(state_arrays(module).items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_bytes(arrays: Mapping[str, NDArray[Any]], patterns: Mapping[str, PatternInfo]) -> int:
    """Size of ``model.safetensors`` holding these arrays under these patterns."""
    tensors, metadata = pack_state(arrays, patterns)
    return header_bytes(tensors, metadata) + sum(tensor.nbytes for tensor in tensors.values())


def slice_patterns(patterns: Mapping[str, PatternInfo], head: str, kept: tuple[int, ...]) -> dict[str, PatternInfo]:
    """The patterns after the head lost its other rows."""
    name = f"{head}.weight"
    sliced = dict(patterns)
    if name in sliced:
        sliced[name] = replace(sliced[name], mask=sliced[name].mask[list(kept)])
    return sliced


def deliverable(module: nn.Module) -> nn.Module:
    """The network as it is delivered: on the CPU, fp32, contiguous, in evaluation mode."""
    return place(module.float(), "cpu", channels_last=False).eval()


def architecture(
    network: Network,
    module: nn.Module,
    *,
    head: str,
    sliced: bool,
    data: Data,
    preprocess: Preprocess,
    patterns: Mapping[str, PatternInfo],
    channels: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of ``architecture.json``, less the hash of the weights file.

    Args:
        channels: Every channel plan between the spec and ``module``, in the order they were carried out.
    """
    kept = list(data.kept)
    return {
        "billhook": billhook.__version__,
        "format": 1,
        "spec": network.spec,
        "builtin": network.builtin,
        "classes": network.classes,
        "head": {"layer": head, "sliced": sliced, "kept": kept},
        "labels": data.label_entries(kept if sliced else None),
        "kept_classes": list(data.kept_names),
        "channels": [dict(plan) for plan in channels] or None,
        "pointwise": {name: asdict(shape) for name, shape in pointwise_shapes(module).items()} or None,
        "patterns": {
            name: {"kind": p.kind, "n": p.n, "m": p.m, "block": p.block, "nonzero": int(p.mask.sum())}
            for name, p in patterns.items()
        },
        "preprocess": preprocess.as_dict(),
        "data": data.name,
        "parameters": sum(p.numel() for p in module.parameters()),
        "versions": {
            "python": sys.version.split()[0],
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "hashes": {"source_weights": network.weights_hash},
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name and rename.

    Raises:
        RunError: The disk is full or not writable.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror or error}", "free space, then --resume") from error


def write_json(path: Path, content: Any) -> None:
    """JSON, one document, atomically; NaN becomes null."""
    write_atomically(path, (json.dumps(_finite(content), indent=1, allow_nan=False) + "\n").encode())


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON line per epoch, round and mask update."""
    write_atomically(path, "".join(json.dumps(_finite(line)) + "\n" for line in history).encode())


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A compressed ``.npz`` without pickled objects."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def write_model(
    directory: Path, module: nn.Module, patterns: Mapping[str, PatternInfo], described: dict[str, Any]
) -> int:
    """Write ``model.safetensors`` and ``architecture.json``; returns the bytes of the former."""
    tensors, metadata = pack_state(state_arrays(module), patterns)
    size = write_safetensors(directory / WEIGHTS, tensors, metadata)
    described = dict(described)
    described["hashes"] = dict(described["hashes"]) | {"model": sha256(directory / WEIGHTS)}
    write_json(directory / ARCHITECTURE, described)
    return size


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files.

    Raises:
        InputError: Missing or damaged.
    """
    try:
        content = load_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no finished run: {path.name} is missing", _hint(path.parent)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: not a JSON object")
    return content


def names_run(model: str) -> bool:
    """Whether a MODEL is a run directory; a folder that happens to be called like a built-in network is none."""
    path = Path(model)
    return (
        bool(model) and path.is_dir() and (model.partition(",")[0] not in REGISTRY or (path / ARCHITECTURE).is_file())
    )


def refuse_weights(model: str, weights: object) -> None:
    """A run has its own weights: a file that is named beside it would go unread.

    Raises:
        UsageError: One is.
    """
    if weights is not None:
        raise UsageError(
            f"{model} is a run with its own weights: --weights {weights} would not be read",
            "leave --weights out, or name the network's spec in the place of the run",
        )


def load(directory: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Rebuild the network of a run; its output is bit-equal to the one saved.

    Args:
        directory: A run directory.
        model: For a run of your own code: the dense network (or its spec) to rebuild from. Not needed for built-in,
            ``torchvision:`` and ``timm:`` specs.

    Returns:
        An ordinary ``nn.Module`` in evaluation mode, on the CPU.

    Raises:
        InputError: No run, a damaged one, or weights that do not fit.
        UsageError: The run is of the user's own code and ``model`` is missing.
    """
    return load_network(directory, model)[0].module


def load_network(
    directory: str | Path,
    model: nn.Module | str | None = None,
    *,
    remedy: str = "name it again: --model SPEC, or model= in Python",
    carried_out: int = 0,
) -> tuple[Network, dict[str, Any], Preprocess]:
    """Like :func:`load`, with what the artifact says about the network and how to feed it.

    Args:
        remedy: What to do about a run of the user's own code without ``model``.
        carried_out: How many of the run's channel plans ``model`` has been through already.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory}")
    described = read_json(directory / ARCHITECTURE)
    try:
        spec, classes = str(described["spec"]), int(described["classes"])
        head, preprocess = described["head"], Preprocess.from_dict(described["preprocess"])
        layer, kept, sliced = str(head["layer"]), [int(i) for i in head["kept"]], bool(head["sliced"])
        names, _ = parse_labels(list(described["labels"]), "labels")
        if len(names) != (len(kept) if sliced else classes):
            raise ValueError(f"{len(names)} labels")
        if not set(described["kept_classes"]) <= set(names):
            raise ValueError("kept_classes that are no labels")
        digest = dict(described["hashes"]).get("model")
        plans = [ChannelPlan.from_dict(dict(plan)) for plan in described.get("channels") or ()]
        between = dict(described.get("pointwise") or {})
        shapes = {name: PointwiseShape.from_dict(shape) for name, shape in between.items()}
    except (AttributeError, KeyError, TypeError, ValueError, BillhookError) as error:
        raise InputError(f"{directory / ARCHITECTURE} is damaged: {error!r}", "copy the run directory again") from error
    # Decided by the spec, not by what the file claims: reading an artifact must never run code that it names.
    if model is None and not _rebuildable(spec):
        raise UsageError(f"{directory} holds a network of your own code ({spec})", remedy)
    tensors, metadata = read_safetensors(directory / WEIGHTS)
    if digest is not None and sha256(directory / WEIGHTS) != digest:
        raise InputError(
            f"{directory / WEIGHTS} is damaged: its hash is not the one in {ARCHITECTURE}",
            "copy the run directory again",
        )
    state = unpack_state(tensors, metadata)
    if model is None:
        network = _rebuild(directory, spec, classes, _values(state), bool(plans or shapes))
    else:
        # A network that was passed in stays as it is.
        network = open_network(copy.deepcopy(model), classes)
    module = network.module
    for plan in plans[carried_out:]:
        module = remove_channels(module, plan)
    _put_between(directory, module, shapes, _values(state))
    if sliced:
        try:
            module = slice_head(module, layer, kept)
        except (AttributeError, IndexError, TypeError) as error:
            raise InputError(
                f"{network.spec} has no classifier '{layer}' with the outputs that {directory} keeps",
                "name the network that was pruned",
            ) from error
    load_into(module, as_tensors(state), str(directory / WEIGHTS))
    network = replace(
        network,
        module=deliverable(module),
        classes=len(kept) if sliced else classes,
        initialised=True,
        channels=tuple(plan.as_dict() for plan in plans),
    )
    return network, described, preprocess


def _values(state: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.size for array in state.values())


def _put_between(directory: Path, module: nn.Module, shapes: Mapping[str, PointwiseShape], stored: int) -> None:
    """The 1x1 convolutions that stayed around convolutions, in place; a network that was passed in may have them.

    Raises:
        InputError: The network cannot have them, or they would be larger than all that is stored.
    """
    there = pointwise_layers(module)
    missing = {name: shape for name, shape in shapes.items() if name not in there}
    try:
        if pointwise_values(module, missing) > stored:
            raise InputError("more 1x1 convolutions than weights")
        shape_pointwise(module, missing)
    except InputError as error:
        raise InputError(
            f"{directory / ARCHITECTURE} does not fit the network: {error.message}",
            "copy the run directory again, or name the network that was pruned",
        ) from error


def _rebuild(directory: Path, spec: str, classes: int, stored: int, cut: bool) -> Network:
    """The dense network that an artifact names, its weights still to be loaded.

    A few words of text must not ask for all memory: no network far larger than the weights that lie beside them.

    Raises:
        InputError: The dense network would be.
    """
    size = classes
    if ":" not in spec:
        with torch.device("meta"):  # names and shapes only: nothing is allocated
            size = sum(p.numel() for p in open_network(spec, classes, draw="none").module.parameters())
    # Channels that were removed are not in the file: the network it came from may be a hundred times as large.
    if classes > MOST_CLASSES or size > FREE_WEIGHTS + (200 if cut else 2) * stored:
        raise InputError(
            f"{directory / ARCHITECTURE} is damaged: {spec} with {classes} outputs is far larger than the weights",
            "copy the run directory again",
        )
    return open_network(spec, classes, draw="none")


def _rebuildable(spec: str) -> bool:
    """Whether a spec names a built-in network or one of a library, by name alone."""
    where, colon, _ = spec.rpartition(":")
    return not colon or where in ("torchvision", "timm")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _hint(directory: Path) -> str:
    if (directory / PARTIAL).is_dir():
        return "it was interrupted: run the same command with --resume"
    return "give the --out directory of a finished run"
