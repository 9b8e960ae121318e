"""Labels every image of a folder with a packed network: billhook's runtime, numpy and Pillow, no PyTorch.

    python examples/folder.py runs/cats photos/

One line per image: path, label, probability. Images that cannot be read are named on stderr and left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import billhook.runtime
from billhook.errors import BillhookError, InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def images(folder: Path) -> Iterator[Path]:
    """All image files below a folder, in order."""
    yield from (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS and path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description="Labels every image of a folder.")
    parser.add_argument("network", help="packed file, or a run directory that holds one")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="auto", choices=["auto", "f32", "bf16"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="images at the same time")
    arguments = parser.parse_args()
    # One network per worker, each on one thread: more images per second than one network on all threads, and Pillow
    # decodes while others compute. The first load plans, the others find its plan.
    nets = [
        billhook.runtime.load(arguments.network, threads=1, precision=arguments.precision)
        for _ in range(arguments.workers)
    ]
    free = list(nets)

    def label(path: Path) -> tuple[Path, str, float] | InputError:
        net = free.pop()
        try:
            return (path, *net.predict(path, top=1)[0])
        except InputError as error:
            return error
        finally:
            free.append(net)

    start, count = time.perf_counter(), 0
    with ThreadPoolExecutor(len(nets)) as pool:
        for found in pool.map(label, images(arguments.folder)):
            if isinstance(found, InputError):
                print(f"skipped: {found}", file=sys.stderr)
            else:
                path, name, probability = found
                print(f"{path}\t{name}\t{probability:.3f}")
                count += 1
    seconds = time.perf_counter() - start
    print(f"{count} images in {seconds:.2f} s, {count / seconds:.1f} per second", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BillhookError as error:
        sys.exit(f"error: {error}")
