"""Balls around keys, and which of them a query falls into (GRACE, Hartvigsen et al., NeurIPS 2023, section 3).

A `Codebook` is an immutable value. Every key ever asked for keeps its row, whether it became a ball of its own or was
absorbed by one, so that forgetting an edit can put the book back to what it would be had that edit never come.
Knows keys, labels, owners and radii; knows nothing of models or of what a hit causes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from editable.memory.rows import Rows

CANDIDATES = 8  # rows whose distance is computed exactly after the fast pass has ordered all of them
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

    @property
    def met(self) -> bool:
        """Whether its coming changed, or was changed by, another ball in a way that only a replay can undo."""
        return self.freed or bool(self.superseded) or self.kind in ("expand", "split")


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
    resolution: float = 0.05

    @classmethod
    def empty(cls, features: int, resolution: float = 0.05, device: torch.device | str = "cpu") -> Codebook:
        """A book without keys."""
        none = torch.empty(0, device=device)
        return cls(Rows.empty(features, device=device), none, none, resolution=resolution)

    def __len__(self) -> int:
        return len(self.owners)

    def find(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(row (m,), hit (m,)): the nearest ball of queries (m, features), and whether each lies within its radius."""
        row, distance = self.nearest(queries)
        return row, distance <= self.radii.to(queries.device)[row]

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(row (m,), distance (m,)) of the nearest ball; of equally near ones the latest; inf where there is none.

        The expanded square only ranks; what decides is the fp32 norm of the difference.
        """
        queries = queries.float()
        keys, offsets = self.keys.on(queries.device), self.offsets.to(queries.device)
        rough = torch.addmm(offsets, queries, keys.T, alpha=-2)  # (m, n) squared distance less the query's own norm
        candidates = rough.topk(min(CANDIDATES, len(keys)), dim=1, largest=False).indices  # (m, c)
        exact = (keys[candidates] - queries[:, None]).norm(dim=-1).masked_fill(offsets[candidates].isinf(), torch.inf)
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
            placed=self.placed,
        )
        fold = _Fold(book, list(self.placed))
        fold.placed.append(Placed("add"))
        fold.enter(len(self), placed)
        return fold.book()

    def forget(self, owners: frozenset[str]) -> Codebook:
        """The book as if those owners' keys had never come; O(n), and a full replay where other keys met theirs."""
        gone = {row for row, owner in enumerate(self.owners) if owner in owners}
        left = replace(self, owners=tuple(None if o in owners else o for o in self.owners))
        if self._were_met(gone):
            return left._replayed()
        rows = torch.tensor(sorted(gone), dtype=torch.long)
        radii, offsets = self.radii.clone(), self.offsets.clone()
        radii[rows], offsets[rows] = -torch.inf, torch.inf
        return replace(left, radii=radii, offsets=offsets)

    def _were_met(self, rows: set[int]) -> bool:
        """Whether any other key's placement involved one of `rows`, or theirs changed another ball."""
        if any(self.placed[row].met for row in rows):
            return True
        return any(
            (p.nearest in rows or p.freed or not rows.isdisjoint(p.superseded)) and self.owners[row] is not None
            for row, p in enumerate(self.placed)
            if (p.nearest >= 0 or p.superseded) and row not in rows
        )

    def _replayed(self) -> Codebook:
        """Every remaining key placed again, in order of arrival."""
        blank = replace(
            self, radii=torch.full_like(self.radii, -torch.inf), offsets=torch.full_like(self.offsets, torch.inf)
        )
        fold = _Fold(blank, [Placed("add")] * len(self))
        for row, owner in enumerate(self.owners):
            if owner is not None:
                fold.enter(row)
        return fold.book()


class _Fold:
    """Places keys one after another into copies of a book's arrays. A key has no ball until it has entered."""

    def __init__(self, book: Codebook, placed: list[Placed]) -> None:
        self.keys = book.keys
        self.radii = book.radii.clone()
        self.offsets = book.offsets.clone()
        self.placed = placed
        self.source = book

    def book(self) -> Codebook:
        return replace(self.source, radii=self.radii, offsets=self.offsets, placed=tuple(self.placed))

    def enter(self, row: int, placed: Placed | None = None) -> None:
        placed = placed or self._place(row)
        self.placed[row] = placed
        for lost in placed.superseded:
            self._set(lost, -torch.inf)
        if placed.kind == "expand":
            # Beyond the key itself: asked again in another batch, its activation differs in the last bits.
            slack = self.source.resolution * self.source.initial[row]
            self._set(placed.nearest, placed.distance + slack)
        elif placed.kind == "split":
            self._set(placed.nearest, min(float(self.radii[placed.nearest]), placed.distance / 2 - SPLIT_GAP))
            self._set(row, placed.distance / 2)
        elif placed.kind == "add":
            self._set(row, self.source.initial[row])
        for changed in (*placed.superseded, *((placed.nearest,) if placed.kind == "split" else ())):
            self._free_absorbed(changed)

    def _set(self, row: int, radius: float) -> None:
        self.radii[row] = radius
        norm = self.keys.view[row].square().sum()
        self.offsets[row] = norm if radius >= 0 else torch.inf

    def _place(self, row: int) -> Placed:
        initial, label = self.source.initial[row], self.source.labels[row]
        superseded: list[int] = []
        while True:
            near, distance = self._nearest(row, superseded)
            reach = float(self.radii[near]) if near >= 0 else 0.0
            same = near >= 0 and self.source.labels[near] == label
            if not same and distance <= self.source.resolution * initial:
                superseded.append(near)
                continue
            lost = tuple(superseded)
            if distance > initial + reach:
                far = distance > initial + float(self.radii.amax())
                return Placed("add", -1 if far else near, distance, lost)
            if not same:
                return Placed("split", near, distance, lost)
            return Placed("expand" if distance > reach else "covered", near, distance, lost)

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
        for row, placed in enumerate(self.placed):
            absorbed = placed.kind in ("expand", "covered") and placed.nearest == host and not placed.freed
            if absorbed and placed.distance > radius and self.source.owners[row] is not None:
                self._own_ball(row)

    def _own_ball(self, row: int) -> None:
        near, distance = self._nearest(row, [])
        alike = near < 0 or self.source.labels[near] == self.source.labels[row]
        initial = self.source.initial[row]
        self.placed[row] = replace(self.placed[row], freed=True)
        self._set(row, initial if alike else min(initial, distance / 2))
