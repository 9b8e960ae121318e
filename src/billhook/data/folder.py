"""Image-folder trees: ``train/CLASS/...`` with ``val/`` or ``test/``, or bare ``CLASS/...``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from billhook.data.decode import EXTENSIONS, looks_intact
from billhook.data.source import EncodedRows, Labels, PartRows, Rows, Source
from billhook.data.splits import with_test
from billhook.errors import InputError

LAYOUT = "lay the images out as train/CLASS/IMAGE with val/ or test/ beside it, or as CLASS/IMAGE"
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TEST_SHARE = 0.15


class FileRows(EncodedRows):
    """Images that lie in files.

    Args:
        root: The folder that ``files`` are relative to.
        files: Relative paths.
        labels: int64 [n].
    """

    def __init__(self, root: Path, files: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.root = root
        self.files = tuple(files)

    def encoded(self, index: int) -> bytes:
        """The bytes of the file."""
        return (self.root / self.files[index]).read_bytes()

    def name(self, index: int) -> str:
        """The path of the file."""
        return str(self.root / self.files[index])

    def digest(self, indices: Sequence[int] | Labels) -> bytes:
        """A hash of relative paths and file sizes."""
        total = hashlib.sha256()
        for index in indices:
            file = self.root / self.files[index]
            total.update(f"{self.files[index]}\n{file.stat().st_size if file.exists() else -1}\n".encode())
        return total.digest()

    def intact(self, index: int) -> bool:
        """Looks at the first and last bytes of the file."""
        try:
            with (self.root / self.files[index]).open("rb") as file:
                head = file.read(12)
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 64))
                return looks_intact(head, file.read(64), size)
        except OSError:
            return False


def open_folder(root: Path) -> Source:
    """Open an image-folder tree.

    Raises:
        InputError: There is no image in it.
    """
    folders = _folders(root)
    named: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split:
            if split in named:
                raise InputError(f"{root} has both {named[split].name}/ and {folder.name}/", "keep one of them")
            named[split] = folder
    if not named:
        return _bare(root, folders)
    if "test" not in named and "val" in named:
        named["test"] = named.pop("val")
    classes = sorted({folder.name for split in named.values() for folder in _folders(split)})
    splits: dict[str, Rows] = {}
    for split, path in named.items():
        splits[split] = _scan(path, classes)
    if "train" not in splits:
        if not len(splits["test"]):
            raise InputError(f"no images in {named['test']}", LAYOUT)
        # Enough to evaluate on; training says that its classes have no images.
        splits["train"] = PartRows(splits["test"], np.zeros(0, dtype=np.int64))
    elif not len(splits["train"]):
        raise InputError(f"no images in {named['train']}", LAYOUT)
    if "test" not in splits:
        splits |= with_test(splits["train"], classes, TEST_SHARE)
    return Source(root.resolve().name, tuple(classes), tuple(classes), splits)


def _bare(root: Path, folders: Sequence[Path]) -> Source:
    classes = [folder.name for folder in folders]
    rows = _scan(root, classes)
    if not len(rows):
        raise InputError(f"no images in {root}", LAYOUT)
    return Source(root.resolve().name, tuple(classes), tuple(classes), with_test(rows, classes, TEST_SHARE))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _scan(root: Path, classes: Sequence[str]) -> FileRows:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for folder, below, names in os.walk(root / name, followlinks=True):
            below[:] = sorted(item for item in below if not item.startswith("."))
            for item in sorted(names):
                if not item.startswith(".") and os.path.splitext(item)[1].lower() in EXTENSIONS:
                    files.append(Path(folder, item).relative_to(root).as_posix())
                    labels.append(label)
    return FileRows(root, files, labels)
