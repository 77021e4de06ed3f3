"""Balls around keys, and which of them a query falls into (GRACE, Hartvigsen et al., NeurIPS 2023, section 3).

A `Codebook` is an immutable value. Every key ever asked for keeps its row, whether it became a ball of its own or was
absorbed by one, so that forgetting an edit can put the book back to what it would be had that edit never come.
Knows keys, labels, owners and radii; knows nothing of models or of what a hit causes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editable.memory.background import Job
from editable.memory.index import FIRST, Index
from editable.memory.pages import Pages
from editable.memory.rows import Rows
from editable.memory.sparse import SparseRows

GUESSED = 16  # keys measured first when the nearest is looked for: what they leave open is small
AT_ONCE = 32  # keys measured after that, nearest sketch first; then twice as many, and so on
SPLIT_GAP = 1e-5  # what the older of two split balls gives up, so that they do not touch (GRACE's constant)

Kind = Literal["add", "expand", "covered", "split"]
KINDS: tuple[Kind, ...] = ("add", "expand", "covered", "split")
ABSORBED = ("expand", "covered")

Numbers = NDArray[Any]


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
    nearest: int = -1
    distance: float = float("inf")
    superseded: tuple[int, ...] = ()
    freed: bool = False


class Names:
    """Numbers for names, given out in order. Shared by all versions of a book: a number is never given out twice."""

    def __init__(self) -> None:
        self.names: list[Hashable] = []
        self.numbers: dict[Hashable, int] = {}

    def number(self, name: Hashable) -> int:
        """The name's number, a new one for a new name."""
        known = self.numbers.get(name)
        if known is None:
            known = self.numbers[name] = len(self.names)
            self.names.append(name)
        return known


@dataclass(frozen=True, eq=False)
class Columns:
    """What is known of each key: a number a row in every column.

    Args:
        radius: of its ball; -inf where it has none (absorbed, superseded or forgotten).
        initial: its initial radius.
        label, owner, space: numbers of its label, its owner and its namespace.
        kind, nearest, distance, freed: how it was placed, see `Placed`.
    """

    radius: Pages
    initial: Pages
    label: Pages
    owner: Pages
    space: Pages
    kind: Pages
    nearest: Pages
    distance: Pages
    freed: Pages

    @classmethod
    def empty(cls) -> Columns:
        """No rows."""
        known = (np.float32, np.float64, np.int32, np.int32, np.int32)
        placed = (np.int8, np.int32, np.float64, np.bool_)
        return cls(*map(Pages.empty, (*known, *placed)))

    def append(self, **numbers: Sequence[Any]) -> Columns:
        """So many rows longer; as many numbers for every column."""
        return Columns(**{name: getattr(self, name).append(*ones) for name, ones in numbers.items()})

    def amend(self, rows: Sequence[int], placed: Sequence[Placed]) -> None:
        """Write how rows were placed, in place: for whoever has just appended them and has shown them to nobody."""
        for name, ones in _placed_numbers(placed).items():
            getattr(self, name).amend(rows, ones)

    def with_placed(self, placed: Mapping[int, Placed]) -> Columns:
        """With rows placed otherwise."""
        if not placed:
            return self
        rows, numbers = list(placed), _placed_numbers(placed.values())
        return replace(self, **{name: getattr(self, name).put(rows, ones) for name, ones in numbers.items()})


def _placed_numbers(placed: Collection[Placed]) -> dict[str, list[Any]]:
    return {
        "kind": [KINDS.index(one.kind) for one in placed],
        "nearest": [one.nearest for one in placed],
        "distance": [one.distance for one in placed],
        "freed": [one.freed for one in placed],
    }


