"""A list of layers on several machines: per layer and in total, beside the dense machine with dense weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from billhook.accelerator.gemm import Gemm
from billhook.accelerator.machine import DENSE, Machine, WeightStationary
from billhook.accelerator.outcome import LEVELS, Outcome
from billhook.accelerator.outer import run_outer
from billhook.accelerator.stationary import run_stationary

TOTAL = "total"


@dataclass(frozen=True)
class Row:
    """One layer, or the total, on one machine.

    Attributes:
        design: Name of the machine.
        layer: Name of the layer, or ``total``.
        cycles: Per image.
        energy_uj: Per image.
        speedup: Cycles of the dense machine with dense weights over these.
        bound_by: What needs the most cycles; of the total: what binds the layers that take most of them.
        latency_us: Cycles at the machine's clock.
        energy_ratio: Energy of the dense machine with dense weights over this.
        energy_delay: Microjoules times microseconds.
        utilisation: Useful multiply-accumulates over what the array could have done in these cycles.
        energy_by_level: Microjoules by level.
        runs_as: What the machine makes of the weights; empty for the total.
    """

    design: str
    layer: str
    cycles: int
    energy_uj: float
    speedup: float
    bound_by: str
    latency_us: float
    energy_ratio: float
    energy_delay: float
    utilisation: float
    energy_by_level: dict[str, float]
    runs_as: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Simulation:
    """What :func:`simulate` says.

    Attributes:
        rows: Machine by machine; layer by layer, then the total.
        notes: What to know when reading the figures.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def total(self, design: str) -> Row:
        """The total of one machine."""
        return next(row for row in self.rows if row.design == design and row.layer == TOTAL)

    def layers(self, design: str) -> list[Row]:
        """The layers on one machine, in order."""
        return [row for row in self.rows if row.design == design and row.layer != TOTAL]


def run_layer(gemm: Gemm, machine: Machine) -> Outcome:
    """One layer on one machine."""
    if isinstance(machine.mapping, WeightStationary):
        return run_stationary(gemm, machine)
    return run_outer(gemm, machine)


def densely(gemm: Gemm) -> Gemm:
    """The layer with all its weights."""
    return replace(gemm, pattern=None, weight_density=1.0)


def simulate(gemms: Sequence[Gemm], machines: Sequence[Machine]) -> Simulation:
    """Every layer on every machine.

    Args:
        gemms: In the network's order; at least one.
        machines: Among them the dense one, called ``dense-tc``.

    Raises:
        ValueError: There are no layers, or there is no dense machine.
    """
    dense = next((machine for machine in machines if machine.name == DENSE), None)
    if dense is None or not gemms:
        raise ValueError("nothing to compare with: a layer and the machine 'dense-tc' are needed")
    base = [run_layer(densely(gemm), dense) for gemm in gemms]
    rows: list[Row] = []
    for machine in machines:
        outcomes = [run_layer(gemm, machine) for gemm in gemms]
        rows += [
            _row(machine, gemm.name, [outcome], [against], dense, outcome.runs_as)
            for gemm, outcome, against in zip(gemms, outcomes, base, strict=True)
        ]
        rows.append(_row(machine, TOTAL, outcomes, base, dense))
    return Simulation(tuple(rows), tuple(_mixed(machines, dense)))


def _row(
    machine: Machine, layer: str, outcomes: list[Outcome], base: list[Outcome], dense: Machine, runs_as: str = ""
) -> Row:
    cycles, before = sum(o.cycles for o in outcomes), sum(o.cycles for o in base)
    energy, energy_before = (sum(o.total_pj for o in some) / 1e6 for some in (outcomes, base))
    latency, latency_before = cycles / machine.clock_mhz, before / dense.clock_mhz
    bound: Counter[str] = Counter()
    for outcome in outcomes:
        bound[outcome.bound_by] += outcome.cycles
    return Row(
        design=machine.name,
        layer=layer,
        cycles=cycles,
        energy_uj=energy,
        speedup=latency_before / latency if latency else 0.0,
        bound_by=bound.most_common(1)[0][0],
        latency_us=latency,
        energy_ratio=energy_before / energy if energy else 0.0,
        energy_delay=energy * latency,
        utilisation=sum(o.useful for o in outcomes) / (cycles * machine.macs_per_cycle) if cycles else 0.0,
        energy_by_level={level: sum(o.energy_pj[level] for o in outcomes) / 1e6 for level in LEVELS},
        runs_as=runs_as,
    )


def _mixed(machines: Sequence[Machine], dense: Machine) -> list[str]:
    """A word on machines whose common parts cost other energies than the dense one's."""
    notes = []
    for machine in machines:
        others = [
            name
            for name, own, theirs in (
                ("mac_pj", machine.mac_pj, dense.mac_pj),
                ("dram", (machine.dram.word_read_pj, machine.dram.word_write_pj), _words(dense, "dram")),
                ("smem", (machine.smem.word_read_pj, machine.smem.word_write_pj), _words(dense, "smem")),
            )
            if own != theirs
        ]
        if others:
            notes.append(
                f"{machine.name} pays other energies than {dense.name} for {', '.join(others)}: "
                "their ratio mixes technologies"
            )
    return notes


def _words(machine: Machine, level: str) -> tuple[float, float]:
    found = getattr(machine, level)
    return found.word_read_pj, found.word_write_pj
