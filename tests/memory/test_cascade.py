"""The index of a codebook: nothing is decided otherwise than in a book that measures every distance.

The reference is the same book without an index, to the bit, and one plain loop in float64. The limits from which an
index is made, sorted into cells and made anew are so low here that a dozen keys go through all of it.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory import cells, index, radius, sparse
from editable.memory import query as asking
from editable.memory.placing import Course, Numbers
from editable.memory.radius import Codebook, Placed

SPACES = ("default", "other")
NEVER = 10**9
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that is done for many keys is done for few."""
    monkeypatch.setattr(cells, "CELLS_PER_ROOT", 1.0)
    for name, value in {"LATEST": 6, "REGROW": 3, "STRAYS": 2, "PENDING": 2}.items():
        monkeypatch.setattr(index, name, value)
    monkeypatch.setattr(asking, "FEW", 2)
    monkeypatch.setattr(radius, "GUESSED", 2)
    monkeypatch.setattr(radius, "AT_ONCE", 2)
    yield


@dataclass(frozen=True)
class Twins:
    """One book that has an index as soon as it may, and one that never gets any, fed alike.

    Args:
        indexed, direct: the two.
        keys, spaces: of every key, in order.
        owners: every owner there was.
    """

    indexed: Codebook
    direct: Codebook
    keys: tuple[Tensor, ...] = ()
    spaces: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()

    @classmethod
    def empty(cls, features: int, resolution: float = 0.05) -> Twins:
        return cls(Codebook.empty(features, resolution), Codebook.empty(features, resolution))

    def add(self, key: Tensor, label: str, owner: str, initial: float, space: str = "default") -> Twins:
        with limits(first=4):
            indexed = self.indexed.settled().add(key, label, owner, initial, space=space).settled()
        with limits(first=NEVER):
            direct = self.direct.add(key, label, owner, initial, space=space)
        return Twins(indexed, direct, (*self.keys, key), (*self.spaces, space), (*self.owners, owner))

    def forget(self, owners: frozenset[str]) -> Twins:
        with limits(first=4):
            indexed = self.indexed.forget(owners).settled()
        return replace(self, indexed=indexed, direct=self.direct.forget(owners))

    def checked(self, queries: Tensor, spaces: Sequence[str | None] = (None, *SPACES, "never seen")) -> Twins:
        """Refuse any difference."""
        check_alike(self.indexed, self.direct)
        for space in spaces:
            check_found(self, queries, space)
        return self


@contextmanager
def limits(first: int) -> Iterator[None]:
    """From so many keys on there is an index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radius, "first", lambda _features: first)
        yield


def plain(placed: Placed) -> tuple[object, ...]:
    """What counts: a distance to nobody is only a bound, and who is superseded twice is superseded."""
    distance = placed.distance if placed.nearest >= 0 else None
    return placed.kind, placed.nearest, distance, frozenset(placed.superseded), placed.freed


def check_alike(one: Codebook, other: Codebook) -> None:
    """Radii to the bit, and how every key was placed."""
    assert torch.equal(one.radii, other.radii)
    assert list(map(plain, one.placed)) == list(map(plain, other.placed))
    assert one.owners == other.owners


def check_found(twins: Twins, queries: Tensor, space: str | None) -> None:
    rows, shares = twins.indexed.find(queries, space)
    direct_rows, direct_shares = twins.direct.find(queries, space)
    assert torch.equal(shares, direct_shares)
    hit = shares <= 1
    assert torch.equal(rows[hit], direct_rows[hit])
    check_plainly(twins, queries.double(), rows, shares, space)
    for query in queries[::4]:
        nearest, direct = (book.nearest(query, space=space) for book in (twins.indexed, twins.direct))
        assert nearest == direct or (nearest[0] == direct[0] == -1)


def check_plainly(twins: Twins, queries: Tensor, rows: Tensor, shares: Tensor, space: str | None) -> None:
    """In float64, so only up to float32's rounding of what is nearer, but with no code shared."""
    seen = [row for row, own in enumerate(twins.spaces) if space in (None, own)]
    radii = twins.direct.radii[seen].double()
    balls = [row for row, radius in zip(seen, radii, strict=True) if radius >= 0]
    hits = shares <= 1
    if not balls:
        assert not bool(hits.any())
        return
    keys, around = torch.stack([twins.keys[row] for row in balls]).double(), twins.direct.radii[balls].double()
    distances = (queries[:, None] - keys).norm(dim=2).nan_to_num(torch.inf, torch.inf)  # (queries, balls)
    nearest = distances <= distances.amin(dim=1, keepdim=True) * (1 + 1e-6)
    inside = distances <= around * (1 + 1e-6)
    for query in hits.nonzero()[:, 0].tolist():
        ball = balls.index(int(rows[query]))
        assert bool(nearest[query, ball] & inside[query, ball])
        share = distances[query, ball] / around[ball].clamp_min(1e-300)
        assert float(shares[query]) == pytest.approx(float(share), rel=1e-5)
    clearly_inside = distances <= around * (1 - 1e-6)
    assert not bool((nearest & clearly_inside).sum(dim=1)[~hits].eq(nearest.sum(dim=1)[~hits]).any())


