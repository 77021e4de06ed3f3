"""Balls around keys: GRACE's insert rule number by number, lookups against brute force, forgetting against never."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory.radius import SPLIT_GAP, Codebook, Placed

NONE = -math.inf
Row = tuple[float | Sequence[float], Hashable]


def point(place: float | Sequence[float]) -> Tensor:
    """A key (features,); a bare number is a key on the line."""
    return torch.tensor([place] if isinstance(place, int | float) else list(place), dtype=torch.float32)


def fed(*rows: Row, radius: float = 1.0, resolution: float = 0.0, features: int = 1) -> Codebook:
    """A book that was given these (place, label) in order, owned by "0", "1" ... ."""
    book = Codebook.empty(features, resolution)
    for index, (place, label) in enumerate(rows):
        book = book.add(point(place), label, str(index), radius)
    return book


def found(book: Codebook, *places: float | Sequence[float]) -> list[int | None]:
    """The row that each place falls into, None where it falls into none."""
    row, share = book.find(torch.stack([point(place) for place in places]))
    hit = share <= 1
    return [int(r) if h else None for r, h in zip(row, hit, strict=True)]


def radii(book: Codebook) -> list[float]:
    return book.radii.tolist()


def brute_force(book: Codebook, query: Tensor) -> tuple[int, float]:
    """(row, distance) of the nearest ball by one plain loop; of equally near ones the latest."""
    best, least = 0, math.inf
    for row, key in enumerate(book.keys.view):
        distance = float((key - query).norm())
        if float(book.radii[row]) >= 0 and distance <= least:
            best, least = row, distance
    return best, least


def check_against_brute_force(book: Codebook, queries: Tensor) -> None:
    row, share = book.find(queries)
    hit = share <= 1
    for index, query in enumerate(queries):
        near, distance = brute_force(book, query)
        inside = distance <= float(book.radii[near]) if math.isfinite(distance) else False
        assert bool(hit[index]) == inside
        if inside:
            assert int(row[index]) == near


@pytest.mark.parametrize("features", [96, 300, 600])
@pytest.mark.parametrize("alike", [3, 80])
def test_keys_that_differ_in_their_last_numbers_alone(features: int, alike: int) -> None:
    """What is read first of a key tells nothing of these, be they few or many."""
    draw = torch.Generator().manual_seed(features + alike)
    keys = torch.zeros(alike, features)
    keys[:, -8:] = 3 * torch.randn(alike, 8, generator=draw)
    others = 5 * torch.randn(40, features, generator=draw)
    both = torch.cat([keys, others])
    book = Codebook.empty(features)
    book = book.add_all(
        both, list(range(len(both))), [str(n) for n in range(len(both))], [1.0] * len(both), [None] * len(both)
    )
    check_against_brute_force(book, both + 0.1 * torch.randn(both.shape, generator=draw))
    check_against_brute_force(book, torch.cat([both, torch.full((1, features), torch.nan)]))


# ------------------------------------------------------------------------- the published rule, resolution 0


def test_add_to_an_empty_book() -> None:
    """(a) The first key gets a ball of the initial radius."""
    book = fed((0.0, "x"))
    assert radii(book) == [1.0]
    assert book.placed == (Placed("add", -1, math.inf),)
    assert found(book, 0.0, 1.0, -1.0, 1.001) == [0, 0, 0, None]


def test_add_where_balls_cannot_touch() -> None:
    """(a) d = 2.5 > eps_init + eps = 2: a ball of its own, the other one as it was."""
    book = fed((0.0, "x"), (2.5, "y"))
    assert radii(book) == [1.0, 1.0]
    assert [p.kind for p in book.placed] == ["add", "add"]
    assert found(book, 0.9, 1.25, 1.6) == [0, None, 1]


def test_balls_that_just_touch_are_near() -> None:
    """(a), (b): d = eps_init + eps exactly is not "greater", so different labels split."""
    book = fed((0.0, "x"), (2.0, "y"))
    assert radii(book)[1] == 1.0
    assert book.placed[1] == Placed("split", 0, 2.0)


def test_split() -> None:
    """(b) d = 0.5 and another label: eps_new = d/2, eps_old = d/2 - 1e-5."""
    book = fed((0.0, "x"), (0.5, "y"))
    assert radii(book) == pytest.approx([0.25 - 1e-5, 0.25], abs=1e-8)
    assert book.placed[1] == Placed("split", 0, 0.5)
    assert found(book, 0.0, 0.2499, 0.24999999, 0.25, 0.26, 0.75, 0.76) == [0, 0, None, 1, 1, 1, None]


def test_split_in_the_plane() -> None:
    """(b) with the Euclidean norm: (3, 4) lies 5 from the origin."""
    book = fed(((0.0, 0.0), "x"), ((3.0, 4.0), "y"), radius=4.0, features=2)
    assert radii(book) == pytest.approx([2.5 - 1e-5, 2.5])


def test_expand() -> None:
    """(c) d = 1.5, the same label: eps <- d, no new ball."""
    book = fed((0.0, "x"), (1.5, "x"))
    assert radii(book) == [1.5, NONE]
    assert book.placed[1] == Placed("expand", 0, 1.5)
    assert found(book, 1.5, -1.5, 1.501) == [0, 0, None]


def test_covered() -> None:
    """(d) d = 0.5 <= eps, the same label: nothing to the book."""
    book = fed((0.0, "x"), (0.5, "x"))
    assert radii(book) == [1.0, NONE]
    assert book.placed[1] == Placed("covered", 0, 0.5)
    assert found(book, 0.5, 1.0, 1.001) == [0, 0, None]


def test_only_the_nearest_ball_is_split() -> None:
    book = fed((0.0, "x"), (3.0, "y"), (3.8, "z"))
    assert radii(book) == pytest.approx([1.0, 0.4 - 1e-5, 0.4])


def test_the_rule_measures_from_expanded_balls() -> None:
    """eps_init + eps_near counts what the ball has grown to: 2.6 <= 1 + 1.8, so a far key still splits it."""
    book = fed((0.0, "x"), (1.8, "x"), (-2.6, "y"))
    assert radii(book) == pytest.approx([1.3 - 1e-5, 1.0, 1.3])  # 1.8, no longer reached, gets its own


def test_each_key_brings_its_own_initial_radius() -> None:
    book = Codebook.empty(1, 0.0).add(point(0.0), "x", "a", 2.0).add(point(2.4), "y", "b", 0.25)
    assert radii(book) == [2.0, 0.25]  # 2.4 > 0.25 + 2.0
    book = Codebook.empty(1, 0.0).add(point(0.0), "x", "a", 2.0).add(point(2.4), "y", "b", 0.5)
    assert radii(book) == pytest.approx([1.2 - 1e-5, 1.2])  # 2.4 <= 0.5 + 2.0


# --------------------------------------------------------------------------------- where we differ, and say so


def test_g1_a_key_at_the_same_place_supersedes() -> None:
    """The published split at d = 0 gives radii 0 and -1e-5, and neither is ever found."""
    book = fed((0.0, "x"), (0.0, "y"))
    assert radii(book) == [NONE, 1.0]
    assert book.placed[1] == Placed("add", -1, math.inf, superseded=(0,))
    assert found(book, 0.0, 0.5) == [1, 1]


def test_g1_the_newest_of_many_answers() -> None:
    book = fed(*[(0.0, label) for label in "uvwxyz"])
    assert found(book, 0.0) == [5]
    assert [p.superseded for p in book.placed] == [(), (0,), (1,), (2,), (3,), (4,)]


def test_the_same_place_is_known_up_to_the_resolution() -> None:
    """0.05 of the radius is the same place, since an activation differs in its last bits between batches."""
    assert fed((0.0, "x"), (0.049, "y"), resolution=0.05).placed[1].superseded == (0,)
    assert fed((0.0, "x"), (0.051, "y"), resolution=0.05).placed[1].kind == "split"


def test_a_key_may_supersede_one_ball_and_split_the_next() -> None:
    book = fed((0.0, "x"), (1.5, "z"), (0.0, "y"), resolution=0.05)
    # 1.5 <= 2: x and z split at 0.75; y takes x's place and splits z, which keeps what it had.
    assert radii(book) == pytest.approx([NONE, 0.75 - 1e-5, 0.75])
    assert book.placed[2] == Placed("split", 1, 1.5, superseded=(0,))


def test_a_split_never_enlarges_the_older_ball() -> None:
    """y has 0.1 after z came; w at 1.5 from it would give it 0.75."""
    book = fed((0.0, "y"), (0.2, "z"), (-1.0, "w"))
    assert radii(book) == pytest.approx([0.1 - 1e-5, 0.1, 0.5])


def test_an_expanding_ball_reaches_a_little_beyond_the_key() -> None:
    book = fed((0.0, "x"), (1.5, "x"), resolution=0.05)
    assert radii(book) == pytest.approx([1.5 + 0.05, NONE])
    assert found(book, 1.5 + 1e-6) == [0]


def test_a_key_that_loses_its_cover_gets_a_ball_of_its_own() -> None:
    """Covered at 0.9 by x, whose ball shrinks to 0.15: 1.2 from z, so half of it."""
    book = fed((0.0, "x"), (0.9, "x"), (-0.3, "z"))
    assert radii(book) == pytest.approx([0.15 - 1e-5, 1.0, 0.15])
    assert (book.placed[1].kind, book.placed[1].freed) == ("covered", True)
    assert found(book, 0.9, 0.0, -0.3) == [1, 0, 2]


def test_a_freed_key_keeps_clear_of_the_other_label() -> None:
    """Freed at 0.9 with z's ball at 0.6 as the nearest: d/2 = 0.15."""
    book = fed((0.0, "x"), (0.9, "x"), (0.6, "z"))
    assert radii(book) == pytest.approx([0.3 - 1e-5, 0.15, 0.3])


