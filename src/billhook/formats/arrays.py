"""Reading ``.npz`` files that nobody vouches for: sizes are compared before anything is allocated."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from billhook.errors import InputError

MAX_BYTES = 1 << 30
"""Of all arrays of a file together, unpacked: a compressed file may be a thousand times smaller than that."""


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file by name; pickled objects are never read.

    Raises:
        InputError: The file is missing or damaged, holds pickled objects, or claims more than it has or than 1 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}", "copy it again") from error


def _check(archive: zipfile.ZipFile) -> None:
    """Raise ValueError when an array's header claims another size than its member has, or all are too large."""
    members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise ValueError(f"its arrays take more than {MAX_BYTES} bytes")
    for member in members:
        with archive.open(member) as stream:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
            # numpy multiplies the sizes of an empty array too, leaving the zeros out.
            if math.prod(max(side, 1) for side in shape) * max(1, dtype.itemsize) > member.file_size:
                raise ValueError(f"{member.filename} claims the shape {list(shape)}, more than it holds")
