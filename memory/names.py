"""Numbers for names, given out in order."""

from __future__ import annotations

from array import array
from collections.abc import Hashable

NONE = -1
FULLEST = 2 / 3  # of its places the table may fill: the emptier it is, the sooner a name is found


class Names:
    """Shared by all versions of a book: a number is never given out twice. One writer, any number of readers.

    A table of numbers beside the list of names, open addressing, takes less than half of what a dictionary does.
    """

    def __init__(self) -> None:
        self.names: list[Hashable] = []
        self._table = array("i", [NONE]) * 16

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: Hashable) -> int:
        """The name's number; NONE for one that has none."""
        table = self._table  # a reader goes on with the one it has
        return table[self._place(table, name)]

    def number(self, name: Hashable) -> int:
        """The name's number, a new one for a new name."""
        place = self._place(self._table, name)
        if self._table[place] == NONE:
            self.names.append(name)  # first: a reader that finds the number looks here
            self._table[place] = len(self.names) - 1
            if len(self.names) > FULLEST * len(self._table):
                self._table = self._larger()
            return len(self.names) - 1
        return self._table[place]

    def _larger(self) -> array[int]:
        table = array("i", [NONE]) * (2 * len(self._table))
        for number, name in enumerate(self.names):
            table[self._place(table, name)] = number
        return table

    def _place(self, table: array[int], name: Hashable) -> int:
        """Where the name's number is, or has to be put."""
        last = len(table) - 1
        place = hash((name,)) & last  # of a tuple, which mixes: numbers are their own hashes
        while table[place] != NONE and not self._is(table[place], name):
            place = (place + 1) & last
        return place

    def _is(self, number: int, name: Hashable) -> bool:
        known = self.names[number]
        return known is name or known == name