# ---------------------------------------------------------------------------------------------- any steps at all


@dataclass(frozen=True)
class Add:
    """An edit: its keys, by the numbers of places."""

    places: tuple[int, ...]
    label: str
    initial: float
    space: str


@dataclass(frozen=True)
class Forget:
    """Of the owners so far these, by number; numbers beyond are taken round."""

    owners: frozenset[int]


Step = Add | Forget


def plane() -> Tensor:
    """(60, 2) a grid of halves and quarters: many exact ties."""
    across = torch.tensor([-1.25, -0.5, 0.0, 0.0625, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 4.0])
    return torch.cartesian_prod(across, torch.tensor([0.0, 0.5, 1.0, 1.5, 4.0]))


def corners() -> Tensor:
    """(60, 30) two on each axis, all equally far from the middle and mostly from each other."""
    return torch.cat([torch.eye(30), -torch.eye(30)])


def clouds() -> Tensor:
    """(60, 200) six places of norm 100 and, around each, what is told apart in the last digits or not at all."""
    generator = torch.Generator().manual_seed(5)
    middle = torch.randn(6, 200, generator=generator) * 7
    around = torch.randn(10, 200, generator=generator) / 14 * torch.logspace(-6, 0.6, 10)[:, None]
    return (middle[:, None] + around).flatten(0, 1)


PLACES = {f.__name__: f() for f in (plane, corners, clouds)}

adds = st.builds(
    Add,
    st.lists(st.integers(0, 59), min_size=1, max_size=4).map(tuple),
    st.sampled_from("xyz"),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0, 3.0]),
    st.sampled_from([*SPACES[:1] * 3, SPACES[1]]),
)
forgets = st.builds(Forget, st.frozensets(st.integers(0, 30), min_size=1, max_size=3))
steps = st.lists(st.one_of(adds, adds, adds, forgets), min_size=4, max_size=14)


def after(done: Sequence[Step], places: Tensor, resolution: float, each: Tensor | None = None) -> Twins:
    """The twins that these steps lead to; checked with queries after each step, where some are given."""
    twins, edits = Twins.empty(places.shape[1], resolution), 0
    for step in done:
        if isinstance(step, Add):
            for place in step.places:
                twins = twins.add(places[place], step.label, str(edits), step.initial, step.space)
            edits += 1
        elif edits:
            twins = twins.forget(frozenset(str(number % edits) for number in step.owners))
        if each is not None:
            twins.checked(each, [None])
    return twins


def asked(places: Tensor) -> Tensor:
    """Places, beside some, and between two."""
    return torch.cat([places[::2], places[::7] + 1e-3, (places[:-1] + places[1:])[::6] / 2])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps, st.sampled_from(sorted(PLACES)), st.sampled_from([0.0, 0.05, 0.125]))
def test_whatever_happens_an_index_decides_nothing(done: list[Step], where: str, resolution: float) -> None:
    places = PLACES[where]
    after(done, places, resolution, places[::12]).checked(asked(places))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.sampled_from(sorted(PLACES)))
