"""Keys that stay as they are, and which of them a query is nearest to.

Unlike in a `Codebook`, no key grows, shrinks or is absorbed by another, so a book is the same whatever the order in
which its owners came. Only a key at the place of an earlier one stands in for it, as long as its owner stays.
Knows keys, labels, owners and radii; knows nothing of models or of what a hit causes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from editable.memory.column import Column
from editable.memory.distance import euclidean, latest_nearest
from editable.memory.rows import Rows
from editable.memory.sparse import SparseRows

SAME = 0.05  # share of the radius below which two keys are at the same place

Taken = tuple[tuple[str, int], ...]
"""Keys whose place was taken: owner, and which of its keys."""


@dataclass(frozen=True)
class Owner:
    """Whose keys they are.

    Args:
        slot: a number of the caller's own, that lookups give back.
        first: its first row.
        count: how many keys.
        label: two owners answer alike exactly if their labels are equal.
        radius: of all its keys.
        taken: the keys of others that it stands in for.
    """

    slot: int
    first: int
    count: int
    label: Hashable
    radius: float
    taken: Taken

    @property
    def rows(self) -> range:
        """The rows of its keys."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, eq=False)
class Points:
    """An immutable book of keys.

    Args:
        keys: (n, features) every key, in order of arrival; those of forgotten owners are let go.
        slots: (n,) the slot of each one's owner.
        reach: radius of each; -inf where its owner was forgotten or its place is taken.
        owners: the live ones.
        stood_in: how many live owners stand in for a key; keys that have not come yet may be among them.
    """

    keys: SparseRows
    slots: Rows
    reach: Column
    owners: Mapping[str, Owner]
    stood_in: Mapping[tuple[str, int], int]

    @classmethod
    def empty(cls, features: int = 0, device: torch.device | str = "cpu", on_disk: bool = False) -> Points:
        """No key yet. `on_disk` holds keys in a file."""
        keys = Rows.on_disk(features) if on_disk else Rows.empty(features, device=device)
        return cls(SparseRows.of(keys), Rows.empty(dtype=torch.long, device=device), Column.empty(np.float32), {}, {})

    # Looking up

    def distances(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Euclidean distances (m, n) of queries (m, features) to all keys, and each key's radius (n,).

        Each is computed by itself, so it does not depend on what else is there. Infinite, and a radius of 1, for keys
        that do not count.
        """
        keys, reach = self.keys.on(queries.device), self._reach.to(queries.device, non_blocking=True)
        apart = euclidean(queries.float(), keys)
        return apart.masked_fill(reach < 0, torch.inf), torch.where(reach < 0, 1.0, reach)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The key nearest to each of queries (m, features): its slot (m,), and its distance in radii (m,)."""
        apart, reach = self.distances(queries)
        row, least = latest_nearest(apart)
        # A radius of 0 holds its own key.
        return self.slots.on(queries.device)[row], least / reach[row].clamp_min(torch.finfo(reach.dtype).tiny)

    @cached_property
    def _reach(self) -> Tensor:
        return torch.from_numpy(self.reach.array())

    # Changing

    def add(
        self, keys: Tensor, owner: str, slot: int, label: Hashable, radius: float, taken: Taken | None = None
    ) -> Points:
        """With keys (k, features) of a new owner; `taken` where it is recorded which places they took.

        Where it is not they take those of all keys of others at the same place, live or taken already.
        """
        keys = keys.to(self.keys.device)
        taken = self._at_place_of(keys, radius) if taken is None else taken
        first, numbers = len(self.keys), range(keys.shape[0])
        own = Owner(slot, first, keys.shape[0], label, radius, taken)
        reach = [-np.inf if self.stood_in.get((owner, number)) else radius for number in numbers]
        lost = [self.owners[other].first + number for other, number in taken if other in self.owners]
        return replace(
            self,
            keys=self.keys.append(keys),
            slots=self.slots.append(torch.full((keys.shape[0],), slot, device=self.keys.device)),
            reach=self.reach.put(lost, -np.inf).append(reach),
            owners={**self.owners, owner: own},
            stood_in=Counter(self.stood_in) + Counter(taken) if taken else self.stood_in,
        )

    def _at_place_of(self, keys: Tensor, radius: float) -> Taken:
        near = self._near(keys, SAME * radius)
        return tuple((name, row - own.first) for name, own in self.owners.items() for row in own.rows if near[row])

    def _near(self, keys: Tensor, within: float) -> list[bool]:
        """Of every row, whether its key lies within that distance of one of keys (k, features)."""
        if not len(self.keys):
            return []
        held = self.keys.on(keys.device)
        apart = euclidean(keys.float(), held)
        near: list[bool] = (apart.amin(dim=0) <= within).tolist()
        return near

    def forget(self, names: Collection[str]) -> Points:
        """As if those owners had never come."""
        gone = [self.owners[name] for name in names if name in self.owners]
        if not gone:
            return self
        rows = np.concatenate([np.arange(own.first, own.first + own.count) for own in gone])
        owners = {name: own for name, own in self.owners.items() if name not in names}
        stood_in = Counter(self.stood_in) - Counter([one for own in gone for one in own.taken])
        back = {one for own in gone for one in own.taken if one[0] in owners and one not in stood_in}
        reach = self.reach.put(rows, -np.inf)
        for name, number in sorted(back):
            reach = reach.put([owners[name].first + number], owners[name].radius)
        return replace(self, keys=self.keys.let_go(rows), reach=reach, owners=owners, stood_in=stood_in)

    def conflicts(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(owners for a key of which this one stands in, those of another label in reach of both of which queries lie).

        The second are parted from it by which of the two is nearer.
        """
        own = self.owners[name]
        lost = {other for other, _ in own.taken if other in self.owners}
        keys = self.keys.slice(own.first, own.first + own.count)
        rivals = {other: one for other, one in self.owners.items() if one.label != own.label and other not in lost}
        near = {radius: self._near(keys, own.radius + radius) for radius in {one.radius for one in rivals.values()}}
        parted = {other for other, one in rivals.items() if any(near[one.radius][row] for row in one.rows)}
        return tuple(sorted(lost)), tuple(sorted(parted))


def closest(points: Points, query: Tensor, count: int) -> Sequence[tuple[int, float, float]]:
    """(slot, distance, radius) of the `count` keys nearest to query (features,), nearest first, one for each owner."""
    apart, reach = points.distances(query[None])
    found: dict[int, tuple[int, float, float]] = {}
    for row in apart[0].argsort().tolist():
        if not np.isfinite(distance := float(apart[0, row])) or len(found) == count:
            break
        slot = int(points.slots.view[row])
        found.setdefault(slot, (slot, distance, float(reach[row])))
    return list(found.values())
