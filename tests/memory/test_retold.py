"""Taking keys away is as if they had never come: everything about the others is as in a book that was never given them.

The reference is that book, fed the remaining keys one by one: every radius to the bit, every placement, every time. The
limits are so low here that few keys go through all of it: the index, cells, and looking back in time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory import cells, index, placing, radius, retold
from editable.memory.placing import KINDS, Life
from editable.memory.radius import Codebook, Placed

INDEXED = {"LATEST": 6, "REGROW": 3, "STRAYS": 2, "PENDING": 2}


@pytest.fixture(params=["scanned", "indexed"])
def soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few keys have no index; or they have one, and it is used for the past too."""
    if request.param == "indexed":
        monkeypatch.setattr(cells, "CELLS_PER_ROOT", 1.0)
        for name in ("LATEST", "REGROW", "STRAYS", "PENDING"):
            monkeypatch.setattr(index, name, INDEXED[name])
        monkeypatch.setattr(radius, "first", lambda _features: 4)
        monkeypatch.setattr(radius, "AT_ONCE", 2)
        for name in ("DIRECT", "GUESSED"):
            monkeypatch.setattr(retold, name, 1)
    yield


@dataclass(frozen=True)
class Key:
    """One to come."""

    place: Tensor
    label: str
    owner: str
    initial: float
    space: str = "default"


def grown(keys: list[Key], resolution: float, placed: list[Placed] | None = None) -> Codebook:
    book = Codebook.empty(len(keys[0].place), resolution)
    for number, key in enumerate(keys):
        known = None if placed is None else placed[number]
        book = book.add(key.place, key.label, key.owner, key.initial, known, key.space).settled()
    return book


def known_of(book: Codebook, row: int, names: dict[int, int]) -> tuple[object, ...]:
    """All that counts of a key, with others by their number among the live; a far ball it looked at does not."""
    life, placed = book.life(row), book.placement(row)
    nearest = None if life.kind == KINDS.index("add") else (names[life.nearest], life.distance)
    beside = None if life.beside < 0 or life.apart > 2 * life.initial else (names[life.beside], life.apart)
    times = [None if time < 0 else names[time] for time in (life.born, life.died, life.taker)]
    superseded = sorted(names[one] for one in placed.superseded)
    return life.radius, life.kind, nearest, beside, times, superseded, placed.freed


def all_known(book: Codebook) -> list[tuple[object, ...]]:
    live = [row for row in range(len(book)) if book.owner(row) is not None]
    names = {row: number for number, row in enumerate(live)}
    return [known_of(book, row, names) for row in live]


def check_as_if_never(book: Codebook, keys: list[Key]) -> None:
    live = [key for row, key in enumerate(keys) if book.owner(row) is not None]
    gone = [row for row in range(len(keys)) if book.owner(row) is None]
    assert bool((book.radii[gone] < 0).all())
    if live:
        assert all_known(book) == all_known(grown(live, book.resolution))


def drawn(seed: int, count: int, features: int, labels: str) -> list[Key]:
    """Keys on a coarse grid, where distances are often equal, and beside it; some owners have several."""
    draw, keys = random.Random(seed), list[Key]()
    for _ in range(count):
        place = torch.tensor([draw.choice([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0]) for _ in range(features)])
        if draw.random() < 0.4:
            place = place + torch.tensor([draw.gauss(0, 0.3) for _ in range(features)])
        if keys and draw.random() < 0.2:
            place = draw.choice(keys).place + draw.choice([0.0, 1e-4, 0.04])
        space = "other" if draw.random() < 0.1 else "default"
        owner = str(len(keys)) if draw.random() < 0.7 or not keys else keys[-1].owner
        label = draw.choice(labels) if draw.random() < 0.9 else owner
        keys.append(Key(place, label, owner, draw.choice([0.0, 0.25, 0.5, 1.0, 1.0, 1.0, 2.0]), space))
    return keys