def test_long_histories(seed: int, where: str) -> None:
    """A hundred keys or so, in which a book is sorted, merged and regrown several times."""
    draw, places = random.Random(seed), PLACES[where]
    done: list[Step] = []
    for _ in range(40):
        chosen = tuple(draw.choices(range(60), k=draw.randint(1, 4)))
        space = draw.choices(SPACES, (4, 1))[0]
        done.append(Add(chosen, draw.choice("vwxyz"), draw.choice([0.1, 0.5, 1.0, 2.0]), space))
        if draw.random() < 0.2:
            done.append(Forget(frozenset(draw.choices(range(40), k=2))))
    after(done, places, 0.05).checked(asked(places))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.integers(1, 160), st.sampled_from([1e-6, 1.0, 1e6]))
def test_keys_at_random(seed: int, features: int, scale: float) -> None:
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    keys = (torch.randn(30, features, generator=generator).pow(3) + draw.choice([0, 100])) * scale
    twins = Twins.empty(features)
    for row, key in enumerate(keys):
        twins = twins.add(key, draw.choice("xyz"), str(row), scale * features**0.5 * draw.choice([0.1, 1, 3]))
    beside = keys + torch.randn(30, features, generator=generator) * scale * torch.logspace(-7, 1, 30)[:, None]
    twins.checked(torch.cat([keys, beside]))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 59), st.sampled_from("xyz"), st.sampled_from([0.0, 0.25, 1.0, 3.0])), min_size=1),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.sampled_from(sorted(PLACES)),
    st.booleans(),
)
def test_many_at_once_are_as_one_by_one(
    rows: list[tuple[int, str, float]], sizes: list[int], where: str, known: bool
) -> None:
    """In parts of any size, with an index and without; placements looked for, or every second one known."""
    places = PLACES[where]
    keys = [(places[place], label, initial) for place, label, initial in rows]
    for first in (4, NEVER):
        with limits(first):
            single = Codebook.empty(places.shape[1])
            for row, (key, label, initial) in enumerate(keys):
                single = single.add(key, label, str(row), initial).settled()
            recorded = [replace(placed, freed=False) if known and row % 2 else None for row, placed in came(keys)]
            together, older = Codebook.empty(places.shape[1]), list[tuple[Codebook, Tensor]]()
            for start, stop in parts(len(keys), sizes):
                together = all_added(together, keys, start, stop, recorded).settled()
                older.append((together, together.radii))
        check_alike(together, single)
        assert all(torch.equal(book.radii, radii) for book, radii in older)


Key = tuple[Tensor, str, float]


def came(keys: Sequence[Key]) -> Iterator[tuple[int, Placed]]:
    """How each key was placed when it came."""
    book = Codebook.empty(len(keys[0][0]))
    for row, (key, label, initial) in enumerate(keys):
        book = book.add(key, label, str(row), initial)
        yield row, book.placement(row)


