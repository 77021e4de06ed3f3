"""Balls around keys, and which of them a query falls into (GRACE, Hartvigsen et al., NeurIPS 2023, section 3).

A `Codebook` is an immutable value. Every key ever asked for keeps its row, whether it became a ball of its own or was
absorbed by one, so that forgetting an edit can put the book back to what it would be had that edit never come.
Knows keys, labels, owners and radii; knows nothing of models or of what a hit causes.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from editable.memory.rows import Rows

MEASURED = 256  # keys up to which every distance is measured
CANDIDATES = 64  # best-ranked keys whose distance is measured in a larger book
SPLIT_GAP = 1e-5  # what the older of two split balls gives up, so that they do not touch (GRACE's constant)

Kind = Literal["add", "expand", "covered", "split"]


@dataclass(frozen=True)
class Placed:
    """What happened to one key when it came in.

    Args:
        kind: "add" a ball of its own; "expand" the nearest ball, which has the same label, to reach it; "covered" by
            that ball already; "split" the space between it and the nearest ball, which has another label.
        nearest: row of the nearest ball at that time; -1 where it was too far to have mattered.
        distance: Euclidean distance to it; infinite where the book was empty.
        superseded: rows of balls at the very same place that lost it to this key.
        freed: whether it was absorbed first, and got a ball of its own when that one shrank.
    """

    kind: Kind
    nearest: int = -1
    distance: float = float("inf")
    superseded: tuple[int, ...] = ()
    freed: bool = False


@dataclass(frozen=True, eq=False)
class Codebook:
    """Keys with radii, labels and owners.

    Args:
        keys: (n, features) every key, in order of arrival.
        radii: (n,) radius of each key's ball; -inf where it has none (absorbed, superseded or forgotten).
        offsets: (n,) squared norm of each key; +inf where it has no ball. What the fast pass ranks by.
        labels: each key's label; two keys answer alike exactly if their labels are equal.
        owners: each key's owner; None once forgotten.
        initial: each key's initial radius.
        placed: what happened to each key.
        company: row to the rows of keys that were placed by looking at it.
        any_freed: whether any key has been freed.
        resolution: share of the initial radius below which two keys are at the same place, and by which a ball that
            expands reaches beyond the key it expands for; 0 is the published rule to the letter.
    """

    keys: Rows
    radii: Tensor
    offsets: Tensor
    labels: tuple[Hashable, ...] = ()
    owners: tuple[str | None, ...] = ()
    initial: tuple[float, ...] = ()
    placed: tuple[Placed, ...] = ()
    company: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    any_freed: bool = False
    resolution: float = 0.05

    @classmethod
    def empty(cls, features: int, resolution: float = 0.05, device: torch.device | str = "cpu") -> Codebook:
        """A book without keys."""
        none = torch.empty(0, device=device)
        return cls(Rows.empty(features, device=device), none, none, resolution=resolution)

    def __len__(self) -> int:
        return len(self.owners)

    def find(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest ball of each of queries (m, features), and how deep in it the query lies.

        Returns:
            row (m,), and share (m,): the distance as a share of the radius, from 0 to 1; inf where it lies outside.
        """
        row, distance = self.nearest(queries)
        if len(self) == 0:
            return row, distance
        radius = self.radii.to(queries.device)[row]
        smallest = torch.finfo(radius.dtype).tiny  # a ball of radius 0 holds its own key
        return row, torch.where(distance <= radius, distance / radius.clamp_min(smallest), torch.inf)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(row (m,), distance (m,)) of the nearest ball; of equally near ones the latest; inf where there is none.

        What decides is the fp32 norm of the difference. In a large book the expanded square, a matrix product, ranks
        first, and only its best are measured.
        """
        queries = queries.float()
        if len(self) == 0:
            none = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
            return none, torch.full_like(none, torch.inf, dtype=torch.float32)
        keys, offsets = self.keys.on(queries.device), self.offsets.to(queries.device)
        if len(self) <= MEASURED:
            exact = _distances(queries, keys).masked_fill(offsets.isinf(), torch.inf)  # (m, n)
            candidates = torch.arange(len(self), device=queries.device).expand_as(exact)
        else:
            rough = torch.addmm(offsets, queries, keys.T, alpha=-2)  # (m, n): squared distance less the query's norm
            candidates = rough.topk(CANDIDATES, dim=1, largest=False).indices
            exact = _distances(queries[:, None], keys[candidates])[:, 0]
            exact = exact.masked_fill(offsets[candidates].isinf(), torch.inf)
        best = exact.amin(dim=1, keepdim=True)
        row = torch.where(exact == best, candidates, -1).amax(dim=1)
        return row.clamp_min(0), best.squeeze(1)

    def add(self, key: Tensor, label: Hashable, owner: str, radius: float, placed: Placed | None = None) -> Codebook:
        """The book with one more key (features,); `placed` where its placement is known from the log.

        GRACE's rule (section 3.2 of the paper), except that labels are compared exactly, that a key at the place of
        another one supersedes it instead of leaving both unreachable, that a split never enlarges the older ball, and
        that keys which lose the ball that had absorbed them get one of their own.
        """
        book = replace(
            self,
            keys=self.keys.append(key[None]),
            radii=torch.cat([self.radii, self.radii.new_tensor([-torch.inf])]),
            offsets=torch.cat([self.offsets, self.offsets.new_tensor([torch.inf])]),
            labels=(*self.labels, label),
            owners=(*self.owners, owner),
            initial=(*self.initial, radius),
            placed=(*self.placed, Placed("add")),
        )
        fold = _Fold(book)
        fold.enter(len(self), placed)
        return fold.book()

    def forget(self, owners: frozenset[str]) -> Codebook:
        """The book as if those owners' keys had never come.

        Cheap where no remaining key was placed by looking at one of theirs; else every remaining key is placed again,
        O(n), which searches only for those whose nearest ball is another one now.
        """
        gone = {row for owner in owners for row in self.rows_of(owner)}
        left = replace(self, owners=_without(self.owners, gone))
        parted = self._parted_by(gone)
        if parted is None or not self._stand_alone(gone, parted):
            return left._replayed()
        fold = _Fold(left)
        for row in gone:
            fold.set_radius(row, -torch.inf)
        for row, radius in parted.items():
            if self.radii[row] >= 0:  # else it was superseded after it was split, and stays so
                fold.set_radius(row, self._narrowed(row, radius, gone))
        return fold.book()

    def rows_of(self, owner: str) -> list[int]:
        """The rows of an owner's keys; an edit's keys come in one go, so they are adjacent."""
        try:
            first = self.owners.index(owner)
        except ValueError:
            return []
        return list(itertools.takewhile(lambda row: self.owners[row : row + 1] == (owner,), itertools.count(first)))

    def _parted_by(self, gone: set[int]) -> dict[int, float] | None:
        """Balls of others that `gone` split, with the radius each had at first; None if they did more than split."""
        parted: dict[int, float] = {}
        for placed in (self.placed[row] for row in gone):
            if placed.superseded or placed.freed or (placed.kind == "expand" and placed.nearest not in gone):
                return None
            if placed.kind == "split" and placed.nearest not in gone:
                first = self._first_radius(placed.nearest)
                if first is None:
                    return None
                parted[placed.nearest] = first
        return parted

    def _first_radius(self, row: int) -> float | None:
        placed = self.placed[row]
        return {"add": self.initial[row], "split": placed.distance / 2}.get(placed.kind)

    def _stand_alone(self, gone: set[int], parted: dict[int, float]) -> bool:
        """Whether every remaining key would be placed as it was, with `gone` away and the `parted` balls wider."""
        if self.any_freed or any(self._remaining(self.company.get(row, ()), gone) for row in gone):
            return False
        return all(
            self._stays(row, self.placed[row], wider)
            for parted_row, wider in parted.items()
            for row in self._remaining(self.company.get(parted_row, ()), gone)
        )

    def _remaining(self, rows: Iterable[int], gone: set[int]) -> list[int]:
        return [row for row in rows if row not in gone and self.owners[row] is not None]

    def _stays(self, row: int, placed: Placed, wider: float) -> bool:
        """Whether a key is placed as it was if the ball nearest to it was up to `wider` when it came."""
        return placed.kind == "split" or (placed.kind == "add" and placed.distance > self.initial[row] + wider)

    def _narrowed(self, row: int, radius: float, gone: set[int]) -> float:
        """A ball's radius after all the splits that remain; every key that still looks at it split it."""
        for other in self._remaining(self.company.get(row, ()), gone):
            if self.placed[other].kind == "split":
                radius = min(radius, self.placed[other].distance / 2 - SPLIT_GAP)
        return radius

    def _replayed(self) -> Codebook:
        """Every remaining key placed again, in order of arrival."""
        blank = replace(
            self,
            radii=torch.full_like(self.radii, -torch.inf),
            offsets=torch.full_like(self.offsets, torch.inf),
            company={},
            any_freed=False,
        )
        fold = _Fold(blank)
        absorbed = {row for row, placed in enumerate(self.placed) if placed.kind in ("expand", "covered")}
        fold.perhaps_new = sorted(absorbed.union(*(placed.superseded for placed in self.placed)))
        for row, owner in enumerate(self.owners):
            if owner is not None:
                fold.enter(row, fold.placed_anew(row))
        return fold.book()


