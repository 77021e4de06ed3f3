"""Cells: whatever is near enough is found, whichever way the cells came to be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from editable.memory import cells as cells_module
from editable.memory.cells import Cells
from editable.memory.sketch import Slack

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


def check(cells: Cells, points: Tensor, radius: Radii, query: Tensor, within: float) -> None:
    """Against every distance: all that is near is found, once, with its distance; nothing else that is far."""
    exact, members = distances(query, points), np.flatnonzero(radius >= 0)
    rows, squares = cells.around(query).near(within)
    assert set(members[exact[members] <= within]) <= set(rows.tolist()) <= set(members.tolist())
    assert len(set(rows.tolist())) == len(rows)
    np.testing.assert_allclose(np.sqrt(squares), exact[rows], rtol=1e-5, atol=1e-5)
    assert (exact[rows] <= within * (1 + 1e-4) + 1e-4).all()
    reached = set(cells.around(query).reaching(NO_SLACK)[0].tolist())
    assert set(members[exact[members] <= radius[members]]) <= reached <= set(members.tolist())


@pytest.mark.parametrize("width", [1, 6, 32])
@pytest.mark.parametrize("count", [1, 2, 50, 700])
def test_all_that_is_near_is_found(count: int, width: int) -> None:
    points, radius = clustered(count, width), radii(count)
    radius[0] = 1.0  # at least one member
    cells = Cells.of(points, radius, present(radius))
    assert len(cells) == count
    for query in torch.cat([clustered(20, width, seed=7), points[:20]]):
        for within in (0.0, 1.0, 4.0, 1e3):
            check(cells, points, radius, query, within)


def test_a_member_exactly_at_the_limit_is_near() -> None:
    """Five from (3, 4): FAISS itself finds only what is nearer than its limit."""
    cells = Cells.of(
        torch.tensor([[0.0, 0.0], [100.0, 0.0]]),
        np.array([5.0, 1.0], np.float32),
        present(np.array([5.0, 1.0], np.float32)),
    )
    query = torch.tensor([3.0, 4.0])
    assert cells.around(query).near(5.0)[0].tolist() == [0]
    assert cells.around(query).near(5.0)[1].tolist() == [25.0]
    assert cells.around(query).reaching(NO_SLACK)[0].tolist() == [0]
    assert cells.around(query).near(4.99)[0].tolist() == []


def test_the_widest_ball_of_a_cell_is_what_reaches() -> None:
    """One cell; a far query is reached through the ball of 50, and with it comes what lies beside."""
    points, radius = torch.tensor([[0.0], [1.0]]), np.array([50.0, 0.5], np.float32)
    cells = Cells.of(points, radius, present(radius))
    assert 0 in cells.around(torch.tensor([-49.0])).reaching(NO_SLACK)[0]
    assert cells.around(torch.tensor([-51.0])).reaching(NO_SLACK)[0].tolist() == []
    assert 0 in cells.around(torch.tensor([-51.0])).reaching(Slack(1.0, 1.5))[0]
    assert 0 in cells.around(torch.tensor([-99.0])).reaching(Slack(2.0, 0.0))[0]


def test_one_member() -> None:
    cells = Cells.of(torch.tensor([[1.0, 2.0]]), np.zeros(1, np.float32), present(np.zeros(1, np.float32)))
    assert cells.around(torch.tensor([1.0, 2.0])).near(0.0)[0].tolist() == [0]
    assert cells.around(torch.tensor([1.0, 2.0])).reaching(NO_SLACK)[0].tolist() == [0]
    assert cells.around(torch.tensor([1.0, 2.5])).near(0.4)[0].tolist() == []


def test_duplicates_are_all_found() -> None:
    points = torch.ones(100, 3)
    cells = Cells.of(points, np.zeros(100, np.float32), present(np.zeros(100, np.float32)))
    assert sorted(cells.around(torch.ones(3)).near(0.0)[0].tolist()) == list(range(100))
    assert sorted(cells.around(torch.ones(3)).reaching(NO_SLACK)[0].tolist()) == list(range(100))


def test_rows_without_a_ball_are_left_out() -> None:
    points = clustered(60)
    radius = np.full(60, -np.inf, np.float32)
    radius[[3, 40]] = 1.0
    cells = Cells.of(points, radius, present(radius))
    assert sorted(cells.around(points[3]).near(1e3)[0].tolist()) == [3, 40]
    assert set(cells.around(points[3]).few(10)[0].tolist()) <= {3, 40}


def test_an_empty_cell_is_never_entered() -> None:
    """Cells that are there before anybody is in them: bounds from nobody must not let anything through, or in."""
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [-100.0, 0.0]])
    empty = Cells._without_members(centres)
    assert len(empty) == 0
    assert empty.around(torch.zeros(2)).near(1e3)[0].tolist() == []
    assert empty.around(torch.zeros(2)).reaching(NO_SLACK)[0].tolist() == []
    assert empty.around(torch.zeros(2)).few(5)[0].tolist() == []
    one = empty.extended(torch.tensor([[99.0, 0.0]]), np.ones(1, np.float32), present(np.ones(1, np.float32)))
    assert one.around(torch.tensor([98.0, 0.0])).near(1.0)[0].tolist() == [0]
    assert one.around(torch.zeros(2)).near(1e3)[0].tolist() == [0]
    assert one.around(torch.zeros(2)).near(90.0)[0].tolist() == []


def test_extending_by_nothing_changes_nothing() -> None:
    points, radius = clustered(60), radii(60)
    cells = Cells.of(points, radius, present(radius))
    same = cells.extended(points[:0], radius, present(radius))
    assert len(same) == 60
    for query in points[:10]:
        assert sorted(cells.around(query).near(2.0)[0].tolist()) == sorted(same.around(query).near(2.0)[0].tolist())


@pytest.mark.parametrize("steps", [[300], [100, 300], [100, 101, 300], [50, 90, 180, 299, 300]])
def test_extended_is_as_if_made_at_once(steps: list[int]) -> None:
    """The same centres, members in parts: the same bounds, and the same answers."""
    points, radius = clustered(300), radii(300)
    centres = Cells.of(points, radius, present(radius)).centres
    whole, parts = (
        Cells._without_members(centres).extended(points, radius, present(radius)),
        Cells._without_members(centres),
    )
    for step in steps:
        parts = parts.extended(points[len(parts) : step], radius[:step], present(radius[:step]))
    for name in ("outer", "inner", "low", "high", "widest"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    assert np.array_equal(whole.radius, parts.radius)
    for query in clustered(20, seed=9):
        assert found(whole, query) == found(parts, query)


def found(cells: Cells, query: Tensor) -> tuple[list[int], list[int]]:
    around = cells.around(query)
    near, reached = around.near(3.0)[0], around.reaching(NO_SLACK)[0]
    return sorted(near.tolist()), sorted(reached.tolist())


def test_an_older_value_does_not_see_what_was_added() -> None:
    points, radius = clustered(200), radii(200)
    cells = Cells.of(points[:100], radius[:100], present(radius[:100]))
    queries = torch.cat([points[90:110], clustered(10, seed=5)])
    before = [found(cells, query) for query in queries]
    left = cells.extended(points[100:], radius, present(radius))
    right = cells.extended(
        points[:100] + 1,
        np.concatenate([radius[:100], radius[:100]]),
        present(np.concatenate([radius[:100], radius[:100]])),
    )
    assert [found(cells, query) for query in queries] == before
    assert len(cells) == 100
    for query in queries:
        check(cells, points[:100], radius[:100], query, 3.0)
        check(left, points, radius, query, 3.0)
    assert len(right) == 200


def test_bounds_are_those_of_the_members() -> None:
    """One cell around 0 and 4 on the line: centre 2, both 2 from it."""
    cells = Cells.of(
        torch.tensor([[0.0], [4.0]]), np.array([0.5, 0.25], np.float32), present(np.array([0.5, 0.25], np.float32))
    )
    assert cells.centres.tolist() == [[2.0]]
    assert (cells.outer.tolist(), cells.inner.tolist()) == ([2.0], [2.0])
    assert (cells.low.tolist(), cells.high.tolist()) == ([[0.0]], [[4.0]])
    assert cells.widest.tolist() == [0.5]


def test_far_cells_are_passed_over() -> None:
    """Else the cells would be right, and of no use."""
    points = torch.cat([torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) + 100 * i for i in range(5)])
    cells = Cells.of(points, np.full(1000, 0.1, np.float32), present(np.full(1000, 0.1, np.float32)))
    kept = cells.around(points[0])._reached(1.0)
    assert 0 < len(kept) < len(cells.centres) / 3


def test_few_mostly_hold_the_nearest() -> None:
    points = clustered(700, seed=3) + torch.rand(700, 6, generator=torch.Generator().manual_seed(4))
    cells = Cells.of(points, np.zeros(700, np.float32), present(np.zeros(700, np.float32)))
    queries = points[::10] + 0.01
    guessed = [cells.around(query).few(16)[0] for query in queries]
    assert all(0 < len(rows) <= 16 for rows in guessed)
    held = sum(row * 10 in rows for row, rows in enumerate(guessed))
    assert held >= 0.9 * len(queries)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_query_that_is_no_place_is_near_nothing(value: float) -> None:
    points, radius = clustered(60), radii(60)
    cells = Cells.of(points, radius, present(radius))
    for query in (torch.full((6,), value), torch.cat([points[0][:5], torch.tensor([value])])):
        assert cells.around(query).near(100.0)[0].tolist() == []
        assert cells.around(query).reaching(NO_SLACK)[0].tolist() == []


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
    cells = Cells.of(points[: ends[0]], radius[: ends[0]], present(radius[: ends[0]]))
    for end in ends[1:]:
        cells = cells.extended(points[len(cells) : end], radius[:end], present(radius[:end]))
    exact_queries, beside = points[:: max(1, len(points) // 6)], clustered(4, width, seed + 1) * scale
    for query in torch.cat([exact_queries, beside]):
        exact, members = distances(query, points), np.flatnonzero(radius >= 0)
        near = cells.around(query).near(within * scale)[0]
        assert set(members[exact[members] <= within * scale]) <= set(near.tolist()) <= set(members.tolist())
        reached = cells.around(query).reaching(NO_SLACK)[0]
        assert set(members[exact[members] <= radius[members]]) <= set(reached.tolist()) <= set(members.tolist())