def test_a_key_whose_cover_is_superseded_goes_on_answering() -> None:
    book = fed((0.0, "x"), (0.9, "x"), (0.0, "y"))
    assert book.placed[2].superseded == (0,)
    assert found(book, 0.9, 0.0) == [1, 2]


def test_duplicates_are_superseded_together() -> None:
    """The same edit twice, the second a rounding error away, and then another answer: the place is all its own."""
    book = fed((0.0, "x"), (1e-4, "x"), (2e-4, "y"), resolution=0.05)
    places = [0.0, 5e-5, 1e-4, 1.2e-4, 1.5e-4, 2e-4, 3e-4]
    assert found(book, *places) == [2] * len(places)


def test_a_key_that_was_absorbed_far_from_its_host_can_be_superseded() -> None:
    """x at 0.9 lives in the ball at 0; its own place is taken by y, so x must not shadow y there."""
    book = fed((0.0, "x"), (0.9, "x"), (0.9 + 1e-4, "y"), resolution=0.05)
    places = [0.9 - 1e-4, 0.9, 0.9 + 2e-5, 0.9 + 4e-5, 0.9 + 1e-4, 0.9 + 2e-4]
    assert found(book, *places) == [2] * len(places)
    assert found(book, 0.0) == [0]


# ----------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("first", "second"),
    [((5, 6), (4, 7)), ((3,), (3, 3)), ((1, 2), (2, 1)), ((10, 2, 3), (5, 5, 5)), (("a", (1,)), ("b", (1,)))],
)
def test_g3_labels_of_equal_sum_or_mean_are_different_labels(first: Hashable, second: Hashable) -> None:
    book = fed((0.0, first), (0.5, second))
    assert book.placed[1].kind == "split"
    assert found(book, 0.0, 0.5) == [0, 1]


