"""Euclidean distances as every book measures them, and which of several keys is the nearest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.package import faiss

UNIT = 2.0**-24  # relative error of one rounding to float32
FLUSHED = 1e-36  # what squares may add up to that are too small for float32

Numbers = NDArray[Any]


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


def squares(query: Numbers, keys: Numbers) -> Numbers:
    """(n,) squared distances of query (features,) to keys (n, features), float32 and contiguous both.

    From differences, too, but summed in another order; by one call that reads memory as fast as it comes.
    """
    library, found = faiss(), np.empty(len(keys), np.float32)
    if not len(keys):
        return found
    into, point, read = map(library.swig_ptr, (found, np.ascontiguousarray(query), keys))
    library.fvec_L2sqr_ny(into, point, read, keys.shape[1], len(keys))
    return found


def may_be_within(squared: Numbers, distance: float, features: int) -> Numbers:
    """Which of `squares` (n,) may belong to keys (features,) that `euclidean` finds within that distance."""
    return below(squared, squared_at_most(distance, features))


def squared_at_most(distance: float, features: int) -> float:
    """What `squares` says at most of a key (features,) that `euclidean` measures within that distance."""
    return (distance * (1 + 2 * (features + 8) * UNIT)) ** 2 + FLUSHED


def measured_at_most(square: float, features: int) -> float:
    """How far a key (features,) may be measured to be by `euclidean` where this is what `squares` says."""
    return math.sqrt(square + FLUSHED) * (1 + 2 * (features + 8) * UNIT)


def below(squared: Numbers, far: float) -> Numbers:
    """Which of them (n,) are not above `far`; what is no number may be anywhere."""
    return (~(squared > far)).nonzero()[0]
