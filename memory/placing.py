"""GRACE's rule: what a key does to the balls around it when it comes (Hartvigsen et al., NeurIPS 2023, section 3.2).

And what would have come of the keys had some of them never been there. Time is counted in keys: what key number t does
happens at time t. To take keys away is to tell the story again, but only those keys' parts in it that could go
otherwise: a key is asked again where it looked at a ball that is now another or gone, or where there is now a ball
nearer than the one it looked at. What it looked at is kept with each key for that.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from editable.memory.links import Links

if TYPE_CHECKING:
    from editable.memory.radius import Codebook

SPLIT_GAP = 1e-5  # what the older of two split balls gives up, so that they do not touch (GRACE's constant)
DIRECT = 512  # keys of which all are measured, where only those that came before some time may be found
GUESSED = 32  # keys measured first when the nearest is looked for: what they leave open is small
MOST_GUESSED = 512
FEW = 64  # rows that are faster looked at one by one

Kind = Literal["add", "expand", "covered", "split"]
KINDS: tuple[Kind, ...] = ("add", "expand", "covered", "split")
ADD, EXPAND, COVERED, SPLIT = range(4)
NONE = -1

Numbers = NDArray[Any]

RECORD = np.dtype(
    [
        ("radius", np.float32),
        ("initial", np.float64),
        ("label", np.int32),
        ("owner", np.int32),
        ("space", np.int32),
        ("kind", np.int8),
        ("nearest", np.int32),
        ("distance", np.float64),
        ("born", np.int32),
        ("died", np.int32),
        ("taker", np.int32),
        ("beside", np.int32),
        ("apart", np.float64),
    ]
)


@dataclass(frozen=True)
class Placed:
    """What happened to one key when it came in.

    Args:
        kind: "add" a ball of its own; "expand" the nearest ball, which has the same label, to reach it; "covered" by
            that ball already; "split" the space between it and the nearest ball, which has another label.
        nearest: row of the nearest ball at that time; -1 where it was too far to have mattered.
        distance: Euclidean distance to it, or less where it was too far; infinite where the book was empty.
        superseded: rows of balls at the very same place that lost it to this key.
        freed: whether it was absorbed first, and got a ball of its own when that one shrank.
    """

    kind: Kind
    nearest: int = NONE
    distance: float = float("inf")
    superseded: tuple[int, ...] = ()
    freed: bool = False


@dataclass(slots=True)
class Life:
    """What is known of one key, in the order of RECORD.

    Args:
        radius: of its ball, as float32 has it; negative where it has none.
        initial: its initial radius.
        label, owner, space: numbers of its label, its owner and its namespace.
        kind, nearest, distance: how it was placed, see `Placed`.
        born: when its ball came; NONE where it has had none.
        died: when its ball ended, or where it was absorbed and then found its place taken, when that was.
        taker: the row that took its place then; NONE where the ball was split away.
        beside, apart: of a key that lost the ball it was absorbed by, the nearest ball then, and how far that was.
    """

    radius: float
    initial: float
    label: int
    owner: int
    space: int
    kind: int = ADD
    nearest: int = NONE
    distance: float = float("inf")
    born: int = NONE
    died: int = NONE
    taker: int = NONE
    beside: int = NONE
    apart: float = float("inf")

    @classmethod
    def new(cls, initial: float, label: int, owner: int, space: int) -> Life:
        """Of a key that has not been placed yet."""
        return cls(-np.inf, initial, label, owner, space)

    @property
    def absorbed(self) -> bool:
        """Whether another key's ball took it in."""
        return self.kind in (EXPAND, COVERED)

    @property
    def uncovered(self) -> int:
        """When it lost the ball that had absorbed it; NONE if it did not."""
        if not self.absorbed:
            return NONE
        return self.born if self.born >= 0 else self.died

    @property
    def record(self) -> tuple[Any, ...]:
        """As RECORD has it."""
        return tuple([getattr(self, name) for name in RECORD.names or ()])


class Witnesses:
    """Who looked at whom. Shared by all versions of a book, and only ever added to: it names candidates."""

    def __init__(self) -> None:
        self.of = Links()  # by row: the rows that found it nearest, or took its place, or lost theirs to it
        self.uncovered = array("i")  # rows that lost the ball they were absorbed by

    def looking_at(self, row: int, count: int) -> list[int]:
        """Those that may have to do with a key, of the first `count`, in order."""
        return [one for one in self.of.of(row) if one < count]

    def note(self, row: int, life: Life, known: Life | None = None) -> None:
        """What a key looks at now that it did not before."""
        before = {NONE} if known is None else {NONE, known.nearest, known.taker, known.beside}
        for other in {life.nearest, life.taker, life.beside} - before:
            self.of.add(other, row)
        if life.uncovered != NONE and (known is None or known.uncovered == NONE):
            self.uncovered.append(row)


