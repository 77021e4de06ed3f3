"""A column of plain numbers, one per row, as an immutable value.

Cut into pages: changing a number copies its page, appending one writes behind everybody's view. A thousand versions of
a long column therefore share all that they have in common. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FEW = 256  # rows that are faster taken one by one
PAGE = 16384  # rows; a changed one is a copy of 16 to 128 KB, and a million rows are 61 pages

Numbers = NDArray[Any]


class _Page:
    """The storage behind many views; `used` is how much of it somebody may see."""

    def __init__(self, data: Numbers, used: int) -> None:
        self.data = data
        self.used = used

    def copied(self, used: int, room: int) -> _Page:
        data = np.empty(max(room, used), self.data.dtype)
        data[:used] = self.data[:used]
        return _Page(data, used)


@dataclass(frozen=True, eq=False)
class Pages:
    """An immutable column. One writer, any number of readers."""

    pages: tuple[_Page, ...]
    length: int
    dtype: DTypeLike

    @classmethod
    def empty(cls, dtype: DTypeLike) -> Pages:
        """A column without rows."""
        return cls((), 0, dtype)

    @classmethod
    def of(cls, numbers: Numbers) -> Pages:
        """A column that holds a copy of `numbers` (n,)."""
        starts = range(0, len(numbers), PAGE)
        pages = tuple(
            _Page(numbers[start : start + PAGE].copy(), len(numbers[start : start + PAGE])) for start in starts
        )
        return cls(pages, len(numbers), numbers.dtype)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Any:
        """One number, as plain Python."""
        if not -self.length <= row < self.length:
            raise IndexError(f"row {row} of a column of {self.length}")
        row %= self.length
        return self.pages[row // PAGE].data[row % PAGE].item()

    def append(self, *numbers: Any) -> Pages:
        """So many rows longer."""
        column, start = self, 0
        while start < len(numbers):
            column, start = column._filled(numbers, start)
        return column

    def _filled(self, numbers: Sequence[Any], start: int) -> tuple[Pages, int]:
        """With those of `numbers` from `start` on that the last page has room for, and where that ends."""
        index, place = divmod(self.length, PAGE)
        count = min(PAGE - place, len(numbers) - start)
        pages = self.pages
        if index == len(pages):
            pages = (*pages, _Page(np.empty(max(16, count) if index == 0 else PAGE, self.dtype), 0))
        page = pages[index]
        if page.used != place or place + count > len(page.data):
            # An abandoned sibling of this view was appended to, or the first page is full: older views keep theirs.
            page = page.copied(place, min(PAGE, 2 * (place + count)))
            pages = (*pages[:index], page, *pages[index + 1 :])
        page.data[place : place + count] = numbers[start : start + count]
        page.used = place + count
        return Pages(pages, self.length + count, self.dtype), start + count

    def amend(self, rows: Sequence[int], numbers: Sequence[Any]) -> None:
        """Write rows in place: for whoever has just appended them and has shown them to nobody."""
        for row, number in zip(rows, numbers, strict=True):
            self.pages[row // PAGE].data[row % PAGE] = number

    def put(self, rows: Numbers | Sequence[int], numbers: Numbers | Sequence[Any] | object) -> Pages:
        """The column with other numbers in these rows."""
        rows = np.asarray(rows, dtype=np.int64)
        values = np.broadcast_to(np.asarray(numbers, dtype=self.dtype), rows.shape)
        pages = list(self.pages)
        for index in np.unique(rows // PAGE).tolist():
            here = rows // PAGE == index
            used = min(PAGE, self.length - index * PAGE)
            pages[index] = pages[index].copied(used, len(pages[index].data))
            pages[index].data[rows[here] % PAGE] = values[here]
        return Pages(tuple(pages), self.length, self.dtype)

    def take(self, rows: Numbers) -> Numbers:
        """(m,) the numbers of rows (m,)."""
        if len(self.pages) <= 1:
            return self.pages[0].data[rows] if self.pages else np.empty(0, self.dtype)
        if len(rows) <= FEW:
            return np.array([self.pages[row // PAGE].data[row % PAGE] for row in rows.tolist()], self.dtype)
        found = np.empty(len(rows), self.dtype)
        which = rows // PAGE
        for index in np.unique(which).tolist():
            here = which == index
            found[here] = self.pages[index].data[rows[here] % PAGE]
        return found

    def where(self, number: object) -> Numbers:
        """The rows that hold this number, in order."""
        hits = [np.flatnonzero(part == number) + start for start, part in self._parts()]
        return np.concatenate(hits) if hits else np.empty(0, np.int64)

    def array(self) -> Numbers:
        """(n,) all of it; a copy."""
        parts = [part for _, part in self._parts()]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _parts(self) -> list[tuple[int, Numbers]]:
        starts = range(0, self.length, PAGE)
        return [(start, self.pages[start // PAGE].data[: self.length - start]) for start in starts]

    def tolist(self) -> list[Any]:
        """All of it as plain Python."""
        return self.array().tolist()  # type: ignore[no-any-return]
