"""Tensor cores that keep weights in the array: dense, 2:4, any N:M, and hybrid (N:M in the blocks that survive)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from billhook.accelerator.gemm import Gemm, Pattern
from billhook.accelerator.machine import Machine, WeightStationary, parse_nm
from billhook.accelerator.outcome import Outcome
from billhook.accelerator.traffic import Operand, loads
from billhook.formats import index_width


@dataclass(frozen=True)
class Taken:
    """The weights as a machine takes them.

    Attributes:
        n: Weights carried out of every ``m`` positions; n = m: dense.
        bits: Of the offset that goes with each of them.
        blocks: Whether pruned blocks are left out.
    """

    n: int
    m: int
    bits: int
    blocks: bool


def take(gemm: Gemm, machine: Machine) -> Taken:
    """How a machine runs a layer's weights: whatever of their pattern it supports and gains by.

    A pattern whose offsets cost more bits than it leaves out runs dense. Blocks are left out when even the sparsest
    pattern of this M would need fewer bits so, block columns included.
    """
    pattern = gemm.pattern or Pattern()
    n, m, bits = 1, 1, 0
    for text in machine.sparsity.patterns:
        found = _fits(pattern, text)
        field = _field(found[1], machine) if found else None
        if found and field is not None and found[0] * (machine.word_bits + field) <= found[1] * machine.word_bits:
            n, m, bits = *found, field
            break
    skip = machine.sparsity.blocks and gemm.skips
    if skip:
        per_weight = (machine.word_bits + bits) / m
        skip = _kept_weights(gemm) * per_weight + _index_bits(gemm) <= gemm.weights * per_weight
    return Taken(n, m, bits, skip)


def _kept_weights(gemm: Gemm) -> float:
    """Weights inside the blocks that are kept, exact for ragged blocks too."""
    pattern = gemm.pattern or Pattern()
    return gemm.nonzeros * pattern.m / pattern.n


def _index_bits(gemm: Gemm) -> int:
    """Bits of the block columns."""
    return gemm.geometry.column_count(gemm.kept_columns) * gemm.geometry.column_width


def _fits(pattern: Pattern, text: str) -> tuple[int, int] | None:
    """The pattern to run as, when the machine's ``text`` holds every mask of the layer's pattern."""
    n, m = pattern.n, pattern.m
    if n == m:
        return None
    if text == "any":
        return n, m
    most, group = parse_nm(text)
    # Of an aligned group of the machine's: at most N of the layer's, when its groups hold whole ones or lie inside.
    worst = n if m % group == 0 else n * group // m if group % m == 0 else group
    return (most, group) if worst <= most < group else None


def _field(m: int, machine: Machine) -> int | None:
    need = index_width(m)
    return min((bits for bits in machine.sparsity.offset_bits if bits >= need), default=None)


def run_stationary(gemm: Gemm, machine: Machine) -> Outcome:
    """Cycles and energy of one layer with the weights stationary.

    The array holds ``rows`` x ``depth`` stored weights while ``columns`` positions pass, one per cycle. Per position it
    reads the activations of the whole window of depth x M/N positions that those weights may sit at. The weights pass
    once for every run of ``columns`` positions.
    """
    mapping, word = machine.mapping, machine.word_bits
    if not isinstance(mapping, WeightStationary):
        raise ValueError(f"the machine '{machine.name}' is not weight-stationary")
    taken = take(gemm, machine)
    groups, columns, sums = gemm.groups, gemm.columns, gemm.sums

    # Groups that are narrower than the array share it; their activations are their own.
    per_pass = max(1, mapping.rows // gemm.rows) if groups > 1 else 1
    tall = math.ceil(gemm.rows / mapping.rows)
    passes = tall * math.ceil(groups / per_pass)
    depth = gemm.kept_depth if taken.blocks else gemm.depth
    stored_depth = depth * taken.n / taken.m
    steps = math.ceil(stored_depth / mapping.depth)
    runs = math.ceil(columns / mapping.columns)

    # Stored and multiplied, explicit zeros included.
    values = (_kept_weights(gemm) if taken.blocks else gemm.weights) * taken.n / taken.m
    position_bits = values * taken.bits + (_index_bits(gemm) if taken.blocks else 0)
    stored = values + position_bits / word
    fetched = (gemm.live_depth(mapping.rows) if taken.blocks else tall * gemm.depth) * groups * columns

    array = machine.smem.metadata
    beside = stored if array is None or array.capacity_bits is None else array.capacity_bits / word
    loaded = loads(
        Operand(values, stored, runs, beside if array is not None else 0.0),
        Operand(gemm.input_words, gemm.input_words, tall),
        machine.smem.capacity or math.inf,
    )
    macs = values * columns
    smem, dram, near = machine.smem, machine.dram, machine.operands
    writes = sums * (steps + 1)
    positions_pj = position_bits * runs * smem.bit_read_pj(word)
    positions_pj += values * taken.bits * (columns + runs) * near.bit_read_pj(word)
    return Outcome(
        limits={
            "compute": passes * steps * columns,
            "smem read": _cycles(fetched + stored * runs, smem.read_words_per_cycle),
            "smem write": _cycles(loaded, smem.write_words_per_cycle),
            "dram read": _cycles(loaded, dram.read_words_per_cycle),
            "dram write": _cycles(sums, dram.write_words_per_cycle),
        },
        energy_pj={
            "dram": loaded * dram.word_read_pj + sums * dram.word_write_pj,
            "smem": (fetched + values * runs) * smem.word_read_pj + loaded * smem.word_write_pj,
            "metadata": positions_pj,
            "accumulators": sums * (steps - 1) * machine.accumulators.word_read_pj
            + writes * machine.accumulators.word_write_pj,
            "operands": macs * near.word_read_pj + values * runs * near.word_write_pj,
            "macs": macs * machine.mac_pj,
        },
        macs=macs,
        useful=gemm.nonzeros * columns,
        runs_as=_words(gemm, taken),
    )


def _cycles(words: float, per_cycle: float | None) -> float:
    return 0.0 if per_cycle is None else words / per_cycle


def _words(gemm: Gemm, taken: Taken) -> str:
    words = [f"{taken.n}:{taken.m}"] if taken.n < taken.m else []
    if taken.blocks:
        words.append(f"{gemm.kept_columns} of {gemm.geometry.block_columns} block columns")
    return ", ".join(words) or "dense"
