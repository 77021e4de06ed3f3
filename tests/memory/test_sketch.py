"""Sketches: a short image never makes two vectors look further apart than they are measured to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory.distance import UNIT
from editable.memory.sketch import COARSE, FINE, FINE_UNIT, Sketch, Slack
from tests.memory.kinds import KINDS, alike, distances, drawn, few_directions, heavy


def own_of(sketch: Sketch, vector: Tensor) -> tuple[Tensor, Tensor]:
    coarse, fine = sketch.of(vector[None])
    return coarse[0], fine[0]


def apart(sketch: Sketch, own: tuple[Tensor, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor, float]:
    """Distances (n,) of coarse sketches and of both, computed in float32, and the longest coarse sketch."""
    coarse, fine = sketch.of(vectors)
    own_coarse, own_fine = own
    near = (coarse[:, :-1] - own_coarse[:-1]).square().sum(dim=1)
    far = (fine.bfloat16().float() - own_fine).square().sum(dim=1)  # the index keeps them so
    both = (near + far).sqrt()
    size = max(float(coarse.norm(dim=1).amax()), float(own_coarse.norm()))
    return distances(own_coarse, coarse), both, size


def check_never_exaggerates(vectors: Tensor, queries: Tensor, sketch: Sketch) -> None:
    sketched = sketch.of_queries(queries)
    for place, query in enumerate(queries):
        fine, both_error = sketched.fine(place)
        own = sketched.coarse[place], torch.from_numpy(fine)
        check_bounds(sketch, query, vectors, own_of(sketch, query), (0.0, 0.0))
        check_bounds(sketch, query, vectors, own, (sketched.errors[place], both_error))


def check_bounds(
    sketch: Sketch, query: Tensor, vectors: Tensor, own: tuple[Tensor, Tensor], errors: tuple[float, float]
) -> None:
    coarse, both, size = apart(sketch, own, vectors)
    slack, fine_slack = (
        Slack.of(vectors.shape[1], size, error, fine) for error, fine in zip(errors, (False, True), strict=True)
    )
    exact = (vectors.double() - query.double()).norm(dim=1)
    for reference in (distances(query, vectors), exact):
        assert bool((coarse <= slack(reference.double())).all())
        assert bool((both <= fine_slack(reference.double())).all())


@pytest.mark.parametrize("features", [1, 2, 7, COARSE, COARSE + 1, COARSE + FINE, 300])
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
    ("count", "features", "coarse", "fine"),
    [(500, 300, COARSE, FINE), (500, COARSE + 9, COARSE, 9), (500, 5, 5, 0), (4, 300, 4, 0), (1, 300, 1, 0)],
)
def test_how_many_directions_there_are(count: int, features: int, coarse: int, fine: int) -> None:
    vectors = drawn(count, features)
    sketch = Sketch.of_sample(vectors)
    assert (sketch.coarse, sketch.directions.shape[1]) == (coarse, coarse + fine)
    short, rest = sketch.of(vectors)
    assert (short.shape, rest.shape) == ((count, coarse + 1), (count, fine + 1))
    assert (short.dtype, rest.dtype) == (torch.float32, torch.float32)


def test_numbers_by_hand() -> None:
    """Mean (1, 0, 0), the first axis the only direction: (4, 3, 4) is 3 along it and 5 away from it."""
    axis = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    sketch = Sketch(torch.tensor([1.0, 0.0, 0.0]), axis)
    coarse, fine = sketch.of(torch.tensor([[4.0, 3.0, 4.0], [1.0, 0.0, 0.0]]))
    assert coarse.tolist() == [[3.0, 5.0], [0.0, 0.0]]
    assert fine.tolist() == [[5.0], [0.0]]


def test_the_leading_directions_are_found() -> None:
    """Variances 100, 25, 1, 1 ...: the first two axes come first, in this order."""
    vectors = drawn(4000, 20)
    vectors[:, 0] *= 10
    vectors[:, 1] *= 5
    directions = Sketch.of_sample(vectors).directions.abs()
    assert float(directions[0, 0]) > 0.99
    assert float(directions[1, 1]) > 0.99


def test_a_loose_cluster_takes_no_directions_from_a_tight_one() -> None:
    """By variance alone all coarse directions would be the loose one's, whose numbers are a hundred times as large."""
    loose, tight = torch.zeros(500, 300), torch.zeros(500, 300)
    loose[:, : 2 * COARSE] = 100 * drawn(500, 2 * COARSE, 1)
    tight[:, -6:] = drawn(500, 6, 2)
    coarse, _ = Sketch.of_sample(torch.cat([loose, tight])).of(tight)
    kept = (coarse[0] - coarse[1:]).norm(dim=1) / (tight[0] - tight[1:]).norm(dim=1)
    assert float(kept.min()) > 0.9


def test_where_few_directions_carry_everything_little_is_lost() -> None:
    vectors = drawn(200, 12, 1) @ drawn(12, 400, 2)
    sketch = Sketch.of_sample(vectors)
    coarse, both, _ = apart(sketch, own_of(sketch, vectors[0]), vectors[1:])
    exact = (vectors[1:] - vectors[0]).norm(dim=1)
    assert bool((coarse > 0.999 * exact).all())
    assert bool((both > 0.99 * exact).all())


def test_the_fine_sketch_tells_more_than_the_coarse_one() -> None:
    vectors = drawn(2000, COARSE + FINE)
    sketch = Sketch.of_sample(vectors)
    coarse, both, _ = apart(sketch, own_of(sketch, vectors[0]), vectors[1:])
    assert float((both / coarse).median()) > 1.3  # all directions, against about half of them and a norm


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
    stretch = (100 + 2 * (COARSE + FINE) + 8) * UNIT
    assert Slack.of(100, 3.0)(2.0) == pytest.approx(2 + 2 * stretch + 3 * 64 * UNIT, abs=1e-15)
    assert Slack.of(100, 3.0, fine=True)(0.0) == pytest.approx(3 * (64 * UNIT + FINE_UNIT), abs=1e-15)


def test_slack_takes_arrays_and_infinities() -> None:
    slack = Slack.of(8, 1.0)
    bounds = slack(torch.tensor([-torch.inf, 0.0, torch.inf]))
    assert bounds[0] == -torch.inf
    assert bounds[1] > 0
    assert bounds[2] == torch.inf


def test_the_units_are_the_roundings_they_stand_for() -> None:
    """Half the gap behind 1; one of the two sketches compared is rounded to bfloat16."""
    assert torch.finfo(torch.float32).eps / 2 == UNIT
    assert torch.finfo(torch.bfloat16).eps / 2 <= FINE_UNIT


@pytest.mark.parametrize("features", [1, 33, 576, 1536])
def test_the_stretch_covers_a_float32_measurement(features: int) -> None:
    """What float32 measures is no further below the truth than the stretch gives back."""
    for seed in range(4):
        vectors = heavy(50, features, seed) * 10.0 ** (2 * seed - 3)
        query = heavy(1, features, seed + 50)[0]
        exact = (vectors.double() - query.double()).norm(dim=1)
        measured = distances(query, vectors).double()
        assert bool((exact <= Slack.of(features, 0.0)(measured)).all())