def test_g2_the_same_answer_at_another_length_of_prompt_expands() -> None:
    """What a label is made of does not include the prompt's mask: equal answers are one label."""
    book = fed((0.0, (5, 6, 2)), (1.5, (5, 6, 2)))
    assert book.placed[1].kind == "expand"


# ---------------------------------------------------------------------------------------------------- lookups


def scattered(count: int, features: int, seed: int, spread: float = 1.0, centre: float = 0.0) -> Codebook:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, features, generator=generator) * spread + centre
    book = Codebook.empty(features, 0.0)
    for row, key in enumerate(keys):
        book = book.add(key, row % 5, str(row), 2.0 * spread)
    return book


@pytest.mark.parametrize("count", [1, 3, 60])
def test_find_is_brute_force(count: int) -> None:
    book = scattered(count, 6, seed=count)
    queries = torch.randn(80, 6, generator=torch.Generator().manual_seed(7)) * 1.5
    check_against_brute_force(book, torch.cat([queries, book.keys.view]))


def test_of_equally_near_balls_the_latest_wins() -> None:
    book = fed((-1.0, "x"), (1.0, "y"), (3.0, "z"))
    assert found(book, 0.0, 2.0) == [None, 2]
    assert book.nearest(torch.zeros(1)) == (1, 1.0)


