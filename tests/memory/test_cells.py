"""Cells: whatever is near enough is found, whichever way the cells came to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from editable.memory import cells as cells_module
from editable.memory.cells import Cells
from editable.memory.loops import SLICES
from editable.memory.rows import Rows
from editable.memory.sketch import Slack
from editable.memory.sparse import SparseRows

NO_SLACK = Slack(1.0, 0.0)
Radii = NDArray[np.float32]


@pytest.fixture(autouse=True)
def cells_of_few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many cells as the root of the number of members."""
    monkeypatch.setattr(cells_module, "CELLS_PER_ROOT", 1.0)
    yield


def clustered(count: int, width: int = 6, seed: int = 0) -> Tensor:
    """Points (count, width) around ten places, on a grid of eighths, so that distances come out equal."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(10, width, generator=generator) * 8
    points = places[torch.randint(10, (count,), generator=generator)] + torch.randn(count, width, generator=generator)
    return (points * 8).round() / 8


def radii(count: int, seed: int = 0, without: float = 0.2) -> Radii:
    """Heavy-tailed; some rows are no members."""
    rng = np.random.default_rng(seed)
    drawn = rng.exponential(0.5, count) * rng.choice([0.0, 1.0, 6.0], count)
    return np.where(rng.random(count) < without, -np.inf, drawn).astype(np.float32)


def present(radius: Radii) -> NDArray[np.bool_]:
    """Which rows are members in these tests: those that have a radius."""
    return np.asarray(radius >= 0)


def distances(query: Tensor, points: Tensor) -> NDArray[np.float64]:
    return np.asarray((points.double() - query.double()).norm(dim=1))


def sorted_into_cells(points: Tensor, radius: Radii) -> Cells:
    """All points (n, width) that are present, in cells that are theirs."""
    return Cells.of(points[torch.from_numpy(present(radius))], len(points)).extended([points], radius, present(radius))


def near(cells: Cells, query: Tensor, within: float) -> list[int]:
    """Rows, in order."""
    return sorted(cells.around(query.numpy()).near(within)[0].tolist())


def reached(cells: Cells, query: Tensor, slack: Slack = NO_SLACK) -> list[int]:
    """Rows, in order."""
    return sorted(cells.around(query.numpy()).reaching(slack)[0].tolist())


def check(cells: Cells, points: Tensor, radius: Radii, query: Tensor, within: float) -> None:
    """Against every distance: all that is near is found, once, with a bound of its distance; nothing that is far."""
    exact, members = distances(query, points), np.flatnonzero(radius >= 0)
    rows, bounds = cells.around(query.numpy()).near(within)
    assert set(members[exact[members] <= within]) <= set(rows.tolist()) <= set(members.tolist())
    assert len(set(rows.tolist())) == len(rows)
    assert (bounds <= exact[rows] * (1 + 1e-5) + 1e-5).all()
    assert (bounds <= within * (1 + 1e-4) + 1e-4).all()
    np.testing.assert_allclose(bounds, cells.around(query.numpy()).bounds(rows), rtol=1e-5, atol=1e-5)
    wrong = 2 * cells.members.error * cells.members.scales.max()
    assert (bounds >= exact[rows] - wrong - 1e-4).all()
    assert set(members[exact[members] <= radius[members]]) <= set(reached(cells, query)) <= set(members.tolist())


@pytest.mark.parametrize("width", [1, 6, 32])
@pytest.mark.parametrize("count", [1, 2, 50, 700])
def test_all_that_is_near_is_found(count: int, width: int) -> None:
    points, radius = clustered(count, width), radii(count)
    radius[0] = 1.0  # at least one member
    cells = sorted_into_cells(points, radius)
    assert len(cells) == count
    for query in torch.cat([clustered(20, width, seed=7), points[:20]]):
        for within in (0.0, 1.0, 4.0, 1e3):
            check(cells, points, radius, query, within)


def on_a_line(*places: float, radius: float = 0.0) -> Cells:
    """One ball of that radius at each place."""
    return sorted_into_cells(torch.tensor(places)[:, None], np.full(len(places), radius, np.float32))


def at(*place: float) -> Tensor:
    return torch.tensor(place)


def test_a_member_exactly_at_the_limit_is_near() -> None:
    """Five from (3, 4)."""
    cells = sorted_into_cells(torch.tensor([[0.0, 0.0], [100.0, 0.0]]), np.array([5.0, 1.0], np.float32))
    assert near(cells, at(3.0, 4.0), 5.0) == reached(cells, at(3.0, 4.0)) == [0]
    assert near(cells, at(3.0, 4.0), 4.4) == []  # its code is wrong by up to .56


def test_the_widest_ball_of_a_cell_is_what_reaches() -> None:
    """One cell; a far query is reached through the ball of 50, and with it comes what lies beside."""
    cells = sorted_into_cells(torch.tensor([[0.0], [1.0]]), np.array([50.0, 0.5], np.float32))
    assert 0 in reached(cells, at(-49.0))
    assert reached(cells, at(-51.5)) == []
    assert 0 in reached(cells, at(-51.0), Slack(1.0, 1.5))
    assert 0 in reached(cells, at(-99.0), Slack(2.0, 0.0))


def test_one_member() -> None:
    cells = sorted_into_cells(torch.tensor([[1.0, 2.0]]), np.zeros(1, np.float32))
    assert near(cells, at(1.0, 2.0), 0.0) == reached(cells, at(1.0, 2.0)) == [0]
    assert near(cells, at(1.0, 2.5), 0.4) == []


def test_duplicates_are_all_found() -> None:
    cells = sorted_into_cells(torch.ones(3000, 3), np.zeros(3000, np.float32))
    assert near(cells, torch.ones(3), 0.0) == reached(cells, torch.ones(3)) == list(range(3000))


def test_rows_without_a_ball_are_left_out() -> None:
    points = clustered(60)
    radius = np.full(60, -np.inf, np.float32)
    radius[[3, 40]] = 1.0
    cells = sorted_into_cells(points, radius)
    assert near(cells, points[3], 1e3) == [3, 40]
    assert sorted(cells.around(points[3].numpy()).few(10)[0].tolist()) == [3, 40]


def test_an_empty_cell_is_never_entered() -> None:
    """Cells that are there before anybody is in them: bounds from nobody must not let anything through, or in."""
    empty = Cells.of(torch.tensor([[0.0, 0.0], [100.0, 0.0], [-100.0, 0.0]] * 3), 9)
    assert (len(empty), len(empty.centres)) == (0, 3)
    assert near(empty, at(0.0, 0.0), 1e3) == reached(empty, at(0.0, 0.0)) == []
    assert empty.around(np.zeros(2, np.float32)).few(5)[0].tolist() == []
    one = empty.extended([torch.tensor([[99.0, 0.0]])], np.ones(1, np.float32), present(np.ones(1, np.float32)))
    assert near(one, at(98.0, 0.0), 1.0) == near(one, at(0.0, 0.0), 1e3) == [0]
    assert near(one, at(0.0, 0.0), 90.0) == []


@pytest.mark.parametrize("nothing", [[], [torch.empty(0, 6)]])
def test_extending_by_nothing_changes_nothing(nothing: list[Tensor]) -> None:
    points, radius = clustered(60), radii(60)
    cells = sorted_into_cells(points, radius)
    same = cells.extended(nothing, radius, present(radius))
    assert len(same) == 60
    assert [near(cells, query, 2.0) for query in points[:10]] == [near(same, query, 2.0) for query in points[:10]]


@pytest.mark.parametrize("steps", [[300], [100, 300], [100, 101, 300], [50, 90, 180, 299, 300]])
def test_extended_is_as_if_made_at_once(steps: list[int]) -> None:
    """The same centres, members in parts, each of which comes in parts, too: the same bounds, and the same answers."""
    points, radius = clustered(300), radii(300)
    parts = Cells.of(points, 300)
    whole = parts.extended([points], radius, present(radius))
    for step in steps:
        new = points[len(parts) : step].split(70)
        parts = parts.extended(new, radius[:step], present(radius[:step]))
    for name in ("edges", "widest", "radius"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.size == parts.size == float(points[torch.from_numpy(present(radius))].norm(dim=1).max())
    for query in clustered(20, seed=9):
        assert found(whole, query) == found(parts, query)


def found(cells: Cells, query: Tensor) -> tuple[list[int], list[int]]:
    return near(cells, query, 3.0), reached(cells, query)


def test_extending_tells_the_cells_of_all_radii() -> None:
    """Of the members that were there, too: one has grown."""
    cells = on_a_line(0.0, 1.0, radius=0.5)
    radius = np.array([0.5, 9.0, 0.5], np.float32)
    wider = cells.extended([torch.tensor([[2.0]])], radius, present(radius))
    assert (cells.widest.tolist(), wider.widest.tolist()) == ([0.5], [9.0])
    assert wider.radius.tolist() == radius.tolist()


def test_an_older_value_does_not_see_what_was_added() -> None:
    points, radius = clustered(200), radii(200)
    cells = sorted_into_cells(points[:100], radius[:100])
    queries = torch.cat([points[90:110], clustered(10, seed=5)])
    before = [found(cells, query) for query in queries]
    left = cells.extended([points[100:]], radius, present(radius))
    twice = np.concatenate([radius[:100], radius[:100]])
    right = cells.extended([points[:100] + 1], twice, present(twice))
    assert [found(cells, query) for query in queries] == before
    assert len(cells) == 100
    for query in queries:
        check(cells, points[:100], radius[:100], query, 3.0)
        check(left, points, radius, query, 3.0)
    assert len(right) == 200


def test_bounds_are_those_of_the_members() -> None:
    """One cell around 0 and 4 on the line: centre 2, both 2 from it."""
    empty, radius = Cells.of(torch.tensor([[0.0], [4.0]]), 1), np.array([0.5, 0.25], np.float32)
    cells = empty.extended([torch.tensor([[0.0], [4.0]])], radius, present(radius))
    assert cells.centres.tolist() == [[2.0]]
    assert cells.edges.tolist() == [[2.0] * (SLICES + 1)]
    assert (cells.widest.tolist(), cells.size) == ([0.5], 4.0)


def test_edges_are_those_of_slices_that_are_as_full() -> None:
    """Twice as many members as slices, 0, 1, 2, ... from the centre: every other one begins a slice."""
    places = torch.arange(2.0 * SLICES)[:, None]
    cells = Cells.of(torch.zeros(1, 1), 1).extended([places], places[:, 0].numpy(), present(places[:, 0].numpy()))
    assert cells.edges.tolist() == [[*range(0, 2 * SLICES, 2), 2 * SLICES - 1]]


def test_far_cells_are_passed_over() -> None:
    """Else the cells would be right, and of no use: who is of no finite size would be found if he were looked at."""
    points = torch.cat([torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) + 100 * i for i in range(5)])
    cells = sorted_into_cells(points, np.full(1000, 0.1, np.float32))
    far = np.linalg.norm(cells.centres - points[0].numpy(), axis=1) > 50
    members = cells.members
    scales = np.where(np.repeat(far, np.diff(members.starts)), np.float32(np.inf), members.scales)
    unlike = replace(cells, members=replace(members, scales=scales))
    assert near(unlike, points[0], 1.0) == near(cells, points[0], 1.0)
    assert len(near(unlike, points[0], 1e4)) == 1000


def test_few_mostly_hold_the_nearest() -> None:
    points = clustered(700, seed=3) + torch.rand(700, 6, generator=torch.Generator().manual_seed(4))
    cells = sorted_into_cells(points, np.zeros(700, np.float32))
    queries = points[::10] + 0.01
    guessed = [cells.around(query.numpy()).few(16) for query in queries]
    assert all(len(rows) == 16 for rows, _ in guessed)
    assert all((np.diff(squared) >= 0).all() for _, squared in guessed)
    held = sum(row * 10 in rows for row, (rows, _) in enumerate(guessed))
    assert held >= 0.9 * len(queries)


@dataclass(frozen=True)
class Keyed:
    """300 keys of 12 numbers, of which the first few were let go; the first 240 in cells by 6, 30 more sketched."""

    vectors: Tensor
    cells: Cells
    keys: SparseRows

    @classmethod
    def without(cls, let_go: int) -> Keyed:
        vectors = clustered(300, 12, seed=1) + torch.rand(300, 12, generator=torch.Generator().manual_seed(2))
        radius = np.where(np.arange(240) < let_go, -np.inf, 1.0).astype(np.float32)
        keys = SparseRows.of(Rows.empty(12).append(vectors))
        if let_go:
            places = torch.cat([torch.zeros(let_go, dtype=torch.long), torch.arange(300 - let_go)])
            held = Rows.empty(12).append(vectors[let_go:])
            keys = replace(keys, rows=held, place=Rows.empty(dtype=torch.long).append(places))
        return cls(vectors, sorted_into_cells(vectors[:240, :6], radius), keys)

    def nearest(self, query: Tensor, within: float = math.inf, stop: int = 300) -> list[int]:
        """By sketches that leave out half of the numbers."""
        around, slack = self.cells.around(query[:6].contiguous().numpy()), Slack(1 + 1e-5, 1e-5)
        latest = Rows.empty(6).append(self.vectors[240:270, :6])
        return list(around.nearest(query.numpy(), slack, within, self.keys, latest, stop))


@pytest.mark.parametrize("stop", [240, 255, 290, 300])
@pytest.mark.parametrize("let_go", [0, 60])
def test_the_nearest_of_all_before_a_row(let_go: int, stop: int) -> None:
    """In cells, sketched or not; keys may lie elsewhere since others were let go. No two are as near here."""
    keyed = Keyed.without(let_go)
    for query in clustered(40, 12, seed=3):
        exact = distances(query, keyed.vectors)[:stop]
        nearest, apart = let_go + int(exact[let_go:].argmin()), float(exact[let_go:].min())
        assert keyed.nearest(query, stop=stop) == [nearest]
        assert keyed.nearest(query, 1.001 * apart, stop) == [nearest]
        assert keyed.nearest(query, 0.999 * apart, stop) == []


def test_all_that_may_be_measured_to_be_nearest_are_found_what_seems_so_first() -> None:
    """In a cell, sketched, and not: one is nearer than the others by about a rounding."""
    keyed = Keyed.without(0)
    vectors = keyed.vectors + 20
    vectors[[7, 250, 280]] = torch.tensor([[1.0], [1 - 5e-7], [1.0]]).expand(3, 12)
    keys = SparseRows.of(Rows.empty(12).append(vectors))
    cells = sorted_into_cells(vectors[:240, :6], np.ones(240, np.float32))
    first, *others = Keyed(vectors, cells, keys).nearest(torch.zeros(12))
    assert (first, sorted(others)) == (250, [7, 280])


def test_what_is_no_number_rules_nothing_out() -> None:
    """Members whose distances overflow float32 are found by whoever may be at the same place."""
    points = torch.tensor([[3e38, -3e38], [0.0, 1.0], [1.0, 0.0]])
    cells = Cells.of(points[1:], 1).extended([points], np.ones(3, np.float32), present(np.ones(3, np.float32)))
    assert 0 in near(cells, points[0], 0.0)
    assert 0 in reached(cells, points[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 8),
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0]),
)
def test_whatever_is_added_all_that_is_near_is_found(
    width: int, parts: list[int], seed: int, scale: float, within: float
) -> None:
    first, *more = parts
    ends = np.cumsum([first + 20, *more]).tolist()
    points, radius = clustered(ends[-1], width, seed) * scale, radii(ends[-1], seed) * np.float32(scale)
    cells = sorted_into_cells(points[: ends[0]], radius[: ends[0]])
    for end in ends[1:]:
        cells = cells.extended([points[len(cells) : end]], radius[:end], present(radius[:end]))
    exact_queries, beside = points[:: max(1, len(points) // 6)], clustered(4, width, seed + 1) * scale
    for query in torch.cat([exact_queries, beside]):
        exact, members = distances(query, points), np.flatnonzero(radius >= 0)
        rows = near(cells, query, within * scale * (1 + 1e-6))
        assert set(members[exact[members] <= within * scale]) <= set(rows) <= set(members.tolist())
        rows = reached(cells, query, Slack(1 + 1e-6, 0.0))
        assert set(members[exact[members] <= radius[members]]) <= set(rows) <= set(members.tolist())
