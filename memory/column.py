"""A column of plain numbers, one per row, as an immutable value of which any version may be kept.

All versions share one array, which holds the newest; an older one knows what has changed since and reads past it. So a
change costs what it changes, a kept version costs what changed after it, and the newest reads as fast as an array. The
numbers of a row may also be a record with named fields. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Numbers = NDArray[Any]


class _Change(NamedTuple):
    """What was in these rows before, and the version that begins here."""

    rows: Numbers
    before: Numbers
    later: _Version


class _Version:
    """A point in the history of one array. Points to what came later, so that nothing keeps what nobody holds."""

    __slots__ = ("__weakref__", "change")

    def __init__(self) -> None:
        self.change: _Change | None = None


class _Store:
    """The array behind all versions; `used` is how many of its rows hold anything."""

    def __init__(self, data: Numbers, used: int) -> None:
        self.data = data
        self.used = used

    def reserve(self, rows: int) -> None:
        """Have room for so many rows. Whoever reads meanwhile goes on with the array it has."""
        if rows > len(self.data):
            larger = np.empty(max(16, 2 * rows), self.data.dtype)
            larger[: self.used] = self.data[: self.used]
            self.data = larger

    def change(self, version: _Version, rows: Numbers, numbers: Numbers) -> _Version:
        """Write into rows (m,), in order, that older versions may see."""
        later = _Version()
        # Before it is written: a reader that sees any of it finds here what it covers.
        version.change = _Change(rows, self.data[rows], later)
        self.data[rows] = numbers
        return later


@dataclass(frozen=True, eq=False)
class Column:
    """An immutable column. One writer, any number of readers."""

    store: _Store
    version: _Version
    length: int

    @classmethod
    def empty(cls, dtype: DTypeLike) -> Column:
        """A column without rows."""
        return cls.of(np.empty(0, dtype))

    @classmethod
    def of(cls, numbers: Numbers) -> Column:
        """A column that holds a copy of `numbers` (n,)."""
        return cls(_Store(numbers.copy(), len(numbers)), _Version(), len(numbers))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Any:
        """One number, as plain Python; of records a tuple."""
        if not -self.length <= row < self.length:
            raise IndexError(f"row {row} of a column of {self.length}")
        row %= self.length
        number = self.store.data[row].item()
        for change in self._changes():
            here = np.flatnonzero(change.rows == row)
            if len(here):
                return change.before[here[0]].item()
        return number

    def append(self, numbers: Numbers | Sequence[Any]) -> Column:
        """Longer by numbers (k,)."""
        added = np.asarray(numbers, self.store.data.dtype)
        newest = self.newest()
        start, end = self.length, self.length + len(added)
        newest.store.reserve(end)
        version, covered = newest.version, min(newest.store.used, end)
        if covered > start:  # somebody may still hold another future of this column
            version = newest.store.change(version, np.arange(start, covered), added[: covered - start])
        newest.store.data[covered:end] = added[covered - start :]
        newest.store.used = max(newest.store.used, end)
        return Column(newest.store, version, end)

    def put(self, rows: Numbers | Sequence[int], numbers: Numbers | Sequence[Any] | object) -> Column:
        """The column with other numbers in these rows, each named once."""
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            return self
        values, order = np.broadcast_to(np.asarray(numbers, dtype=self.store.data.dtype), rows.shape), np.argsort(rows)
        newest = self.newest()
        return Column(newest.store, newest.store.change(newest.version, rows[order], values[order]), self.length)

    def newest(self) -> Column:
        """The same numbers as the newest version, which alone can be written to."""
        changes = self._changes()
        if not changes:
            return self
        version, undone = changes[-1].later, self._undone()
        version = version if undone is None else self.store.change(version, *undone)
        return Column(self.store, version, self.length)

    def take(self, rows: Numbers, field: str | None = None) -> Numbers:
        """(m,) the numbers of rows (m,); of records all of each, or one field."""
        data = self.store.data if field is None else self.store.data[field]
        numbers = data[rows]
        undone = self._undone()
        if undone is not None:
            changed, before = undone
            place = np.searchsorted(changed, rows).clip(max=len(changed) - 1)
            here = changed[place] == rows
            numbers[here] = (before if field is None else before[field])[place[here]]
        return numbers

    def array(self, field: str | None = None, start: int = 0) -> Numbers:
        """(n - start,) all of it from row `start` on, or one field of the records; a copy."""
        data = self.store.data if field is None else self.store.data[field]
        numbers = data[start : self.length].copy()
        undone = self._undone()
        if undone is not None:
            rows, before = undone
            own = rows >= start
            numbers[rows[own] - start] = (before if field is None else before[field])[own]
        return numbers

    def where(self, number: object) -> Numbers:
        """(m,) the rows that hold this number, in order."""
        return np.flatnonzero(self.array() == number)

    def tolist(self, field: str | None = None) -> list[Any]:
        """All of it as plain Python."""
        return self.array(field).tolist()  # type: ignore[no-any-return]

    def _changes(self) -> list[_Change]:
        """What has changed since, in order. Asked after the array was read, it names all that may have been seen."""
        changes, change = [], self.version.change
        while change is not None:
            changes.append(change)
            change = change.later.change
        return changes

    def _undone(self) -> tuple[Numbers, Numbers] | None:
        """(rows, what they hold in this version) of all rows that have changed since, in order; None if none has."""
        if self.version.change is None:
            return None
        changes = self._changes()
        rows, before = changes[0].rows, changes[0].before
        if len(changes) > 1:
            before = np.empty(sum(len(change.rows) for change in changes), self.store.data.dtype)
            # Into what is there: of many records numpy would first look for a type that all have in common.
            np.concatenate([change.before for change in changes], out=before)
            # The first change of a row knows what was there.
            rows, first = np.unique(np.concatenate([change.rows for change in changes]), return_index=True)
            before = before[first]
        own = rows < self.length
        return (rows[own], before[own]) if own.any() else None