@dataclass(frozen=True, eq=False)
class Codebook:
    """Keys with radii, labels and owners.

    Args:
        keys: (n, features) every key, in order of arrival; those of forgotten owners are let go.
        column: what is known of each.
        label_names, owner_names, space_names: what the numbers in those columns stand for.
        lost: pairs (a row that lost its place, the row that took it), in order; (k, 2).
        widest: no ball is wider.
        any_freed: whether any key has been freed.
        index: what spares measuring most distances; None in a small book.
        job: a better index in the making.
        resolution: share of the initial radius below which two keys are at the same place, and by which a ball that
            expands reaches beyond the key it expands for; 0 is the published rule to the letter.
    """

    keys: SparseRows
    column: Columns
    label_names: Names
    owner_names: Names
    space_names: Names
    lost: Rows
    widest: float = -math.inf
    any_freed: bool = False
    index: Index | None = None
    job: Job[Index] | None = None
    resolution: float = 0.05

    @classmethod
    def empty(
        cls, features: int, resolution: float = 0.05, device: torch.device | str = "cpu", on_disk: bool = False
    ) -> Codebook:
        """A book without keys. `on_disk` holds the keys in a file, and in memory only what tells which to read."""
        keys = Rows.on_disk(features) if on_disk else Rows.empty(features, device=device)
        pairs = Rows.empty(2, dtype=torch.long)
        return cls(SparseRows.of(keys), Columns.empty(), Names(), Names(), Names(), pairs, resolution=resolution)

    def __len__(self) -> int:
        return len(self.keys)

    # What is known of a key

    @property
    def radii(self) -> Tensor:
        """(n,) radius of each key's ball; -inf where it has none. A copy."""
        return torch.from_numpy(self.column.radius.array())

    @property
    def labels(self) -> tuple[Hashable, ...]:
        """Each key's label; two keys answer alike exactly if their labels are equal."""
        return tuple(self.label_names.names[number] for number in self.column.label.tolist())

    @property
    def owners(self) -> tuple[str | None, ...]:
        """Each key's owner; None once forgotten."""
        return tuple(self.owner(row) for row in range(len(self)))

    @property
    def placed(self) -> tuple[Placed, ...]:
        """What happened to each key."""
        return tuple(self.placement(row) for row in range(len(self)))

    def owner(self, row: int) -> str | None:
        """A key's owner; None once forgotten."""
        return str(self.owner_names.names[self.column.owner[row]]) if self.keys.live[row] else None

    def placement(self, row: int) -> Placed:
        """What happened to a key."""
        column, pairs = self.column, self.lost.view
        superseded = pairs[pairs[:, 1] == row, 0].tolist() if len(pairs) else ()
        kind = KINDS[column.kind[row]]
        return Placed(kind, column.nearest[row], column.distance[row], tuple(superseded), column.freed[row])

    def rows_of(self, owner: str) -> list[int]:
        """The rows of an owner's keys; none once forgotten."""
        number = self.owner_names.numbers.get(owner)
        rows = [] if number is None else self.column.owner.where(number).tolist()
        return [row for row in rows if self.keys.live[row]]

    # Looking up

    def find(self, queries: Tensor, space: str | None = None) -> tuple[Tensor, Tensor]:
        """The nearest ball of each of queries (m, features), if the query lies in it.

        What decides is the float32 norm of the difference; of equally near balls the latest. With a `space`, balls of
        other namespaces are as if they were not there.

        Returns:
            row (m,), and share (m,): the distance as a share of the radius, from 0 to 1. Where the query lies in no
            ball, or in one but nearer to the key of another, share is inf and row any.
        """
        queries = queries.float()
        if len(self) == 0 or len(queries) == 0:
            none = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
            return none, torch.full_like(none, torch.inf, dtype=torch.float32)
        if self.index is None or queries.device.type != "cpu":
            return self._found_among_all(queries, space)
        found = [self._found(query, self.index, space) for query in queries.detach()]
        rows, shares = zip(*found, strict=True)
        return torch.tensor(rows), torch.tensor(shares, dtype=torch.float32)

    def _found_among_all(self, queries: Tensor, space: str | None) -> tuple[Tensor, Tensor]:
        """Every distance measured, nothing waited for: small books, and accelerators."""
        radius = self._radius_on(queries.device, space)
        exact = _distances(queries, self.keys.on(queries.device)).masked_fill(radius < 0, torch.inf)  # (m, n)
        least = exact.amin(dim=1, keepdim=True)
        order = torch.arange(len(self), device=queries.device)
        row = torch.where(exact == least, order, -1).amax(dim=1).clamp_min(0)
        distance, around = least.squeeze(1), radius[row]
        smallest = torch.finfo(radius.dtype).tiny  # a ball of radius 0 holds its own key
        return row, torch.where(distance <= around, distance / around.clamp_min(smallest), torch.inf)

    def _found(self, query: Tensor, index: Index, space: str | None) -> tuple[int, float]:
        """The same for one query (features,), where most distances need not be measured."""
        bounds = index.query(query, len(self))
        near = self._balls(bounds.may_reach(self.column.radius), space)
        distance, radius = self._measured(query, near), self.column.radius.take(near)
        if not (distance <= radius).any():
            return 0, math.inf
        # It lies in a ball; but the nearest key decides, and that may be the key of a smaller one.
        rivals = self._balls(bounds.within(float(distance[distance <= radius].min()))[0], space)
        row, least = _latest_nearest(rivals, self._measured(query, rivals))
        around = self.column.radius.take(np.array([row]))[0]
        if least > around:
            return 0, math.inf
        return row, float(least / np.maximum(around, np.finfo(np.float32).tiny))

    def nearest(
        self, query: Tensor, within: float = math.inf, without: Sequence[int] = (), space: str | None = None
    ) -> tuple[int, float]:
        """The nearest ball to query (features,), and its distance; of equally near ones the latest.

        -1, where there is none `within` that distance, and a distance that none is nearer than; infinite in a book
        without balls. Rows in `without`, and other namespaces where one is given, are as if they were not there.
        """
        if not len(self):
            return -1, math.inf
        query = query.float()
        if self.index is None or not bool(query.isfinite().all()):
            rows = self._balls(np.arange(len(self)), space, without)
            row, least = _latest_nearest(rows, self._measured(query, rows))
        else:
            row, least = self._nearest_by(self.index, query, within, without, space)
        return (row, least) if least <= within or row < 0 else (-1, least)

    def _nearest_by(
        self, index: Index, query: Tensor, within: float, without: Sequence[int], space: str | None
    ) -> tuple[int, float]:
        bounds = index.query(query, len(self))
        guessed = self._balls(bounds.guess(GUESSED), space, without)
        least = float(self._measured(query, guessed).min(initial=np.inf))
        if min(least, within) == math.inf:
            return _latest_nearest(
                rows := self._balls(np.arange(len(self)), space, without), self._measured(query, rows)
            )
        rows, distances = bounds.within(min(least, within))
        best, start, count = (-1, math.nextafter(within, math.inf)), 0, AT_ONCE
        while start < bounds.beyond(distances, best[1]):
            some = self._balls(rows[start : start + count], space, without)
            row, least = _latest_nearest(some, self._measured(query, some))
            if row >= 0 and (least, -row) < (best[1], -best[0]):
                best = (row, least)
            start, count = start + count, 2 * count
        return best

    def _balls(self, rows: Numbers, space: str | None, without: Sequence[int] = ()) -> Numbers:
        """Those of rows (m,) that have a ball and may be seen."""
        kept = self.column.radius.take(rows) >= 0
        if space is not None:
            kept &= self.column.space.take(rows) == self.space_names.numbers.get(space, -1)
        if without:
            kept &= ~np.isin(rows, without)
        return rows[kept]

    def _measured(self, query: Tensor, rows: Numbers) -> Numbers:
        """(m,) distances of query (features,) to the keys of rows (m,)."""
        keys = self.keys.at(torch.from_numpy(rows).to(self.keys.device))
        return _distances(query[None].to(keys.device), keys)[0].cpu().numpy()

    def _radius_on(self, device: torch.device, space: str | None) -> Tensor:
        if space is None:
            return self._radius_tensor.to(device, non_blocking=True)
        here = self.column.space.array() == self.space_names.numbers.get(space, -1)
        return torch.from_numpy(np.where(here, self.column.radius.array(), -np.inf)).to(device)

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
        finite = keys.isfinite().all(dim=1)
        if not bool(finite.all()):
            odd = owners[int(finite.int().argmin())]
            raise ValueError(f"The key of {odd!r} has NaN or infinite features, expected finite ones.")
        book, count = self._renewed(), keys.shape[0]
        column = book.column.append(
            radius=[-math.inf] * count,
            initial=radii,
            label=[self.label_names.number(label) for label in labels],
            owner=[self.owner_names.number(owner) for owner in owners],
            space=[self.space_names.number(space)] * count,
            kind=[0] * count,
            nearest=[-1] * count,
            distance=[math.inf] * count,
            freed=[False] * count,
        )
        held = book.keys.append(keys)
        index = book.index and book.index.following(held)
        fold = _Fold(replace(book, keys=held, column=column, index=index), fresh=len(book))
        for row, known in enumerate(placed, start=len(book)):
            fold.enter(row, known)
        return fold.book()

    def forget(self, owners: frozenset[str]) -> Codebook:
        """The book as if those owners' keys had never come.

        Cheap where no remaining key was placed by looking at one of theirs; else every remaining key is placed again,
        O(n), which searches only for those whose nearest ball is another one now.
        """
        gone = {row for owner in owners for row in self.rows_of(owner)}
        if not gone:
            return self
        left = replace(self, keys=self.keys.let_go(np.array(sorted(gone))))
        parted = self._parted_by(gone)
        if parted is None or not left._stand_alone(gone, parted):
            return left._replayed()
        fold = _Fold(left)
        for row in gone:
            fold.set_radius(row, -math.inf)
        for row, radius in parted.items():
            if self.column.radius[row] >= 0:  # else it was superseded after it was split, and stays so
                fold.set_radius(row, left._narrowed(row, radius))
        return fold.book()

    def _parted_by(self, gone: set[int]) -> dict[int, float] | None:
        """Balls of others that `gone` split, with the radius each had at first; None if they did more than split."""
        parted: dict[int, float] = {}
        for placed in map(self.placement, gone):
            if placed.superseded or placed.freed or (placed.kind == "expand" and placed.nearest not in gone):
                return None
            if placed.kind == "split" and placed.nearest not in gone:
                first = self._first_radius(placed.nearest)
                if first is None:
                    return None
                parted[placed.nearest] = first
        return parted

    def _first_radius(self, row: int) -> float | None:
        placed = self.placement(row)
        return {"add": self.column.initial[row], "split": placed.distance / 2}.get(placed.kind)

    def _stand_alone(self, gone: set[int], parted: dict[int, float]) -> bool:
        """Whether every remaining key would be placed as it was, with `gone` away and the `parted` balls wider."""
        if self.any_freed or any(self._company(row) for row in gone):
            return False
        return all(self._stays(row, wider) for parted_row, wider in parted.items() for row in self._company(parted_row))

    def _company(self, row: int) -> list[int]:
        """Rows of remaining keys that were placed by looking at this one."""
        pairs = self.lost.view
        takers = pairs[pairs[:, 0] == row, 1].tolist() if len(pairs) else []
        return [one for one in {*self.column.nearest.where(row).tolist(), *takers} if self.keys.live[one]]

    def _stays(self, row: int, wider: float) -> bool:
        """Whether a key is placed as it was if the ball nearest to it was up to `wider` when it came."""
        placed = self.placement(row)
        far = placed.distance > self.column.initial[row] + wider
        return placed.kind == "split" or (placed.kind == "add" and far)

    def _narrowed(self, row: int, radius: float) -> float:
        """A ball's radius after all the splits that remain; every key that still looks at it split it."""
        splits = [placed for placed in map(self.placement, self._company(row)) if placed.kind == "split"]
        return min([radius, *(placed.distance / 2 - SPLIT_GAP for placed in splits)])

    def _replayed(self) -> Codebook:
        """Every remaining key placed again, in order of arrival."""
        count = len(self)
        column = replace(
            self.column,
            radius=Pages.of(np.full(count, -np.inf, np.float32)),
            freed=Pages.of(np.zeros(count, np.bool_)),
        )
        pairs = Rows.empty(2, dtype=torch.long)
        blank = replace(self, column=column, lost=pairs, widest=-math.inf, any_freed=False)
        fold = _Fold(blank, before=self)
        for row in np.flatnonzero(self.keys.live.array()).tolist():
            fold.enter(row, fold.placed_anew(row))
        return fold.book()

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
        if book.keys.device.type != "cpu":
            return book
        keys, radius, index = book.keys, book.column.radius, book.index
        if index is None and len(book) >= FIRST:
            return replace(book, job=Job("index of keys", lambda: Index.of(keys, radius.array())))
        if index is None or not index.due(len(book)):
            return book
        index = index.extended(keys)
        return replace(book, index=index, job=Job("index of keys", lambda: index.renewed(keys, radius.array())))

    def _adopting(self, index: Index) -> Codebook:
        if self.index is not None and index.sketch is self.index.sketch:
            later = self.index  # the same sketches, and more of them
        else:
            later = index.following(self.keys)
        return replace(self, index=later.taking(index.cells, self.column.radius.array()), job=None)

    def with_radii(self, radius: dict[int, float]) -> Codebook:
        """With other radii in some rows."""
        if not radius:
            return self
        rows, values = np.fromiter(radius, np.int64), np.fromiter(radius.values(), np.float32)
        column = replace(self.column, radius=self.column.radius.put(rows, values))
        index = self.index and self.index.noting(rows, values)
        return replace(self, column=column, index=index, widest=max(self.widest, float(values.max())))