class Course:
    """What happens to keys, one after another.

    Args:
        book: the keys, some of which are still to come, and what is known of the others.
        lives: of keys to which something happened since, by row.
        now: the key whose time it is.
    """

    def __init__(self, book: Codebook) -> None:
        self.book = book
        self.lives: dict[int, Life] = {}
        self.touched: set[int] = set()
        self.now = len(book.column)
        self.widths = book.widest

    @property
    def widest(self) -> float:
        """No ball has been wider, nor any initial radius."""
        return self.widths[-1][1] if self.widths else 0.0

    def _widen(self, radius: float) -> None:
        if radius > self.widest:
            since = max(self.now, len(self.book.column) - 1)  # in the past nobody has looked so far
            self.widths = (*(step for step in self.widths if step[0] != since), (since, radius))

    # What a key does

    def arrive(self, row: int, life: Life, placed: Placed | None = None) -> None:
        """Place a key, where it is not known how, and let what that does to other balls happen."""
        self.lives[row] = life
        self.touched.add(row)
        self._widen(life.initial)
        placed = placed or self._place(row, life)
        life.kind, life.nearest = KINDS.index(placed.kind), placed.nearest
        life.distance = placed.distance if placed.nearest >= 0 else np.inf
        for lost in placed.superseded:
            self._supersede(lost)
        if placed.kind == "expand":
            # Beyond the key itself: asked again in another batch, its activation differs in the last bits.
            self._resize(placed.nearest, placed.distance + self.book.resolution * life.initial)
        elif placed.kind == "split":
            self._resize(placed.nearest, min(self.life(placed.nearest).radius, placed.distance / 2 - SPLIT_GAP))
            self._give_ball(row, placed.distance / 2)
        elif placed.kind == "add":
            self._give_ball(row, life.initial)
        for shrunk in (*sorted(placed.superseded), *((placed.nearest,) if placed.kind == "split" else ())):
            self._uncover_around(shrunk)

    def _place(self, row: int, life: Life) -> Placed:
        superseded: list[int] = []
        while True:
            near, distance = self._nearest(row, life, superseded)
            if not self._is_here(life, near, distance):
                return self._decided(life, near, distance, tuple(superseded))
            superseded.append(near)

    def _is_here(self, life: Life, near: int, distance: float) -> bool:
        """Whether the ball at `near` is another label's, at the very place of the key."""
        return near >= 0 and distance <= self.book.resolution * life.initial and not self._alike(life, near)

    def _decided(self, life: Life, near: int, distance: float, superseded: tuple[int, ...]) -> Placed:
        reach = self.life(near).radius if near >= 0 else -np.inf
        if near < 0 or distance > life.initial + max(reach, 0.0):
            return Placed("add", near, distance, superseded)
        if not self._alike(life, near):
            return Placed("split", near, distance, superseded)
        return Placed("expand" if distance > reach else "covered", near, distance, superseded)

    def _alike(self, life: Life, other: int) -> bool:
        return life.label == self.life(other).label

    def _supersede(self, row: int) -> None:
        life = self._changing(row)
        if life.radius >= 0:
            life.radius, life.died, life.taker = -np.inf, self.now, self.now

    def _resize(self, row: int, radius: float) -> None:
        """Widen or narrow a ball; one that was recorded elsewhere may be gone here."""
        life = self._changing(row)
        if life.radius >= 0:
            life.radius = float(np.float32(radius))
            self._widen(life.radius)
            life.died = self.now if life.radius < 0 else NONE

    def _give_ball(self, row: int, radius: float) -> None:
        life = self._changing(row)
        life.radius, life.born = float(np.float32(radius)), self.now
        self._widen(life.radius)

    def _uncover_around(self, host: int) -> None:
        """Keys that a shrunken or lost ball no longer holds get a ball of their own."""
        radius = self.life(host).radius
        for row in list(self._absorbed_by(host)):
            if self.life(row).distance > radius:
                self._uncover(row)

    def _absorbed_by(self, host: int) -> Iterator[int]:
        """Rows of keys that the ball of `host` absorbed, in order of arrival."""
        known = self.book.witnesses.looking_at(host, self.now)
        for row in sorted({*known, *(row for row, life in self.lives.items() if life.nearest == host)}):
            life = self.life(row)
            if life.absorbed and life.nearest == host and life.uncovered == NONE and self.book.keys.live[row]:
                yield row

    def _uncover(self, row: int) -> None:
        life = self._changing(row)
        near, distance = self._nearest(row, life, (), 2 * life.initial)
        life.beside, life.apart = near, distance
        if self._is_here(life, near, distance):  # superseded, as a ball would be that another label's key came to
            life.died, life.taker = self.now, near
            return
        self._give_ball(row, self._own_radius(life))

    def _own_radius(self, life: Life) -> float:
        """The first radius of a key that lost its cover."""
        if life.beside < 0 or self._alike(life, life.beside):
            return life.initial
        return min(life.initial, life.apart / 2)

    # What is known of a key now

    def life(self, row: int) -> Life:
        """What is known of a key now; not to be changed."""
        return self.lives.get(row) or self._known(row)

    def _known(self, row: int) -> Life:
        return Life(*self.book.column[row])

    def _changing(self, row: int) -> Life:
        self.touched.add(row)
        if row not in self.lives:
            self.lives[row] = self._known(row)
        return self.lives[row]

    def _nearest(self, row: int, life: Life, without: Sequence[int], within: float = 0.0) -> tuple[int, float]:
        """The nearest ball, if it is near enough to matter, or `within` that distance."""
        within = max(within, life.initial + self.widest)
        seen = lambda rows: self._balls(rows, life.space, without)  # noqa: E731 - reads better than a closure here
        return self.book.nearest_seen(self.book.keys.slice(row, row + 1)[0], within, seen)

    def _balls(self, rows: Numbers, space: int, without: Sequence[int]) -> Numbers:
        """Those of rows (m,) that have a ball now, in this namespace."""
        column = self.book.column
        kept = np.zeros(len(rows), np.bool_)
        known = rows < len(column)
        kept[known] = (column.take(rows[known], "radius") >= 0) & (column.take(rows[known], "space") == space)
        return self._corrected(rows, kept, space, without)

    def _corrected(self, rows: Numbers, kept: Numbers, space: int, without: Sequence[int]) -> Numbers:
        """Those of rows (m,) that are to be kept, now that some have changed."""
        for place in np.flatnonzero(np.isin(rows, list(self.lives))) if len(rows) > FEW else range(len(rows)):
            life = self.lives.get(int(rows[place]))
            if life is not None:
                kept[place] = life.radius >= 0 and life.space == space
        if without:
            kept &= ~np.isin(rows, without)
        return rows[kept]


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
        step = bisect_right(self.before.widest, (self.now, np.inf)) - 1
        return self.before.widest[step][1] if step >= 0 else -np.inf

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
        space = self.before.column[row][RECORD.names.index("space")]  # type: ignore[union-attr]
        own: Numbers = rows[(self.before.column.take(rows, "space") == space) & self.book.keys.live.take(rows)]
        return own

    def _due(self, times: Iterable[int] | Numbers) -> None:
        for time in times:
            heapq.heappush(self.due, (int(time), NONE))

    def _nearest(self, row: int, life: Life, without: Sequence[int], within: float = 0.0) -> tuple[int, float]:
        within = max(within, life.initial + self.widest)
        key = self.book.keys.slice(row, row + 1)[0]
        if self.now <= DIRECT:
            rows = self._balls(np.arange(self.now + 1), life.space, without)
            return self.book.nearest_of(key, rows, within)
        seen = lambda rows: self._balls(rows, life.space, without)  # noqa: E731
        guessed = min(MOST_GUESSED, GUESSED * len(self.book) // self.now)
        return self.book.nearest_seen(key, within, seen, guessed, np.array(sorted(self.guesses), np.int64))

    def _balls(self, rows: Numbers, space: int, without: Sequence[int]) -> Numbers:
        rows = rows[rows <= self.now]
        known = self.before.column.take(rows)
        kept = (known["born"] >= 0) & (known["born"] < self.now) & (known["space"] == space)
        kept &= ((known["died"] < 0) | (known["died"] >= self.now)) & self.book.keys.live.take(rows)
        return self._corrected(rows, kept, space, without)
