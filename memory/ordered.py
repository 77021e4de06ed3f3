"""Vectors in the order of the cells they belong to, in each by how far they are from its centre.

So what is asked of a cell, members at some distance from the centre, is read in one go, whole blocks at a time. The
first numbers of each lie apart from the others: where they differ most, as those of a sketch do, few vectors have to be
read further. Immutable; putting more in copies what is there, which is done in the background. Knows nothing of where
cells lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.distance import below, squares

HEAD = 16  # numbers of a vector that are read of all members asked for
BLOCK = 8  # members whose heads are read together

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ordered:
    """Members of cells.

    Args:
        starts: (cells + 1,) where the members of each cell begin; the last is where all end.
        line: (members,) float64, rising: the cell of each and how far it is from the centre, as `_line` has it.
        begins: (blocks,) the same of the first of each block.
        rows: (members,) int32, the number by which each is known.
        heads: (blocks, BLOCK * up to HEAD) float32, the first numbers of each; behind the last member infinite ones.
        tails: (members, the others) float32.
    """

    starts: Numbers
    line: Numbers
    begins: Numbers
    rows: Numbers
    heads: Tensor
    tails: Tensor

    @classmethod
    def empty(cls, cells: int, width: int) -> Ordered:
        """Nobody in so many cells."""
        nobody = np.empty(0, np.float64), np.empty(0, np.float64), np.empty(0, np.int32)
        heads, tails = torch.empty(0, BLOCK * min(HEAD, width)), torch.empty(0, max(width - HEAD, 0))
        return cls(np.zeros(cells + 1, np.int64), *nobody, heads, tails)

    def __len__(self) -> int:
        return len(self.rows)

    def with_members(self, rows: Numbers, vectors: Tensor, cell: Numbers, apart: Numbers) -> Ordered:
        """With members (k,) more, each in its cell (k,) and so far from the centre (k,)."""
        cells, line = np.append(self._cells, cell), np.append(self.line, _line(cell, apart))
        order = np.lexsort((line, cells))
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        there, here = torch.from_numpy(places).tensor_split([len(self)])
        heads = _put(self._each_head[: len(self)], vectors[:, :HEAD], (there, here), -len(order) % BLOCK)
        tails = _put(self.tails, vectors[:, HEAD:], (there, here))
        starts = np.append(0, np.cumsum(np.bincount(cells, minlength=len(self.starts) - 1)))
        line, numbers = line[order], np.append(self.rows, rows.astype(np.int32))[order]
        return Ordered(starts, line, line[::BLOCK].copy(), numbers, heads.view(-1, self.heads.shape[1]), tails)

    def at(self, places: Numbers) -> Numbers:
        """(k, width) the vectors at places (k,) in this order."""
        return np.concatenate([_taken(self._each_head, places), _taken(self.tails, places)], axis=1)

    def within(
        self, query: Numbers, cells: Numbers, least: Numbers, most: Numbers, far: float
    ) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of the members that are no farther from query (width,), and lie in a ring.

        That is, in cells (k,), in order, and from `least` to `most` (k,) away from their centres, or beside it. `far`
        is a squared distance.
        """
        first, last = self._blocks(cells)
        # The block before the ring begins may end in it.
        first = np.maximum(first, np.searchsorted(self.begins, _line(cells, least)) - 1)
        last = np.minimum(last, np.searchsorted(self.begins, _line(cells, most), side="right"))
        places, begun = self._begun(query, first, last)
        near = below(begun, far)
        rows, apart = self._finished(query, places[near], begun[near])
        near = below(apart, far)
        return rows[near], apart[near]

    def few(self, query: Numbers, cells: Numbers, count: int) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) of `count` members of cells (k,), in order: those whose heads are nearest."""
        places, begun = self._begun(query, *self._blocks(cells))
        near = np.argpartition(begun, count)[:count] if len(begun) > count else np.arange(len(begun))
        return self._finished(query, places[near], begun[near])

    def _blocks(self, cells: Numbers) -> tuple[Numbers, Numbers]:
        """(k,) the first block of each of cells (k,), and the one after the last."""
        return self.starts[cells] // BLOCK, -(-self.starts[cells + 1] // BLOCK)

    def _begun(self, query: Numbers, first: Numbers, last: Numbers) -> tuple[Numbers, Numbers]:
        """(places, squared distances of the heads) in blocks from `first` to `last` (k,), exclusive, in order.

        Of a block that several cells share all members are there, once.
        """
        first[1:] = np.maximum(first[1:], last[:-1])
        blocks = _runs(first, last)
        begun = squares(query[:HEAD], _taken(self.heads, blocks).reshape(-1, min(HEAD, len(query))))
        places = (BLOCK * blocks[:, None] + np.arange(BLOCK)).ravel()
        if len(blocks) and blocks[-1] == len(self.heads) - 1:
            places, begun = places[places < len(self)], begun[places < len(self)]
        return places, begun

    def _finished(self, query: Numbers, places: Numbers, begun: Numbers) -> tuple[Numbers, Numbers]:
        """(rows, squared distances) at places (k,), where those of the heads are known (k,)."""
        return self.rows[places], begun + squares(query[HEAD:], _taken(self.tails, places))

    @property
    def _cells(self) -> Numbers:
        """(members,) the cell of each."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def _each_head(self) -> Tensor:
        """(members and those that fill the last block, up to HEAD)."""
        return self.heads.view(-1, self.heads.shape[1] // BLOCK)


def _runs(first: Numbers, last: Numbers) -> Numbers:
    """All numbers from first to last (k,), exclusive: one run after another."""
    counts = np.maximum(last - first, 0)
    ends = np.cumsum(counts)
    numbers: Numbers = np.arange(counts.sum()) + np.repeat(first - ends + counts, counts)
    return numbers


def _line(cell: Numbers, apart: Numbers) -> Numbers:
    """(k,) float64: from each cell (k,) to the next, the farther `apart` (k,) from its centre the later.

    No rounding puts what is farther before what is nearer; at most both come together.
    """
    line: Numbers = cell + (1 - 1 / (1 + apart.astype(np.float64)))
    return line


def _taken(vectors: Tensor, places: Numbers) -> Numbers:
    """(k, width) those at places (k,), which are there: clipping is what spares numpy a second copy."""
    taken: Numbers = vectors.numpy().take(places, axis=0, mode="clip")
    return taken


def _put(there: Tensor, new: Tensor, places: tuple[Tensor, Tensor], more: int = 0) -> Tensor:
    """Rows that are there (m, width), and new ones (k, width), at places (m,) and (k,); `more` infinite ones behind."""
    moved = there.new_full((len(there) + len(new) + more, there.shape[1]), torch.inf)
    return moved.index_copy_(0, places[0], there).index_copy_(0, places[1], new)
