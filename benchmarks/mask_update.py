"""Mask update of a ResNet-50-sized network, and the masked training step beside the dense one, in one run.

    python benchmarks/mask_update.py [--threads N]

Floor of the mask update, per weight: one read of weight and gradient (8 bytes), a score written and read (8), a mask
written and read (2) for N:M and blocks: about 18 bytes, 0.45 GB for 25 M weights, 10 ms at 45 GB/s. Above that stand
the comparisons of N:M (12 per group of four) and the sort of the block scores.
Floor of the masked step over the dense one: one product per weight before forward and one multiply-add per gradient
after backward: 20 bytes per weight, 0.4 ms for ResNet-56's 0.85 M weights at 45 GB/s, less than 1 % of its step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from billhook.cost import count
from billhook.cost.budget import parse_budgets
from billhook.methods import CRISP
from billhook.methods.accounting import Accounting
from billhook.methods.crisp import HybridChooser
from billhook.methods.targets import find_targets
from billhook.models import build, find_head, place
from billhook.training.config import TrainConfig
from billhook.training.masked import MaskedWeights
from billhook.training.optim import make_optimizer
from billhook.training.precision import Room


def mask_update(repeats: int) -> list[float]:
    """Seconds of score → N:M → blocks → threshold → masks over all of ResNet-50's weights."""
    module = build("resnet50")
    cost = count(module, 224)
    config = CRISP(nm="2:4", block=16)
    targets, _ = find_targets(cost, find_head(module), None, config.pattern)
    start = {t.name: round(t.weights * 0.5) for t in targets}
    dense = {"macs": cost.macs, "effective_macs": cost.macs, "bytes": 4 * cost.params}
    accounting = Accounting(
        parse_budgets(["sparsity>=90%"]), targets, start, dense, cost,
        method="crisp", bytes_per_weight=4.25, start_bytes=lambda: 0,
    )  # fmt: skip
    chooser = HybridChooser(targets, config, accounting)
    masked = MaskedWeights(module, [t.parameter for t in targets])
    generator = torch.Generator().manual_seed(0)
    gradients = {name: torch.rand(p.shape, generator=generator) for name, p in masked.parameters.items()}
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        scores = {name: (masked.latent[name] * gradients[name]).abs() for name in gradients}
        masked.set_masks(chooser.choose(scores, 1.0))
        seconds.append(time.perf_counter() - started)
    print(f"{sum(t.weights for t in targets):,} weights under masks in {len(targets)} layers")
    return seconds


def steps(repeats: int, batch_size: int) -> tuple[list[float], list[float]]:
    """Seconds of dense and masked ResNet-56 training steps, taken in turn."""
    room = Room()
    config = TrainConfig(batch_size=batch_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,), generator=generator)
    sides = []
    for with_masks in (False, True):
        module = place(build("resnet56"), room.device).train()
        masked = None
        if with_masks:
            names = [name for name, p in module.named_parameters() if p.dim() == 4]
            masked = MaskedWeights(module, names, decay=2e-4)
            masked.set_masks({n: torch.rand(p.shape, generator=generator) > 0.9 for n, p in masked.parameters.items()})
        sides.append((module, masked, make_optimizer(module, config)))
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        for side, (module, masked, optimizer) in enumerate(sides):
            started = time.perf_counter()
            if masked is not None:
                masked.close()
            with room.autocast():
                logits = module(images)
            loss = nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if masked is not None:
                masked.open()
            optimizer.step()
            if repeat >= 2:
                taken[side].append(time.perf_counter() - started)
    return taken


def spread(name: str, seconds: list[float]) -> None:
    low, high = min(seconds), max(seconds)
    print(f"{name:22} median {1000 * statistics.median(seconds):8.1f} ms   ({1000 * low:.1f} to {1000 * high:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"threads {torch.get_num_threads()}")
    spread("mask update, ResNet-50", mask_update(max(3, arguments.repeats // 4)))
    dense, masked = steps(arguments.repeats, arguments.batch_size)
    spread("dense step, ResNet-56", dense)
    spread("masked step, ResNet-56", masked)
    ratios = [b / a for a, b in zip(dense, masked, strict=True)]
    print(f"masked / dense, pair by pair: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
