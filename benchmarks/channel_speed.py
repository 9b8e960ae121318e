"""What removed channels are worth in ONNX Runtime: the dense network beside the pruned one, taken in turn.

    python benchmarks/channel_speed.py [--model resnet18] [--budget "macs<=30%"] [--round-to 8] [--threads 1]

No training: time does not depend on the weights. Channels go by l1, the same share of every group or globally.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn

from billhook.cost import count
from billhook.cost.budget import parse_budgets
from billhook.methods import count_network
from billhook.methods.channel_choice import choose_channels
from billhook.methods.channel_limits import channel_cost
from billhook.methods.floor import Floor
from billhook.models import open_network
from billhook.scores import channel_scores, normalised
from billhook.surgery import plan_channels, remove_channels
from billhook.training.precision import Room


def session(module: nn.Module, size: int, threads: int) -> onnxruntime.InferenceSession:
    """The network in ONNX Runtime, all graph optimisations on."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.zeros(1, 3, size, size),), content, dynamo=False, input_names=["image"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budget", default="macs<=30%")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--scope", choices=["global", "uniform"], default="uniform")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=15, help="interleaved blocks of ten inferences each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = open_network(arguments.model)
    counted = count_network(network, arguments.size, None)
    grouping = counted.groups()
    scores = normalised(channel_scores("l1", network.module, grouping, None, None, Room("cpu")), "mean")
    kept = choose_channels(
        scores,
        grouping,
        channel_cost(counted),
        parse_budgets([arguments.budget]),
        counted.dense,
        scope=arguments.scope,
        floor=Floor(arguments.round_to),
    )
    small = remove_channels(network.module, plan_channels(network.module, grouping, kept))
    macs = {"dense": counted.cost.macs, "pruned": count(small, arguments.size).macs}
    sessions = {
        "dense": session(network.module, arguments.size, arguments.threads),
        "pruned": session(small, arguments.size, arguments.threads),
    }
    image = {"image": np.random.default_rng(0).standard_normal((1, 3, arguments.size, arguments.size), np.float32)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for block in range(arguments.blocks + 1):
        for name, run in sessions.items():
            started = time.perf_counter()
            for _ in range(10):
                run.run(None, image)
            if block:  # the first block warms up
                times[name].append((time.perf_counter() - started) / 10)
    for name, seconds in times.items():
        low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
        print(f"{name:7} {macs[name] / 1e6:8.1f} M MACs   {middle:7.2f} ms ({low:.2f} to {high:.2f})")
    ratio = statistics.median(d / p for d, p in zip(times["dense"], times["pruned"], strict=True))
    print(f"speed-up {ratio:.2f} (median over blocks); MACs {macs['dense'] / macs['pruned']:.2f} times fewer")


if __name__ == "__main__":
    main()
