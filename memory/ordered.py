"""Vectors in the order of the cells they belong to, so that a cell, or cells beside one another, are read in one go.

The first numbers of each lie apart from the others: where they differ most, as those of a sketch do, few vectors have
to be read further. Immutable; putting more in copies what is there, which is done in the background. Knows nothing of
where cells lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.distance import below, squares, squares_of_runs

HEAD = 16  # numbers of a vector that are read of all members of a cell
GAP = 256  # members between two cells that are sooner read than passed over

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ordered:
    """Members of cells.

    Args:
        starts: (cells + 1,) where the members of each cell begin; the last is where all end.
        rows: (members,) int32, the number by which each is known.
        heads, tails: (members, up to HEAD) and (members, the others) float32.
    """

    starts: Numbers
    rows: Numbers
    heads: Tensor
    tails: Tensor

    @classmethod
    def empty(cls, cells: int, width: int) -> Ordered:
        """Nobody in so many cells."""
        return cls(np.zeros(cells + 1, np.int64), np.empty(0, np.int32), *_parts(torch.empty(0, width)))

    def __len__(self) -> int:
        return len(self.rows)

    def with_members(self, rows: Numbers, vectors: Tensor, cell: Numbers) -> Ordered:
        """With members (k,) more, each at the end of its cell (k,), in order."""
        order, counts = np.argsort(cell, kind="stable"), np.diff(self.starts)
        added = np.bincount(cell, minlength=len(counts))
        before, starts = np.cumsum(added) - added, np.append(0, np.cumsum(counts + added))
        there = np.arange(len(self)) + np.repeat(before, counts)
        cell = cell[order]
        here = starts[cell] + counts[cell] + np.arange(len(cell)) - before[cell]
        numbers = np.empty(int(starts[-1]), np.int32)
        numbers[there], numbers[here] = self.rows, rows[order]
        places, chosen = (torch.from_numpy(there), torch.from_numpy(here)), vectors[torch.from_numpy(order)]
        new = _parts(chosen)
        return Ordered(starts, numbers, *map(_put, (self.heads, self.tails), new, (places, places)))

    def at(self, places: Numbers) -> Numbers:
        """(k, width) the vectors at places (k,) in this order."""
        return np.concatenate([self.heads.numpy()[places], self.tails.numpy()[places]], axis=1)

    def within(self, query: Numbers, cells: Numbers, far: float = np.inf) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of the members of cells (k,), in order, that are no farther from query (width,).

        `far` is a squared distance, too.
        """
        starts, stops = self._runs(cells)
        begun = squares_of_runs(query[:HEAD], self.heads.numpy(), starts.tolist(), stops.tolist())
        near = below(begun, far)
        ends = np.cumsum(stops - starts)
        places = near + (stops - ends)[np.searchsorted(ends, near, side="right")]
        apart = begun[near] + squares(query[HEAD:], self.tails.numpy()[places])
        near = below(apart, far)
        return self.rows[places[near]], apart[near]

    def _runs(self, cells: Numbers) -> tuple[Numbers, Numbers]:
        """Where the members of cells (k,) begin and end, without those that are empty; near ones are one run."""
        starts, stops = self.starts[cells], self.starts[cells + 1]
        starts, stops = starts[starts < stops], stops[starts < stops]
        if not len(starts):
            return starts, stops
        apart = np.flatnonzero(starts[1:] - stops[:-1] > GAP)
        return starts[np.append(0, apart + 1)], stops[np.append(apart, len(stops) - 1)]


def _parts(vectors: Tensor) -> tuple[Tensor, Tensor]:
    return vectors[:, :HEAD].contiguous(), vectors[:, HEAD:].contiguous()


def _put(there: Tensor, new: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Rows that are there (m, width), and new ones (k, width), at their places (m,) and (k,) among all."""
    moved = there.new_empty((len(there) + len(new), there.shape[1]))
    return moved.index_copy_(0, places[0], there).index_copy_(0, places[1], new)