@pytest.mark.parametrize("features", [2, 4, 8, 16])
def test_however_many_are_equally_near_the_latest_wins(features: int) -> None:
    """Two keys on each axis, all at distance 1 from the origin."""
    corners = torch.cat([torch.eye(features), -torch.eye(features)])
    book = Codebook.empty(features, 0.0)
    for row, key in enumerate(corners):
        book = book.add(key, row, str(row), 0.25)
    assert book.nearest(torch.zeros(features)) == (2 * features - 1, 1.0)


def test_a_ball_of_radius_zero_holds_exactly_its_key() -> None:
    book = fed((1.0, "x"), radius=0.0)
    assert found(book, 1.0, math.nextafter(1.0, 2.0) + 1e-7) == [0, None]


def test_nan_and_infinity_never_hit() -> None:
    book = fed((0.0, "x"), (5.0, "y"), radius=100.0)
    assert found(book, math.nan, math.inf, -math.inf, 0.0) == [None, None, None, 0]


def test_one_nan_feature_is_enough() -> None:
    book = fed(((0.0, 0.0), "x"), features=2)
    assert found(book, (0.0, math.nan), (math.nan, 0.0), (0.0, 0.0)) == [None, None, 0]


def test_a_nan_row_does_not_disturb_its_batch() -> None:
    book = fed((0.0, "x"), (3.0, "y"))
    assert found(book, 0.1, math.nan, 3.1) == [0, None, 1]


@pytest.mark.parametrize("seed", range(4))
def test_large_norms_and_small_distances(seed: int) -> None:
    """Norms of about 1,000 and distances of about 1: squares of a million hide what decides."""
    features, centre = 64, 125.0  # 125 * sqrt(64) = 1,000
    book = scattered(40, features, seed, spread=1 / math.sqrt(features), centre=centre)
    noise = torch.randn(60, features, generator=torch.Generator().manual_seed(99 + seed)) / features
    queries = book.keys.view[torch.arange(60) % 40] + noise
    check_against_brute_force(book, torch.cat([queries, book.keys.view]))


