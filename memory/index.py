"""Which keys may lie near a query: exact lower bounds on distances, so that only few distances have to be measured.

Every key has a sketch; the sketches of all but the latest keys are sorted into cells, those of the latest are scanned.
An `Index` is an immutable value like the book that it belongs to. It is a cache: whatever it has not taken in yet, or
has wrong, is added to what it finds, so that decisions never depend on it. It is made and renewed in the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.cells import TRAINED_ON, Cells, most
from editable.memory.package import loops
from editable.memory.query import NOTHING, Queries, Query
from editable.memory.rows import Rows
from editable.memory.sketch import SAMPLE, Sketch
from editable.memory.sparse import SparseRows

# Numbers in keys from which there is an index. Alone a lookup is faster by one from a third of that on (`editable bench
# memory --parts switch`), but in a forward that is less than a thousandth (`--parts forward`), and inserting is slower.
SCANNED = 2_000_000
LATEST = 2048  # keys that may wait to be sorted into cells
REGROW = 4  # the directions and the cells are found anew when there are so many times the keys
PENDING = 32  # keys that may wait for their sketches: together they are made faster
STRAYS = 1024  # balls that outgrew what their cell knows, from which the cells are told anew
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
        latest: those of the keys that are in no cell.
        size: no sketch is longer.
        cells: those of the others, sorted; None while there are few keys.
        strays: rows in the sorted part whose radius has grown since, or that had no ball then and have one now.
        made_at: keys there were when directions and cells were found.
    """

    sketch: Sketch
    latest: Rows
    size: float
    cells: Cells | None = None
    strays: frozenset[int] = frozenset()
    made_at: int = 0

    @classmethod
    def of(cls, keys: SparseRows, radius: Numbers) -> Index:
        """Everything anew, for keys (n, features) with these radii (n,)."""
        live = np.flatnonzero(keys.live.array())
        live = live if len(live) else np.arange(len(keys))  # directions from nowhere would bound nothing
        sketch = Sketch.of_sample(keys.at(_some(live, SAMPLE)))
        index = cls(sketch, Rows.empty(sketch.width), 0.0, made_at=len(keys))
        if len(keys) <= LATEST:
            return index.extended(keys)._asked(keys)
        sample = index._sketched(keys, _some(live, TRAINED_ON * most(len(live))))
        empty = Cells.of(torch.cat(list(sample)), len(live))
        parts = index._sketched(keys, torch.arange(len(keys)))
        return index._with(empty.extended(parts, radius, keys.live.array()))._asked(keys)

    def _sketched(self, keys: SparseRows, rows: Tensor) -> Iterator[Tensor]:
        """The sketches of rows (k,), CHUNK at a time."""
        for some in rows.split(CHUNK):
            yield self.sketch.of(keys.at(some))
            if len(some) == CHUNK:
                keys.rows.release()

    def _asked(self, keys: SparseRows) -> Index:
        """Asked all that it can be asked, so that nobody has to wait later until the loops are compiled."""
        query, some = self.query(keys.slice(0, 1)[0], keys), np.zeros(1, np.int64)
        query.nearest(len(keys), 0.0)
        query.guess(1)
        query.within(0.0)
        query.may_lie(some, np.zeros(1))
        loops().squares(query.vector, keys.rows.view.numpy(), some, NOTHING, 1.0, 0.0)
        return self

    def __len__(self) -> int:
        return self.sorted_rows + len(self.latest)

    @property
    def sorted_rows(self) -> int:
        """How many rows the cells have taken in."""
        return 0 if self.cells is None else len(self.cells)

    def following(self, keys: SparseRows) -> Index:
        """With sketches of the keys (n, features) that came since, once there are enough of them."""
        return self if len(keys) - len(self) < PENDING else self.extended(keys)

    def extended(self, keys: SparseRows) -> Index:
        """With sketches of the keys (n, features) that came since."""
        if len(self) == len(keys):
            return self
        latest, size = self.latest, self.size
        for sketches in self._sketched(keys, torch.arange(len(self), len(keys))):
            latest, size = latest.append(sketches), max(size, float(sketches.norm(dim=1).amax()))
        return replace(self, latest=latest, size=size)

    def merged(self, radius: Numbers, live: Numbers) -> Index:
        """With the latest keys added to the cells there are, which are told all radii (rows,)."""
        return self._with(self.cells.extended([self.latest.view], radius, live)) if self.cells else self

    def taking(self, cells: Cells | None, radius: Numbers) -> Index:
        """With other cells for the same sketches, now that the rows they know have these radii (rows,)."""
        if cells is None:
            return self
        index = self._with(cells)
        return index.noting(np.arange(index.sorted_rows), radius[: index.sorted_rows])

    def _with(self, cells: Cells) -> Index:
        later = self.latest.view[max(len(cells) - self.sorted_rows, 0) :]
        latest, size = self.latest.like().append(later), max(self.size, cells.size)
        return replace(self, cells=cells, latest=latest, size=size, strays=frozenset())

    def noting(self, rows: Numbers, radius: Numbers) -> Index:
        """With balls that changed: rows (m,) have these radii (m,) now."""
        sorted_part = rows < self.sorted_rows
        if self.cells is None or not sorted_part.any():
            return self
        rows, radius = rows[sorted_part], radius[sorted_part]
        grown = rows[radius > self.cells.radius[rows]]
        return replace(self, strays=self.strays.union(grown.tolist())) if len(grown) else self

    def query(self, vector: Tensor, keys: SparseRows) -> Query:
        """Ask about one vector (features,) in a book of these keys."""
        return self.queries(vector[None], keys)[0]

    def queries(self, vectors: Tensor, keys: SparseRows) -> Queries:
        """Ask about vectors (m, features) in a book of these keys."""
        return Queries(self, vectors, self.sketch.of_queries(vectors), keys)

    @cached_property
    def known_strays(self) -> Numbers:
        """(strays,) as an array."""
        return np.fromiter(self.strays, np.int64, len(self.strays))

    def due(self, count: int) -> bool:
        """Whether it should be renewed, now that there are `count` keys."""
        return count >= REGROW * self.made_at or count - self.sorted_rows > LATEST or len(self.strays) > STRAYS

    def renewed(self, keys: SparseRows, radius: Numbers) -> Index:
        """Better suited to these keys, which must all have their sketches: in the background nothing is appended."""
        if self.cells is None or len(keys) >= REGROW * self.made_at:
            return Index.of(keys, radius)
        return self.merged(radius, keys.live.array())


def _some(rows: Numbers, count: int) -> Tensor:
    """At most so many of rows (n,), evenly."""
    return torch.from_numpy(rows[:: max(1, -(-len(rows) // count))])
