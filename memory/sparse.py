"""Append-only rows of which some are let go.

A row keeps its number for ever, so nothing that refers to rows has to be told; what rows that were let go took is given
back by a copy of the others, made in the background. Immutable like `Rows`: older views keep what they see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.background import Job
from editable.memory.column import Column
from editable.memory.rows import Rows

FEWEST = 4096  # rows that must have been let go before copying the others pays

RowNumbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Compaction:
    """The rows that were not let go, copied.

    Args:
        rows: the copies.
        kept: (len(rows),) their numbers, in order.
        count: rows there were, those let go included.
        held: rows that were held then.
    """

    rows: Rows
    kept: RowNumbers
    count: int
    held: int


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows by number. One writer, any number of readers.

    Args:
        rows: those that are held.
        live: for each number whether the row was not let go.
        place: where in `rows` each number lies; None where they are the same. Of no meaning for rows let go.
        gone: rows that are held although they were let go.
        job: a compaction in the making.
    """

    rows: Rows
    live: Column
    place: Rows | None = None
    gone: int = 0
    job: Job[Compaction] | None = None

    @classmethod
    def of(cls, rows: Rows) -> SparseRows:
        """All rows of `rows`."""
        return cls(rows, Column.of(np.ones(len(rows), np.bool_)))

    def __len__(self) -> int:
        return len(self.live)

    @property
    def device(self) -> torch.device:
        """Where they are held."""
        return self.rows.device

    @property
    def view(self) -> Tensor:
        """(length, *row shape) all of them, for looking at; a copy once there was a compaction."""
        return self.slice(0, len(self))

    def slice(self, start: int, stop: int) -> Tensor:
        """(stop - start, *row shape); any row stands for one that was let go."""
        if self.place is None:
            return self.rows.view[start:stop]
        return self.rows.view[self.place.view[start:stop]]

    @property
    def moved(self) -> RowNumbers:
        """Where in `rows` each number lies; empty where they are the same."""
        return np.empty(0, np.int64) if self.place is None else self.place.view.numpy()

    def places(self, numbers: RowNumbers) -> RowNumbers:
        """The same of these numbers."""
        return numbers if self.place is None else self.moved[numbers]

    def at(self, numbers: Tensor) -> Tensor:
        """(*numbers, *row shape) rows by number, on the device of `numbers`; any row for one that was let go."""
        where = numbers if self.place is None else self.place.on(numbers.device)[numbers]
        rows = self.rows.on(numbers.device)
        # In half the time that rows[where] takes.
        return rows.index_select(0, where.flatten()).view(where.shape + rows.shape[1:])

    def on(self, device: torch.device) -> Tensor:
        """The view on `device`."""
        if self.place is None:
            return self.rows.on(device)
        return self.rows.on(device)[self.place.on(device)]

    def append(self, rows: Tensor) -> SparseRows:
        """A longer one; `rows` is (count, *row shape)."""
        base = self._renewed()
        start, count, place = len(base.rows), rows.shape[0], base.place
        if place is not None:
            place = place.append(torch.arange(start, start + count, device=base.device))
        return replace(base, rows=base.rows.append(rows), live=base.live.append(np.ones(count, np.bool_)), place=place)

    def let_go(self, numbers: RowNumbers) -> SparseRows:
        """Without these rows: nobody will ask this view, or those that come of it, for them."""
        if not len(numbers):
            return self
        left = replace(self, live=self.live.put(numbers, False), gone=self.gone + len(numbers))
        return left._renewed()

    def settled(self) -> SparseRows:
        """The same once everything that is done in the background is done."""
        left = self._renewed()
        while left.job is not None and left.job.wait() is not None:
            left = left._renewed()
        return left

    def _renewed(self) -> SparseRows:
        """With the compaction that was made, if one is done; and with one in the making, if it is due."""
        if self.job is not None:
            made = self.job.made
            return self if made is None else self._taking(made)._renewed()
        if self.gone < max(FEWEST, len(self.rows) // 2):
            return self
        return replace(self, job=Job("compaction", self._compacted))

    def _compacted(self) -> Compaction:
        kept = np.flatnonzero(self.live.array())
        if not len(kept):
            kept = np.zeros(1, np.int64)  # something has to stand for what was let go
        rows = self.rows.like()
        for part in np.array_split(kept, max(1, len(kept) // FEWEST)):
            rows = rows.append(self.at(torch.from_numpy(part).to(self.device)))
        return Compaction(rows, kept, len(self), len(self.rows))

    def _taking(self, made: Compaction) -> SparseRows:
        """With the copies instead, and behind them what has come since."""
        since = len(self) - made.count
        place = torch.zeros(len(self), dtype=torch.long)
        place[torch.from_numpy(made.kept)] = torch.arange(len(made.kept))
        place[made.count :] = torch.arange(len(made.kept), len(made.kept) + since)
        rows = made.rows.append(self.rows.view[made.held :]) if since else made.rows
        places = Rows.empty(dtype=torch.long, device=self.device).append(place.to(self.device))
        let_go_since = len(made.kept) + since - int(self.live.array().sum())
        return replace(self, rows=rows, place=places, gone=let_go_since, job=None)
