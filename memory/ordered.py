"""Members of cells as bytes, in the order of the cells, in each by how far they are from its centre.

So what is asked of a cell, members at some distance from the centre, is read in one go. A member is known by the code
of its offset from the centre: a byte for each number, as a share of the largest. How far a code may be from what it
stands for follows from its scale. Immutable; putting more in copies what is there, which is done in the background.
Knows nothing of where cells lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.package import loops

MOST = 127  # largest number of a code

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Coded:
    """Members that are still to be put in order.

    Args:
        rows: (k,) int32, the number by which each is known.
        cells: (k,) the cell of each.
        apart: (k,) float32, how far each is from its centre.
        scales: (k,) float32, what one unit of each code stands for.
        codes: (k, width) int8.
    """

    rows: Numbers
    cells: Numbers
    apart: Numbers
    scales: Numbers
    codes: Tensor

    @classmethod
    def of(cls, rows: Numbers, cells: Numbers, offsets: Tensor) -> Coded:
        """Rows (k,) in cells (k,), at these offsets (k, width) from their centres."""
        scales = (offsets.abs().amax(dim=1) / MOST).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (offsets / scales[:, None]).round_().clamp_(-MOST, MOST).to(torch.int8)
        return cls(rows.astype(np.int32), cells, offsets.norm(dim=1).numpy(), scales.numpy(), codes)

    @classmethod
    def together(cls, parts: list[Coded]) -> Coded:
        """One after another."""
        names = ("rows", "cells", "apart", "scales")
        rows, cells, apart, scales = (np.concatenate([getattr(one, name) for one in parts]) for name in names)
        return cls(rows, cells, apart, scales, torch.cat([one.codes for one in parts]))

    def sorted(self) -> Coded:
        """In the order that `Ordered` keeps."""
        order = np.lexsort((self.apart, self.cells))
        codes = self.codes[torch.from_numpy(order)]
        return Coded(self.rows[order], self.cells[order], self.apart[order], self.scales[order], codes)


@dataclass(frozen=True, eq=False)
class Ordered:
    """Members of cells.

    Args:
        width: numbers of a sketch.
        starts: (cells + 1,) where the members of each cell begin; the last is where all end.
        rows: (members,) as `Coded` has them.
        apart: (members,) the same; rising in each cell.
        scales: (members,) the same.
        heads: (members, HEAD) int8, the first numbers of each code, filled up with 0.
        tails: (members, the others) int8.
    """

    width: int
    starts: Numbers
    rows: Numbers
    apart: Numbers
    scales: Numbers
    heads: Tensor
    tails: Tensor

    @classmethod
    def empty(cls, cells: int, width: int) -> Ordered:
        """Nobody in so many cells."""
        head = loops().HEAD
        codes = (torch.empty(0, size, dtype=torch.int8) for size in (head, max(width - head, 0)))
        nobody = np.empty(0, np.float32)
        return cls(width, np.zeros(cells + 1, np.int64), np.empty(0, np.int32), nobody, nobody, *codes)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def error(self) -> float:
        """How far a code may be from what it stands for, in units of its scale: half of one in each number."""
        return 0.5001 * math.sqrt(self.width)

    def with_members(self, new: Coded) -> Ordered:
        """With more members."""
        new, head = new.sorted(), self.heads.shape[1]
        here = loops().merged(self.starts, self.apart, new.cells, new.apart)
        there = np.ones(len(self) + len(new.rows), np.bool_)
        there[here] = False
        places = torch.from_numpy(np.flatnonzero(there)), torch.from_numpy(here)
        counts = np.diff(self.starts) + np.bincount(new.cells, minlength=len(self.starts) - 1)
        rows, apart, scales = (
            _put(torch.from_numpy(old), torch.from_numpy(more), places).numpy()
            for old, more in ((self.rows, new.rows), (self.apart, new.apart), (self.scales, new.scales))
        )
        filled = torch.nn.functional.pad(new.codes, (0, max(head - self.width, 0)))
        heads, tails = _put(self.heads, filled[:, :head], places), _put(self.tails, filled[:, head:], places)
        return Ordered(self.width, np.append(0, np.cumsum(counts)), rows, apart, scales, heads, tails)


def _put(there: Tensor, new: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """What is there (m, ...), and what is new (k, ...), at places (m,) and (k,)."""
    moved = there.new_empty((len(there) + len(new), *there.shape[1:]))
    return moved.index_copy_(0, places[0], there).index_copy_(0, places[1], new)
