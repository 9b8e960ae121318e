"""A finished run in the formats of others: what ``billhook export`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from billhook import artifact
from billhook.data.labels import parse_labels
from billhook.errors import InputError, UsageError, nearest
from billhook.export import export_packed, onnx_bytes, torch_export_bytes
from billhook.formats import read_safetensors, unpack_patterns
from billhook.formats.graph import Preprocess

FILES = {"onnx": "model.onnx", "torch-export": "model.pt2", "packed": "packed.safetensors"}
"""What each format's file is called in a run directory."""

_CHANNELS = 3


def export_run(
    directory: str | Path, to: str, out: str | Path | None = None, *, model: Any = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write the network of a finished run in another format.

    The size of a packed file is noted in the run's summary (``pruned.bytes_packed``).

    Args:
        directory: The run.
        to: ``onnx``, ``torch-export`` or ``packed``.
        out: The file; by default inside the run directory, under the format's own name.
        model: For a run of one's own code: the network to rebuild from, or its spec.
        overwrite: Replace a file that is there.

    Returns:
        ``format``, ``path``, ``bytes``, and ``batch``: images that the network takes at once, None for any number.

    Raises:
        UsageError: There is no such format, or what writes it is not installed.
        InputError: There is no finished run, the file exists, or the network cannot be written in that format.
        RunError: The file cannot be written.
    """
    if to not in FILES:
        raise UsageError(f"--to {to} is unknown", nearest(to, FILES))
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory}", "give the --out directory of a finished run")
    path = directory / FILES[to] if out is None else Path(out)
    _check_place(directory, to, path, overwrite)
    network, described, preprocess = artifact.load_network(directory, model)
    summary = artifact.read_json(directory / artifact.SUMMARY)
    shape = (_CHANNELS, preprocess.input_size, preprocess.input_size)
    batch: int | None = None
    if to == "packed":
        names, _ = parse_labels(list(described["labels"]), "labels")
        size = export_packed(
            network.module,
            path,
            input_shape=shape,
            patterns=unpack_patterns(*read_safetensors(directory / artifact.WEIGHTS)),
            labels=names,
            preprocess=Preprocess(preprocess.input_size, preprocess.resize, preprocess.mean, preprocess.std),
        )
        _note_size(directory, summary, size)
    else:
        content, free = (onnx_bytes if to == "onnx" else torch_export_bytes)(network.module, shape)
        artifact.write_atomically(path, content)
        size, batch = len(content), None if free else 1
    return {"format": to, "path": str(path), "bytes": size, "batch": batch}


def _check_place(directory: Path, to: str, path: Path, overwrite: bool) -> None:
    """Refuse a place before any work.

    Raises:
        InputError: It is taken, or no file can be there.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise InputError(what, "--out names a file in a directory that exists")
    own = [name for name in artifact.FILES if name != FILES[to]]
    if path.resolve().parent == directory.resolve() and path.name in own:
        raise InputError(f"{path} belongs to the run", f"give another --out, or none for {FILES[to]}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists", "give another --out, or --overwrite")


def _note_size(directory: Path, summary: dict[str, Any], size: int) -> None:
    pruned = summary.get("pruned")
    if isinstance(pruned, dict) and pruned.get("bytes_packed") != size:
        artifact.write_json(directory / artifact.SUMMARY, {**summary, "pruned": {**pruned, "bytes_packed": size}})
