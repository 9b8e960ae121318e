"""The runtime's speed: hybrid-sparse networks against dense ones in other engines, in turns.

    python benchmarks/runtime.py [--only resnet50,dense,...] [--threads 1,2] [--seconds 2] [--out runs/runtime]
    python benchmarks/runtime.py --only resnet50 --deepsparse ENV/bin/python

No training: time depends on shapes and patterns, not on weights. Weights and masks are random, 2:4 and blocks of 16,
every layer losing the same share; ratios are of medians, with the 95 % interval over turns. DeepSparse, whose last
version needs numpy 1, is run by the interpreter of an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import billhook
from billhook.bench.jobs import OURS, Setup, Subject, Timed, layers, time_together
from billhook.bench.story import our_precisions
from billhook.cost import count
from billhook.environment import cpu_name
from billhook.export import export_packed
from billhook.formats import PatternInfo
from billhook.latency import installed, median, ratio
from billhook.latency.engines import write_onnx
from billhook.models import open_network
from billhook.patterns import to_matrix

N, M, BLOCK = 2, 4, 16
OPSET = 13  # the newest that DeepSparse reads
PARTS = ("resnet50", "dense", "mobilenet", "vgg", "cifar", "threads", "avx2", "kernels", "load")

# One layer of each shape of ResNet-50; the 1x1 layers on 56 x 56 pixels move more memory than they multiply.
LAYERS = {
    "3x3 64, 56": "layer1.1.conv2",
    "3x3 128, 28": "layer2.1.conv2",
    "3x3 256, 14": "layer3.1.conv2",
    "3x3 512, 7": "layer4.1.conv2",
    "1x1 512 to 128, 28": "layer2.1.conv1",
    "1x1 128 to 512, 28": "layer2.1.conv3",
    "1x1 1024 to 256, 14": "layer3.1.conv1",
    "1x1 256 to 1024, 14": "layer3.1.conv3",
    "1x1 2048 to 512, 7": "layer4.1.conv1",
    "1x1 512 to 2048, 7": "layer4.1.conv3",
}
APART = {"1x1 256 to 64, 56": "layer1.1.conv1", "1x1 64 to 256, 56": "layer1.1.conv3"}


# ---------------------------------------------------------------------- networks
@dataclass(frozen=True)
class Case:
    """A network on disk.

    Attributes:
        name: For the tables.
        packed: For our runtime.
        onnx: The same weights, for all others.
        size: Of the image in pixels.
        sparsity: Share of zeros in the layers that were asked for.
    """

    name: str
    packed: Path
    onnx: Path
    size: int
    sparsity: float


def takes_pattern(module: nn.Module) -> bool:
    """Whether 2:4 along the input channels is possible."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.in_channels % M == 0
    return isinstance(module, nn.Linear) and module.in_features % M == 0


