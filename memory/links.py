"""Which rows may name a number: what is asked backwards of a column that says which number each row names.

Shared by all versions of a book and only ever added to. What it gives are candidates; the version at hand says which of
them still name the number. Eight bytes an entry. For the one writer only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = -1


class Links:
    """Entries (number, row), by number."""

    def __init__(self) -> None:
        self.last = np.full(16, NONE, np.int32)  # by number: its latest entry
        self.rows = np.empty(16, np.int32)
        self.before = np.empty(16, np.int32)  # by entry: the one of the same number before it
        self.count = 0

    def add(self, number: int, row: int) -> None:
        """`row` may name `number`."""
        if number >= len(self.last):
            self.last = _larger(self.last, number + 1)
        if self.count == len(self.rows):
            self.rows, self.before = _larger(self.rows, self.count + 1), _larger(self.before, self.count + 1)
        self.rows[self.count], self.before[self.count] = row, self.last[number]
        self.last[number] = self.count
        self.count += 1

    def of(self, number: int) -> list[int]:
        """The rows that may name `number`, each once, in order."""
        rows, entry = set[int](), int(self.last[number]) if 0 <= number < len(self.last) else NONE
        while entry != NONE:
            rows.add(int(self.rows[entry]))
            entry = int(self.before[entry])
        return sorted(rows)


def _larger(numbers: NDArray[np.int32], least: int) -> NDArray[np.int32]:
    larger = np.full(2 * least, NONE, np.int32)
    larger[: len(numbers)] = numbers
    return larger
