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

from editable.memory.cells import Around
from editable.memory.column import Column
from editable.memory.distance import below, may_be_within, squares
from editable.memory.sketch import Sketched, Slack
from editable.memory.sparse import SparseRows

if TYPE_CHECKING:
    from editable.memory.index import Index

FEW = 32  # keys that are measured sooner than their fine sketches are compared
FEW_HEADS = 4  # sketches that are read to the end for each row that is guessed

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Queries:
    """Vectors against an index, as far as that is worked out for all of them together. Bounds are numpy.

    Args:
        index: what is asked.
        vectors: (m, features) float32.
        sketched: the same.
        keys: of the book.
    """

    index: Index
    vectors: Tensor
    sketched: Sketched
    keys: SparseRows

    def __getitem__(self, place: int) -> Query:
        return Query(self, place)

    @property
    def features(self) -> int:
        """Of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def pending(self) -> Numbers:
        """(k, features) the keys without sketches."""
        return self.keys.slice(len(self.index), len(self.keys)).numpy()

    def near(self, distance: float) -> Iterator[tuple[Query, Numbers | None]]:
        """Which of the vectors may lie within that distance of any key; and of which, if of few.

        The rows are None where they have to be asked for.
        """
        queries = map(self.__getitem__, range(len(self.vectors)))
        if self.index.cells is not None:
            yield from ((query, None) for query in queries)
            return
        for query in queries:
            rows = below(query.latest_squares, query.slack(distance) ** 2)
            if len(self.pending):
                rows = np.concatenate([rows, query.pending(distance)])
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
        rows, distances = self._coarse(lambda around: around.reaching(self.slack), self.slack(widest))
        reach = column.take(rows, "radius")
        kept = distances <= self.slack(reach)
        rows, reach = rows[kept], reach[kept]
        if len(rows) > FEW:
            rows = rows[self._fine(rows) <= self.fine_slack(reach)]
        return np.concatenate([rows, self.pending(widest)])

    def within(self, distance: float) -> tuple[Numbers, Numbers]:
        """(rows, bounds), lowest bound first, of all that may be measured to lie within `distance`."""
        far = self.slack(distance)
        rows, distances = self._coarse(lambda around: around.near(far), far)
        rows = np.concatenate([rows[distances <= far], self.pending(distance)])
        bounds = np.zeros(len(rows), np.float32)
        if len(rows) <= FEW:
            return rows, bounds
        sketched = rows < len(self.index)
        bounds[sketched] = self._fine(rows[sketched])
        order = np.argsort(bounds, kind="stable")
        order = order[: self.beyond(bounds[order], distance)]
        return rows[order], bounds[order]

    def pending(self, distance: float) -> Numbers:
        """Rows without sketches that may be measured to lie within `distance`."""
        return len(self.index) + may_be_within(self._pending_squares, distance, self.queries.features)

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
        sorted_rows = self.index.sorted_rows
        rows = np.arange(sorted_rows, sorted_rows + len(self.latest_squares) + len(self._pending_squares))
        squared = np.concatenate([self.latest_squares, self._pending_squares])
        if self.around is not None:
            few, apart = self.around.few(FEW_HEADS * count)
            rows, squared = np.concatenate([rows, few]), np.concatenate([squared, apart])
        return rows[np.argpartition(squared, count)[:count]] if len(rows) > count else rows

    def _coarse(self, ask: Callable[[Around], tuple[Numbers, Numbers]], radius: float) -> tuple[Numbers, Numbers]:
        """(rows, distances of coarse sketches): what the cells answer, the latest rows within `radius`, the strays."""
        near = np.flatnonzero(self._latest_distances <= radius)
        found = [(near + self.index.sorted_rows, self._latest_distances[near])]
        if self.around is not None:
            rows, apart = ask(self.around)
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
        fine = self.index.fine.view.index_select(0, torch.from_numpy(rows)).float().numpy()  # numpy has no bfloat16
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
    def around(self) -> Around | None:
        """The cells around it, if there are any."""
        return None if self.index.cells is None else self.index.cells.around(self.coarse)

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
    def _pending_squares(self) -> Numbers:
        """(pending,) squared distances of the keys without sketches."""
        return squares(self.queries.vectors[self.place].numpy(), self.queries.pending)

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