def _distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Euclidean, from differences: the matrix product would lose the small ones between large vectors."""
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")


def _without(owners: tuple[str | None, ...], gone: set[int]) -> tuple[str | None, ...]:
    left = list(owners)
    for row in gone:
        left[row] = None
    return tuple(left)


class _Fold:
    """Places keys one after another into copies of a book's arrays. A key has no ball until it has entered."""

    def __init__(self, book: Codebook) -> None:
        self.keys = book.keys
        self.radii = book.radii.clone()
        self.offsets = book.offsets.clone()
        self.placed = list(book.placed)
        self.company = dict(book.company)
        self.any_freed = book.any_freed
        self.source = book
        self.entered = len(book)
        self.widest = float(self.radii.amax()) if len(book) else -torch.inf  # never shrinks: a bound is all it is
        self.perhaps_new: list[int] = []  # in a replay: keys without a ball of their own at some time before it

    def book(self) -> Codebook:
        """What has come of it."""
        return replace(
            self.source,
            radii=self.radii,
            offsets=self.offsets,
            placed=tuple(self.placed),
            company=self.company,
            any_freed=self.any_freed,
        )

    def enter(self, row: int, placed: Placed | None = None) -> None:
        """Place a key, where it is not known how, and let what that does to other balls happen."""
        placed = placed or self._place(row)
        self.placed[row] = placed
        self.entered = row + 1
        for met in {*placed.superseded, placed.nearest} - {-1}:
            self.company[met] = (*self.company.get(met, ()), row)
        for lost in placed.superseded:
            self.set_radius(lost, -torch.inf)
        if placed.kind == "expand":
            # Beyond the key itself: asked again in another batch, its activation differs in the last bits.
            slack = self.source.resolution * self.source.initial[row]
            self.set_radius(placed.nearest, placed.distance + slack)
        elif placed.kind == "split":
            self.set_radius(placed.nearest, min(float(self.radii[placed.nearest]), placed.distance / 2 - SPLIT_GAP))
            self.set_radius(row, placed.distance / 2)
        elif placed.kind == "add":
            self.set_radius(row, self.source.initial[row])
        for changed in (*placed.superseded, *((placed.nearest,) if placed.kind == "split" else ())):
            self._free_absorbed(changed)

    def set_radius(self, row: int, radius: float) -> None:
        """Give a key a ball of that radius, or (-inf) none."""
        self.radii[row] = radius
        self.offsets[row] = self.keys.view[row].square().sum() if radius >= 0 else torch.inf
        self.widest = max(self.widest, radius)

    def _place(self, row: int) -> Placed:
        superseded: list[int] = []
        while True:
            near, distance = self._nearest(row, superseded)
            if not self._is_here(row, near, distance):
                return self._decided(row, near, distance, tuple(superseded))
            superseded.append(near)

    def _is_here(self, row: int, near: int, distance: float) -> bool:
        """Whether the ball at `near` is another label's, at the very place of the key."""
        close = near >= 0 and distance <= self.source.resolution * self.source.initial[row]
        return close and self.source.labels[near] != self.source.labels[row]

    def _decided(self, row: int, near: int, distance: float, superseded: tuple[int, ...] = ()) -> Placed:
        initial, reach = self.source.initial[row], float(self.radii[near]) if near >= 0 else -torch.inf
        if distance > initial + max(reach, 0.0):
            return Placed("add", -1 if distance > initial + self.widest else near, distance, superseded)
        if self.source.labels[near] != self.source.labels[row]:
            return Placed("split", near, distance, superseded)
        return Placed("expand" if distance > reach else "covered", near, distance, superseded)

    def placed_anew(self, row: int) -> Placed | None:
        """How a key is placed in a book with fewer others, if what was found when it came tells.

        It does where the ball found nearest is still there, or all were too far away to matter, and none is nearer that
        was not there then. None where the book has to be searched.
        """
        old, reach = self.placed[row], self.source.initial[row] + self.widest
        if old.superseded or (old.nearest >= 0 and self.radii[old.nearest] < 0):
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
        balls = [new for new in self.perhaps_new if new < row and self.radii[new] >= 0]
        if not balls:
            return float("inf")
        keys = self.keys.view
        return float((keys[balls] - keys[row]).norm(dim=1).amin())

    def _nearest(self, row: int, without: list[int]) -> tuple[int, float]:
        offsets = self.offsets.clone()
        offsets[without] = torch.inf
        if bool(offsets.isinf().all()):
            return -1, float("inf")
        book = replace(self.source, radii=self.radii, offsets=offsets)
        near, distance = book.nearest(self.keys.view[row][None])
        return int(near), float(distance)

    def _free_absorbed(self, host: int) -> None:
        """Keys that a shrunken or lost ball no longer holds get a ball of their own."""
        radius = float(self.radii[host])
        for row, placed in enumerate(self.placed[: self.entered]):
            absorbed = placed.kind in ("expand", "covered") and placed.nearest == host and not placed.freed
            if absorbed and placed.distance > radius and self.source.owners[row] is not None:
                self._own_ball(row)

    def _own_ball(self, row: int) -> None:
        near, distance = self._nearest(row, [])
        if self._is_here(row, near, distance):
            self._lose(row, near)
            return
        alike = near < 0 or self.source.labels[near] == self.source.labels[row]
        initial = self.source.initial[row]
        self.placed[row] = replace(self.placed[row], freed=True)
        self.any_freed = True
        self.set_radius(row, initial if alike else min(initial, distance / 2))

    def _lose(self, row: int, to: int) -> None:
        """A key that was absorbed when another label's came to its very place is superseded like a ball would be."""
        winner = self.placed[to]
        if row not in winner.superseded:
            self.placed[to] = replace(winner, superseded=(*winner.superseded, row))
            self.company[row] = (*self.company.get(row, ()), to)