def test_a_key_of_large_norm_is_found_again_at_its_own_place() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(256, generator=generator) * 1000  # a norm of about 16,000
    keys = base + torch.randn(50, 256, generator=generator) / 16  # neighbours about 1.4 apart
    book = Codebook.empty(256, 0.0)
    for row, key in enumerate(keys):
        book = book.add(key, row, str(row), 0.1)
    rows, share = book.find(keys)
    hit = share <= 1
    assert rows.tolist() == list(range(50))
    assert bool(hit.all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_key_that_is_no_place_is_refused(value: float) -> None:
    """It could be found by nobody, and a NaN among the distances would hide all others."""
    book = fed(((0.0, 0.0), "x"), features=2)
    with pytest.raises(ValueError, match=r"^The key of 'odd' has NaN or infinite features, expected finite ones\.$"):
        book.add(point((1.0, value)), "y", "odd", 1.0)
    assert found(book, (0.0, 0.0)) == [0]


def test_half_precision_queries_are_measured_in_full() -> None:
    book = fed((1.0, "x"), (1.5, "y"), radius=0.25)
    row, share = book.find(torch.tensor([[1.0], [1.5], [1.75], [1.7578125]], dtype=torch.bfloat16))
    hit = share <= 1
    assert row[:3].tolist() == [0, 1, 1]
    assert hit.tolist() == [True, True, True, False]


def test_an_empty_book_finds_nothing() -> None:
    assert found(Codebook.empty(2), (0.0, 0.0), (1.0, 2.0)) == [None, None]


def test_a_book_whose_keys_are_all_forgotten_finds_nothing() -> None:
    book = fed((0.0, "x"), (0.5, "y")).forget(frozenset({"0", "1"}))
    assert found(book, 0.0, 0.5) == [None, None]


# ------------------------------------------------------------------------------------------------- immutability


def test_a_book_is_a_value() -> None:
    book = fed((0.0, "x"), (1.5, "x"))
    before = (radii(book), len(book), book.placed, book.owners)
    book.add(point(0.1), "z", "new", 1.0)
    book.forget(frozenset({"0"}))
    assert (radii(book), len(book), book.placed, book.owners) == before
    assert found(book, 0.1, 1.5) == [0, 0]
    with pytest.raises(FrozenInstanceError):
        book.resolution = 1.0  # type: ignore[misc]


def test_two_futures_of_one_book() -> None:
    book = fed((0.0, "x"))
    left, right = book.add(point(3.0), "y", "l", 1.0), book.add(point(-3.0), "z", "r", 1.0)
    assert found(left, 3.0, -3.0) == [1, None]
    assert found(right, 3.0, -3.0) == [None, 1]


# -------------------------------------------------------------------------------------------------- namespaces


def spaced(*rows: tuple[float, str, str], radius: float = 1.0) -> Codebook:
    """A book that was given these (place, label, namespace) in order, owned by "0", "1" ... ."""
    book = Codebook.empty(1, 0.0)
    for index, (place, label, space) in enumerate(rows):
        book = book.add(point(place), label, str(index), radius, space=space)
    return book


def found_in(book: Codebook, space: str | None, *places: float) -> list[int | None]:
    row, share = book.find(torch.stack([point(place) for place in places]), space)
    return [int(r) if s <= 1 else None for r, s in zip(row, share, strict=True)]


def test_a_key_is_placed_among_those_of_its_namespace() -> None:
    """0.5 from y in another namespace is no reason to split; at the same place nothing is superseded."""
    book = spaced((0.0, "x", "a"), (0.5, "y", "b"), (0.0, "z", "b"), (0.0, "w", "c"))
    assert radii(book) == pytest.approx([1.0, 0.25 - 1e-5, 0.25, 1.0])
    assert [p.kind for p in book.placed] == ["add", "add", "split", "add"]
    assert all(p.superseded == () for p in book.placed)


def test_a_query_sees_its_namespace_only() -> None:
    book = spaced((0.0, "x", "a"), (0.5, "y", "b"), (5.0, "z", "b"))
    assert found_in(book, "a", 0.0, 0.5, 5.0) == [0, 0, None]
    assert found_in(book, "b", 0.0, 0.5, 5.0) == [1, 1, 2]
    assert found_in(book, "never seen", 0.0, 0.5, 5.0) == [None, None, None]
    assert found_in(book, None, 0.0, 0.5, 5.0) == [0, 1, 2]
    assert book.nearest(point(0.25), space="a") == (0, 0.25)
    assert book.nearest(point(0.4), space="never seen") == (-1, math.inf)


def test_without_a_namespace_a_key_is_in_the_default_one() -> None:
    book = fed((0.0, "x")).add(point(0.5), "y", "other", 1.0, space="other")
    assert found_in(book, "default", 0.0, 0.5) == [0, 0]
    assert found_in(book, "other", 0.0, 0.5) == [1, 1]


def test_forgetting_in_one_namespace_leaves_the_other_alone() -> None:
    book = spaced((0.0, "x", "a"), (0.0, "x", "b"), (0.5, "y", "b"), (0.5, "y", "a"))
    assert radii(book) == pytest.approx([0.25 - 1e-5, 0.25 - 1e-5, 0.25, 0.25])
    left = book.forget(frozenset({"2"}))
    assert radii(left) == pytest.approx([0.25 - 1e-5, 1.0, NONE, 0.25])
    assert found_in(left, "b", 0.5) == [1]
    assert found_in(left, "a", 0.5) == [3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-8, 8), st.sampled_from("xy"), st.sampled_from("ab")), min_size=1, max_size=14))
