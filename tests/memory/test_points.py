"""Keys that stay as they are: which is nearest, which stands in for which, and that order plays no part."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from editable.memory.points import Points, closest

RADIUS = 1.0
KEYS = {"a": [(0.0, 0.0)], "b": [(3.0, 4.0), (9.0, 0.0)], "c": [(0.0, 1.5)]}
LABELS = {"a": 1, "b": 1, "c": 2}
QUERIES = torch.tensor([(0.0, 0.0), (0.0, 0.6), (0.0, 0.9), (3.0, 4.5), (9.0, 2.0), (math.nan, 0.0)])


def points_of(*names: str) -> Points:
    points = Points.empty(2)
    for slot, name in enumerate(names):
        points = points.add(torch.tensor(KEYS[name]), name, slot, LABELS[name], RADIUS)
    return points


def found(points: Points, names: tuple[str, ...], queries: Tensor = QUERIES) -> list[str | None]:
    slot, share = points.nearest(queries)
    return [names[at] if near <= 1 else None for at, near in zip(slot.tolist(), share.tolist(), strict=True)]


def test_the_nearest_key_within_its_radius() -> None:
    names = ("a", "b", "c")
    assert found(points_of(*names), names) == ["a", "a", "c", "b", None, None]
    _, share = points_of(*names).nearest(QUERIES[:2])
    assert share.tolist() == [0.0, pytest.approx(0.6)]


@pytest.mark.parametrize("names", itertools.permutations("abc"))
def test_the_order_of_owners_plays_no_part(names: tuple[str, ...]) -> None:
    points = points_of(*names)
    assert found(points, names) == found(points_of("a", "b", "c"), ("a", "b", "c"))
    assert {name: points.conflicts(name) for name in names} == {"a": ((), ("c",)), "b": ((), ()), "c": ((), ("a",))}


def test_a_key_at_the_place_of_another_stands_in_for_it_until_it_goes() -> None:
    points = points_of("a", "c")
    later = points.add(torch.tensor([(0.04, 0.0), (8.0, 8.0)]), "d", 2, 3, RADIUS)
    names = ("a", "c", "d")
    assert later.owners["d"].taken == (("a", 0),)
    assert later.conflicts("d") == (("a",), ("c",))
    assert found(later, names, QUERIES[:1]) == ["d"]
    assert found(points, names, QUERIES[:1]) == ["a"], "an older version sees what it saw"
    assert found(later.forget(["d"]), names) == found(points, names)
    left = later.forget(["a"])
    assert found(left, names, QUERIES[:1]) == ["d"] and left.conflicts("d") == ((), ("c",))
    assert found(left.forget(["d"]), names, QUERIES[:1]) == [None]


def test_of_three_at_one_place_the_latest_that_is_left() -> None:
    here = torch.tensor([(0.0, 0.0)])
    points = Points.empty(2)
    for slot, name in enumerate("xyz"):
        points = points.add(here, name, slot, slot, RADIUS)
    assert found(points, ("x", "y", "z"), here) == ["z"]
    assert found(points.forget(["y"]), ("x", "y", "z"), here) == ["z"]
    assert found(points.forget(["z"]), ("x", "y", "z"), here) == ["y"]
    assert found(points.forget(["y", "z"]), ("x", "y", "z"), here) == ["x"]


def test_recorded_places_hold_in_any_order() -> None:
    """The later edit is meant although its patch comes first."""
    here = torch.tensor([(0.0, 0.0)])
    late = Points.empty(2).add(here, "late", 0, 1, RADIUS, (("early", 0),))
    both = late.add(here, "early", 1, 2, RADIUS, ())
    assert found(both, ("late", "early"), here) == ["late"]
    assert found(both.forget(["late"]), ("late", "early"), here) == ["early"]


def test_distances_do_not_depend_on_what_else_is_there() -> None:
    many = Points.empty(3)
    draw = torch.Generator().manual_seed(0)
    for slot in range(40):
        many = many.add(torch.randn(2, 3, generator=draw), str(slot), slot, slot, RADIUS)
    queries = torch.randn(7, 3, generator=draw)
    whole, _ = many.distances(queries)
    few, _ = many.forget([str(slot) for slot in range(10, 40)]).distances(queries[2:3])
    assert torch.equal(whole[2:3, :20], few[:, :20])
    assert bool(few[:, 20:].isinf().all())


def test_closest_gives_each_owner_once() -> None:
    near = closest(points_of("a", "b", "c"), torch.tensor((0.0, 0.6)), 5)
    assert [slot for slot, _, _ in near] == [0, 2, 1]
    assert [distance for _, distance, _ in near] == pytest.approx([0.6, 0.9, math.hypot(3, 3.4)])
