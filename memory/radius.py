"""Balls around keys, and which of them a query falls into (GRACE, Hartvigsen et al., NeurIPS 2023, section 3).

A `Codebook` is an immutable value. Every key ever asked for keeps its row, whether it became a ball of its own or was
absorbed by one, so that forgetting an edit can put the book back to what it would be had that edit never come.
Knows keys, labels, owners and radii; knows nothing of models or of what a hit causes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.background import Job
from editable.memory.column import Column
from editable.memory.distance import euclidean, latest_nearest, may_be_within, measured_at_most, squares
from editable.memory.index import Index, first
from editable.memory.links import Links
from editable.memory.names import Names
from editable.memory.package import loops
from editable.memory.placing import GUESSED, KINDS, RECORD, SPLIT_GAP, Course, Life, Placed, Witnesses, widest
from editable.memory.query import NOBODY, NOTHING, Query
from editable.memory.retold import Retold
from editable.memory.rows import Rows
from editable.memory.sketch import Slack
from editable.memory.sparse import SparseRows

__all__ = ["SPLIT_GAP", "Codebook", "Placed"]

HEAD = 128  # numbers of a key that are read first, or a quarter of all: mostly they tell that it is far
MOST_TRIED = 1024  # keys that are guessed to be near, at most about
MORE = 8  # times as many are guessed where none of some is seen
AT_ONCE = 32  # keys that are measured sooner than bounded

Numbers = NDArray[Any]
NO_SLACK = Slack(1.0, 0.0)
TINY = np.finfo(np.float32).tiny  # a ball of radius 0 holds its own key


@dataclass(frozen=True, eq=False)
class Codebook:
    """Keys with radii, labels and owners.

    Args:
        keys: (n, features) every key, in order of arrival; those of forgotten owners are let go.
        column: what is known of each: the fields of `Life`.
        label_names, owner_names, space_names: what the numbers in those fields stand for.
        owned: by owner, which keys may be theirs.
        witnesses: by key, which others may have been placed by looking at it.
        widths: pairs (row, radius), both rising: until the next of them no ball was wider, nor any initial radius; keys
            after that row looked so much farther than their own radius before they said that there was no ball.
        index: what spares measuring most distances; None in a small book.
        job: a better index in the making.
        resolution: share of the initial radius below which two keys are at the same place, and by which a ball that
            expands reaches beyond the key it expands for; 0 is the published rule to the letter.
    """

    keys: SparseRows
    column: Column
    label_names: Names
    owner_names: Names
    space_names: Names
    owned: Links
    witnesses: Witnesses
    widths: tuple[tuple[int, float], ...] = ()
    index: Index | None = None
    job: Job[Index] | None = None
    resolution: float = 0.05

    @classmethod
    def empty(
        cls, features: int, resolution: float = 0.05, device: torch.device | str = "cpu", on_disk: bool = False
    ) -> Codebook:
        """A book without keys. `on_disk` holds the keys in a file, and in memory only what tells which to read."""
        keys = SparseRows.of(Rows.on_disk(features) if on_disk else Rows.empty(features, device=device))
        names = (Names(), Names(), Names())
        return cls(keys, Column.empty(RECORD), *names, Links(), Witnesses(), resolution=resolution)

    def __len__(self) -> int:
        return len(self.keys)

    # What is known of a key

    @property
    def radii(self) -> Tensor:
        """(n,) radius of each key's ball; -inf where it has none. A copy."""
        return torch.from_numpy(self.column.array("radius"))

    @property
    def labels(self) -> tuple[Hashable, ...]:
        """Each key's label; two keys answer alike exactly if their labels are equal."""
        return tuple(self.label_names.names[number] for number in self.column.tolist("label"))

    @property
    def owners(self) -> tuple[str | None, ...]:
        """Each key's owner; None once forgotten."""
        return tuple(self.owner(row) for row in range(len(self)))

    @property
    def placed(self) -> tuple[Placed, ...]:
        """What happened to each key."""
        return tuple(self.placement(row) for row in range(len(self)))

    @property
    def widest(self) -> float:
        """No ball is wider."""
        return widest(self.widths)

    def life(self, row: int) -> Life:
        """All that is known of a key."""
        return Life(*self.column[row])

    def owner(self, row: int) -> str | None:
        """A key's owner; None once forgotten."""
        return str(self.owner_names.names[self.life(row).owner]) if self.keys.live[row] else None

    def placement(self, row: int) -> Placed:
        """What happened to a key."""
        life, others = self.life(row), self.witnesses.looking_at(row, len(self))
        superseded = tuple(one for one in others if self._took(row, one))
        freed = life.absorbed and life.born >= 0
        return Placed(KINDS[life.kind], life.nearest, life.distance, superseded, freed)

    def _took(self, row: int, other: int) -> bool:
        """Whether a key took the place of the other one, which is still there."""
        return bool(self.life(other).taker == row) and bool(self.keys.live[other])

    def rows_of(self, owner: str) -> list[int]:
        """The rows of an owner's keys; none once forgotten."""
        number = self.owner_names.find(owner)
        rows = self.owned.of(number)
        return [row for row in rows if row < len(self) and self.keys.live[row] and self.life(row).owner == number]

    # Looking up

    def find(self, queries: Tensor, space: str | None = None) -> tuple[Tensor, Tensor]:
        """The nearest ball of each of queries (m, features), if the query lies in it.

        What decides is the float32 norm of the difference; of equally near balls the latest. With a `space`, balls of
        other namespaces are as if they were not there.

        Returns:
            row (m,), and share (m,): the distance as a share of the radius, from 0 to 1. Where the query lies in no
            ball, or in one but nearer to the key of another, share is inf and row any.
        """
        queries = queries.detach().float()
        if len(self) == 0 or len(queries) == 0:
            return nothing_found(len(queries), queries.device)
        if not (self._here and queries.is_cpu):
            return self._found_among_all(queries, space)
        if self.index is None:
            return self._found_by_scan(queries, space)
        with np.errstate(all="ignore"):  # what is no number is near nothing
            return self._found_by_index(self.index, queries, space)

    @cached_property
    def _here(self) -> bool:
        """Whether keys are where numpy reads."""
        return self.keys.device.type == "cpu"

    def _found_among_all(self, queries: Tensor, space: str | None) -> tuple[Tensor, Tensor]:
        """Every distance measured, nothing waited for: accelerators."""
        radius = self._radius_on(queries.device, space)
        exact = euclidean(queries, self.keys.on(queries.device)).masked_fill(radius < 0, torch.inf)  # (m, n)
        row, distance = latest_nearest(exact)
        around = radius[row]
        return row, torch.where(distance <= around, distance / around.clamp_min(float(TINY)), torch.inf)

    def _found_by_scan(self, queries: Tensor, space: str | None) -> tuple[Tensor, Tensor]:
        """Measured is what may be as near as the widest ball is wide: small books."""
        found = None
        for place, query in enumerate(queries.numpy()):
            rows = self._reached(query)
            if len(rows):
                found = found or _Found.nothing(len(queries))
                found.put(place, *self._decided(queries[place], rows, space))
        return found.tensors if found else nothing_found(len(queries), queries.device)

    def _reached(self, query: Numbers) -> Numbers:
        """Rows of a small book whose keys may be as near to query (features,) as the widest ball is wide."""
        heads, features = self._heads, len(query)
        near = may_be_within(squares(query[: heads.shape[1]], heads), self.widest, features)
        if len(near) <= AT_ONCE:
            return near
        return may_be_within(squares(query, self._scanned), self.widest, features)

    @cached_property
    def _heads(self) -> Numbers:
        """(n, at least HEAD or a quarter of the features) the first numbers of all keys of a small book."""
        return np.ascontiguousarray(self._scanned[:, : max(HEAD, self._scanned.shape[1] // 4)])

    @cached_property
    def _scanned(self) -> Numbers:
        """(n, features) all keys of a small book."""
        return self.keys.view.numpy()

    def _found_by_index(self, index: Index, queries: Tensor, space: str | None) -> tuple[Tensor, Tensor]:
        """Most distances not measured; most queries are near no ball, which is soon told of all together."""
        found = _Found.nothing(len(queries))
        for bounds, rows in index.queries(queries, self.keys).near(self.widest):
            query = queries[bounds.place]
            few = self._rivals(query, bounds, space) if rows is None else rows
            found.put(bounds.place, *self._decided(query, few, space))
        return found.tensors

    def _rivals(self, query: Tensor, bounds: Query, space: str | None) -> Numbers:
        """Rows among which is the nearest ball to query (features,), if it lies in any."""
        near = self._balls(bounds.may_reach(self.column, self.widest), space)
        distance, radius = self._measured(query, near), self.column.take(near, "radius")
        if not (distance <= radius).any():
            return near[:0]
        # It lies in a ball; but the nearest key decides, and that may be the key of a smaller one.
        least = float(distance[distance <= radius].min())
        return self._balls(bounds.within(least)[0], space)

    def _decided(self, query: Tensor, rows: Numbers, space: str | None) -> tuple[int, float]:
        """The nearest ball of rows (k,) to query (features,), and the distance as a share of its radius, or inf."""
        rows = self._balls(rows, space)
        row, distance = _latest_nearest(rows, self._measured(query, rows))
        around = self.column.take(np.array([row]), "radius")[0] if row >= 0 else -math.inf
        if distance > around:
            return 0, math.inf
        return row, float(distance / max(around, TINY))

    def nearest(
        self, query: Tensor, within: float = math.inf, without: Sequence[int] = (), space: str | None = None
    ) -> tuple[int, float]:
        """The nearest ball to query (features,), and its distance; of equally near ones the latest.

        -1, where there is none `within` that distance, and a distance that none is nearer than; infinite in a book
        without balls. Rows in `without`, and other namespaces where one is given, are as if they were not there.
        """
        query = query.detach().float()
        seen = lambda rows: self._are_balls(rows, space, without)  # noqa: E731 - reads better than a closure here
        if self.index is None or not self._placed(query):
            return self.nearest_then(query, within, seen)
        with np.errstate(all="ignore"):
            return self.nearest_seen(self.index.query(query, self.keys), len(self), within, seen)

    def nearest_seen(
        self, query: Query, before: int, within: float, seen: Callable[[Numbers], Numbers]
    ) -> tuple[int, float]:
        """The same among those rows (m,) `before` one for which `seen` says so (m,), which are most."""
        rows = query.nearest(before, within)
        kept = NOBODY if rows is None else seen(rows)
        if rows is None or not kept[:1].all():  # another may be the nearest of those that are seen
            return self.nearest_then(query.tensor, within, seen, bounds=query)
        return self._nearest_among(query.tensor, rows[kept], within)

    def nearest_then(
        self,
        query: Tensor,
        within: float,
        seen: Callable[[Numbers], Numbers],
        guessed: int = GUESSED,
        perhaps: Numbers = NOBODY,
        bounds: Query | None = None,
    ) -> tuple[int, float]:
        """The same where many are not seen. To know how far to look, `guessed` many and `perhaps` are tried first."""
        if not len(self):
            return -1, math.inf
        if self.index is None or not self._placed(query):
            rows = np.arange(len(self))
            return self.nearest_of(query, rows[seen(rows)], within)
        with np.errstate(all="ignore"):
            bounds = bounds or self.index.query(query, self.keys)
            reach = min(self._at_most(query, _tried(bounds, guessed, perhaps, seen)), within)
            return self._nearest_within(bounds, query, reach, seen)

    def _placed(self, query: Tensor) -> bool:
        """Whether a query (features,) and the keys are where the index can tell what is near."""
        return self._here and bool(np.isfinite(query.numpy()).all())

    def _nearest_among(self, query: Tensor, rows: Numbers, within: float) -> tuple[int, float]:
        """The nearest of rows (m,), among which it must be, if it is `within` that distance."""
        row, least = _latest_nearest(rows, self._measured(query, rows))
        return (row, least) if least <= within else (-1, math.nextafter(within, math.inf))

    def nearest_of(self, query: Tensor, rows: Numbers, within: float) -> tuple[int, float]:
        """The same among rows (m,), all of which are measured."""
        if self._here and self.index is None and len(rows) > AT_ONCE:
            rows = self._nearest_scanned(query, rows)
        row, least = _latest_nearest(rows, self._measured(query, rows))
        return (row, least) if least <= within or row < 0 else (-1, least)

    def _nearest_scanned(self, query: Tensor, rows: Numbers) -> Numbers:
        """Those of rows (m,) of a small book that may be measured to be the nearest."""
        apart = squares(query.numpy(), self._scanned)[rows]
        return _perhaps_nearest(rows, apart, len(query))

    def _at_most(self, query: Tensor, rows: Numbers) -> float:
        """A distance that the nearest of rows (m,) is not measured to be beyond; infinite where there is none."""
        return measured_at_most(float(self._squares(query, rows).min(initial=math.inf)), len(query))

    def _nearest_within(
        self, bounds: Query, query: Tensor, reach: float, seen: Callable[[Numbers], Numbers]
    ) -> tuple[int, float]:
        """The nearest of all that are seen within some distance."""
        rows, lowest = bounds.within(reach)
        kept = seen(rows)
        rows, lowest = rows[kept], lowest[kept]
        if not len(rows):
            return -1, math.nextafter(reach, math.inf)
        rows = _perhaps_nearest(rows, self._squares(query, rows, lowest, bounds.slack), len(query))
        return self._nearest_among(query, rows, reach)

    def _squares(self, query: Tensor, rows: Numbers, lowest: Numbers = NOTHING, slack: Slack = NO_SLACK) -> Numbers:
        """(m,) squared distances of query (features,) to the keys of rows (m,), summed in another order.

        Infinite for those that another one is nearer than, by the `lowest` (m,) that sketches say, in order.
        """
        keys, places = self.keys.rows.view.numpy(), self.keys.places(rows)
        squared: Numbers = loops().squares(query.numpy(), keys, places, lowest, slack.stretch, slack.shift)
        return squared

    def within(self, row: int, rows: Numbers, limits: Numbers) -> Numbers:
        """Those of rows (m,) whose keys lie within limits (m,) of a key."""
        if self.index is not None:
            bounds = self.index.query(self.keys.slice(row, row + 1)[0], self.keys)
            kept = bounds.may_lie(rows, limits)
            rows, limits = rows[kept], limits[kept]
        return rows[self.measured_between(row, rows) <= limits]

    def measured_between(self, row: int, rows: Numbers) -> Numbers:
        """(m,) distances of a key to those of rows (m,)."""
        return self._measured(self.keys.slice(row, row + 1)[0], rows)

    def _balls(self, rows: Numbers, space: str | None) -> Numbers:
        """Those of rows (m,) that have a ball."""
        return rows[self._are_balls(rows, space)]

    def _are_balls(self, rows: Numbers, space: str | None, without: Sequence[int] = ()) -> Numbers:
        """(m,) which of rows (m,) have a ball and may be seen."""
        kept: Numbers = self.column.take(rows, "radius") >= 0
        if space is not None:
            kept &= self.column.take(rows, "space") == self.space_names.find(space)
        if without:
            kept &= ~np.isin(rows, without)
        return kept

    def _measured(self, query: Tensor, rows: Numbers) -> Numbers:
        """(m,) distances of query (features,) to the keys of rows (m,)."""
        if not len(rows):
            return np.empty(0, np.float32)
        if len(rows) == 1:  # mostly, where it counts: nothing is copied
            keys = self.keys.slice(int(rows[0]), int(rows[0]) + 1)
        else:
            keys = self.keys.at(torch.from_numpy(rows).to(self.keys.device))
        return euclidean(query[None].to(keys.device), keys)[0].cpu().numpy()

    def _radius_on(self, device: torch.device, space: str | None) -> Tensor:
        if space is None:
            return self._radius_tensor.to(device, non_blocking=True)
        here = self.column.array("space") == self.space_names.find(space)
        return torch.from_numpy(np.where(here, self.column.array("radius"), np.float32(-np.inf))).to(device)

    @cached_property
    def _radius_tensor(self) -> Tensor:
        return self.radii.to(self.keys.device)

    # Changing

    def add(
        self,
        key: Tensor,
        label: Hashable,
        owner: str,
        radius: float,
        placed: Placed | None = None,
        space: str = "default",
    ) -> Codebook:
        """The book with one more key (features,); `placed` where its placement is known from the log.

        GRACE's rule (section 3.2 of the paper), among the keys of its namespace, except that labels are compared
        exactly, that a key at the place of another one supersedes it instead of leaving both unreachable, that a split
        never enlarges the older ball, and that keys which lose the ball that had absorbed them get one of their own.

        Raises:
            ValueError: the key has NaN or infinite features.
        """
        return self.add_all(key[None], [label], [owner], [radius], [placed], space)

    def add_all(
        self,
        keys: Tensor,
        labels: Sequence[Hashable],
        owners: Sequence[str],
        radii: Sequence[float],
        placed: Sequence[Placed | None],
        space: str = "default",
    ) -> Codebook:
        """The same for keys (n, features) one after another, at less cost for each.

        Raises:
            ValueError: a key has NaN or infinite features.
        """
        finite = np.isfinite(keys.float().numpy(force=True))
        if not finite.all():
            odd = owners[int(finite.all(axis=1).argmin())]
            raise ValueError(f"The key of {odd!r} has NaN or infinite features, expected finite ones.")
        book = self._renewed()
        held = book.keys.append(keys)
        course = Course(
            replace(book, keys=held, column=book.column.newest(), index=book.index and book.index.following(held))
        )
        number = self.space_names.number(space)
        for row, (label, owner, radius, known) in enumerate(zip(labels, owners, radii, placed, strict=True), len(self)):
            life = Life.new(radius, self.label_names.number(label), self.owner_names.number(owner), number)
            self.owned.add(life.owner, row)
            course.now = row
            course.arrive(row, life, known)
        return course.book._after(course)

    def forget(self, owners: frozenset[str]) -> Codebook:
        """The book as if those owners' keys had never come.

        Told again is only what they did, and what keys did that came later and looked at a ball that was another then.
        """
        gone = {row for owner in owners for row in self.rows_of(owner)}
        if not gone:
            return self
        before = replace(self, column=self.column.newest())
        course = Retold(before, replace(before, keys=self.keys.let_go(np.array(sorted(gone)))), gone)
        course.tell()
        return course.book._after(course)

    def _after(self, course: Course) -> Codebook:
        """The book once that has happened to its keys."""
        lives, start = course.lives, len(self.column)
        for row in range(start, len(self)):
            self.witnesses.note(row, lives[row])
        book = self._changed(course, sorted(row for row in lives if row < start))
        column = book.column.append(_records(lives, range(start, len(self))))
        return replace(book, column=column, widths=course.widths)

    def _changed(self, course: Course, rows: Sequence[int]) -> Codebook:
        """With what happened to rows that were there before."""
        if not rows:
            return self
        for row in rows:
            self.witnesses.note(row, course.lives[row], self.life(row))
        radii = np.array([course.lives[row].radius for row in rows], np.float32)
        index = self.index and self.index.noting(np.array(rows, np.int64), radii)
        return replace(self, column=self.column.put(rows, _records(course.lives, rows)), index=index)

    # The index

    def settled(self) -> Codebook:
        """The book once everything that is done in the background is done: the same decisions, faster."""
        book = replace(self, keys=self.keys.settled())._renewed()
        while book.job is not None and book.job.wait() is not None:
            book = book._renewed()
        return book

    def _renewed(self) -> Codebook:
        """With the index that was made, if one is done; and with one in the making, if it is due."""
        made = None if self.job is None else self.job.made
        if self.job is not None and made is None:
            return self  # not done yet; or in vain, and then it is not tried again with every key
        book = self if made is None else self._adopting(made)
        if not book._here:
            return book
        keys, column, index = book.keys, book.column, book.index
        if index is None and len(book) >= first(keys.rows.view.shape[1]):
            return replace(book, job=Job("index of keys", lambda: Index.of(keys, column.array("radius"))))
        if index is None or not index.due(len(book)):
            return book
        index = index.extended(keys)
        return replace(book, index=index, job=Job("index of keys", lambda: index.renewed(keys, column.array("radius"))))

    def _adopting(self, index: Index) -> Codebook:
        if self.index is not None and index.sketch is self.index.sketch:
            later = self.index  # the same sketches, and more of them
        else:
            later = index.following(self.keys)
        return replace(self, index=later.taking(index.cells, self.column.array("radius")), job=None)


@lru_cache
@torch.inference_mode(False)  # what is kept has to do for later forwards with gradients, too
def nothing_found(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `Codebook.find` gives for so many queries that lie in no ball; for all to read."""
    none = torch.zeros(count, dtype=torch.long, device=device)
    return none, torch.full_like(none, torch.inf, dtype=torch.float32)


@dataclass(frozen=True)
class _Found:
    """Rows (m,) and shares (m,), one query after another."""

    rows: Numbers
    shares: Numbers

    @classmethod
    def nothing(cls, count: int) -> _Found:
        """So many queries that lie in no ball."""
        return cls(np.zeros(count, np.int64), np.full(count, np.inf, np.float32))

    def put(self, place: int, row: int, share: float) -> None:
        """What one of them was found in."""
        self.rows[place], self.shares[place] = row, share

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """As `Codebook.find` gives them."""
        return torch.from_numpy(self.rows), torch.from_numpy(self.shares)


def _tried(bounds: Query, guessed: int, perhaps: Numbers, seen: Callable[[Numbers], Numbers]) -> Numbers:
    """Rows that are seen, most likely near ones: of so many and `perhaps`; of more where none of these is seen."""
    while True:
        tried = np.append(bounds.guess(guessed), perhaps)
        kept = tried[seen(tried)]
        if len(kept) or guessed > MOST_TRIED or len(tried) < guessed:
            return kept
        guessed *= MORE


def _perhaps_nearest(rows: Numbers, squared: Numbers, features: int) -> Numbers:
    """Those of rows (m,) that may be measured to be the nearest, where these are their `squares` (m,)."""
    return rows[may_be_within(squared, measured_at_most(float(squared.min()), features), features)]


def _latest_nearest(rows: Numbers, apart: Numbers) -> tuple[int, float]:
    """Of rows (m,) the one with the least of distances (m,), the latest of several; -1 and inf where there is none."""
    least = float(apart.min()) if len(rows) else math.inf
    if not math.isfinite(least):
        return -1, math.inf
    return int(rows[0] if len(rows) == 1 else rows[apart == least].max()), least


def _records(lives: Mapping[int, Life], rows: Sequence[int]) -> Numbers:
    return np.array([lives[row].record for row in rows], RECORD)
