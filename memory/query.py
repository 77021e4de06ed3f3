"""Vectors against an index: which keys may be near, at more and more cost for fewer and fewer.

Sketches of the keys that are in no cell are all looked at; of the others those that their cells leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.cells import Around
from editable.memory.column import Column
from editable.memory.distance import below, may_be_within, squares
from editable.memory.sketch import Sketched, Slack
from editable.memory.sparse import SparseRows

if TYPE_CHECKING:
    from editable.memory.index import Index

FEW = 32  # keys that are measured without looking further

Numbers = NDArray[Any]
NOBODY: Numbers = np.empty(0, np.int64)
NOTHING: Numbers = np.empty(0, np.float32)


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

    def slack(self, place: int) -> Slack:
        """What sketches of that vector and of keys leave open."""
        size = max(math.sqrt(self.sketched.lengths[place]), self.index.size)
        return Slack.of(self.features, size, self.sketched.errors[place])

    @cached_property
    def pending(self) -> Numbers:
        """(k, features) the keys without sketches."""
        return self.keys.slice(len(self.index), len(self.keys)).numpy()

    def near(self, distance: float) -> Iterator[tuple[Query, Numbers | None]]:
        """Which of the vectors may lie within that distance of any key; and of which, if of few.

        The rows are None where they have to be asked for.
        """
        finite = [place for place, length in enumerate(self.sketched.lengths) if math.isfinite(length)]
        queries = map(self.__getitem__, finite)  # the others are near nothing
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
        rows, bounds = self._found(lambda around: around.reaching(self.slack), self.slack(widest))
        if len(strays := self.index.known_strays) and self.around is not None:
            kept = ~np.isin(rows, strays)
            rows, bounds = _joined((rows[kept], bounds[kept]), (strays, self.around.bounds(strays)))
        rows = rows[~(bounds > self.slack(column.take(rows, "radius")))]
        return np.concatenate([rows, self.pending(widest)])

    def nearest(self, stop: int, within: float) -> Numbers | None:
        """Rows before `stop` among which are all that may be measured to be nearest; what seems the nearest, first.

        Only if it is `within` that distance. None where there are no cells to ask.
        """
        if self.around is None:
            return None
        return self.around.nearest(self.vector, self.slack, within, self.queries.keys, self.index.latest, stop)

    def within(self, distance: float) -> tuple[Numbers, Numbers]:
        """(rows, bounds), lowest bound first, of all that may be measured to lie within `distance`."""
        far, pending = self.slack(distance), self.pending(distance)
        found = self._found(lambda around: around.near(far), far)
        rows, bounds = _joined(found, (pending, np.zeros(len(pending), np.float32)))
        order = np.argsort(bounds, kind="stable")
        return rows[order], bounds[order]

    def pending(self, distance: float) -> Numbers:
        """Rows without sketches that may be measured to lie within `distance`."""
        return len(self.index) + may_be_within(self._pending_squares, distance, self.queries.features)

    def may_lie(self, rows: Numbers, limits: Numbers) -> Numbers:
        """(m,) which of rows (m,) may lie within limits (m,)."""
        bounds, start = np.zeros(len(rows), np.float32), self.index.sorted_rows
        if self.around is not None:
            bounds[rows < start] = self.around.bounds(rows[rows < start])
        late = (rows >= start) & (rows < len(self.index))
        bounds[late] = np.sqrt(self.latest_squares[rows[late] - start])
        kept: Numbers = ~(bounds > self.slack(limits))
        return kept

    def guess(self, count: int) -> Numbers:
        """Some rows that most likely include the nearest."""
        start = self.index.sorted_rows
        squared = np.concatenate([self.latest_squares, self._pending_squares])
        rows = np.arange(start, start + len(squared))
        if self.around is not None:
            rows, squared = _joined((rows, squared), self.around.few(count))
        return rows[np.argpartition(squared, count)[:count]] if len(rows) > count else rows

    def _found(self, ask: Callable[[Around], tuple[Numbers, Numbers]], radius: float) -> tuple[Numbers, Numbers]:
        """(rows, bounds): what the cells answer, and the latest rows within `radius`."""
        near = below(self.latest_squares, radius * radius)
        latest = near + self.index.sorted_rows, np.fmax(np.sqrt(self.latest_squares[near]), 0)  # what is no number: 0
        return latest if self.around is None else _joined(latest, ask(self.around))

    @property
    def index(self) -> Index:
        """What is asked."""
        return self.queries.index

    @property
    def tensor(self) -> Tensor:
        """(features,) itself."""
        return self.queries.vectors[self.place]

    @cached_property
    def vector(self) -> Numbers:
        """(features,) itself."""
        return self.tensor.numpy()

    @property
    def point(self) -> Numbers:
        """(width,) the vector's sketch."""
        point: Numbers = self.queries.sketched.points[self.place]
        return point

    @cached_property
    def around(self) -> Around | None:
        """The cells around it, if there are any."""
        return None if self.index.cells is None else self.index.cells.around(self.point)

    @cached_property
    def slack(self) -> Slack:
        """What sketches leave open."""
        return self.queries.slack(self.place)

    @cached_property
    def latest_squares(self) -> Numbers:
        """(latest,) squared distances of the sketches that are in no cell yet."""
        return squares(self.point, self.index.latest.view.numpy())

    @cached_property
    def _pending_squares(self) -> Numbers:
        """(pending,) squared distances of the keys without sketches."""
        return squares(self.vector, self.queries.pending)


def _joined(one: tuple[Numbers, Numbers], other: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """(rows, bounds) of both."""
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
