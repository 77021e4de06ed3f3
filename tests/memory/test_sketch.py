"""Sketches: a short image never makes two vectors look further apart than they are measured to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory.distance import UNIT
from editable.memory.sketch import DIRECTIONS, Sketch, Slack
from tests.memory.kinds import KINDS, alike, distances, drawn, few_directions, heavy


def apart(sketch: Sketch, own: Tensor, vectors: Tensor) -> tuple[Tensor, float]:
    """Distances (n,) of sketches, computed in float32, and the longest sketch."""
    sketches = sketch.of(vectors)
    return distances(own, sketches), max(float(sketches.norm(dim=1).amax()), float(own.norm()))


def check_never_exaggerates(vectors: Tensor, queries: Tensor, sketch: Sketch) -> None:
    sketched = sketch.of_queries(queries)
    for place, query in enumerate(queries):
        check_bounds(sketch, query, vectors, sketch.of(query[None])[0], 0.0)
        check_bounds(sketch, query, vectors, torch.from_numpy(sketched.points[place]), sketched.errors[place])


def check_bounds(sketch: Sketch, query: Tensor, vectors: Tensor, own: Tensor, error: float) -> None:
    short, size = apart(sketch, own, vectors)
    slack = Slack.of(vectors.shape[1], size, error)
    exact = (vectors.double() - query.double()).norm(dim=1)
    for reference in (distances(query, vectors), exact):
        assert bool((short <= slack(reference.double())).all())


@pytest.mark.parametrize("features", [1, 2, 7, DIRECTIONS, DIRECTIONS + 1, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sketch_never_exaggerates(kind: str, features: int) -> None:
    """Vectors it was fitted to and others, fewer features than directions, and more."""
    vectors = KINDS[kind](60, features, 3)
    sketch = Sketch.of_sample(vectors[:40])
    queries = torch.cat([vectors[::9], vectors[:3] + 1e-3 * drawn(3, features, 5), drawn(2, features, 8)])
    check_never_exaggerates(vectors, queries, sketch)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 2**31),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)
def test_whatever_it_was_fitted_to(sample: int, features: int, kind: str, seed: int, scale: float) -> None:
    """Vectors that have nothing to do with the sample are bounded as well as those of the sample."""
    sketch = Sketch.of_sample(drawn(sample, features, seed))
    vectors = KINDS[kind](30, features, seed + 1) * scale
    check_never_exaggerates(vectors, vectors[:4], sketch)


def test_the_directions_are_orthonormal() -> None:
    for vectors in (drawn(500, 300), few_directions(50, 300, 1), alike(50, 300, 1), drawn(5, 300)):
        directions = Sketch.of_sample(vectors).directions
        identity = torch.eye(directions.shape[1], dtype=torch.float64)
        torch.testing.assert_close(directions.T @ directions, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "features", "directions"), [(500, 300, DIRECTIONS), (500, 5, 5), (4, 300, 4), (1, 300, 1)]
)
def test_how_many_directions_there_are(count: int, features: int, directions: int) -> None:
    vectors = drawn(count, features)
    sketch = Sketch.of_sample(vectors)
    assert (sketch.directions.shape[1], sketch.width) == (directions, directions + 1)
    assert (sketch.of(vectors).shape, sketch.of(vectors).dtype) == ((count, directions + 1), torch.float32)


def test_numbers_by_hand() -> None:
    """Mean (1, 0, 0), the first axis the only direction: (4, 3, 4) is 3 along it and 5 away from it."""
    axis = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    sketch = Sketch(torch.tensor([1.0, 0.0, 0.0]), axis)
    vectors = torch.tensor([[4.0, 3.0, 4.0], [1.0, 0.0, 0.0]])
    assert sketch.of(vectors).tolist() == [[3.0, 5.0], [0.0, 0.0]]
    sketched = sketch.of_queries(vectors)
    assert sketched.points.tolist() == [[3.0, 5.0], [0.0, 0.0]]
    assert sketched.lengths == [34.0, 0.0]


def test_the_leading_directions_are_found() -> None:
    """Variances 100, 25, 1, 1 ...: the first two axes come first, in this order."""
    vectors = drawn(4000, 20)
    vectors[:, 0] *= 10
    vectors[:, 1] *= 5
    directions = Sketch.of_sample(vectors).directions.abs()
    assert float(directions[0, 0]) > 0.99
    assert float(directions[1, 1]) > 0.99


def test_a_loose_cluster_takes_no_directions_from_a_tight_one() -> None:
    """By variance alone all directions would be the loose one's, whose numbers are a hundred times as large."""
    loose, tight = torch.zeros(500, 600), torch.zeros(500, 600)
    loose[:, : 2 * DIRECTIONS] = 100 * drawn(500, 2 * DIRECTIONS, 1)
    tight[:, -6:] = drawn(500, 6, 2)
    short = Sketch.of_sample(torch.cat([loose, tight])).of(tight)
    kept = (short[0] - short[1:]).norm(dim=1) / (tight[0] - tight[1:]).norm(dim=1)
    assert float(kept.min()) > 0.9


def test_where_few_directions_carry_everything_little_is_lost() -> None:
    vectors = drawn(200, 12, 1) @ drawn(12, 400, 2)
    sketch = Sketch.of_sample(vectors)
    short, _ = apart(sketch, sketch.of(vectors[:1])[0], vectors[1:])
    assert bool((short > 0.999 * (vectors[1:] - vectors[0]).norm(dim=1)).all())


def test_the_same_sample_gives_the_same_map() -> None:
    vectors = drawn(300, 64)
    first, again = Sketch.of_sample(vectors), Sketch.of_sample(vectors)
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(first.mean, again.mean)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    Sketch.of_sample(drawn(30, 8))
    assert torch.equal(torch.get_rng_state(), before)


# --- the slack ---


def test_slack_by_hand() -> None:
    stretch = (100 + 2 * DIRECTIONS + 8) * UNIT
    assert Slack.of(100, 3.0)(2.0) == pytest.approx(2 + 2 * stretch + 3 * 64 * UNIT, abs=1e-15)
    assert Slack.of(100, 3.0, 0.5)(0.0) == pytest.approx(3 * 64 * UNIT + 0.5, abs=1e-15)


def test_slack_takes_arrays_and_infinities() -> None:
    slack = Slack.of(8, 1.0)
    bounds = slack(torch.tensor([-torch.inf, 0.0, torch.inf]))
    assert bounds[0] == -torch.inf
    assert bounds[1] > 0
    assert bounds[2] == torch.inf


def test_the_unit_is_the_rounding_it_stands_for() -> None:
    """Half the gap behind 1."""
    assert torch.finfo(torch.float32).eps / 2 == UNIT


@pytest.mark.parametrize("features", [1, 33, 576, 1536])
def test_the_stretch_covers_a_float32_measurement(features: int) -> None:
    """What float32 measures is no further below the truth than the stretch gives back."""
    for seed in range(4):
        vectors = heavy(50, features, seed) * 10.0 ** (2 * seed - 3)
        query = heavy(1, features, seed + 50)[0]
        exact = (vectors.double() - query.double()).norm(dim=1)
        measured = distances(query, vectors).double()
        assert bool((exact <= Slack.of(features, 0.0)(measured)).all())