@pytest.mark.usefixtures("soon")
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 3), st.sampled_from([0.0, 0.05, 0.125]))
def test_forgetting_one_by_one(seed: int, count: int, features: int, resolution: float) -> None:
    keys = drawn(seed, count, features, "xyzuvw"[: 1 + seed % 6])
    book, owners = grown(keys, resolution), sorted({key.owner for key in keys})
    random.Random(seed).shuffle(owners)
    for owner in owners[:8]:
        book = book.forget(frozenset({owner}))
        check_as_if_never(book, keys)


@pytest.mark.usefixtures("soon")
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.integers(2, 40), st.sampled_from([0.0, 0.05]))
def test_forgetting_many_at_once_and_going_on(seed: int, count: int, resolution: float) -> None:
    draw, keys = random.Random(seed), drawn(seed, count, 2, "xyz")
    later = [replace(key, owner=f"later {key.owner}") for key in drawn(seed + 1, 6, 2, "xyz")]
    owners = sorted({key.owner for key in keys})
    gone = frozenset(draw.sample(owners, max(1, len(owners) // draw.choice([1, 2, 4]))))
    book = grown(keys, resolution).forget(gone)
    check_as_if_never(book, keys)
    for key in later:
        book = book.add(key.place, key.label, key.owner, key.initial, None, key.space)
    check_as_if_never(book, [*keys, *later])
    left = sorted({key.owner for key in later} | set(owners) - gone)
    check_as_if_never(book.forget(frozenset(draw.sample(left, min(2, len(left))))), [*keys, *later])


@pytest.mark.usefixtures("soon")
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.05]))
def test_recorded_placements_in_the_same_order(seed: int, resolution: float) -> None:
    """As a log is read: what was recorded when a key came decides, also when others are forgotten later."""
    draw, keys = random.Random(seed), drawn(seed, 30, 2, "xyz")
    book = again = Codebook.empty(2, resolution)
    for number, key in enumerate(keys):
        book = book.add(key.place, key.label, key.owner, key.initial, None, key.space)
        placed = replace(book.placement(number), freed=False)
        again = again.add(key.place, key.label, key.owner, key.initial, placed, key.space)
        if draw.random() < 0.3:
            owners = frozenset({draw.choice(keys[: number + 1]).owner})
            book, again = book.forget(owners), again.forget(owners)
    assert all_known(again) == all_known(book)
    check_as_if_never(again, keys)


@pytest.mark.usefixtures("soon")
def test_a_version_from_before_still_knows_everything() -> None:
    keys = drawn(7, 30, 2, "xy")
    book = grown(keys, 0.05)
    before = all_known(book), book.find(torch.stack([key.place for key in keys]))
    book.forget(frozenset({keys[3].owner, keys[9].owner})).add(keys[0].place, "new", "new", 1.0)
    book.add(keys[5].place, "another", "another", 1.0)
    after = all_known(book), book.find(torch.stack([key.place for key in keys]))
    assert before[0] == after[0]
    assert all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))


def test_only_what_could_go_otherwise_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty far pairs that split each other: of the others nobody is asked."""
    keys = [
        Key(torch.tensor([10.0 * pair, side]), f"{pair}, {side}", f"{pair}, {side}", 1.0)
        for pair in range(40)
        for side in (0.0, 0.5)
    ]
    book, told = grown(keys, 0.05), list[int]()
    real = retold.Retold._compare

    def noted(self: retold.Retold, row: int) -> None:
        told.append(row)
        real(self, row)

    monkeypatch.setattr(retold.Retold, "_compare", noted)
    left = book.forget(frozenset({"7, 0.0"}))
    assert set(told) == {14, 15}
    assert float(left.radii[15]) == 1.0
    assert book.life(15).radius == 0.25


def test_a_life_is_a_record() -> None:
    life = Life.new(0.5, 1, 2, 3)
    assert Life(*life.record) == life
    assert (life.radius < 0, life.absorbed, life.uncovered) == (True, False, placing.NONE)
