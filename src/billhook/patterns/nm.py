"""N:M fine-grained sparsity: in every M consecutive input channels of one tap, N weights survive."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

_COMPARE_UP_TO = 8
"""Largest M for which ranking by pairwise comparison beats a sort (M² passes over contiguous memory)."""


class NM(NamedTuple):
    """Keep ``n`` of every ``m`` weights. ``NM(1, 1)`` keeps everything."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> NM:
        """Read ``"2:4"``.

        Raises:
            ValueError: Not of the form N:M with 1 <= N <= M.
        """
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if not found:
            raise ValueError(f"'{text}' is not of the form N:M, such as 2:4")
        n, m = int(found[1]), int(found[2])
        if n < 1 or m < 1:
            raise ValueError(f"N and M of '{text}' must be at least 1")
        if n > m:
            raise ValueError(f"N = {n} is larger than M = {m} in '{text}'")
        return cls(n, m)

    @property
    def density(self) -> float:
        """The share of weights that survives, N/M."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def nm_mask(score: Tensor, nm: NM) -> Tensor:
    """Keep the N largest scores of every M consecutive entries of the last dimension (CRISP, arXiv 2311.14272).

    Ties keep the lower index, so that the mask is a function of the scores alone.

    Args:
        score: ``[..., I]`` with M dividing I.
        nm: The ratio.

    Returns:
        A boolean mask of the shape of ``score``.

    Raises:
        ValueError: M does not divide the last dimension.
    """
    n, m = nm
    if score.shape[-1] % m:
        raise ValueError(f"M = {m} does not divide {score.shape[-1]}")
    if n == m:
        return torch.ones_like(score, dtype=torch.bool)
    groups = score.reshape(-1, m)
    if m > _COMPARE_UP_TO:
        order = torch.argsort(groups, dim=1, descending=True, stable=True)
        mask = torch.zeros_like(groups, dtype=torch.bool)
        return mask.scatter_(1, order[:, :n], True).reshape(score.shape)
    lanes = groups.t().contiguous()
    kept = torch.empty(lanes.shape, dtype=torch.bool, device=score.device)
    # One comparison per pair of lanes: who loses moves one rank down. An earlier lane wins a tie.
    ranks = torch.zeros(lanes.shape, dtype=torch.uint8, device=score.device)
    for i in range(m):
        for j in range(i + 1, m):
            later_wins = lanes[j] > lanes[i]
            ranks[i] += later_wins
            ranks[j] += ~later_wins
    torch.lt(ranks, n, out=kept)
    return kept.t().reshape(score.shape)


def check_nm(mask: Tensor, nm: NM) -> None:
    """Assert that every M-group of the last dimension keeps exactly N entries, or none (a pruned block).

    Raises:
        ValueError: Names the first group that breaks the pattern.
    """
    if mask.shape[-1] % nm.m:
        raise ValueError(f"M = {nm.m} does not divide {mask.shape[-1]}")
    counts = mask.reshape(-1, nm.m).sum(dim=1)
    wrong = (counts != nm.n) & (counts != 0)
    if wrong.any():
        group = int(wrong.nonzero()[0])
        raise ValueError(f"group {group} keeps {int(counts[group])} of {nm.m} weights, not {nm.n} or none")
