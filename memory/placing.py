"""GRACE's rule: what a key does to the balls around it when it comes (Hartvigsen et al., NeurIPS 2023, section 3.2).

Time is counted in keys: what key number t does happens at time t. Knows balls, and who looked at whom; nothing of where
they are kept or how the nearest is found.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from editable.memory.links import Links
from editable.memory.query import Queries

if TYPE_CHECKING:
    from editable.memory.radius import Codebook

SPLIT_GAP = 1e-5  # what the older of two split balls gives up, so that they do not touch (GRACE's constant)
GUESSED = 8  # keys measured first when the nearest is looked for: one of them nearly always is it
FEW = 128  # rows that are faster looked up one by one among those that something happened to
ONE_BY_ONE = 4  # rows that are faster looked at one by one altogether

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


def widest(widths: Sequence[tuple[int, float]]) -> float:
    """What no ball is wider than, nor any initial radius; see `Codebook.widths`."""
    return widths[-1][1] if widths else 0.0


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
        self.widths = book.widths

    @property
    def widest(self) -> float:
        """No ball has been wider, nor any initial radius."""
        return widest(self.widths)

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
        if row != self.now or self._asked is None:
            return self.book.nearest_then(self.book.keys.slice(row, row + 1)[0], within, seen)
        with np.errstate(all="ignore"):
            return self.book.nearest_seen(self._asked[row - len(self.book.column)], row, within, seen)

    @cached_property
    def _asked(self) -> Queries | None:
        """The keys that are still to come against the index, as far as that is worked out for all together."""
        index, keys = self.book.index, self.book.keys
        with np.errstate(all="ignore"):
            return None if index is None else index.queries(keys.slice(len(self.book.column), len(keys)), keys)

    def _balls(self, rows: Numbers, space: int, without: Sequence[int]) -> Numbers:
        """(m,) which of rows (m,) have a ball now, in this namespace."""
        known = len(self.book.column)
        if len(rows) <= ONE_BY_ONE:
            return np.array([self._is_ball(row, space, without) for row in rows.tolist()], np.bool_)
        kept: Numbers = rows < known
        if known:
            records = self.book.column.take(np.minimum(rows, known - 1))
            kept &= (records["radius"] >= 0) & (records["space"] == space)
        return self._corrected(rows, kept, space, without)

    def _is_ball(self, row: int, space: int, without: Sequence[int]) -> bool:
        if row in without or (row not in self.lives and row >= len(self.book.column)):
            return False
        life = self.life(row)
        return life.radius >= 0 and life.space == space

    def _corrected(self, rows: Numbers, kept: Numbers, space: int, without: Sequence[int]) -> Numbers:
        """Which of rows (m,) are to be kept (m,), now that some have changed."""
        places = np.flatnonzero(np.isin(rows, list(self.lives))) if len(rows) > FEW else np.arange(len(rows))
        for place, row in zip(places.tolist(), rows[places].tolist(), strict=True):
            if row in self.lives:
                kept[place] = self._is_ball(row, space, without)
        if without:
            kept &= ~np.isin(rows, without)
        return kept
