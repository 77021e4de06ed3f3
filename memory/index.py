"""Which keys may lie near a query: exact lower bounds on distances, so that only few distances have to be measured.

Every key has a sketch; the sketches of all but the latest keys are sorted into cells, those of the latest are scanned.
An `Index` is an immutable value like the book that it belongs to. It is a cache: whatever it has not taken in yet, or
has wrong, is added to what it finds, so that decisions never depend on it. It is made and renewed in the background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.cells import Cells
from editable.memory.query import Queries, Query
from editable.memory.rows import Rows
from editable.memory.sketch import SAMPLE, Sketch
from editable.memory.sparse import SparseRows

SCANNED = 2_000_000  # numbers that are read in the time an index takes: `editable bench memory --parts switch`
LATEST = 4096  # keys that may wait to be sorted into cells
REGROW = 4  # the directions and the cells are found anew when there are so many times the keys
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
        latest: the coarse ones of the keys that are in no cell.
        fine: the fine ones of all, in bfloat16.
        size: no coarse sketch is longer.
        cells: those of the others, sorted; None while there are few keys.
        strays: rows in the sorted part whose radius has grown since, or that had no ball then and have one now.
        made_at: keys there were when directions and cells were found.
    """

    sketch: Sketch
    latest: Rows
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
        return len(self.fine)

    @property
    def sorted_rows(self) -> int:
        """How many rows the cells have taken in."""
        return 0 if self.cells is None else len(self.cells)

    def following(self, keys: SparseRows) -> Index:
        """With sketches of the keys (n, features) that came since, once there are enough of them."""
        return self if len(keys) - len(self) < PENDING else self.extended(keys)

    def extended(self, keys: SparseRows) -> Index:
        """With sketches of the keys (n, features) that came since."""
        latest, fine, size = self.latest, self.fine, self.size
        for start in range(len(self), len(keys), CHUNK):
            coarse, rest = self.sketch.of(keys.slice(start, min(start + CHUNK, len(keys))))
            latest, fine = latest.append(coarse), fine.append(rest)
            size = max(size, float(coarse.norm(dim=1).amax()))
        return replace(self, latest=latest, fine=fine, size=size)

    def sorted(self, keys: SparseRows, radius: Numbers) -> Index:
        """With cells for all keys that are not let go, made anew."""
        sketches = torch.from_numpy(self.coarse(np.arange(len(self))))
        return self._with(Cells.of(sketches, radius, keys.live.array()))

    def merged(self, keys: SparseRows, radius: Numbers) -> Index:
        """With the latest keys added to the cells there are."""
        if self.cells is None or len(self.strays) > STRAYS:
            return self.sorted(keys, radius)
        return self._with(self.cells.extended(self.latest.view, radius, keys.live.array()))

    def taking(self, cells: Cells | None, radius: Numbers) -> Index:
        """With other cells for the same sketches, now that the rows they know have these radii (rows,)."""
        if cells is None:
            return self
        index = self._with(cells)
        return index.noting(np.arange(index.sorted_rows), radius[: index.sorted_rows])

    def _with(self, cells: Cells) -> Index:
        later = self.latest.view[len(cells) - self.sorted_rows :]
        return replace(self, cells=cells, latest=self.latest.like().append(later), strays=frozenset())

    def coarse(self, rows: Numbers) -> Numbers:
        """(k, coarse + 1) the coarse sketches of rows (k,)."""
        sorted_part, latest = rows < self.sorted_rows, self.latest.view.numpy()
        if self.cells is None or not sorted_part.any():
            return latest[rows - self.sorted_rows]  # type: ignore[no-any-return]
        found = np.empty((len(rows), latest.shape[1]), np.float32)
        found[sorted_part] = self.cells.at(rows[sorted_part])
        found[~sorted_part] = latest[rows[~sorted_part] - self.sorted_rows]
        return found

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
        return Index.of(keys, radius) if len(keys) >= REGROW * self.made_at else self.merged(keys, radius)
