"""``open_source``: one door for every kind of image source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from billhook.data.datasets import open_datasets
from billhook.data.folder import open_folder
from billhook.data.parquet import open_parquet
from billhook.data.source import ArrayRows, Source
from billhook.data.splits import with_test
from billhook.errors import InputError, UsageError

DIGITS_TEST_SHARE = 0.2


def open_source(source: Any) -> Source:
    """Open an image source; nothing is decoded yet.

    Args:
        source: An image-folder tree, a directory of ``SPLIT-*.parquet``, ``"digits"``, ``"hf:OWNER/NAME"``, a pair
            (train, test) or triple (train, val, test) of PyTorch map-style datasets, or a Source (returned as is).

    Raises:
        InputError: The source is missing, empty or in no known layout.
        UsageError: The value is of no kind that can be opened.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, tuple | list):
        return open_datasets(source)
    if not isinstance(source, str | Path):
        raise UsageError(
            f"a {type(source).__name__} is not an image source",
            "give a path, 'digits', 'hf:OWNER/NAME' or a pair of PyTorch datasets",
        )
    if source == "digits":
        return _digits()
    if isinstance(source, str) and source.startswith("hf:"):
        return _hub(source[3:])
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"no data at {path}", "give an image folder, a parquet folder, 'digits' or 'hf:OWNER/NAME'")
    if not path.is_dir():
        raise InputError(f"{path} is a file, not a folder", "give the folder that the images or parquet files lie in")
    for folder in (path, path / "data"):
        files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
        if files:
            return open_parquet(files, folder, path.resolve().name)
    return open_folder(path)


def _digits() -> Source:
    """scikit-learn's bundled digits: 1,797 grey images of 8 x 8, values 0..16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("'digits' needs scikit-learn", "pip install 'billhook[prune]'") from error
    bundle = load_digits()
    grey = np.rint(np.asarray(bundle.images) * (255 / 16)).astype(np.uint8)
    rows = ArrayRows(np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=3)), bundle.target)
    classes = tuple(str(digit) for digit in range(10))
    return Source("digits", classes, None, with_test(rows, classes, DIGITS_TEST_SHARE), flips=False)


def _hub(repository: str) -> Source:
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UsageError(f"'hf:{repository}' is not of the form hf:OWNER/NAME", "for example hf:uoft-cs/cifar10")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError("'hf:' sources need huggingface_hub", "pip install huggingface_hub") from error
    for revision in (None, "refs/convert/parquet"):
        try:
            root = Path(
                snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=["*.parquet"])
            )
        except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
            raise InputError(
                f"cannot download {repository} from the Hugging Face hub: {str(error).strip().splitlines()[0][:160]}"
                if str(error).strip()
                else f"cannot download {repository} from the Hugging Face hub: {type(error).__name__}",
                "check the name and the network, or give a local folder with the same parquet files",
            ) from error
        files = sorted(root.rglob("*.parquet"))
        if files:
            return open_parquet(_one_configuration(files, root, repository), root, repository.split("/")[1])
    raise InputError(f"no parquet files in {repository} on the Hugging Face hub", "download it as an image folder")


def _one_configuration(files: list[Path], root: Path, repository: str) -> list[Path]:
    """The files of the one configuration: the hub lays them out as ``CONFIG/SPLIT-*`` or ``CONFIG/SPLIT/*``."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(root).parts
        groups.setdefault(parts[0] if len(parts) > 1 else "", []).append(file)
    for name in ("default", "data", "") if len(groups) > 1 else groups:
        if name in groups:
            return groups[name]
    raise InputError(
        f"{repository} has several configurations: {', '.join(sorted(groups))}",
        "download one of them and give its folder",
    )
