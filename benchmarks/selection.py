"""Seconds of one whole path of filter selection, by FP-Backward and FP-OMP, and of the published step beside it.

    python benchmarks/selection.py [--filters 64 128 ...] [--length 4608] [--published 512]

A path orders all filters of a layer, and so answers for every number of them. Floor: the Gram matrix is
filters^2 x length multiply-adds, the updates of a path are 2/3 filters^3 (backward) and 1/3 filters^3 (OMP, which adds
up as many absolute values). The published step of FP-Backward, with the Gram matrix, its inverse and all candidates'
costs anew for every removal, is timed down to half of the filters.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from billhook.compensation import Selection, fp_backward, fp_omp


def published(filters: Tensor, keep: int) -> list[int]:
    """Down to ``keep`` filters with nothing carried over from one removal to the next."""
    left = list(range(len(filters)))
    while len(left) > keep:
        rows = filters[left]
        inverse = torch.linalg.inv(rows @ rows.T)
        costs = (inverse @ rows @ filters.T).square().sum(dim=1) / inverse.diagonal()
        left.pop(int(costs.argmin()))
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--length", type=int, default=4608)
    parser.add_argument("--published", type=int, default=0, help="filters; 0: leave the published step out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    print(
        f"threads {arguments.threads}, filters of length {arguments.length}, seconds of wall clock (of processor time)"
    )
    for count in arguments.filters:
        filters = torch.randn(count, arguments.length, generator=generator)
        line = f"{count:6d} filters"
        for select in (fp_backward, fp_omp):
            seconds, busy, _ = timed(lambda chosen=select, rows=filters: chosen(rows))
            line += f"   {select.__name__} {seconds:8.3f} ({busy:.3f})"
        print(line, flush=True)
    if arguments.published:
        filters = torch.randn(arguments.published, arguments.length, generator=generator)
        keep = arguments.published // 2
        ours, busy, selection = timed(lambda: fp_backward(filters))
        theirs, long, kept = timed(lambda: published(filters.double(), keep))
        same = isinstance(selection, Selection) and selection.kept(keep).tolist() == kept
        print(f"{arguments.published:6d} filters, down to half: published {theirs:.3f} ({long:.3f}), ", end="")
        print(f"{theirs / ours:.0f} times ({long / busy:.0f}) our whole path; same filters: {same}")


def timed(work) -> tuple[float, float, object]:  # type: ignore[no-untyped-def]
    """Seconds, seconds of processor time, and what the work gave."""
    started, busy = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - started, time.process_time() - busy, found


if __name__ == "__main__":
    main()
