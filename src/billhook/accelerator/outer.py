"""The dual-side sparse tensor core: outer products of packed weights and packed activations, sums stationary."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from billhook.accelerator.gemm import Gemm
from billhook.accelerator.machine import Machine, OuterProduct
from billhook.accelerator.outcome import Outcome
from billhook.accelerator.traffic import Operand, loads


@functools.lru_cache(maxsize=4096)
def issues(places: int, density: float, side: int) -> float:
    """Cycles that a vector with random zeros takes, packed ``side`` values at a time, by mean utilisation.

    A vector of ``places`` places has x ~ Binomial(places, density) values and fills ⌈x / side⌉ cycles to the share
    x / (side ⌈x / side⌉). The mean work over the mean utilisation is Sparseloop's estimate, and ours. It never falls
    below one cycle: an empty vector has to be looked at as well.

    Args:
        places: Length of the vector.
        density: Share of values that are not zero.
        side: Values per cycle.
    """
    if density <= 0:
        return 0.0
    if density >= 1:
        return float(math.ceil(places / side))
    used = 0.0
    for count in range(1, places + 1):
        chance = math.exp(
            math.lgamma(places + 1)
            - math.lgamma(count + 1)
            - math.lgamma(places - count + 1)
            + count * math.log(density)
            + (places - count) * math.log1p(-density)
        )
        used += chance * count / (side * math.ceil(count / side))
    return places * density / side / used if used else 1.0


@dataclass(frozen=True)
class _Tiling:
    """One shape of the sums that a sub-partition holds.

    Attributes:
        height: Output channels of a tile.
        width: Output positions of a tile.
        down: Tiles along the channels, all sub-partitions in step.
        across: Tiles along the positions.
        weight_passes: How often every weight is read from SMEM.
        activation_passes: How often every activation is.
    """

    height: int
    width: int
    down: int
    across: int
    weight_passes: int
    activation_passes: int


def run_outer(gemm: Gemm, machine: Machine) -> Outcome:
    """Cycles and energy of one layer on a dual-side sparse tensor core.

    Zeros are taken for independent of each other, in the weights and in the activations. Of the tile shapes, the best
    for time and the best for energy are taken, each by itself: no machine can do better than both.
    """
    mapping = machine.mapping
    if not isinstance(mapping, OuterProduct):
        raise ValueError(f"the machine '{machine.name}' makes no outer products")
    outcomes = [_run(gemm, machine, mapping, tile) for tile in mapping.tiles]
    fastest = min(outcomes, key=lambda outcome: max(outcome.limits.values()))
    leanest = min(outcomes, key=lambda outcome: outcome.total_pj)
    return Outcome(fastest.limits, leanest.energy_pj, fastest.macs, fastest.useful, fastest.runs_as)


def _tiling(gemm: Gemm, mapping: OuterProduct, tile: tuple[int, int]) -> _Tiling:
    down, across = mapping.split
    if gemm.groups > 1:
        # Sub-partitions take groups of their own, so that none of them idles for want of channels.
        down, across = 1, 1
    rows, columns = (-(-gemm.rows // down), -(-gemm.columns // across))
    tall, wide = math.ceil(rows / tile[0]), math.ceil(columns / tile[1])
    return _Tiling(-(-rows // tall), -(-columns // wide), tall, wide, wide, tall)


def _run(gemm: Gemm, machine: Machine, mapping: OuterProduct, tile: tuple[int, int]) -> Outcome:
    word, side = machine.word_bits, mapping.side
    tiling = _tiling(gemm, mapping, tile)
    parts = mapping.split[0] * mapping.split[1]
    rounds = math.ceil(gemm.groups / parts) if gemm.groups > 1 else 1
    density, alive = gemm.density, gemm.activation_density
    down, across = issues(tiling.height, density, side), issues(tiling.width, alive, side)
    compute = rounds * tiling.down * tiling.across * gemm.depth * down * across

    whole = gemm.groups * gemm.depth * gemm.columns
    weights, activations = gemm.weights * density, whole * alive
    weight_words, activation_words = weights + gemm.weights / word, activations + whole / word
    read = weight_words * tiling.weight_passes + activation_words * tiling.activation_passes
    array = machine.smem.metadata
    beside = math.inf if array is None or array.capacity_bits is None else array.capacity_bits / word
    inputs = gemm.input_words * (alive + 1 / word)
    loaded = loads(
        Operand(weights, weight_words, tiling.weight_passes, beside if array is not None else 0.0),
        Operand(inputs, inputs, tiling.activation_passes),
        machine.smem.capacity or math.inf,
    )
    macs = gemm.macs * density * alive
    # Every sub-partition copies what it multiplies; a packed weight is read for every packed run of activations.
    copies_down, copies_across = mapping.split if gemm.groups == 1 else (1, 1)
    weight_copies = weights * tiling.weight_passes * copies_across
    activation_copies = activations * tiling.activation_passes * copies_down
    near = weight_copies * across + activation_copies * down
    bits = gemm.weights * tiling.weight_passes + whole * tiling.activation_passes
    smem, dram, sums = machine.smem, machine.dram, gemm.sums
    data = weights * tiling.weight_passes + activations * tiling.activation_passes
    return Outcome(
        limits={
            "compute": compute,
            "smem read": read / (smem.read_words_per_cycle or math.inf),
            "smem write": loaded / (smem.write_words_per_cycle or math.inf),
            "dram read": loaded / (dram.read_words_per_cycle or math.inf),
            "dram write": sums / (dram.write_words_per_cycle or math.inf),
        },
        energy_pj={
            "dram": loaded * dram.word_read_pj + sums * dram.word_write_pj,
            "smem": data * smem.word_read_pj + loaded * smem.word_write_pj,
            "metadata": bits * smem.bit_read_pj(word),
            "accumulators": macs * machine.accumulators.word_read_pj
            + (macs + sums) * machine.accumulators.word_write_pj,
            "operands": near * machine.operands.word_read_pj
            + (weight_copies + activation_copies) * machine.operands.word_write_pj,
            "macs": macs * machine.mac_pj,
        },
        macs=macs,
        useful=macs,
        runs_as=f"{100 * density:.3g} % of the weights, {100 * alive:.3g} % of the activations",
    )
