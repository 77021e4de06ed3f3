"""Which keys may lie near a query: exact lower bounds on distances, so that only few distances have to be measured.

Every key has a sketch; the sketches of all but the latest keys are sorted into cells, those of the latest are scanned.
An `Index` is an immutable value like the book that it belongs to. It is a cache: whatever it has not taken in yet, or
has wrong, is added to what it finds, so that decisions never depend on it. It is made and renewed in the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.cells import Cells
from editable.memory.column import Column
from editable.memory.distance import euclidean
from editable.memory.rows import Rows
from editable.memory.sketch import SAMPLE, Sketch, Slack
from editable.memory.sparse import SparseRows

SCANNED = 150_000  # numbers that are read in the time an index takes: `editable bench memory --parts switch`
LATEST = 4096  # keys that may wait to be sorted into cells
REGROW = 8  # the directions and the cells are found anew when there are so many times the keys
PENDING = 32  # keys that may wait for their sketches: together they are made faster
STRAYS = 1024  # balls that outgrew what their cell knows, from which the cells are made anew
CHUNK = 16384  # keys sketched at a time

Numbers = NDArray[Any]


def first(features: int) -> int:
    """From how many keys of so many features on an index is faster than measuring all distances."""
    return -(-SCANNED // features)


@dataclass(frozen=True, eq=False)
class Index:
    """Bounds for the keys of one book.

    Args:
        sketch: the map from keys to sketches.
        sketches: the coarse ones, a row per key.
        fine: the fine ones, in bfloat16.
        size: no coarse sketch is longer.
        cells: the sorted part; None while there are few keys.
        strays: rows in the sorted part whose radius has grown since, or that had no ball then and have one now.
        made_at: keys there were when directions and cells were found.
    """

    sketch: Sketch
    sketches: Rows
    fine: Rows
    size: float
    cells: Cells | None = None
    strays: frozenset[int] = frozenset()
    made_at: int = 0

    @classmethod
    def of(cls, keys: SparseRows, radius: Numbers) -> Index:
        """Everything anew, for keys (n, features) with these radii (n,)."""
        live = np.flatnonzero(keys.live.array())
        live = live if len(live) else np.arange(len(keys))  # directions from nowhere would bound nothing
        sample = live[:: max(1, len(live) // SAMPLE)][:SAMPLE]
        sketch = Sketch.of_sample(keys.at(torch.from_numpy(sample)))
        fine = Rows.empty(sketch.directions.shape[1] - sketch.coarse + 1, dtype=torch.bfloat16)
        index = cls(sketch, Rows.empty(sketch.coarse + 1), fine, 0.0, made_at=len(keys)).extended(keys)
        return index.sorted(keys, radius) if len(keys) > LATEST else index

    def __len__(self) -> int:
        return len(self.sketches)

    @property
    def sorted_rows(self) -> int:
        """How many rows the cells have taken in."""
        return 0 if self.cells is None else len(self.cells)

    def following(self, keys: SparseRows) -> Index:
        """With sketches of the keys (n, features) that came since, once there are enough of them."""
        return self if len(keys) - len(self) < PENDING else self.extended(keys)

    def extended(self, keys: SparseRows) -> Index:
        """With sketches of the keys (n, features) that came since."""
        sketches, fine, size = self.sketches, self.fine, self.size
        for start in range(len(self), len(keys), CHUNK):
            coarse, rest = self.sketch.of(keys.slice(start, min(start + CHUNK, len(keys))))
            sketches, fine = sketches.append(coarse), fine.append(rest)
            size = max(size, float(coarse.norm(dim=1).amax()))
        return replace(self, sketches=sketches, fine=fine, size=size)

    def sorted(self, keys: SparseRows, radius: Numbers) -> Index:
        """With cells for all keys that are not let go, made anew."""
        return replace(self, cells=Cells.of(self.sketches.view, radius, keys.live.array()), strays=frozenset())

    def merged(self, keys: SparseRows, radius: Numbers) -> Index:
        """With the latest keys added to the cells there are."""
        if self.cells is None or len(self.strays) > STRAYS:
            return self.sorted(keys, radius)
        return replace(self, cells=self.cells.extended(self.sketches.view, radius, keys.live.array()))

    def taking(self, cells: Cells | None, radius: Numbers) -> Index:
        """With other cells for the same sketches, now that the rows they know have these radii (rows,)."""
        index = replace(self, cells=cells, strays=frozenset())
        return index.noting(np.arange(index.sorted_rows), radius[: index.sorted_rows])

    def noting(self, rows: Numbers, radius: Numbers) -> Index:
        """With balls that changed: rows (m,) have these radii (m,) now."""
        sorted_part = rows < self.sorted_rows
        if self.cells is None or not sorted_part.any():
            return self
        rows, radius = rows[sorted_part], radius[sorted_part]
        grown = rows[radius > self.cells.radius[rows]]
        return replace(self, strays=self.strays.union(grown.tolist())) if len(grown) else self

    def query(self, vector: Tensor, count: int) -> Query:
        """Ask about one vector (features,) in a book of `count` keys."""
        coarse, fine, error = self.sketch.of_query(vector)
        features, size = vector.shape[0], max(self.size, float(np.linalg.norm(coarse.numpy())))
        slacks = (Slack.of(features, size, error), Slack.of(features, size, error, fine=True))
        return Query(self, coarse, fine.numpy(), *slacks, self._known_strays, np.arange(len(self), count))

    @cached_property
    def _known_strays(self) -> Numbers:
        return np.fromiter(self.strays, np.int64, len(self.strays))

    @cached_property
    def directions(self) -> Numbers:
        """(keys, directions) of the coarse sketches, without the norms of the rest."""
        return self.sketches.view.numpy()[:, :-1]

    def due(self, count: int) -> bool:
        """Whether it should be renewed, now that there are `count` keys."""
        return count >= REGROW * self.made_at or count - self.sorted_rows > LATEST or len(self.strays) > STRAYS

    def renewed(self, keys: SparseRows, radius: Numbers) -> Index:
        """Better suited to these keys, which must all have their sketches: in the background nothing is appended."""
        return Index.of(keys, radius) if len(keys) >= REGROW * self.made_at else self.merged(keys, radius)


@dataclass(frozen=True)
class Query:
    """One vector against an index. Rows and bounds are numpy.

    Args:
        index: what is asked.
        sketch, fine: the vector's sketches.
        slack, fine_slack: what they leave open.
        strays: rows of which the cells know too little.
        pending: rows without sketches.
    """

    index: Index
    sketch: Tensor
    fine: Numbers
    slack: Slack
    fine_slack: Slack
    strays: Numbers
    pending: Numbers

    def may_reach(self, column: Column) -> Numbers:
        """Rows among which are all whose ball may hold the vector."""
        rows, distances = self._coarse(lambda cells: cells.reaching(self.sketch, self.slack), np.inf)
        reach = column.take(rows, "radius")
        kept = distances <= self.slack(reach)
        rows, reach = rows[kept], reach[kept]
        near = rows[self._fine(rows) <= self.fine_slack(reach)] if len(rows) else rows
        return np.concatenate([near, self.pending])

    def within(self, distance: float, seen: Callable[[Numbers], Numbers]) -> tuple[Numbers, Numbers]:
        """(rows, bounds), lowest bound first, of all that are seen and may be measured to lie within `distance`."""
        far = self.slack(distance)
        rows, distances = self._coarse(lambda cells: cells.near(self.sketch, far), far)
        rows, pending = seen(rows[distances <= far]), seen(self.pending)
        bounds = self._fine(rows)
        order = np.argsort(bounds, kind="stable")
        order = order[: self.beyond(bounds[order], distance)]
        unknown = np.zeros(len(pending), bounds.dtype)
        return np.concatenate([pending, rows[order]]), np.concatenate([unknown, bounds[order]])

    def may_lie(self, rows: Numbers, limits: Numbers) -> Numbers:
        """(m,) which of rows (m,) may lie within limits (m,)."""
        kept = rows >= len(self.index)
        known = np.flatnonzero(~kept)
        coarse = _distances(self.sketch, self.index.sketches.view[torch.from_numpy(rows[known])])
        known = known[coarse <= self.slack(limits[known])]
        kept[known] = self._fine(rows[known]) <= self.fine_slack(limits[known])
        return kept

    def beyond(self, bounds: Numbers, limit: float) -> int:
        """How many of these bounds, lowest first, may belong to vectors within `limit`."""
        return int(np.searchsorted(bounds, self.fine_slack(limit), side="right"))

    def guess(self, count: int) -> Numbers:
        """Some rows that most likely include the nearest."""
        distances = self._latest_distances
        some = np.argpartition(distances, count)[:count] if len(distances) > count else np.arange(len(distances))
        near = np.concatenate([some + self.index.sorted_rows, self.pending])
        return near if self.index.cells is None else np.concatenate([near, self.index.cells.few(self.sketch, count)])

    def _coarse(self, ask: Callable[[Cells], tuple[Numbers, Numbers]], radius: float) -> tuple[Numbers, Numbers]:
        """(rows, distances of coarse sketches): what the cells answer, the latest rows within `radius`, the strays."""
        near = np.flatnonzero(self._latest_distances <= radius)
        found = [(near + self.index.sorted_rows, self._latest_distances[near])]
        if self.index.cells is not None:
            rows, squares = ask(self.index.cells)
            found.append((rows, np.sqrt(squares)))
        if len(self.strays):
            found = [(rows[kept], part[kept]) for rows, part in found for kept in [~np.isin(rows, self.strays)]]
            found.append((self.strays, np.zeros(len(self.strays), np.float32)))
        rows, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, distances

    def _fine(self, rows: Numbers) -> Numbers:
        """(m,) the distances of both sketches of rows (m,) from the vector's."""
        coarse = self.index.directions[rows]
        coarse -= self.sketch.numpy()[:-1]
        fine = self.index.fine.view[torch.from_numpy(rows)].float().numpy()  # numpy has no bfloat16
        fine -= self.fine
        return np.sqrt(np.einsum("ij,ij->i", coarse, coarse) + np.einsum("ij,ij->i", fine, fine))  # type: ignore[no-any-return]

    @cached_property
    def _latest_distances(self) -> Numbers:
        """Distances of the coarse sketches that are in no cell yet."""
        part = self.index.sketches.view[self.index.sorted_rows :]
        return _distances(self.sketch, part)


def _distances(vector: Tensor, others: Tensor) -> Numbers:
    if not len(others):
        return np.empty(0, np.float32)
    return euclidean(vector[None], others)[0].numpy()
