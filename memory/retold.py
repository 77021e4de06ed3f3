"""What would have come of the keys of a book had some of them never been there, to the bit.

The story is told again, but only those keys' parts in it that could go otherwise: a key's time comes again where it
looked at a ball that is now another or gone, or where there is now a ball nearer than the one it looked at. What it
looked at is kept with each key for that (`Life`, `Witnesses`); what a ball was at any time follows from the keys that
changed it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from editable.memory.placing import (
    ADD,
    COVERED,
    EXPAND,
    GUESSED,
    NONE,
    SPLIT,
    SPLIT_GAP,
    Course,
    Life,
    Numbers,
    Placed,
)

if TYPE_CHECKING:
    from editable.memory.radius import Codebook

DIRECT = 512  # keys of which all are measured, where only those that came before some time may be found
MOST_GUESSED = 512  # keys measured first, where few of them came before that time


class Retold(Course):
    """The same keys without some, told again where that could change anything.

    Args:
        before: the book with them.
        book: the book whose keys they have left already.
        gone: their rows.
    """

    def __init__(self, before: Codebook, book: Codebook, gone: Collection[int]) -> None:
        super().__init__(book)
        self.before = before
        self.gone = frozenset(gone)
        self.due: list[tuple[int, int]] = [(row, NONE) for row in sorted(gone)]  # (time, the row that is why)
        self.appeared: set[int] = set()  # balls where there were none
        self.wider: dict[int, float] = {}  # those, and balls wider than they ever were: to the radius asked around with
        self.times: dict[int, list[int]] = {}
        self.guesses: set[int] = set()

    def tell(self) -> None:
        """Everything that could go otherwise, in order."""
        while self.due:
            self.now, why = self.due[0][0], set[int]()
            while self.due and self.due[0][0] == self.now:
                why.add(heapq.heappop(self.due)[1])
            self.touched = set()
            if self.now in self.gone:
                self.lives[self.now] = self._nobody(self.now)
                self.touched.add(self.now)
            else:
                self._again(self.now)
            for row in sorted(self.touched | self._touched_before(self.now)):
                self._compare(row)
            for row in why & self.lives.keys():
                self._watch(row)

    def _nobody(self, row: int) -> Life:
        life = Life(*self.before.column[row])
        return Life.new(life.initial, life.label, life.owner, life.space)

    def _again(self, row: int) -> None:
        known = Life(*self.before.column[row])
        life = Life.new(known.initial, known.label, known.owner, known.space)
        self.arrive(row, life, self._placed_alike(row, known))

    def _placed_alike(self, row: int, known: Life) -> Placed | None:
        """How a key is placed if what it looked at is still what it sees; None where it has to look again."""
        lost = self._superseded_by(row)
        chain = [*lost, known.nearest] if known.nearest >= 0 else lost
        if any(self.life(one).radius < 0 for one in chain) or self._sees_more(row, known, chain):
            return None
        return self._decided(known, known.nearest, known.distance, tuple(lost))

    def _superseded_by(self, row: int) -> list[int]:
        """Balls that a key took the place of when it came."""
        lives = ((one, self._ever(one)) for one in self._looking_at(row))
        return [one for one, life in lives if life.taker == row == life.died and life.born >= 0 and self._counts(one)]

    def _counts(self, row: int) -> bool:
        """Whether the key is still there."""
        return bool(self.book.keys.live[row])

    def _sees_more(self, row: int, known: Life, chain: Sequence[int]) -> bool:
        """Whether a ball that appeared, or grew, may be what it finds."""
        others = [one for one in self.wider if one < row and one not in chain and self.life(one).radius >= 0]
        if not others:
            return False
        limit = known.distance if known.nearest >= 0 else known.initial + self.widest
        return bool((self.book.measured_between(row, np.array(others)) <= limit).any())

    # What was, at the time

    def _looking_at(self, row: int) -> list[int]:
        return self.book.witnesses.looking_at(row, len(self.before))

    def _ever(self, row: int) -> Life:
        return Life(*self.before.column[row])

    def _known(self, row: int) -> Life:
        return self._until(row, self.now - 1)

    def _until(self, row: int, time: int) -> Life:
        """What was known of a key after that time, with those that are gone now."""
        life = self._ever(row)
        if life.uncovered > time:
            life.beside, life.apart = NONE, np.inf
        if life.born > time:
            life.born = NONE
        if life.died > time:
            life.died = life.taker = NONE
        life.radius = self._radius_until(row, life, time)
        return life

    def _radius_until(self, row: int, life: Life, time: int) -> float:
        if life.born < 0 or life.taker >= 0:
            return -np.inf
        kinds, reaches = self._resized(row, life.born, time if life.died < 0 else life.died)
        wider = np.flatnonzero(kinds == EXPAND)
        last = int(wider[-1]) + 1 if len(wider) else 0
        radius = float(reaches[last - 1]) if last else self._first_radius(life)
        return float(min(reaches[last:].min(initial=np.inf), radius))

    def _first_radius(self, life: Life) -> float:
        first = {ADD: life.initial, SPLIT: life.distance / 2}.get(life.kind)
        return float(np.float32(self._own_radius_then(life) if first is None else first))

    def _own_radius_then(self, life: Life) -> float:
        alike = life.beside < 0 or self._ever(life.beside).label == life.label
        return life.initial if alike else min(life.initial, life.apart / 2)

    def _resized(self, row: int, start: int, time: int) -> tuple[Numbers, Numbers]:
        """(kinds of the keys that changed a ball after `start`, until `time`, in order; the radii they asked for)."""
        rows = np.array(self._looking_at(row), np.int64)
        rows = rows[(rows > start) & (rows <= time)]
        known = self.before.column.take(rows)
        kept = (known["nearest"] == row) & ((known["kind"] == EXPAND) | (known["kind"] == SPLIT))
        kept &= self.before.keys.live.take(rows)
        known = known[kept]
        wide = known["distance"] + self.book.resolution * known["initial"]
        reaches = np.where(known["kind"] == EXPAND, wide, known["distance"] / 2 - SPLIT_GAP)
        return known["kind"], reaches.astype(np.float32)

    def _touched_before(self, time: int) -> set[int]:
        """The keys to which key number `time` did something when it came, itself included."""
        known = self._ever(time)
        lost = [one for one in self._looking_at(time) if self._ever(one).taker == time]
        hosts = [*lost, *([known.nearest] if known.kind in (EXPAND, SPLIT) else [])]
        absorbed = (one for host in hosts for one in self._looking_at(host))
        return {time, *hosts, *(one for one in absorbed if self._ever(one).uncovered == time)} - (self.gone - {time})

    # What follows from it

    def _compare(self, row: int) -> None:
        """See whether a key is otherwise than it was at this time, and who has to know."""
        if row > self.now:
            return
        then = self._until(row, self.now)
        life = self.lives.setdefault(row, self._known(row))
        if life == then:
            del self.lives[row]
            return
        self._watch(row)
        if life.radius >= 0:
            self._ask_around(row, life, then)
        elif then.radius >= 0:
            self.guesses.update(one for one in (row, self._ever(row).nearest) if one >= 0)

    def _watch(self, row: int) -> None:
        """The next time anything happened to a key, or to its host, or it was looked at, is told again."""
        life = self.lives[row]
        covered = life.absorbed and life.uncovered == NONE
        for one in (row, life.nearest) if covered else (row,):
            if one not in self.times:
                self.times[one] = self._times(one)
            later = bisect_right(self.times[one], self.now)
            if later < len(self.times[one]):
                heapq.heappush(self.due, (self.times[one][later], row))

    def _times(self, row: int) -> list[int]:
        own = self._ever(row)
        rows = np.array(self._looking_at(row), np.int64)
        known = self.before.column.take(rows)
        live = self.before.keys.live.take(rows)
        looked = rows[live & (known["nearest"] == row)]
        beside = known[live & (known["beside"] == row)]
        uncovered = np.where(beside["born"] >= 0, beside["born"], beside["died"])
        return sorted({own.born, own.died, *looked.tolist(), *uncovered.tolist()})

    def _ask_around(self, row: int, life: Life, then: Life) -> None:
        """A ball where there was none, or so wide a one as there was not: who comes later may look at it."""
        appeared = then.radius < 0 and row not in self.appeared
        if not appeared and life.radius <= max(self.wider.get(row, -np.inf), self._widest_then()):
            return
        self.wider[row] = life.radius
        self.appeared.update([row] * appeared)
        self._ask(row)

    def _widest_then(self) -> float:
        """A radius such that all keys to come that saw no ball had looked that much farther than their own."""
        step = bisect_right(self.before.widths, (self.now, np.inf)) - 1
        return self.before.widths[step][1] if step >= 0 else -np.inf

    def _ask(self, row: int) -> None:
        """Tell again the times of all keys to come that may find this ball."""
        column, start = self.before.column, self.now + 1
        alone = column.array("nearest", start) < 0
        limit = np.where(alone, column.array("initial", start) + self.widest, column.array("distance", start))
        some = np.arange(start, len(column))
        self._due(self._within(row, some, limit))
        rows = np.unique(np.frombuffer(self.book.witnesses.uncovered, np.int32)).astype(np.int64)
        rows = rows[rows < len(column)]
        known = column.take(rows)
        absorbed = (known["kind"] == EXPAND) | (known["kind"] == COVERED)
        times = np.where(known["born"] >= 0, known["born"], known["died"])
        kept = absorbed & (times > self.now)
        limit = np.where(known["beside"] >= 0, known["apart"], 2 * known["initial"])
        near = set(self._within(row, rows[kept], limit[kept]).tolist())
        self._due(int(time) for one, time in zip(rows.tolist(), times.tolist(), strict=True) if one in near)

    def _within(self, row: int, rows: Numbers, limits: Numbers) -> Numbers:
        """Those of rows (m,) that lie within limits (m,) of a key, are still there and in its namespace."""
        rows = self.book.within(row, rows, limits)
        space = self._ever(row).space
        own: Numbers = rows[(self.before.column.take(rows, "space") == space) & self.book.keys.live.take(rows)]
        return own

    def _due(self, times: Iterable[int] | Numbers) -> None:
        for time in times:
            heapq.heappush(self.due, (int(time), NONE))

    def _nearest(self, row: int, life: Life, without: Sequence[int], within: float = 0.0) -> tuple[int, float]:
        within = max(within, life.initial + self.widest)
        key = self.book.keys.slice(row, row + 1)[0]
        if self.now <= DIRECT:
            rows = np.arange(self.now + 1)
            return self.book.nearest_of(key, rows[self._balls(rows, life.space, without)], within)
        seen = lambda rows: self._balls(rows, life.space, without)  # noqa: E731
        guessed = min(MOST_GUESSED, GUESSED * len(self.book) // self.now)
        return self.book.nearest_then(key, within, seen, guessed, np.array(sorted(self.guesses), np.int64))

    def _balls(self, rows: Numbers, space: int, without: Sequence[int]) -> Numbers:
        known = self.before.column.take(rows)
        kept = (rows <= self.now) & (known["born"] >= 0) & (known["born"] < self.now) & (known["space"] == space)
        kept &= ((known["died"] < 0) | (known["died"] >= self.now)) & self.book.keys.live.take(rows)
        return self._corrected(rows, kept, space, without)
