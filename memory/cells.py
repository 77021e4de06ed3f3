"""Sketches sorted into cells: which of many lie near a query, without looking at most of them.

A cell is known by its centre and by how far its members reach from it, which bounds from below how near any member can
be, so whole cells are passed over. Of the others those members are looked at that are about as far from the centre as
the query is. Immutable once made; nothing is ever missed. Knows rows and sketches, nothing of keys or balls but their
widest radius.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.ordered import Coded, Ordered
from editable.memory.package import faiss, loops
from editable.memory.rows import Rows
from editable.memory.sketch import Slack
from editable.memory.sparse import SparseRows

CELLS_PER_ROOT = 6.0  # cells for n members: so many times the square root of n
MOST_CELLS = 8192  # above it, bounding the cells costs more than scanning them
TRAINED_ON = 10  # members a cell's centre is found from
ENTERED = 4  # cells in which the nearest member is guessed to be
TRIED = 8  # members measured there: one of them nearly always is it

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Cells:
    """Members by row number.

    Args:
        centres: (cells, width) float32.
        edges: (cells, SLICES + 1) how far from the centre the first member of each slice is, and at last the farthest.
        widest: (cells,) the largest radius of a member's ball when members last came; -inf in an empty cell.
        radius: (rows,) each row's radius then.
        members: the sketches, in the order of their cells.
        places: (rows,) where in that order each row is; of no meaning for one that is no member.
        size: no member is longer.
    """

    centres: Numbers
    edges: Numbers
    widest: Numbers
    radius: Numbers
    members: Ordered
    places: Numbers
    size: float

    @classmethod
    def of(cls, sample: Tensor, count: int) -> Cells:
        """Nobody, in cells for `count` members like the sketches of a sample (n, width)."""
        centres = _centres(sample, min(len(sample), most(count))).numpy()
        return cls.with_bounds(centres, Ordered.empty(*centres.shape), np.empty(0, np.float32), 0.0)

    def __len__(self) -> int:
        return len(self.radius)

    def extended(self, parts: Iterable[Tensor], radius: Numbers, live: Numbers) -> Cells:
        """With the rows from len(self) on as members, where they are live.

        Args:
            parts: (k, width) their sketches, one part after another.
            radius: (rows,) of all rows, those that are there included.
            live: (rows,) the same.
        """
        new, size, row, centres = [], self.size, len(self), torch.from_numpy(self.centres)
        for sketches in parts:
            rows = row + np.flatnonzero(live[row : row + len(sketches)])
            sketch = sketches[torch.from_numpy(rows - row)]
            cell = torch.cdist(sketch, centres).argmin(dim=1)
            new.append(Coded.of(rows, cell.numpy(), sketch - centres[cell]))
            size, row = max(size, float(sketch.norm(dim=1).max()) if len(rows) else 0.0), row + len(sketches)
        members = self.members.with_members(Coded.together(new)) if new else self.members
        return Cells.with_bounds(self.centres, members, radius, size)

    @classmethod
    def with_bounds(cls, centres: Numbers, members: Ordered, radius: Numbers, size: float) -> Cells:
        """What follows from who is where, and from the radii (rows,) of all rows."""
        counts, starts = np.diff(members.starts), members.starts[:-1]
        filled = np.flatnonzero(counts)
        slices = np.arange(loops().SLICES + 1)
        edges = np.full((len(centres), len(slices)), -np.inf, np.float32)
        places = (starts[:, None] + counts[:, None] * slices // slices[-1])[filled]
        places[:, -1] -= 1
        edges[filled] = members.apart[places]
        widest = np.full(len(centres), -np.inf, np.float32)
        if len(filled):
            widest[filled] = np.maximum.reduceat(radius[members.rows], starts[filled])
        where = np.zeros(len(radius), np.int32)
        where[members.rows] = np.arange(len(members))
        return cls(centres, edges, widest, radius, members, where, size)

    @cached_property
    def sorted(self) -> tuple[Any, ...]:
        """The members as loops take them, see `Sorted` there."""
        there = self.members
        outer, codes = np.ascontiguousarray(self.edges[:, -1]), (there.heads.numpy(), there.tails.numpy())
        bounds = self.centres, self.edges, outer
        return tuple(loops().Sorted(*bounds, there.starts, there.rows, there.scales, *codes, there.error))

    def around(self, point: Numbers) -> Around:
        """Ask about a point (width,)."""
        return Around(self, point)


@dataclass(frozen=True)
class Around:
    """Cells around a point (width,)."""

    cells: Cells
    point: Numbers

    def near(self, radius: float) -> tuple[Numbers, Numbers]:
        """(rows, bounds) of all members that may lie within `radius`."""
        return self._near(np.full(len(self.cells.centres), radius, np.float32))

    def reaching(self, slack: Slack) -> tuple[Numbers, Numbers]:
        """(rows, bounds) among which are all members whose ball, with that slack, holds the point."""
        return self._near(slack(self.cells.widest).astype(np.float32))

    def few(self, count: int) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of some members that lie near, most likely the nearest among them; a guess."""
        places, squared = loops().few(self.point, self._centres, self.cells.sorted, ENTERED, count)
        return self.cells.members.rows[places], squared

    def nearest(
        self, query: Numbers, slack: Slack, within: float, keys: SparseRows, latest: Rows, stop: int
    ) -> Numbers:
        """Rows among which are all that may be measured to be nearest; what seems the nearest, first.

        Args:
            query: (features,) whose sketch the point is.
            slack: what sketches leave open.
            within: only if it is so near.
            keys: of all rows.
            latest: the sketches of rows behind the members; the rows behind these have none.
            stop: the row after the last that is looked at.
        """
        held, others = (keys.rows.view.numpy(), keys.moved), (latest.view.numpy(), len(self.cells), stop)
        bounds, there = (slack.stretch, slack.shift, within), self.cells.sorted
        rows: Numbers = loops().nearest(query, self.point, *bounds, *held, there, *others, ENTERED, TRIED)
        return rows

    def bounds(self, rows: Numbers) -> Numbers:
        """(k,) of rows (k,) that are members."""
        places, starts = self.cells.places[rows], self.cells.members.starts
        own = np.searchsorted(starts, places, side="right") - 1
        bounds: Numbers = loops().least(self.point, places, own, self.cells.sorted)
        return bounds

    def _near(self, reach: Numbers) -> tuple[Numbers, Numbers]:
        places, bounds = loops().near(self.point, self._centres, reach, self.cells.sorted)
        return self.cells.members.rows[places], bounds

    @cached_property
    def _centres(self) -> Numbers:
        """(cells,) bounds of the distances to their centres."""
        bounds: Numbers = loops().apart(self.point, self.cells.sorted)
        return bounds


def most(count: int) -> int:
    """Cells for so many members."""
    return min(MOST_CELLS, round(CELLS_PER_ROOT * math.sqrt(count)))


def _centres(sample: Tensor, count: int) -> Tensor:
    """(count, width) means of a sample (n, width) of sketches."""
    if count <= 0:
        return torch.zeros(1, sample.shape[1])
    means = faiss().Kmeans(
        sample.shape[1], count, niter=4, seed=1, min_points_per_centroid=1, max_points_per_centroid=2 * TRAINED_ON
    )
    means.train(sample.contiguous().numpy())
    centres = torch.from_numpy(means.centroids)
    return centres[_side_by_side(centres, torch.arange(count))]


def _side_by_side(centres: Tensor, rows: Tensor) -> Tensor:
    """Rows (k,) of centres (cells, width) in an order in which neighbours are mostly near: halved again and again."""
    if len(rows) <= 2:
        return rows
    part = centres[rows]
    widest = int((part.amax(dim=0) - part.amin(dim=0)).argmax())
    rows = rows[part[:, widest].argsort()]
    return torch.cat([_side_by_side(centres, half) for half in rows.tensor_split(2)])