def parts(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From where to where, with these sizes over and over."""
    start, turn = 0, 0
    while start < count:
        stop = min(count, start + sizes[turn % len(sizes)])
        yield start, stop
        start, turn = stop, turn + 1


def all_added(book: Codebook, keys: Sequence[Key], start: int, stop: int, placed: Sequence[Placed | None]) -> Codebook:
    some, labels, initials = zip(*keys[start:stop], strict=True)
    owners = [str(row) for row in range(start, stop)]
    return book.add_all(torch.stack(some), labels, owners, initials, placed[start:stop])


def test_none_at_once_changes_nothing() -> None:
    book = Codebook.empty(2).add(torch.zeros(2), "x", "0", 1.0)
    same = book.add_all(torch.empty(0, 2), [], [], [], [])
    assert (len(same), same.radii.tolist()) == (1, [1.0])


def test_of_many_the_odd_one_is_named_and_none_is_added() -> None:
    book, keys = Codebook.empty(2), torch.tensor([[0.0, 0.0], [math.nan, 0.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match=r"^The key of 'b' has NaN or infinite features, expected finite ones\.$"):
        book.add_all(keys, "xyz", "abc", [1.0] * 3, [None] * 3)
    assert len(book) == 0


# --------------------------------------------------------------------------------------- each case by itself


def fed(places: Sequence[Sequence[float]], labels: str, initial: float = 1.0, resolution: float = 0.0) -> Twins:
    """Twins that were given these places in order, owned by "0", "1" ... ."""
    twins = Twins.empty(len(places[0]), resolution)
    for row, (place, label) in enumerate(zip(places, labels, strict=True)):
        twins = twins.add(torch.tensor(place), label, str(row), initial)
    return twins


def many(count: int = 40, apart: float = 10.0) -> Twins:
    """Balls of radius 1 on a line, far apart, each with a label of its own."""
    twins = Twins.empty(3, 0.0)
    for row in range(count):
        twins = twins.add(torch.tensor([row * apart, 0.0, 0.0]), f"label {row}", str(row), 1.0)
    assert_sorted(twins)
    return twins


def assert_sorted(twins: Twins) -> None:
    """That the test tests what it says: there are cells, and no index where there should be none."""
    assert twins.indexed.index is not None
    assert twins.indexed.index.cells is not None
    assert twins.direct.index is None


def test_a_book_gets_an_index_and_cells_in_its_time() -> None:
    twins, seen = Twins.empty(2), list[int]()
    for row in range(12):
        twins = twins.add(torch.tensor([float(row), 0.0]), str(row), str(row), 0.1)
        known = twins.indexed.index
        seen.append(-1 if known is None else known.sorted_rows)
    assert seen[:3] == [-1, -1, -1]  # the first index comes with 4
    assert seen[3] == 0  # a few sketches, no cells
    assert seen[-1] > 6  # LATEST is 6


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
def test_queries_of_any_precision(dtype: torch.dtype) -> None:
    twins = many()
    places = torch.stack(twins.keys)
    twins.checked((places + torch.tensor([0.0, 1.0, 0.0])).to(dtype))  # at the border of each
    twins.checked((places + torch.tensor([0.0, 0.7, 0.71])).to(dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38])
def test_queries_that_are_no_place_hit_nothing(value: float) -> None:
    twins = many()
    queries = torch.stack([torch.full((3,), value), torch.tensor([0.0, value, 0.0]), torch.zeros(3)])
    rows, shares = twins.checked(queries).indexed.find(queries)
    assert (shares <= 1).tolist() == [False, False, True]
    assert int(rows[2]) == 0


def test_no_query_at_all() -> None:
    rows, shares = many().indexed.find(torch.empty(0, 3))
    assert (rows.shape, shares.shape) == ((0,), (0,))
    assert rows.dtype == torch.long


def test_a_ball_of_radius_zero_holds_exactly_its_key() -> None:
    twins = many()
    place = torch.tensor([55.0, 0.0, 0.0])
    twins = twins.add(place, "point", "point", 0.0)
    near = place + torch.tensor([1e-5, 0.0, 0.0])
    rows, shares = twins.checked(torch.stack([place, near])).indexed.find(torch.stack([place, near]))
    assert (int(rows[0]), shares.tolist()) == (40, [0.0, math.inf])


def test_of_equally_near_balls_the_latest_wins() -> None:
    """Thirty pairs around thirty middles; then the earlier of a pair comes once more, and is the latest."""
    twins = Twins.empty(2, 0.0)
    for row in range(30):
        for side in (-0.5, 0.5):
            twins = twins.add(torch.tensor([row * 10.0, side]), f"{row}, {side}", f"{row}, {side}", 0.5)
    assert_sorted(twins)
    middles = torch.tensor([[row * 10.0, 0.0] for row in range(30)])
    assert [twins.indexed.nearest(middle) for middle in middles] == [(2 * row + 1, 0.5) for row in range(30)]
    twins = twins.add(torch.tensor([0.0, -0.5]), "again", "again", 0.5)
    assert twins.checked(middles).indexed.nearest(middles[0]) == (60, 0.5)


def test_among_absorbed_keys_the_nearest_ball_is_found_without_looking_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One ball takes in 40 keys ten away; whoever comes among these finds 40 nearer ones that have no ball."""
    far = torch.stack([torch.tensor([float(place), 40.0]) for place in range(300)])
    names, alone = [f"far {place}" for place in range(300)], Placed("add")
    with limits(first=4):
        book = Codebook.empty(2).add_all(far, names, names, [30.0] * 300, [alone] * 300).settled()
        book = book.add(torch.tensor([150.0, 0.0]), "near", "near", 30.0)
        for number in range(40):
            book = book.add(torch.tensor([160 + number / 1000, 0.0]), "near", f"near {number}", 30.0)
    assert sum(placed.kind == "covered" for placed in book.placed) == 40
    looked_at: list[int] = []
    balls = Course._balls

    def noted(self: Course, rows: Numbers, *given: Any) -> Numbers:
        looked_at.append(len(rows))
        return balls(self, rows, *given)

    monkeypatch.setattr(Course, "_balls", noted)
    book = book.add(torch.tensor([160.02, 0.0]), "near", "last", 30.0)
    assert (book.placed[-1].kind, book.placed[-1].nearest) == ("covered", 300)
    assert max(looked_at) < 100


def test_many_duplicates() -> None:
    """Fifty keys at four places: of each place the last one answers."""
    places = [[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]]
    twins = fed([places[row % 4] for row in range(50)], "vwxyz" * 10, resolution=0.05)
    rows, _ = twins.checked(torch.tensor(places)).indexed.find(torch.tensor(places))
    assert rows.tolist() == [48, 49, 46, 47]


def test_a_ball_that_outgrew_its_cell_is_still_reached() -> None:
    """It was sorted with radius 1 and grows to 6: where its cell would not reach, it answers."""
    twins = many()
    twins = twins.add(torch.tensor([200.0, 1.9, 0.0]), "label 20", "wide", 1.0)
    for reach in (3.0, 4.5, 6.0):
        twins = twins.add(torch.tensor([200.0, reach, 0.0]), "label 20", f"wide {reach}", 2.0)
    assert_sorted(twins)
    far = torch.tensor([[200.0, -5.9, 0.0], [200.0, 0.0, 5.99], [200.0, 6.1, 0.0]])
    rows, shares = twins.checked(far).indexed.find(far)
    assert (shares <= 1).tolist() == [True, True, False]
    assert rows[:2].tolist() == [20, 20]


def test_strays_are_known_until_the_cells_are_told_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STRAYS", "REGROW"):
        monkeypatch.setattr(index, name, 100)
    twins = many(30)
    monkeypatch.setattr(index, "LATEST", 100)
    for row in range(0, 20, 2):
        twins = twins.add(torch.tensor([row * 10.0, 1.5, 0.0]), f"label {row}", f"grown {row}", 1.0)
    assert twins.indexed.index is not None
    assert twins.indexed.index.strays == frozenset(range(0, 20, 2))
    twins.checked(torch.tensor([[row * 10.0, -1.4, 0.0] for row in range(30)]))
    monkeypatch.setattr(index, "STRAYS", 2)
    twins = twins.add(torch.tensor([-50.0, 0.0, 0.0]), "one more", "one more", 1.0)
    assert twins.indexed.index is not None
    assert twins.indexed.index.strays == frozenset()
    twins.checked(torch.tensor([[row * 10.0, -1.4, 0.0] for row in range(30)]))


def test_a_key_without_a_ball_when_it_was_sorted_gets_one() -> None:
    """Absorbed by row 5 at 0.9, sorted so; then row 5 shrinks and the key answers by itself."""
    twins = many(20)
    twins = twins.add(torch.tensor([50.9, 0.0, 0.0]), "label 5", "absorbed", 1.0)
    for row in range(20, 40):
        twins = twins.add(torch.tensor([row * 10.0, 0.0, 0.0]), f"label {row}", str(row), 1.0)
    assert twins.indexed.index is not None
    assert twins.indexed.index.sorted_rows > 20
    assert float(twins.indexed.radii[20]) == -math.inf
    twins = twins.add(torch.tensor([49.7, 0.0, 0.0]), "another", "another", 1.0)
    place = torch.tensor([[50.9, 0.0, 0.0], [51.4, 0.0, 0.0], [50.0, 0.0, 0.0]])
    rows, shares = twins.checked(place).indexed.find(place)
    assert twins.indexed.placed[20].freed
    assert (rows[:2].tolist(), (shares[:2] <= 1).tolist()) == ([20, 20], [True, True])


def test_the_nearest_key_decides_even_where_a_wider_ball_holds_the_query() -> None:
    """A query deep in a ball of 6, but nearer to the key of a small ball that does not hold it: nobody answers."""
    twins = many()
    for place, label, initial in ((500.0, "wide", 6.0), (504.0, "small", 0.5)):
        twins = twins.add(torch.tensor([place, 3.0, 0.0]), label, label, initial, "default")
    queries = torch.tensor([[503.0, 3.0, 0.0], [501.0, 3.0, 0.0], [504.2, 3.0, 0.0]])
    twins.checked(queries)


def test_forgetting_in_any_order_leaves_nothing() -> None:
    twins = many(30)
    order = list(range(30))
    random.Random(1).shuffle(order)
    places = torch.stack(twins.keys)
    for count, row in enumerate(order):
        twins = twins.forget(frozenset({str(row)}))
        rows, shares = twins.indexed.find(places)
        hits = set(rows[shares <= 1].tolist())
        assert hits == set(order[count + 1 :])
    twins.checked(places)
    twins.add(torch.zeros(3), "anew", "anew", 1.0).checked(places)


def test_namespaces_do_not_see_each_other() -> None:
    """The same places under other labels in another space: no split, no supersession, and both answer."""
    twins = many(20)
    for row in range(20):
        twins = twins.add(torch.tensor([row * 10.0, 0.0, 0.0]), "other", f"other {row}", 2.0, "other")
    places = torch.stack(twins.keys[:20])
    assert twins.indexed.radii.tolist() == [1.0] * 20 + [2.0] * 20
    for space, first in (("default", 0), ("other", 20)):
        rows, shares = twins.indexed.find(places, space)
        assert rows.tolist() == list(range(first, first + 20))
        assert shares.tolist() == [0.0] * 20
    assert bool((twins.indexed.find(places, "never seen")[1] == math.inf).all())
    twins.checked(places + torch.tensor([0.0, 1.5, 0.0]))


def test_fewer_balls_than_cells_would_like() -> None:
    """Sixty keys in three balls."""
    twins = Twins.empty(2)
    for row in range(60):
        twins = twins.add(torch.tensor([(row % 3) * 100.0, row / 100]), str(row % 3), str(row), 1.0)
    assert int((twins.indexed.radii >= 0).sum()) == 3
    twins.checked(torch.tensor([[0.0, 0.3], [100.0, 0.7], [200.0, 3.0], [50.0, 0.0]]))


def test_every_key_forgotten_before_there_was_an_index() -> None:
    """Nothing to find directions or cells from."""
    twins = fed([[row * 10.0, 0.0] for row in range(12)], "xyz" * 4)
    with limits(first=NEVER):
        bare = twins.direct.forget(frozenset(map(str, range(12))))
    with limits(first=4):
        twins = replace(twins, indexed=bare.settled(), direct=bare)
    assert twins.indexed.index is not None
    twins = twins.checked(torch.stack(twins.keys))
    twins.add(torch.zeros(2), "anew", "anew", 1.0).checked(torch.zeros(1, 2))


def test_an_index_made_while_every_key_is_forgotten_is_used_for_those_that_come() -> None:
    """Its directions were once found from no key at all, and were no numbers: whatever came later was missed."""
    twins = fed([[row * 10.0, 0.0] for row in range(12)], "xyz" * 4)
    twins = twins.forget(frozenset(map(str, range(12))))
    with limits(first=4):
        twins = replace(twins, indexed=replace(twins.indexed, index=None, job=None).settled())
    for row in range(5):
        twins = twins.add(torch.tensor([row * 3.0, 1.0]), f"label {row}", f"new {row}", 1.0)
    places = torch.stack(twins.keys[12:])
    assert (twins.checked(places).indexed.find(places)[1] <= 1).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("where", sorted(PLACES))
def test_what_forgotten_keys_took_is_given_back(seed: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most edits are forgotten again, so that keys are compacted; the others answer, and so do older versions."""
    monkeypatch.setattr(sparse, "FEWEST", 2)
    draw, places, held, older = random.Random(seed), PLACES[where], set[bool](), list[tuple[Twins, Tensor]]()
    twins = Twins.empty(places.shape[1]).add(places[0], "kept", "kept", 0.5)
    for edit in range(20):
        for place in draw.choices(range(60), k=draw.randint(1, 3)):
            twins = twins.add(places[place], draw.choice("xyz"), str(edit), draw.choice([0.25, 1.0]))
        if draw.random() < 0.8:
            twins = twins.forget(frozenset({str(edit), str(draw.randrange(edit + 1))}))
        held.add(len(twins.indexed.keys.rows) == len(twins.indexed.keys))
        older.append((twins, twins.indexed.find(places)[1]))
    twins.checked(asked(places))
    assert held == {True, False}
    for version, shares in older:
        assert torch.equal(version.indexed.find(places)[1], shares)


# ---------------------------------------------------------------------------------------- many versions at once


@dataclass
class Published:
    """What a writer has shown so far: a version, and what it answers, found without an index."""

    queries: Tensor
    versions: list[tuple[Codebook, Tensor, Tensor]] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    asked: int = 0
    done: bool = False

    def publish(self, twins: Twins) -> None:
        self.versions.append((twins.indexed, *twins.direct.find(self.queries)))

    def check(self, number: int) -> None:
        book, rows, shares = self.versions[number]
        found, share = book.find(self.queries)
        hit = shares <= 1
        if not torch.equal(share, shares) or not torch.equal(found[hit], rows[hit]):
            self.wrong.append(number)
        self.asked += 1

    def read(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self.done:
            self.check(draw.randrange(len(self.versions)))


def history(published: Published, count: int, seed: int, until: float = math.inf) -> None:
    """Adds and forgets, every step a version."""
    draw, places, twins = random.Random(seed), PLACES["plane"], Twins.empty(2)
    for row in range(count):
        twins = twins.add(draw.choice(places), draw.choice("xyz"), str(row), draw.choice([0.25, 1.0]))
        if draw.random() < 0.2:
            twins = twins.forget(frozenset({str(draw.randrange(row + 1))}))
        published.publish(twins)
        if time.monotonic() > until:
            break


def test_older_versions_answer_as_they_did() -> None:
    published = Published(PLACES["plane"][::2] + 0.125)
    history(published, 50, seed=3)
    for number in range(50):
        published.check(number)
    assert published.wrong == []
    kinds = {book.index is not None and book.index.cells is not None for book, _, _ in published.versions}
    assert kinds == {False, True}


def test_readers_never_see_what_is_being_written() -> None:
    """Three readers of any version there is, one writer, jobs that make indexes: all at once."""
    published = Published(PLACES["plane"][::3] + 0.125)
    published.publish(Twins.empty(2))
    readers = [threading.Thread(target=published.read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    try:
        history(published, 120, seed=4, until=time.monotonic() + 3)
    finally:
        published.done = True
        for reader in readers:
            reader.join()
    assert published.wrong == []
    assert published.asked > 20
    assert len(published.versions) > 20


def test_two_futures_of_one_book_do_not_see_each_other() -> None:
    """From the same version, and each with an index of its own."""
    base = many(20)
    left = right = base
    for row in range(20):
        left = left.add(torch.tensor([row * 10.0, 5.0, 0.0]), f"left {row}", f"left {row}", 1.0)
        right = right.add(torch.tensor([row * 10.0, -5.0, 0.0]), f"right {row}", f"right {row}", 2.0)
    queries = torch.cat([torch.stack(left.keys), torch.stack(right.keys)])
    for twins in (base, left, right):
        twins.checked(queries)
    assert int((base.indexed.find(queries)[1] <= 1).sum()) == 2 * 20
