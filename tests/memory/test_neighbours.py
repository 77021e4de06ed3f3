"""Neighbours by cosine: what brute force finds, before, while and after an index is there."""

from __future__ import annotations

import numpy as np
import torch

from editable.memory.neighbours import LATEST, Neighbours, cosines
from editable.memory.rows import Rows

WIDTH = 16


def unit(count: int, seed: int = 0) -> np.ndarray:
    """(count, WIDTH) in 50 clusters, as sentences are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, WIDTH))
    vectors = centres[rng.integers(50, size=count)] + 0.4 * rng.standard_normal((count, WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


def rows_of(vectors: np.ndarray) -> Rows:
    stacked = torch.from_numpy(np.repeat(vectors[:, None], 3, axis=1))
    return Rows.empty(3, WIDTH, dtype=torch.float16).append(stacked)


def brute(vectors: Rows, query: np.ndarray, seen: np.ndarray, count: int) -> list[int]:
    near = vectors.view[:, 0].float().numpy() @ query
    near[~seen] = -np.inf
    return list(np.lexsort((-np.arange(len(near)), -near))[: min(count, int(seen.sum()))].tolist())


def test_cosines_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert cosines(vectors, np.array([0.6, 0.8])).tolist() == torch.tensor([0.6, 1.0]).tolist()


def test_few_are_scanned() -> None:
    vectors, query = rows_of(unit(300)), unit(1, seed=1)[0]
    near = Neighbours.empty().following(vectors)
    assert near.lists is None and near.job is None
    seen = np.ones(300, np.bool_)
    assert near.nearest(vectors, query, seen, 16).tolist() == brute(vectors, query, seen, 16)


def test_what_may_not_be_seen_is_not_found() -> None:
    vectors, query = rows_of(unit(300)), unit(1, seed=1)[0]
    seen = np.arange(300) % 3 == 0
    found = Neighbours.empty().nearest(vectors, query, seen, 16).tolist()
    assert found == brute(vectors, query, seen, 16)
    assert {row % 3 for row in found} == {0}


def test_of_equally_near_ones_the_latest() -> None:
    vectors = rows_of(np.repeat(unit(1), 5, axis=0))
    assert Neighbours.empty().nearest(vectors, unit(1)[0], np.ones(5, np.bool_), 2).tolist() == [4, 3]


def test_an_index_finds_the_nearest_and_what_came_since() -> None:
    first = unit(2 * LATEST)
    vectors = rows_of(first)
    near = Neighbours.empty().settled(vectors)
    assert near.lists is not None and near.known == len(first)
    later = unit(1, seed=7)
    vectors = vectors.append(torch.from_numpy(np.repeat(later[:, None], 3, axis=1)))
    near = near.following(vectors)
    assert near.nearest(vectors, later[0], np.ones(len(vectors), np.bool_), 1).tolist() == [len(first)]
    seen, right = np.ones(len(vectors), np.bool_), 0
    for query in unit(50, seed=3):
        right += near.nearest(vectors, query, seen, 1).tolist() == brute(vectors, query, seen, 1)
    assert right >= 48


def test_an_index_takes_in_what_came_since() -> None:
    vectors = rows_of(unit(2 * LATEST))
    first = Neighbours.empty().settled(vectors)
    vectors = vectors.append(torch.from_numpy(np.repeat(unit(LATEST + 1, seed=5)[:, None], 3, axis=1)))
    second = first.settled(vectors)
    assert (first.known, second.known) == (2 * LATEST, len(vectors))
    assert second.made_at == first.made_at
    assert (first.lists.ntotal, second.lists.ntotal) == (2 * LATEST, len(vectors))
    seen, query = np.ones(len(vectors), np.bool_), unit(LATEST + 1, seed=5)[17]
    assert second.nearest(vectors, query, seen, 1).tolist() == brute(vectors, query, seen, 1)


def test_older_versions_keep_what_they_see() -> None:
    vectors = rows_of(unit(2 * LATEST))
    old = Neighbours.empty().following(vectors)
    new = old.settled(vectors)
    assert old.lists is None and new.lists is not None
    seen, query = np.ones(len(vectors), np.bool_), unit(1, seed=2)[0]
    assert old.nearest(vectors, query, seen, 4).tolist() == brute(vectors, query, seen, 4)
