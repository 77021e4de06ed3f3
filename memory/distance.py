"""Euclidean distances as every book measures them, and which of several keys is the nearest."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean(queries: Tensor, keys: Tensor) -> Tensor:
    """(m, n) of queries (m, features) to keys (n, features).

    From differences: a matrix product would lose the small ones between large vectors.
    """
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")


def latest_nearest(apart: Tensor) -> tuple[Tensor, Tensor]:
    """Of distances (m, n), each row's least: which it is (m,), the latest of equal ones, and how much (m,)."""
    least = apart.amin(dim=1, keepdim=True)
    order = torch.arange(apart.shape[1], device=apart.device)
    return torch.where(apart == least, order, -1).amax(dim=1).clamp_min(0), least[:, 0]