def test_two_namespaces_are_two_books(rows: list[tuple[int, str, str]]) -> None:
    book = spaced(*[(place / 4, label, space) for place, label, space in rows])
    grid = [n / 8 for n in range(-20, 21)]
    for space in "ab":
        own = [number for number, row in enumerate(rows) if row[2] == space]
        alone = fed(*[(rows[number][0] / 4, rows[number][1]) for number in own])
        assert [radii(book)[number] for number in own] == radii(alone)
        if own:
            expected = [None if row is None else own[row] for row in found(alone, *grid)]
            assert found_in(book, space, *grid) == expected


# ------------------------------------------------------------------------------------------------- looking near


def test_nearest_within_a_distance() -> None:
    book = fed((0.0, "x"), (3.0, "y"), (10.0, "z"))
    assert book.nearest(point(2.0)) == (1, 1.0)
    assert book.nearest(point(2.0), within=1.0) == (1, 1.0)
    row, distance = book.nearest(point(2.0), within=0.75)
    assert row == -1
    assert 0.75 < distance <= 1.0  # nobody is nearer
    assert book.nearest(point(2.0), without=[1]) == (0, 2.0)
    assert book.nearest(point(2.0), without=[0, 1, 2]) == (-1, math.inf)
    assert Codebook.empty(1).nearest(point(2.0)) == (-1, math.inf)


def test_rows_of_an_owner() -> None:
    book = Codebook.empty(1, 0.0)
    for place, owner in [(0.0, "a"), (5.0, "b"), (10.0, "a")]:
        book = book.add(point(place), owner, owner, 1.0)
    assert (book.rows_of("a"), book.rows_of("b"), book.rows_of("stranger")) == ([0, 2], [1], [])
    left = book.forget(frozenset({"a"}))
    assert (left.rows_of("a"), left.owners, left.owner(1)) == ([], (None, "b", None), "b")
    assert book.rows_of("a") == [0, 2]


def test_an_owner_that_comes_again_has_its_new_keys_only() -> None:
    book = fed((0.0, "x")).forget(frozenset({"0"})).add(point(5.0), "y", "0", 1.0)
    assert book.rows_of("0") == [1]
    assert book.owners == (None, "0")


# ------------------------------------------------------------------------------------------------ keys in a file


def test_a_book_on_disk_decides_alike() -> None:
    memory, disk = Codebook.empty(2, 0.05), Codebook.empty(2, 0.05, on_disk=True)
    draw = random.Random(2)
    for row in range(60):
        place, label = (draw.choice(LINE), draw.choice([0.0, 0.5])), draw.choice("xyz")
        memory, disk = (book.add(point(place), label, str(row), 1.0) for book in (memory, disk))
    memory, disk = (book.forget(frozenset(map(str, range(0, 60, 7)))) for book in (memory, disk))
    assert radii(memory) == radii(disk)
    grid = torch.cartesian_prod(torch.linspace(-2, 5, 29), torch.linspace(-0.5, 2, 6))
    for ours, theirs in zip(memory.find(grid), disk.find(grid), strict=True):
        assert torch.equal(ours, theirs)


