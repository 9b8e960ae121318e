"""Pure mask mathematics: which weights a pattern keeps, given a score for every weight.

Everything here works on the *matrix view* of a weight, a tensor ``[O, taps, I]`` (output channels, kernel positions,
input channels with the input channel fastest), so that an N:M group lies in consecutive input channels of one tap
and a block covers ``B`` output channels times ``B`` consecutive input channels of one tap. No method, no network and
no training is known here.
"""

from billhook.patterns.block import BlockGrid
from billhook.patterns.hybrid import HybridPattern, check_hybrid, hybrid_mask
from billhook.patterns.layout import from_matrix, to_matrix
from billhook.patterns.nm import NM, check_nm, nm_mask
from billhook.patterns.rank_columns import RankColumns, choose_removed, rank_columns
from billhook.patterns.unstructured import choose_saving_mask, choose_threshold_mask

__all__ = [
    "NM",
    "BlockGrid",
    "HybridPattern",
    "RankColumns",
    "check_hybrid",
    "check_nm",
    "choose_removed",
    "choose_saving_mask",
    "choose_threshold_mask",
    "from_matrix",
    "hybrid_mask",
    "nm_mask",
    "rank_columns",
    "to_matrix",
]