def _distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Euclidean, from differences: a matrix product would lose the small ones between large vectors."""
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")


def _latest_nearest(rows: Numbers, distances: Numbers) -> tuple[int, float]:
    """Of rows (m,) the one with the least of distances (m,), the latest of several; -1 and inf where there is none."""
    if not len(rows) or not np.isfinite(least := distances.min()):
        return -1, math.inf
    return int(rows[distances == least].max()), float(least)


class _Fold:
    """Places keys one after another over a book. A key has no ball until it has entered.

    Args:
        book: what is there already.
        before: in a replay, the book as it was, which tells how each key was placed.
        fresh: rows from this one on were just appended, and nobody has seen them yet; None where there are none.
    """

    def __init__(self, book: Codebook, before: Codebook | None = None, fresh: int | None = None) -> None:
        self.source = book
        self.before = before
        self.fresh = len(book) if fresh is None else fresh
        self.radius: dict[int, float] = {}  # what has changed since `source`
        self.placed: dict[int, Placed] = {}
        self.pairs: list[tuple[int, int]] = []
        self.freed = book.any_freed
        self.widest = book.widest
        self.entered = len(book)
        self.perhaps_new = np.empty(0, np.int64)  # in a replay: keys without a ball of their own at some time before
        if before is not None:
            absorbed = np.isin(before.column.kind.array(), [KINDS.index("expand"), KINDS.index("covered")])
            self.perhaps_new = np.union1d(np.flatnonzero(absorbed), before.lost.view[:, 0].numpy())

    def book(self) -> Codebook:
        """What has come of it."""
        book = self._with_radii()
        fresh = [row for row in self.placed if row >= self.fresh]
        book.column.amend(fresh, [self.placed.pop(row) for row in fresh])
        lost = book.lost.append(torch.tensor(self.pairs)) if self.pairs else book.lost
        return replace(book, column=book.column.with_placed(self.placed), lost=lost, any_freed=self.freed)

    def enter(self, row: int, placed: Placed | None = None) -> None:
        """Place a key, where it is not known how, and let what that does to other balls happen."""
        placed = placed or self._place(row)
        self.placed[row] = replace(placed, superseded=(), freed=False)
        self.entered = row + 1
        for lost in placed.superseded:
            self.pairs.append((lost, row))
            self.set_radius(lost, -math.inf)
        if placed.kind == "expand":
            # Beyond the key itself: asked again in another batch, its activation differs in the last bits.
            slack = self.source.resolution * self._initial(row)
            self.set_radius(placed.nearest, placed.distance + slack)
        elif placed.kind == "split":
            self.set_radius(placed.nearest, min(self._radius(placed.nearest), placed.distance / 2 - SPLIT_GAP))
            self.set_radius(row, placed.distance / 2)
        elif placed.kind == "add":
            self.set_radius(row, self._initial(row))
        for changed in (*placed.superseded, *((placed.nearest,) if placed.kind == "split" else ())):
            self._free_absorbed(changed)

    def _with_radii(self) -> Codebook:
        """The book with the radii that have changed so far."""
        fresh = [row for row in self.radius if row >= self.fresh]
        self.source.column.radius.amend(fresh, [self.radius.pop(row) for row in fresh])
        book = replace(self.source.with_radii(self.radius), widest=self.widest)
        self.radius = {}
        return book

    def set_radius(self, row: int, radius: float) -> None:
        """Give a key a ball of that radius, or (-inf) none."""
        self.radius[row] = float(np.float32(radius))
        self.widest = max(self.widest, self.radius[row])

    def _radius(self, row: int) -> float:
        changed = self.radius.get(row)
        return float(self.source.column.radius[row]) if changed is None else changed

    def _initial(self, row: int) -> float:
        return float(self.source.column.initial[row])

    def _alike(self, row: int, other: int) -> bool:
        label = self.source.column.label
        return bool(label[row] == label[other])

    def _placed_now(self, row: int) -> Placed:
        return self.placed.get(row) or self.source.placement(row)

    def _place(self, row: int) -> Placed:
        superseded: list[int] = []
        while True:
            near, distance = self._nearest(row, superseded)
            if not self._is_here(row, near, distance):
                return self._decided(row, near, distance, tuple(superseded))
            superseded.append(near)

    def _is_here(self, row: int, near: int, distance: float) -> bool:
        """Whether the ball at `near` is another label's, at the very place of the key."""
        close = near >= 0 and distance <= self.source.resolution * self._initial(row)
        return close and not self._alike(near, row)

    def _decided(self, row: int, near: int, distance: float, superseded: tuple[int, ...] = ()) -> Placed:
        initial, reach = self._initial(row), self._radius(near) if near >= 0 else -math.inf
        if near < 0 or distance > initial + max(reach, 0.0):
            return Placed("add", -1 if distance > initial + self.widest else near, distance, superseded)
        if not self._alike(near, row):
            return Placed("split", near, distance, superseded)
        return Placed("expand" if distance > reach else "covered", near, distance, superseded)

    def placed_anew(self, row: int) -> Placed | None:
        """How a key is placed in a book with fewer others, if what was found when it came tells.

        It does where the ball found nearest is still there, or all were too far away to matter, and none is nearer that
        was not there then. None where the book has to be searched.
        """
        assert self.before is not None
        old, reach = self.before.placement(row), self._initial(row) + self.widest
        if old.superseded or (old.nearest >= 0 and self._radius(old.nearest) < 0):
            return None
        if old.nearest < 0 and old.distance <= reach:
            return None
        new = self._distance_to_new(row)
        if self._is_here(row, old.nearest, old.distance) or new <= (reach if old.nearest < 0 else old.distance):
            return None
        # Where nothing was near, the distance only says that: none of the balls there are now is nearer.
        return self._decided(row, old.nearest, min(old.distance, new) if old.nearest < 0 else old.distance)

    def _distance_to_new(self, row: int) -> float:
        """Distance to the nearest ball that may not have been there when the key first came."""
        earlier = self.perhaps_new[: np.searchsorted(self.perhaps_new, row)].tolist()
        balls = [new for new in earlier if self._radius(new) >= 0]
        if not balls:
            return float("inf")
        keys = self.source.keys.at(torch.tensor([row, *balls], device=self.source.keys.device))
        return float((keys[1:] - keys[0]).norm(dim=1).amin())

    def _nearest(self, row: int, without: Sequence[int], within: float = 0.0) -> tuple[int, float]:
        """The nearest ball, if it is near enough to matter, or `within` that distance."""
        book = self.source = self._with_radii()
        within = max(within, self._initial(row) + max(self.widest, 0.0))
        space = str(book.space_names.names[book.column.space[row]])
        return book.nearest(book.keys.slice(row, row + 1)[0], within, without, space)

    def _absorbed_by(self, host: int) -> Iterator[int]:
        """Rows of remaining keys that the ball of `host` absorbed, in order of arrival."""
        known = (row for row in self.source.column.nearest.where(host).tolist() if row < self.entered)
        for row in sorted({*known, *(row for row, placed in self.placed.items() if placed.nearest == host)}):
            placed = self._placed_now(row)
            if placed.kind in ABSORBED and placed.nearest == host and self.source.keys.live[row] and not placed.freed:
                yield row

    def _free_absorbed(self, host: int) -> None:
        """Keys that a shrunken or lost ball no longer holds get a ball of their own."""
        radius = self._radius(host)
        for row in list(self._absorbed_by(host)):
            if self._placed_now(row).distance > radius:
                self._own_ball(row)

    def _own_ball(self, row: int) -> None:
        near, distance = self._nearest(row, [], 2 * self._initial(row))
        if self._is_here(row, near, distance):
            if (row, near) not in self.pairs:  # a recorded placement may have said so already
                self.pairs.append((row, near))  # superseded, as a ball would be that another label's key came to
            return
        alike = near < 0 or self._alike(near, row)
        initial = self._initial(row)
        self.placed[row] = replace(self._placed_now(row), freed=True)
        self.freed = True
        self.set_radius(row, initial if alike else min(initial, distance / 2))