# -------------------------------------------------------------------------------------------------- forgetting


def survivors(book: Codebook) -> Codebook:
    """A fresh book fed only the surviving keys in order."""
    fresh = Codebook.empty(book.keys.view.shape[1], book.resolution)
    for row, owner in enumerate(book.owners):
        if owner is not None:
            fresh = fresh.add(book.keys.view[row], book.labels[row], owner, book.life(row).initial)
    return fresh


def check_as_if_never(book: Codebook) -> None:
    """Bit-equal to the fresh book in radii, to brute force in what is found."""
    fresh = survivors(book)
    live = [row for row, owner in enumerate(book.owners) if owner is not None]
    assert [radii(book)[row] for row in live] == radii(fresh)
    assert [book.owners[row] for row in live] == list(fresh.owners)
    assert all(radii(book)[row] == NONE for row in range(len(book)) if row not in live)
    queries = book.keys.view
    if live:
        (row, share), (fresh_row, fresh_share) = book.find(queries), fresh.find(queries)
        assert torch.equal(share, fresh_share)
        hit, fresh_hit = share <= 1, fresh_share <= 1
        assert [book.owners[int(r)] for r in row[hit]] == [fresh.owners[int(r)] for r in fresh_row[fresh_hit]]


CASES: dict[str, list[Row]] = {
    "apart": [(0.0, "x"), (5.0, "y"), (10.0, "z")],
    "split": [(0.0, "x"), (0.5, "y"), (0.8, "z")],
    "expanded": [(0.0, "x"), (1.5, "x"), (2.9, "x")],
    "covered": [(0.0, "x"), (0.5, "x"), (-0.5, "x")],
    "superseded": [(0.0, "x"), (0.0, "y"), (0.0, "z")],
    "freed": [(0.0, "x"), (0.9, "x"), (-0.3, "z"), (1.2, "y")],
    "chained": [(0.0, "x"), (1.9, "y"), (3.9, "z"), (2.2, "y"), (0.0, "y")],
    "duplicates": [(0.0, "x"), (0.0, "x"), (0.0, "y"), (0.0, "x")],
}


@pytest.mark.parametrize("resolution", [0.0, 0.05])
@pytest.mark.parametrize("case", CASES)
def test_g5_forgetting_any_one_leaves_exactly_the_others(case: str, resolution: float) -> None:
    book = fed(*CASES[case], resolution=resolution)
    for owner in map(str, range(len(book))):
        check_as_if_never(book.forget(frozenset({owner})))


@pytest.mark.parametrize("case", CASES)
def test_g5_forgetting_in_any_order(case: str) -> None:
    for seed in range(6):
        book = fed(*CASES[case])
        order = [str(row) for row in range(len(book))]
        random.Random(seed).shuffle(order)
        for owner in order:
            book = book.forget(frozenset({owner}))
            check_as_if_never(book)
        assert found(book, 0.0) == [None]


def test_forgetting_the_newer_brings_the_older_back() -> None:
    book = fed((0.0, "x"), (0.0, "y"))
    assert found(book.forget(frozenset({"1"})), 0.0) == [0]
    assert found(book.forget(frozenset({"0"})), 0.0) == [1]


def test_forgetting_all_keys_of_an_owner() -> None:
    """A prompt and its rephrases came in one go."""
    book = Codebook.empty(1, 0.0)
    for place, owner in [(0.0, "a"), (5.0, "b"), (10.0, "b"), (15.0, "b"), (20.0, "c")]:
        book = book.add(point(place), owner, owner, 1.0)
    assert found(book.forget(frozenset({"b"})), 0.0, 5.0, 10.0, 15.0, 20.0) == [0, None, None, None, 4]
    assert found(book.forget(frozenset({"a", "c"})), 0.0, 5.0, 10.0, 15.0, 20.0) == [None, 1, 2, 3, None]


