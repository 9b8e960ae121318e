"""Greedy whole-network filter pruning with compensation: FP-Backward, FP-OMP, HBGS, HBGTS, and what they are compared
with (Purohit, Parvathgari and Bhattacharya, 2022 and 2024; Joo et al., 2021)."""

from billhook.methods.greedy.config import FPOMP, HBGS, HBGTS, LRF, FPBackward, FPOMPSearch, GreedyConfig, SearchConfig
from billhook.methods.greedy.removable import greedy_limits
from billhook.methods.greedy.search import SearchPlan
from billhook.methods.greedy.uniform import UniformPlan

GREEDY_PLANS: dict[str, tuple[type[GreedyConfig], type[UniformPlan] | type[SearchPlan]]] = {
    "fp-backward": (FPBackward, UniformPlan),
    "fp-omp": (FPOMP, UniformPlan),
    "lrf": (LRF, UniformPlan),
    "hbgs": (HBGS, SearchPlan),
    "hbgts": (HBGTS, SearchPlan),
    "fp-omp-search": (FPOMPSearch, SearchPlan),
}
"""The config and the plan of each method, by name."""

__all__ = [
    "FPOMP",
    "GREEDY_PLANS",
    "HBGS",
    "HBGTS",
    "LRF",
    "FPBackward",
    "FPOMPSearch",
    "GreedyConfig",
    "SearchConfig",
    "SearchPlan",
    "UniformPlan",
    "greedy_limits",
]
