"""Our training loop beside a bare PyTorch loop (channels_last, bf16 autocast), ResNet-20 on CIFAR-sized images.

    python benchmarks/training_speed.py [--threads N]

Both sides train the same network on the same number of images, in turn, in one run. The bare loop feeds ready float
batches (no decoding, no augmentation); ours pads, crops, flips and normalises, records history and takes interrupts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import nn

from billhook.data import Preprocess, open_source, select
from billhook.models import build, place
from billhook.training.config import TrainConfig
from billhook.training.loop import Task, fit
from billhook.training.precision import Room


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Random uint8 images of CIFAR's size."""

    def __init__(self, count: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.classes = [str(i) for i in range(10)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.images[index]), index % 10


def bare(steps: int, batch_size: int, room: Room) -> float:
    """Seconds of the bare loop."""
    module = place(build("resnet20"), room.device).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = [
        (
            torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last),
            torch.arange(batch_size) % 10,
        )
        for _ in range(8)
    ]
    started = time.perf_counter()
    for step in range(steps):
        images, labels = batches[step % len(batches)]
        with room.autocast():
            loss = nn.functional.cross_entropy(module(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def ours(steps: int, batch_size: int, room: Room) -> float:
    """Seconds of :func:`billhook.training.loop.fit`, without validation."""
    source = open_source((Pictures(steps * batch_size * 10 // 9 + 20), Pictures(20)))
    preprocess = Preprocess.for_source(source, 32, (0.5,) * 3, (0.25,) * 3)
    data = select(source, outputs=10, preprocess=preprocess)
    task = Task(
        module=build("resnet20"),
        train=data.train,
        validation=data.val.subset([]),
        kept=data.kept,
        preprocess=preprocess,
        config=TrainConfig(batch_size=batch_size),
        steps=min(steps, data.train.steps(batch_size)),
        seed=0,
        phase="train",
    )
    started = time.perf_counter()
    fit(task, room)
    return (time.perf_counter() - started) * steps / task.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    room = Room()
    images = arguments.steps * arguments.batch_size
    bare(5, arguments.batch_size, room)
    ours(5, arguments.batch_size, room)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(arguments.rounds):
        rates["bare"].append(images / bare(arguments.steps, arguments.batch_size, room))
        rates["ours"].append(images / ours(arguments.steps, arguments.batch_size, room))
    print(f"threads {torch.get_num_threads()}, precision {room.precision}, batch {arguments.batch_size}")
    for name, values in rates.items():
        print(f"{name:5} median {statistics.median(values):7.0f} images/s   ({min(values):.0f} to {max(values):.0f})")
    ratios = [b / a for a, b in zip(rates["bare"], rates["ours"], strict=True)]
    print(f"ours / bare, pair by pair: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