def test_forgetting_a_stranger_changes_nothing() -> None:
    book = fed((0.0, "x"), (0.5, "y"))
    assert radii(book.forget(frozenset({"stranger"}))) == radii(book)


@dataclass(frozen=True)
class Add:
    """An edit: its keys, all with one label, in one go."""

    places: tuple[tuple[float, float], ...]
    label: str
    radius: float = 1.0


@dataclass(frozen=True)
class Forget:
    """Of the edits made so far these, by number; numbers beyond are taken round."""

    edits: frozenset[int]


Step = Add | Forget

LINE = [0.0, 0.0625, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 4.0, -0.5, -1.25]
places = st.tuples(st.sampled_from(LINE), st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.5]))
adds = st.builds(
    Add,
    st.lists(places, min_size=1, max_size=3).map(tuple),
    st.sampled_from("xyz"),
    st.sampled_from([0.5, 1.0]),
)
forgets = st.builds(Forget, st.frozensets(st.integers(0, 15), min_size=1, max_size=3))
steps = st.lists(st.one_of(adds, adds, forgets), min_size=1, max_size=16)


def after(done: list[Step], resolution: float) -> Codebook:
    """The book that these steps lead to; owners are the numbers of the edits."""
    return recorded(done, resolution)[0]


def recorded(done: list[Step], resolution: float) -> tuple[Codebook, Codebook]:
    """The same, and a second one fed with what the first recorded of each key when it came."""
    book, again, edits = Codebook.empty(2, resolution), Codebook.empty(2, resolution), 0
    for step in done:
        if isinstance(step, Add):
            for place in step.places:
                book = book.add(point(place), step.label, str(edits), step.radius)
                known = replace(book.placed[-1], freed=False)
                again = again.add(point(place), step.label, str(edits), step.radius, known)
            edits += 1
        elif edits:
            now = frozenset(str(number % edits) for number in step.edits)
            book, again = book.forget(now), again.forget(now)
    return book, again


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([0.0, 0.05, 0.125]))
@example([Add(((0.0, 0.0),), "x"), Add(((0.5, 0.0),), "x"), Add(((0.5, 0.0),), "y")], 0.0)
def test_any_adds_and_forgets_are_as_if_the_forgotten_never_came(done: list[Step], resolution: float) -> None:
    check_as_if_never(after(done, resolution))


@settings(max_examples=80, deadline=None)
@given(steps, st.sampled_from([0.0, 0.05]))
def test_find_is_brute_force_whatever_happened(done: list[Step], resolution: float) -> None:
    book = after(done, resolution)
    if len(book):
        grid = torch.cartesian_prod(torch.linspace(-2, 5, 29), torch.linspace(-0.5, 2, 6))
        check_against_brute_force(book, grid)


@settings(max_examples=80, deadline=None)
@given(steps, places)
def test_the_newest_key_answers_at_its_own_place(done: list[Step], place: tuple[float, float]) -> None:
    """Whatever came before: an edit that was just made is found where it was made, under its own label."""
    book = after(done, 0.05).add(point(place), "newest", "newest", 1.0)
    (row,) = found(book, place)
    assert row is not None
    assert book.labels[row] == "newest"


# --------------------------------------------------------------------------------------------------- the record


@settings(max_examples=80, deadline=None)
@given(steps, st.sampled_from([0.0, 0.05]))
def test_recorded_placements_replay_to_the_same_book(done: list[Step], resolution: float) -> None:
    """As the log replays them: what was recorded when each key came, and the forgotten forgotten when they were."""
    book, again = recorded(done, resolution)
    assert radii(again) == radii(book)
    assert again.owners == book.owners


def test_a_recorded_placement_is_believed() -> None:
    """On another machine the distance may differ in its last bits: the record decides."""
    placed = Placed("expand", 0, 1.25)
    book = fed((0.0, "x")).add(point(1.5), "x", "b", 1.0, placed)
    assert radii(book) == [1.25, NONE]


def test_the_gap_is_the_published_one() -> None:
    assert SPLIT_GAP == 1e-5
