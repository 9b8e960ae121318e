"""Rows of Sparseloop's MICRO 2022 artifact (tensor-core case study), as its reference outputs have them."""

from __future__ import annotations

from dataclasses import dataclass

from billhook.accelerator import Gemm, Machine, Pattern, built_in


@dataclass(frozen=True)
class Reference:
    """One matrix product at one weight density: (cycles, microjoules) of each design."""

    m: int
    k: int
    n: int
    activations: float
    weights: float
    dense: tuple[int, float]
    stc: tuple[int, float]
    flexible: tuple[int, float]
    dstc: tuple[int, float]

    def gemm(self, pattern: Pattern | None = None, weights: float = 1.0, activations: float | None = None) -> Gemm:
        """The product, its activations as dense as the artifact says unless told otherwise."""
        alive = self.activations if activations is None else activations
        return Gemm("x", self.m, 1, self.k, self.n, pattern=pattern, weight_density=weights, activation_density=alive)

    @property
    def pattern(self) -> Pattern | None:
        """What the flexible design runs: 2:4, 2:6, 2:8."""
        return {1.0: None, 0.5: Pattern(2, 4), 0.3333: Pattern(2, 6), 0.25: Pattern(2, 8)}[self.weights]


def _rows(m, k, n, activations, dense, *rows):
    return [
        Reference(m, k, n, activations, weights, dense, stc, flexible, dstc) for weights, stc, flexible, dstc in rows
    ]


ROWS = [
    *_rows(
        128, 1152, 1024, 0.44, (147456, 276.58),
        (1.0, (147456, 248.15), (147456, 248.15), (78059, 364.68)),
        (0.5, (73728, 173.42), (73728, 173.42), (51197, 191.65)),
        (0.3333, (73728, 173.42), (70218, 150.30), (41823, 144.51)),
        (0.25, (73728, 173.42), (66707, 137.79), (37083, 120.88)),
    ),
    *_rows(
        512, 1024, 256, 0.27, (131072, 247.59),
        (1.0, (131072, 225.79), (131072, 225.79), (48875, 201.64)),
        (0.5, (65536, 132.61), (65536, 132.61), (35482, 110.93)),
        (0.25, (65536, 132.61), (59295, 76.08), (28699, 64.85)),
    ),
    *_rows(
        512, 128, 1024, 0.56, (65536, 119.51),
        (1.0, (65536, 110.63), (65536, 110.63), (45340, 197.50)),
        (0.5, (32768, 79.80), (32768, 79.80), (30226, 120.93)),
        (0.25, (32768, 79.80), (29648, 63.96), (17980, 81.52)),
    ),
    *_rows(
        512, 256, 1024, 0.82, (131072, 205.45),
        (1.0, (131072, 187.70), (131072, 187.70), (131072, 603.25)),
        (0.5, (65536, 126.03), (65536, 126.03), (78640, 281.79)),
        (0.25, (65536, 126.03), (59295, 94.36), (44257, 168.97)),
    ),
]  # fmt: skip


def other_technology() -> Machine:
    """The dense design with the energies of the artifact's own table for it, which another estimator made."""
    dense = built_in("dense-tc")
    return dense.model_copy(
        update={
            "mac_pj": 0.4469,
            "smem": dense.smem.model_copy(update={"read_pj": 536.05, "write_pj": 599.81}),
            "accumulators": dense.accumulators.model_copy(update={"read_pj": 3.165, "write_pj": 3.202}),
            "operands": dense.operands.model_copy(update={"read_pj": 0.0244, "write_pj": 0.0244}),
        }
    )
