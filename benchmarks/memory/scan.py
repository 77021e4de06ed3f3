"""A lookup without any cleverness: every distance measured. What ours must agree with, and what it is timed against.

Knows keys and radii. Refuses to know clocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editable.benchmarks.memory.keys import CHUNK
from editable.memory.radius import Codebook

Answer = tuple[Tensor, Tensor]
"""(m,) rows and shares, as `Codebook.find` gives them."""


def scanned(book: Codebook, queries: Tensor) -> Answer:
    """What queries (m, features) fall into, by one plain loop over all keys.

    Float32 distances from differences, the latest of equally near balls: what decides in the book itself.
    """
    radii, least = book.radii, torch.full((len(queries),), torch.inf)
    row = torch.zeros(len(queries), dtype=torch.long)
    for start in range(0, len(book), CHUNK):
        keys = book.keys.slice(start, min(start + CHUNK, len(book)))
        distances = torch.cdist(queries.float(), keys, compute_mode="donot_use_mm_for_euclid_dist")
        distances = distances.masked_fill(radii[start : start + len(keys)] < 0, torch.inf)
        here = distances.amin(dim=1)
        latest = torch.where(distances == here[:, None], torch.arange(len(keys)), -1).amax(dim=1)
        row = torch.where(here <= least, latest + start, row)
        least = torch.minimum(least, here)
    return row, _shares(least, radii[row])


def _shares(distances: Tensor, radii: Tensor) -> Tensor:
    smallest = torch.finfo(torch.float32).tiny
    inside = (distances <= radii) & distances.isfinite()
    return torch.where(inside, distances / radii.clamp_min(smallest), torch.inf)


def differing(found: Answer, expected: Answer) -> int:
    """In how many answers they differ: whether it is a hit, how deep, and the row where it is one."""
    (row, share), (own_row, own_share) = found, expected
    return int(((share != own_share) | ((own_share <= 1) & (row != own_row))).sum())


class Product:
    """The textbook's scan: one matrix product and norms that were computed once."""

    def __init__(self, book: Codebook) -> None:
        self.keys, self.radii = book.keys.view, book.radii
        self.squares = torch.cat([part.square().sum(dim=1) for part in self.keys.split(CHUNK)])

    def find(self, query: Tensor) -> Answer:
        """Of one query (1, features)."""
        squares = query.square().sum() - 2 * (self.keys @ query[0]) + self.squares
        distances = squares.clamp_min(0).sqrt().masked_fill(self.radii < 0, torch.inf)
        row = distances.argmin()[None]
        return row, _shares(distances[row], self.radii[row])


class Cdist:
    """`torch.cdist`, as it comes."""

    def __init__(self, book: Codebook) -> None:
        self.keys, self.radii = book.keys.view, book.radii

    def find(self, query: Tensor) -> Answer:
        """Of one query (1, features)."""
        distances = torch.cdist(query, self.keys)[0].masked_fill(self.radii < 0, torch.inf)
        row = distances.argmin()[None]
        return row, _shares(distances[row], self.radii[row])
