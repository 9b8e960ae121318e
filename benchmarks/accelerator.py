"""What the hybrid pattern would buy on modelled tensor cores: the sweep over three networks, as a page of the docs.

python benchmarks/accelerator.py            writes docs/accelerator-sweep.md
python benchmarks/accelerator.py --print    prints it
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from billhook.accelerator import Machine, machines, simulate
from billhook.accelerator.sweep import BLOCKS, NM, SHARES, Reached, Sweep
from billhook.accelerator.workload import Workload, read_workload

PAGE = Path(__file__).parents[1] / "docs" / "accelerator-sweep.md"
NETWORKS = {"resnet50": "ResNet-50", "vgg16_bn": "VGG-16 (with BatchNorm)", "mobilenet_v2": "MobileNetV2"}
TARGETS = (2.0, 4.0, 7.0, 14.0)
FREE = 1e6
"""Words per cycle of an off-chip memory that is never the limit."""

HEAD = """# Sweep: N:M × block size × pruned blocks

Written by `python benchmarks/accelerator.py`; the models and their limits are in [accelerator.md](accelerator.md). All
figures are modelled, for one image of 224 × 224 pixels, over the dense tensor core with dense weights. *Share* is the
share of the block columns that is pruned in every layer that takes the pattern; every layer keeps at least one.
Activations are taken to be half zeros where a design looks at them (the dual-side one alone).

What billhook's CPU runtime measures for the same networks is in [README.md](../benchmarks/README.md#runtime).
"""


def main() -> None:
    """Write or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="show")
    text = page()
    if parser.parse_args().show:
        print(text, end="")
    else:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written {PAGE}")


def page() -> str:
    """The page."""
    return "\n".join([HEAD, *(line for spec, title in NETWORKS.items() for line in network(spec, title))])


def network(spec: str, title: str) -> Iterator[str]:
    """The section of one network."""
    work, designs = read_workload(spec), machines()
    sweep = Sweep(work.gemms, work.prunable, designs)
    rows = {(r["design"], r["nm"], r["block"], r["block_sparsity"]): r for r in sweep.rows()}
    yield f"## {title}\n"
    yield f"{base(work, designs)}\n"
    yield "### How far to go\n"
    yield "On CRISP-STC, with the lowest sparsity that gets there; sparsity counts the layers that take the pattern.\n"
    unbound = Sweep(work.gemms, work.prunable, [never_waiting(machine) for machine in designs])
    yield from reached_table(sweep.reached(TARGETS), unbound.reached(TARGETS))
    for key, what in (("speedup", "Times faster than dense"), ("energy_ratio", "Times less energy than dense")):
        yield f"### {what}\n"
        yield from table(
            ["CRISP-STC, share →", *(f"{100 * share:g} %" for share in SHARES)],
            [
                [f"{n}:{m}, B = {b}", *(f"{rows['crisp-stc', f'{n}:{m}', b, share][key]:.2f}" for share in SHARES)]
                for n, m in NM
                for b in BLOCKS
            ],
        )
        yield from table(
            ["other designs", *(f"{n}:{m}" for n, m in NM)],
            [
                *(
                    [name, *(f"{rows[name, f'{n}:{m}', 64, 0.0][key]:.2f}" for n, m in NM)]
                    for name in ("nvidia-stc", "flexible-stc")
                ),
                *(
                    [
                        f"dstc, B = 64, share {100 * share:g} %",
                        *(f"{rows['dstc', f'{n}:{m}', 64, share][key]:.2f}" for n, m in NM),
                    ]
                    for share in (0.0, 0.5, 0.875)
                ),
            ],
        )


def base(work: Workload, designs: Sequence[Machine]) -> str:
    """The dense network on the dense machine, in words."""
    total = simulate(work.gemms, designs).total("dense-tc")
    levels = total.energy_by_level
    return (
        f"{len(work.gemms)} layers, {sum(gemm.macs for gemm in work.gemms) / 1e9:.2f} G multiply-accumulates. Dense: "
        f"{total.cycles / 1e6:.2f} M cycles ({100 * total.utilisation:.0f} % of the array's peak), "
        f"{total.energy_uj / 1e3:.2f} mJ, of which DRAM {100 * levels['dram'] / total.energy_uj:.0f} % and "
        f"multiply-accumulates {100 * levels['macs'] / total.energy_uj:.0f} %."
    )


def never_waiting(machine: Machine) -> Machine:
    """The same machine with an off-chip memory that is never the limit (its energy stays)."""
    fast = machine.dram.model_copy(update={"read_words_per_cycle": FREE, "write_words_per_cycle": FREE})
    port = machine.smem.model_copy(update={"write_words_per_cycle": FREE})
    return machine.model_copy(update={"dram": fast, "smem": port})


def reached_table(found: Sequence[Reached], unbound: Sequence[Reached]) -> Iterator[str]:
    """One row per goal: the network, any one layer, the network if off-chip memory never were the limit."""
    lines = []
    for metric in ("latency", "energy"):
        for times in TARGETS:
            cells = [f"**{times:g}× in {metric}**"]
            for entries, scope in ((found, "network"), (found, "layer"), (unbound, "network")):
                if metric == "energy" and entries is unbound:
                    cells.append("")
                    continue
                (entry,) = [e for e in entries if (e.metric, e.times, e.scope) == (metric, times, scope)]
                cells.append(goal(entry))
            lines.append(cells)
    yield from table(["", "network", "first layer", "network, off-chip memory never the limit"], lines)


def goal(entry: Reached) -> str:
    """A pattern and its sparsity, or how far it gets."""
    pattern = f"{entry.nm}, B = {entry.block}, share {100 * entry.block_sparsity:g} %"
    layer = f"`{entry.layer}`: " if entry.layer else ""
    if entry.met:
        return f"{layer}{100 * entry.sparsity:.1f} % zeros ({pattern})"
    return f"not reached; at most {entry.value:.2f}× ({layer}{pattern}; {entry.bound_by})"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, and an empty line."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)
    yield ""


if __name__ == "__main__":
    main()
