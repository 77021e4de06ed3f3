"""Sketches sorted into cells: which of many lie near a query, without looking at most of them.

A cell is known by its centre, by how far its members reach from it, and by the box around them; both bound from below
how near any member can be, so whole cells are passed over. The members of the others are all measured. Immutable once
made; nothing is ever missed. Knows rows and sketches, nothing of keys or balls but their widest radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.distance import squares
from editable.memory.ordered import Ordered
from editable.memory.package import faiss
from editable.memory.sketch import Slack

CELLS_PER_ROOT = 6.0  # cells for n members: so many times the square root of n
MOST_CELLS = 8192  # above it, bounding the cells costs more than scanning them
TRAINED_ON = 10  # members a cell's centre is found from
CHUNK = 16384  # members assigned at a time
ROUNDING = 1e-5  # relative error of a bound computed in float32, generously

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Cells:
    """Members by row number.

    Args:
        centres: (cells, width) float32.
        outer, inner: (cells,) the largest and the smallest distance of a member from its centre.
        low, high: (cells, width) the box around the members.
        widest: (cells,) the largest radius of a member's ball when it came in; -inf in an empty cell.
        radius: (rows,) each row's radius when it came in.
        members: the sketches, in the order of their cells.
        places: (rows,) where in that order each row is; of no meaning for one that is no member.
    """

    centres: Tensor
    outer: Tensor
    inner: Tensor
    low: Tensor
    high: Tensor
    widest: Tensor
    radius: Numbers
    members: Ordered
    places: Numbers

    @classmethod
    def of(cls, sketches: Tensor, radius: Numbers, live: Numbers) -> Cells:
        """Sort sketches (rows, width) into cells, with the radii (rows,) of their balls; only those that are live."""
        members = torch.from_numpy(np.flatnonzero(live))
        count = min(MOST_CELLS, len(members), round(CELLS_PER_ROOT * len(members) ** 0.5))
        centres = _centres(sketches, members, count)
        empty = cls._without_members(centres)
        return empty.extended(sketches, radius, live)

    @classmethod
    def _without_members(cls, centres: Tensor) -> Cells:
        count, width = centres.shape
        none = torch.full((count,), -torch.inf)
        box = torch.full((count, width), torch.inf)
        nobody = np.empty(0, np.float32), Ordered.empty(count, width), np.empty(0, np.int32)
        return cls(centres, none, -none, box, -box, none, *nobody)

    def __len__(self) -> int:
        return len(self.radius)

    def extended(self, sketches: Tensor, radius: Numbers, live: Numbers) -> Cells:
        """With the rows from len(self) on as members, where they are live.

        sketches (new, width) are theirs; radius (rows,) and live (rows,) are of all rows.
        """
        known = len(self)
        new = np.flatnonzero(live[known:])
        sketch, rows = sketches[torch.from_numpy(new)], new + known
        cell, distance = _assigned(sketch, self.centres)
        spread = cell[:, None].expand_as(sketch)
        reach = torch.from_numpy(radius)[torch.from_numpy(rows)]
        members = self.members.with_members(rows, sketch, cell.numpy(), distance.numpy())
        places = np.zeros(len(live), np.int32)
        places[members.rows] = np.arange(len(members))
        return Cells(
            self.centres,
            self.outer.scatter_reduce(0, cell, distance, "amax"),
            self.inner.scatter_reduce(0, cell, distance, "amin"),
            self.low.scatter_reduce(0, spread, sketch, "amin"),
            self.high.scatter_reduce(0, spread, sketch, "amax"),
            self.widest.scatter_reduce(0, cell, reach, "amax"),
            np.concatenate([self.radius, radius[known:]]),
            members,
            places,
        )

    def at(self, rows: Numbers) -> Numbers:
        """(k, width) the sketches of rows (k,) that are members."""
        return self.members.at(self.places[rows])

    def around(self, query: Tensor) -> Around:
        """Ask about query (width,)."""
        point = query.numpy()
        return Around(self, point, np.sqrt(squares(point, self.centres.numpy())))


@dataclass(frozen=True)
class Around:
    """Cells around a query.

    Args:
        cells: which.
        point: (width,) the query.
        distances: (cells,) from it to their centres.
    """

    cells: Cells
    point: Numbers
    distances: Numbers

    def near(self, radius: float) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of all members within `radius`."""
        return self._scanned(self._reached(radius), radius, radius)

    def reaching(self, slack: Slack) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) among which are all members whose ball, with that slack, holds the query."""
        reach = slack(self.cells.widest.numpy())
        kept = self._reached(reach)
        return self._scanned(kept, reach[kept], float(reach[kept].max(initial=0.0)))

    def few(self, count: int, cells: int = 16) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of some members that lie near, most likely the nearest among them; a guess."""
        apart = self.distances
        near = np.sort(np.argpartition(apart, cells)[:cells]) if len(apart) > cells else np.arange(len(apart))
        return self.cells.members.few(self.point, near, count)

    @np.errstate(invalid="ignore", over="ignore")  # a query that is no place is near nothing
    def _reached(self, reach: Numbers | float) -> Numbers:
        """The cells with a member that may lie within `reach` (one, or one for each cell)."""
        outer, inner = self.cells.outer.numpy(), self.cells.inner.numpy()
        ball = np.maximum(self.distances - outer, inner - self.distances) - self._rounding(outer)
        cells = np.flatnonzero(ball <= reach)
        low, high = self.cells.low.numpy()[cells], self.cells.high.numpy()[cells]
        outside = np.maximum(low - self.point, self.point - high).clip(min=0)
        box = np.sqrt(np.einsum("ij,ij->i", outside, outside)) * (1 - ROUNDING)
        near: Numbers = cells[box <= (reach if isinstance(reach, float) else reach[cells])]
        return near

    def _scanned(self, cells: Numbers, reach: Numbers | float, radius: float) -> tuple[Numbers, Numbers]:
        """Of the members of cells (k,), those within `radius`; none but what `reach` (one, or (k,)) lets be near."""
        distances = self.distances[cells]
        reach = reach + self._rounding(self.cells.outer.numpy())[cells]
        ring = np.maximum(distances - reach, 0), distances + reach
        return self.cells.members.within(self.point, cells, *ring, radius * radius * (1 + ROUNDING))

    def _rounding(self, outer: Numbers) -> Numbers:
        """(cells,) by how much a difference of distances from the centres may be wrong."""
        rounding: Numbers = ROUNDING * (self.distances + outer)
        return rounding


def _centres(sketches: Tensor, members: Tensor, count: int) -> Tensor:
    if not count:
        return torch.zeros(1, sketches.shape[1])
    width = sketches.shape[1]
    step = max(1, len(members) // (TRAINED_ON * count))
    sample = sketches[members[::step]].contiguous().numpy()
    means = faiss().Kmeans(
        width, count, niter=4, seed=1, min_points_per_centroid=1, max_points_per_centroid=2 * TRAINED_ON
    )
    means.train(sample)
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


def _assigned(members: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each member (n, width), and how far it is."""
    cells = [torch.cdist(part, centres).argmin(dim=1) for part in members.split(CHUNK)]
    cell = torch.cat(cells) if cells else torch.empty(0, dtype=torch.long)
    return cell, (members - centres[cell]).norm(dim=1)