def random_pattern(shape: Sequence[int], share: float, rng: np.random.Generator) -> PatternInfo:
    """The same number of blocks in every row of blocks, at random, and 2 of 4 weights within them.

    Args:
        shape: [O, I, kh, kw] or [O, I].
        share: Of the block columns that stay; at least one does.
    """
    outputs, inputs = shape[:2]
    taps = math.prod(shape[2:])
    per_tap, rows = -(-inputs // BLOCK), -(-outputs // BLOCK)
    kept = min(taps * per_tap, max(1, round(share * taps * per_tap)))
    order = rng.random((rows, taps * per_tap)).argsort(axis=1).argsort(axis=1)
    blocks = np.repeat((order < kept).reshape(rows, taps, per_tap), BLOCK, axis=0)[:outputs]
    columns = np.repeat(blocks, BLOCK, axis=2)[:, :, :inputs]
    groups = rng.random((outputs, taps, inputs // M, M)).argsort(axis=3).argsort(axis=3) < N
    mask = columns & groups.reshape(outputs, taps, inputs)
    full = np.ascontiguousarray(mask.transpose(0, 2, 1)).reshape(shape)
    assert to_matrix(torch.from_numpy(full)).shape == mask.shape or len(shape) == 2
    return PatternInfo("hybrid", N, M, BLOCK, full)


def kept_weights(shape: Sequence[int], share: float) -> float:
    """How many weights such a pattern keeps, ragged edges apart."""
    columns = math.prod(shape[2:]) * -(-shape[1] // BLOCK)
    kept = min(columns, max(1, round(share * columns)))
    return kept / columns * math.prod(shape) * N / M


def share_for(cost: Callable[[float], float], bound: float) -> float:
    """The largest share of block columns whose cost is within the bound."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= bound else (low, middle)
    return low


def make(folder: Path, spec: str, wanted: Callable[[str, nn.Module], bool], goal: tuple[str, float] | None) -> Case:
    """Build a network, prune it at random, write it for all engines.

    Args:
        folder: Where to.
        spec: Of the network.
        wanted: Layers that lose weights, of those that can.
        goal: ("convs" | "layers", sparsity over all convolutions, or over the layers that lose weights), or
            ("effective_macs", share that is left); None: dense.
    """
    network = open_network(spec)
    module, size = network.module, network.input_size
    what = "dense" if goal is None else f"{goal[0]} {goal[1]:g}"
    name = f"{spec} {what}"
    packed, onnx = (folder / f"{name.replace(' ', '-')}.{kind}" for kind in ("safetensors", "onnx"))
    named = dict(module.named_modules())
    layers = {key: m for key, m in named.items() if takes_pattern(m) and wanted(key, m)}
    convolutions = [m.weight.numel() for m in named.values() if isinstance(m, nn.Conv2d)]
    patterns: dict[str, PatternInfo] = {}
    sparsity = 0.0
    if goal is not None:
        kind, value = goal
        shapes = {key: tuple(m.weight.shape) for key, m in layers.items()}
        total = sum(map(math.prod, shapes.values()))
        if kind == "effective_macs":
            cost = {layer.name: layer.macs for layer in count(module, size).layers}
            rest = sum(cost.values()) - sum(cost[key] for key in shapes)
            bound = value * sum(cost.values())

            def spent(share: float) -> float:
                return rest + sum(kept_weights(s, share) / math.prod(s) * cost[key] for key, s in shapes.items())

        else:
            everything = sum(convolutions) if kind == "convs" else total
            rest, bound = everything - total, (1 - value) * everything

            def spent(share: float) -> float:
                return rest + sum(kept_weights(s, share) for s in shapes.values())

        share, rng = share_for(spent, bound), np.random.default_rng(0)
        patterns = {f"{key}.weight": random_pattern(shape, share, rng) for key, shape in shapes.items()}
        left = 0
        with torch.no_grad():
            for key, layer in layers.items():
                mask = patterns[f"{key}.weight"].mask
                left += int(mask.sum())
                # Activations keep their size.
                layer.weight.mul_(torch.from_numpy(mask) / math.sqrt(mask.mean()))
        sparsity = 1 - left / total
    if not packed.is_file():
        export_packed(module, packed, input_shape=(3, size, size), patterns=patterns)
    if not onnx.is_file():
        write_onnx(module, (1, 3, size, size), onnx, OPSET)
    return Case(name, packed, onnx, size, sparsity)


def all_but_the_first(key: str, module: nn.Module) -> bool:
    """Convolutions; the first of them has three inputs and takes no pattern anyway."""
    return isinstance(module, nn.Conv2d)


def pointwise(key: str, module: nn.Module) -> bool:
    """1x1 convolutions."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def everything(key: str, module: nn.Module) -> bool:
    """All layers that can."""
    return True


# ---------------------------------------------------------------------- timing
@dataclass
class Line:
    """One comparison.

    Attributes:
        floor: What the ratio should be at least.
    """

    case: str
    sparsity: float
    threads: int
    ours: str
    ours_ms: float
    against: str
    against_ms: float
    ratio: float
    low: float
    high: float
    floor: float | None


@dataclass
class Bench:
    """What all parts share."""

    folder: Path
    threads: list[int]
    seconds: float
    deepsparse: str | None
    lines: list[Line] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def setup(self, case: Case, threads: int, python: str | None = None) -> Setup:
        blocks = 10
        other = {} if python is None else {"python": python, "path": str(Path(billhook.__file__).parents[1])}
        return Setup((1, 3, case.size, case.size), threads, blocks, self.seconds / blocks, **other)  # type: ignore[arg-type]

    def compare(
        self,
        case: Case,
        threads: int,
        engine: str,
        wanted: dict[tuple[str, str], float | None],
        python: str | None = None,
        label: str = "",
    ) -> list[Timed]:
        """Time ours against an engine in one process; ``wanted``: (our precision, its precision) to the floor."""
        if python is None and not (installed(engine) and installed("onnx")):
            print(f"({engine} is not installed)")
            return []
        theirs = [Subject(engine, "net", str(case.onnx), "f32")]
        if engine == "openvino" and any(other != "f32" for _, other in wanted):
            theirs.append(Subject(engine, "net", str(case.onnx)))
        ours = [
            Subject(OURS, "net", str(case.packed), p) for p in our_precisions() if any(p == key[0] for key in wanted)
        ]
        timed, failed = time_together([*theirs, *ours], self.setup(case, threads, python))
        for text in failed:
            print(f"({text})")
        found = {(entry.engine, entry.precision): entry for entry in timed}
        for (own, other), floor in wanted.items():
            if (OURS, own) in found and (engine, other) in found:
                self.add(case, threads, found[OURS, own], found[engine, other], floor, label)
        return timed

    def add(self, case: Case, threads: int, ours: Timed, other: Timed, floor: float | None, label: str = "") -> None:
        """Keep and print one comparison."""
        told = ratio((other.blocks, ours.blocks))
        against = f"{other.engine} {other.precision}" if other.engine != OURS else other.network
        line = Line(case.name, case.sparsity, threads, f"{label}{ours.precision}", median(ours.blocks), against,
                    median(other.blocks), told.value, told.low, told.high, floor)  # fmt: skip
        self.lines.append(line)
        print(row(line), flush=True)


HEAD = "| network | zeros % | threads | ours | ms | against | ms | ratio | 95 % | floor | |\n|" + "---|" * 11


def row(line: Line) -> str:
    """A line of the Markdown table."""
    verdict = "" if line.floor is None else "met" if line.ratio >= line.floor else "missed"
    floor = "" if line.floor is None else f"{line.floor:.3g}"
    cells = [
        line.case,
        f"{100 * line.sparsity:.1f}",
        str(line.threads),
        line.ours,
        f"{line.ours_ms:.2f}",
        line.against,
        f"{line.against_ms:.2f}",
        f"**{line.ratio:.2f}**",
        f"{line.low:.2f} to {line.high:.2f}",
        floor,
        verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def against_all(bench: Bench, case: Case, floors: dict[str, float | None]) -> None:
    """Ours against ONNX Runtime, OpenVINO and, where it is given, DeepSparse; floors are for one thread."""
    for threads in bench.threads:
        at = floors if threads == 1 else {}
        bench.compare(case, threads, "onnxruntime", {("f32", "f32"): at.get("ort"), ("bf16", "f32"): None})
        vino = {("f32", "f32"): None, ("f32", "bf16"): None, ("bf16", "bf16"): at.get("vino"), ("bf16", "f32"): None}
        bench.compare(case, threads, "openvino", vino)
        if bench.deepsparse:
            bench.compare(case, threads, "deepsparse", {("f32", "f32"): at.get("deepsparse")}, bench.deepsparse)


# ---------------------------------------------------------------------- parts
def resnet50(bench: Bench) -> None:
    """Every convolution but the first pruned; the share counts all convolutions."""
    for sparsity, ort, vino, deep in ((0.8, 2.5, 2.2, 3.8), (0.9, 4.2, 3.7, 4.5), (0.95, 6.3, 5.2, 5.0)):
        case = make(bench.folder, "resnet50", all_but_the_first, ("convs", sparsity))
        against_all(bench, case, {"ort": ort, "vino": vino, "deepsparse": deep})


def dense(bench: Bench) -> None:
    """ResNet-50 with all its weights."""
    case = make(bench.folder, "resnet50", all_but_the_first, None)
    against_all(bench, case, {"ort": 1 / 1.15})


def mobilenet(bench: Bench) -> None:
    """MobileNetV2, its 1x1 convolutions pruned."""
    case = make(bench.folder, "mobilenet_v2", pointwise, ("layers", 0.9))
    against_all(bench, case, {"ort": 2.0})


def vgg(bench: Bench) -> None:
    """VGG-16, everything pruned but the first convolution."""
    case = make(bench.folder, "vgg16", everything, ("layers", 0.9))
    against_all(bench, case, {"ort": 4.5})


def cifar(bench: Bench) -> None:
    """ResNet-56 on 32 x 32 pixels."""
    case = make(bench.folder, "resnet56", everything, ("effective_macs", 0.2))
    against_all(bench, case, {"ort": 3.0})


def threads(bench: Bench) -> None:
    """Two threads over one, in one process."""
    for goal in (("convs", 0.9), None):
        case = make(bench.folder, "resnet50", all_but_the_first, goal)
        for precision in our_precisions():
            subjects = [
                Subject(OURS, "1 thread", str(case.packed), precision, threads=1),
                Subject(OURS, "2 threads", str(case.packed), precision, threads=2),
            ]
            one, two = time_together(subjects, bench.setup(case, 2))[0]
            bench.add(case, 2, two, one, 1.85)


def avx2(bench: Bench) -> None:
    """Ours without AVX-512. ONNX Runtime has no such setting and keeps all that the CPU has; OpenVINO gets AVX2."""
    case = make(bench.folder, "resnet50", all_but_the_first, ("convs", 0.9))
    before = dict(os.environ)
    os.environ |= {"BILLHOOK_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    try:
        for engine in ("onnxruntime", "openvino"):
            floor = 2.0 if engine == "onnxruntime" else None
            bench.compare(case, 1, engine, {("f32", "f32"): floor}, label="AVX2 ")
    finally:
        os.environ.clear()
        os.environ.update(before)


def kernels(bench: Bench) -> None:
    """Useful GF/s of the shapes of ResNet-50 at 90 %, inside the network."""
    case = make(bench.folder, "resnet50", all_but_the_first, ("convs", 0.9))
    print(
        "\n| layer | weights kept % | "
        + " | ".join(f"{p} us | GF/s | of peak %" for p in our_precisions())
        + " | kernel |"
    )
    print("|" + "---|" * (3 + 3 * len(our_precisions())))
    told = {}
    for precision in our_precisions():
        told[precision] = layers(Subject(OURS, "net", str(case.packed), precision), bench.setup(case, 1))
    found = {p: {layer["name"]: layer for layer in entry["layers"]} for p, entry in told.items()}
    for title, name in (LAYERS | APART).items():
        if not all(name in by_name for by_name in found.values()):
            print(f"| {title} | {name} is not in the plan |")
            continue
        cells = []
        for by_name in found.values():
            layer = by_name[name]
            cells += [f"{1e3 * layer['ms']:.0f}", f"{layer['gflops']:.0f}", f"{100 * layer['share_of_peak']:.0f}"]
        kept = 100 * found["f32"][name]["density"]
        print(f"| {title} | {kept:.1f} | {' | '.join(cells)} | {found['f32'][name]['kernel']} |")
    means = {}
    for precision, by_name in found.items():
        speeds = [by_name[name]["gflops"] for name in LAYERS.values() if name in by_name]
        means[precision] = statistics.geometric_mean(speeds)
        peak = told[precision]["peak_gflops"]
        share = 100 * means[precision] / peak
        print(
            f"\n{precision}: geometric mean {means[precision]:.0f} GF/s without the 1x1 layers on 56 x 56 pixels,"
            f" {share:.0f} % of the {peak:.0f} GF/s that one core's registers do"
        )
    bench.more["kernels"] = {"layers": told, "geometric_mean": means}


LOAD = """
import time, numpy
a = time.perf_counter()
import billhook.runtime, billhook.runtime.network
b = time.perf_counter()
net = billhook.runtime.load({path!r}, threads=1)
c = time.perf_counter()
print(1e3 * (b - a), 1e3 * (c - b))
"""


def load(bench: Bench) -> None:
    """Importing beyond numpy, and opening a file whose plan is there."""
    case = make(bench.folder, "resnet50", all_but_the_first, ("convs", 0.9))
    code = LOAD.format(path=str(case.packed))
    found = []
    for _ in range(8):  # the first makes the plan
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found.append([float(text) for text in done.stdout.split()])
    imported, opened = (statistics.median(column) for column in zip(*found[1:], strict=True))
    print(f"\nimport beyond numpy {imported:.0f} ms; ResNet-50 at 90 % opened in {opened:.0f} ms (with its plan)")
    bench.more["load"] = {"import_ms": imported, "open_ms": opened}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each network in each comparison")
    parser.add_argument("--deepsparse", help="interpreter of an environment with deepsparse==1.8.0 in it")
    parser.add_argument("--out", default="runs/runtime", help="networks, plans and runtime.json")
    arguments = parser.parse_args()
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "True")
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    counts = [int(text) for text in arguments.threads.split(",")]
    bench = Bench(folder, counts, arguments.seconds, arguments.deepsparse)
    started = time.perf_counter()
    print(f"{cpu_name()}; {N}:{M}, blocks of {BLOCK}, one image; ratio: how many times as fast ours is\n\n{HEAD}")
    for part in arguments.only.split(","):
        if part not in PARTS:
            parser.error(f"--only {part}: not one of {', '.join(PARTS)}")
        globals()[part](bench)
    content = {"cpu": cpu_name(), "lines": [asdict(line) for line in bench.lines], **bench.more}
    (folder / "runtime.json").write_text(json.dumps(content, indent=1))
    print(f"\n{time.perf_counter() - started:.0f} s; written {folder / 'runtime.json'}")


if __name__ == "__main__":
    main()
