"""Vectors of many kinds, ordinary and awkward, on which bounds are tried."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(count, features, generator=generator(seed))


def heavy(count: int, features: int, seed: int) -> Tensor:
    """A few features hold nearly all of the length, as activations do."""
    return drawn(count, features, seed).pow(5)


def near_equal(count: int, features: int, seed: int) -> Tensor:
    """Of norm 100 or so, and a rounding error or two apart."""
    base: Tensor = drawn(1, features, seed) * 100 / features**0.5
    return base * (1 + 1e-7 * drawn(count, features, seed + 1))


def huge(count: int, features: int, seed: int) -> Tensor:
    return drawn(count, features, seed) * 1e12 + 1e14


def alike(count: int, features: int, seed: int) -> Tensor:
    """One vector, over and over: nothing to find directions from."""
    return drawn(1, features, seed).expand(count, features).contiguous()


def few_directions(count: int, features: int, seed: int) -> Tensor:
    """All in a plane: what is left over is rounding only."""
    return drawn(count, 2, seed) @ drawn(2, features, seed + 1) * 50


KINDS = {f.__name__: f for f in (drawn, heavy, near_equal, huge, alike, few_directions)}


def distances(query: Tensor, vectors: Tensor) -> Tensor:
    """(n,) as the codebook measures them, in float32."""
    return torch.cdist(query[None], vectors, compute_mode="donot_use_mm_for_euclid_dist")[0]
