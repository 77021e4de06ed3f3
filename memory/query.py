"""Vectors against an index: which keys may be near, at more and more cost for fewer and fewer.

Coarse sketches of all keys that are in no cell come first, then cells, fine sketches and keys, where that leaves any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.cells import Cells
from editable.memory.column import Column
from editable.memory.distance import below, may_be_within, squares
from editable.memory.sketch import Sketched, Slack
from editable.memory.sparse import SparseRows

if TYPE_CHECKING:
    from editable.memory.index import Index

FEW = 32  # keys that are measured sooner than their fine sketches are compared

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Queries:
    """Vectors against an index, as far as that is worked out for all of them together. Bounds are numpy.

    Args:
        index: what is asked.
        sketched: the vectors.
        features: of a vector.
        count: keys in the book.
    """

    index: Index
    sketched: Sketched
    features: int
    count: int

    def __getitem__(self, place: int) -> Query:
        return Query(self, place)

    def near(self, vectors: Tensor, keys: SparseRows, distance: float) -> Iterator[tuple[Query, Numbers | None]]:
        """Which of the vectors (m, features) may lie within that distance of any key; and of which, if of few.

        The rows are None where they have to be asked for.
        """
        if self.index.cells is not None:
            yield from ((self[place], None) for place in range(len(vectors)))
            return
        pending = keys.slice(len(self.index), self.count).numpy()
        for place, vector in enumerate(vectors.numpy()):
            query = self[place]
            rows = below(query.latest_squares, query.slack(distance) ** 2)
            if len(pending):
                unknown = may_be_within(squares(vector, pending), distance, len(vector))
                rows = np.concatenate([rows, len(self.index) + unknown])
            if len(rows):
                yield query, rows if len(rows) <= FEW else None


@dataclass(frozen=True)
class Query:
    """One vector against an index. Rows and bounds are numpy.

    Args:
        queries: the vector and others.
        place: which of them it is.
    """

    queries: Queries
    place: int

    def may_reach(self, column: Column, widest: float) -> Numbers:
        """Rows among which are all whose ball may hold the vector, where none is wider than `widest`."""
        rows, distances = self._coarse(lambda cells: cells.reaching(self.coarse, self.slack), self.slack(widest))
        reach = column.take(rows, "radius")
        kept = distances <= self.slack(reach)
        rows, reach = rows[kept], reach[kept]
        if len(rows) > FEW:
            rows = rows[self._fine(rows) <= self.fine_slack(reach)]
        return np.concatenate([rows, self.pending])

    def within(self, distance: float, seen: Callable[[Numbers], Numbers]) -> tuple[Numbers, Numbers]:
        """(rows, bounds), lowest bound first, of all that are seen and may be measured to lie within `distance`."""
        far = self.slack(distance)
        rows, distances = self._coarse(lambda cells: cells.near(self.coarse, far), far)
        rows, pending = seen(rows[distances <= far]), seen(self.pending)
        if len(rows) <= FEW:
            return np.concatenate([pending, rows]), np.zeros(len(pending) + len(rows), np.float32)
        bounds = self._fine(rows)
        order = np.argsort(bounds, kind="stable")
        order = order[: self.beyond(bounds[order], distance)]
        unknown = np.zeros(len(pending), bounds.dtype)
        return np.concatenate([pending, rows[order]]), np.concatenate([unknown, bounds[order]])

    def may_lie(self, rows: Numbers, limits: Numbers) -> Numbers:
        """(m,) which of rows (m,) may lie within limits (m,)."""
        kept = rows >= len(self.index)
        known = np.flatnonzero(~kept)
        coarse = np.sqrt(squares(self.coarse.numpy(), self.index.coarse(rows[known])))
        known = known[coarse <= self.slack(limits[known])]
        kept[known] = self._fine(rows[known]) <= self.fine_slack(limits[known])
        return kept

    def beyond(self, bounds: Numbers, limit: float) -> int:
        """How many of these bounds, lowest first, may belong to vectors within `limit`."""
        if len(bounds) <= FEW:
            return len(bounds)
        return int(np.searchsorted(bounds, self.fine_slack(limit), side="right"))

    def guess(self, count: int) -> Numbers:
        """Some rows that most likely include the nearest."""
        distances = self._latest_distances
        some = np.argpartition(distances, count)[:count] if len(distances) > count else np.arange(len(distances))
        near = np.concatenate([some + self.index.sorted_rows, self.pending])
        return near if self.index.cells is None else np.concatenate([near, self.index.cells.few(self.coarse, count)])

    def _coarse(self, ask: Callable[[Cells], tuple[Numbers, Numbers]], radius: float) -> tuple[Numbers, Numbers]:
        """(rows, distances of coarse sketches): what the cells answer, the latest rows within `radius`, the strays."""
        near = np.flatnonzero(self._latest_distances <= radius)
        found = [(near + self.index.sorted_rows, self._latest_distances[near])]
        if self.index.cells is not None:
            rows, apart = ask(self.index.cells)
            found.append((rows, np.sqrt(apart)))
        if len(strays := self.index.known_strays):
            found = [(rows[kept], part[kept]) for rows, part in found for kept in [~np.isin(rows, strays)]]
            found.append((strays, np.zeros(len(strays), np.float32)))
        rows, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, distances

    def _fine(self, rows: Numbers) -> Numbers:
        """(m,) the distances of both sketches of rows (m,) from the vector's."""
        coarse = self.index.coarse(rows)[:, :-1]
        coarse -= self.coarse.numpy()[:-1]
        fine = self.index.fine.view[torch.from_numpy(rows)].float().numpy()  # numpy has no bfloat16
        fine -= self._fine_sketch[0]
        return np.sqrt(np.einsum("ij,ij->i", coarse, coarse) + np.einsum("ij,ij->i", fine, fine))  # type: ignore[no-any-return]

    @property
    def index(self) -> Index:
        """What is asked."""
        return self.queries.index

    @cached_property
    def coarse(self) -> Tensor:
        """(coarse + 1,) the vector's coarse sketch."""
        return self.queries.sketched.coarse[self.place]

    @cached_property
    def slack(self) -> Slack:
        """What coarse sketches leave open."""
        return Slack.of(self.queries.features, self.size, self.queries.sketched.errors[self.place])

    @cached_property
    def fine_slack(self) -> Slack:
        """What both sketches leave open."""
        return Slack.of(self.queries.features, self.size, self._fine_sketch[1], fine=True)

    @property
    def size(self) -> float:
        """No coarse sketch is longer, neither of a key nor of the vector."""
        return max(math.sqrt(self.queries.sketched.lengths[self.place]), self.index.size)

    @cached_property
    def pending(self) -> Numbers:
        """Rows without sketches."""
        return np.arange(len(self.index), self.queries.count)

    @cached_property
    def _fine_sketch(self) -> tuple[Numbers, float]:
        return self.queries.sketched.fine(self.place)

    @cached_property
    def latest_squares(self) -> Numbers:
        """(latest,) squared distances of the coarse sketches that are in no cell yet."""
        return squares(self.coarse.numpy(), self.index.latest.view.numpy())

    @cached_property
    def _latest_distances(self) -> Numbers:
        return np.sqrt(self.latest_squares)
