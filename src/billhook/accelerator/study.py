"""The document of ``billhook simulate``: every layer on every design, the bits of the positions, the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from billhook.accelerator.gemm import Gemm
from billhook.accelerator.machine import Machine
from billhook.accelerator.metadata import metadata_of, total_metadata
from billhook.accelerator.simulate import simulate
from billhook.accelerator.sweep import Choice, Sweep, apply_choice, as_rows

if TYPE_CHECKING:
    from billhook.accelerator.workload import Workload

NOT_MEASURED = "Modelled, not timed: billhook bench times the CPU runtime on a run directory."


def study(
    workload: Workload, machines: Sequence[Machine], *, sweep: bool = False, choice: Choice | None = None
) -> dict[str, Any]:
    """Simulate a network.

    Args:
        workload: Its layers.
        machines: The designs, ``dense-tc`` among them.
        sweep: Instead of the layers' own zeros: all patterns of the sweep, totals only.
        choice: Instead of the layers' own zeros: one pattern on every layer that takes it.

    Returns:
        The document of ``billhook simulate --json``: ``rows`` (with ``sweep`` one per pattern and design), ``layers``
        (the matrix products), ``metadata`` (position bits), ``designs``, ``notes``; with ``sweep`` also ``reached``.
    """
    gemms = list(workload.gemms)
    if choice is not None:
        gemms = [apply_choice(gemm, choice) if gemm.name in workload.prunable else gemm for gemm in gemms]
    document: dict[str, Any] = {
        "model": workload.model,
        "input_size": list(workload.input_size),
        "designs": [{"name": machine.name, "title": machine.title or machine.name} for machine in machines],
    }
    notes = [workload.activations]
    if sweep:
        # The patterns are laid on the bare shapes: the zeros that a run has are its own.
        bare = [replace(gemm, pattern=None, weight_density=1.0) for gemm in gemms]
        made = Sweep(bare, workload.prunable, machines)
        return document | {
            "rows": made.rows(),
            "reached": as_rows(made.reached()),
            "layers": [_layer(gemm, workload) for gemm in bare],
            "notes": [*notes, *simulate(bare[:1], machines).notes, NOT_MEASURED],
        }
    made_rows = simulate(gemms, machines)
    if not any(gemm.nonzeros < gemm.weights for gemm in gemms):
        notes.append("no weight is zero here: --nm and --block lay a pattern on the network, --sweep lays many")
    return document | {
        "rows": [row.as_dict() for row in made_rows.rows],
        "layers": [_layer(gemm, workload) for gemm in gemms],
        "metadata": {
            "total": asdict(total_metadata(gemms)),
            "layers": {gemm.name: asdict(metadata_of(gemm)) for gemm in gemms if gemm.pattern is not None},
        },
        "notes": [*notes, *made_rows.notes, NOT_MEASURED],
    }


def _layer(gemm: Gemm, workload: Workload) -> dict[str, Any]:
    return {
        "name": gemm.name,
        "m": gemm.rows,
        "k": gemm.depth,
        "n": gemm.columns,
        "groups": gemm.groups,
        "macs": gemm.macs,
        "pattern": _words(gemm),
        "density": gemm.density,
        "activation_density": gemm.activation_density,
        "left_dense": workload.left_dense.get(gemm.name),
    }


def _words(gemm: Gemm) -> str:
    """The zeros of a layer: ``2:4, 9 of 36 blocks of 64``."""
    pattern = gemm.pattern
    if pattern is None:
        return "dense" if gemm.weight_density >= 1 else f"unstructured, {100 * gemm.weight_density:.3g} %"
    words = [f"{pattern.n}:{pattern.m}"] if pattern.n < pattern.m else []
    if pattern.block:
        words.append(f"{gemm.kept_columns} of {gemm.geometry.block_columns} blocks of {pattern.block}")
    return ", ".join(words) or "dense"
