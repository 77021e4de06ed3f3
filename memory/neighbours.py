"""The nearest of many vectors by cosine: exactly while there are few, and then by a FAISS index that is a cache.

What the index proposes is measured again, what it has not taken in yet is scanned, and what was forgotten is left out
afterwards: FAISS never removes. It is made in the background from the vectors themselves, never read from a file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.background import Job
from editable.memory.package import faiss
from editable.memory.rows import Rows

LATEST = 1024  # vectors that are scanned without an index
REGROW = 4  # its lists are found anew when there are so many times the vectors
PROBED = 32  # of its lists

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What spares looking at most vectors. Immutable; belongs to the rows it was made from and those that follow.

    Args:
        lists: a FAISS index of the first `known` vectors; None while there are few.
        known: how many vectors it knows.
        made_at: how many there were when its lists were found.
        job: a better one in the making.
    """

    lists: Any = None
    known: int = 0
    made_at: int = 0
    job: Job[tuple[Any, int]] | None = None

    @classmethod
    def empty(cls) -> Neighbours:
        """Knows nothing; all vectors are scanned."""
        return cls()

    def nearest(self, vectors: Rows, query: Numbers, seen: Numbers, count: int) -> Numbers:
        """(m,) rows of the nearest of `vectors` (n, 3, width), the first of each three, nearest first.

        Args:
            vectors: unit vectors.
            query: (width,) of length 1.
            seen: (n,) which may be found.
            count: of rows wanted.
        """
        rows = self._proposed(vectors, query, 4 * count)
        rows = rows[seen[rows]]
        near = cosines(vectors.view[torch.from_numpy(rows), 0], query)
        return rows[np.lexsort((-rows, -near))[:count]]  # of equally near ones the latest

    def _proposed(self, vectors: Rows, query: Numbers, count: int) -> Numbers:
        late = np.arange(self.known, len(vectors))
        if self.lists is None:
            return late
        parameters = faiss().SearchParametersIVF(nprobe=PROBED)
        _, ids = self.lists.search(query[None].astype(np.float32), count, params=parameters)
        return np.concatenate([ids[0][ids[0] >= 0], late])

    def following(self, vectors: Rows) -> Neighbours:
        """With the index that was made, if one is done; and with one in the making, if it is due."""
        made = None if self.job is None else self.job.made
        base = replace(self, lists=made[0], known=made[1], job=None) if made else self
        if base.job is not None or len(vectors) - base.known <= LATEST:
            return base
        if base.lists is None or len(vectors) >= REGROW * base.made_at:
            return replace(base, made_at=len(vectors), job=Job("index of sentences", lambda: _made(vectors)))
        return replace(base, job=Job("index of sentences", lambda: _extended(base.lists, base.known, vectors)))

    def settled(self, vectors: Rows) -> Neighbours:
        """The same once everything that is done in the background is done."""
        left = self.following(vectors)
        while left.job is not None and left.job.wait() is not None:
            left = left.following(vectors)
        return left


def cosines(vectors: Tensor, query: Numbers) -> Numbers:
    """(n,) of unit vectors (n, width); from float32, each by itself, so that they do not depend on their company."""
    product = vectors.float() * torch.from_numpy(query.astype(np.float32))
    return product.sum(dim=1).numpy()


def _extended(lists: Any, known: int, vectors: Rows) -> tuple[Any, int]:
    """With the vectors that came since; readers keep the one they have."""
    longer = faiss().clone_index(lists)
    longer.add(np.ascontiguousarray(vectors.view[known:, 0].float().numpy()))
    return longer, len(vectors)


def _made(vectors: Rows) -> tuple[Any, int]:
    library = faiss()
    data = np.ascontiguousarray(vectors.view[:, 0].float().numpy())
    count, width = data.shape
    lists = round(4 * count**0.5)
    sample = data[:: max(1, count // (30 * lists))]
    means = library.Kmeans(width, lists, niter=6, spherical=True, seed=1, min_points_per_centroid=1)
    means.train(sample)
    quantizer = library.IndexFlatIP(width)
    quantizer.add(means.centroids)
    index = library.IndexIVFFlat(quantizer, width, lists, library.METRIC_INNER_PRODUCT)
    index.is_trained = True
    index.add(data)
    return index, count
