"""Vectors in the order of the cells they belong to, so that a cell, or cells beside one another, are read in one go.

Immutable; putting more in copies what is there, which is done in the background. Knows nothing of where cells lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.distance import below, squares_of_runs

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ordered:
    """Members of cells.

    Args:
        starts: (cells + 1,) where the members of each cell begin; the last is where all end.
        rows: (members,) int32, the number by which each is known.
        vectors: (members, width) float32.
    """

    starts: Numbers
    rows: Numbers
    vectors: Tensor

    @classmethod
    def empty(cls, cells: int, width: int) -> Ordered:
        """Nobody in so many cells."""
        return cls(np.zeros(cells + 1, np.int64), np.empty(0, np.int32), torch.empty(0, width))

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
        numbers, moved = np.empty(int(starts[-1]), np.int32), self.vectors.new_empty((int(starts[-1]), self.width))
        numbers[there], numbers[here] = self.rows, rows[order]
        moved.index_copy_(0, torch.from_numpy(there), self.vectors)
        moved.index_copy_(0, torch.from_numpy(here), vectors[torch.from_numpy(order)])
        return Ordered(starts, numbers, moved)

    @property
    def width(self) -> int:
        """Of a vector."""
        return self.vectors.shape[1]

    def within(self, query: Numbers, cells: Numbers, far: float = np.inf) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of the members of cells (k,), in order, that are no farther from query (width,).

        `far` is a squared distance, too.
        """
        runs = list(self._runs(cells))
        if not runs:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        apart = squares_of_runs(query, self.vectors.numpy(), runs)
        near = below(apart, far)
        places = np.concatenate([np.arange(*run) for run in runs])[near]
        return self.rows[places], apart[near]

    def _runs(self, cells: Numbers) -> Iterator[tuple[int, int]]:
        """Where the members of cells (k,) lie: neighbours together."""
        if not len(cells):
            return iter(())
        breaks = np.flatnonzero(np.diff(cells) > 1)
        first, last = np.append(0, breaks + 1), np.append(breaks, len(cells) - 1)
        return zip(self.starts[cells[first]].tolist(), self.starts[cells[last] + 1].tolist(), strict=True)
