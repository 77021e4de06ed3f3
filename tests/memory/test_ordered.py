"""Members in the order of their cells: everybody once, in his own cell, whenever he came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editable.memory import ordered
from editable.memory.ordered import BLOCK, HEAD, Ordered


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one member, so that what is found can be told by hand."""
    monkeypatch.setattr(ordered, "BLOCK", 1)


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places)[:, None]


def apart(*distances: float) -> np.ndarray:
    return np.array(distances, np.float32)


def found(
    members: Ordered, place: float, cells: list[int], ring: tuple[float, float] = (0.0, np.inf), far: float = 1e30
) -> dict[int, float]:
    least, most = (np.full(len(cells), edge) for edge in ring)
    rows, squared = members.within(apart(place), np.array(cells, np.int64), least, most, far)
    return dict(zip(rows.tolist(), squared.tolist(), strict=True))


@pytest.mark.usefixtures("one_by_one")
def test_by_hand() -> None:
    """Rows 5, 6, 7 in cells 2, 0, 2; then row 8 in cell 0 and row 9 in cell 1."""
    cells = np.array([2, 0, 2])
    members = Ordered.empty(3, 1).with_members(np.array([5, 6, 7]), line(1.0, 2.0, 3.0), cells, apart(0.0, 5.0, 2.0))
    assert (members.starts.tolist(), members.rows.tolist()) == ([0, 1, 1, 3], [6, 5, 7])
    more = members.with_members(np.array([8, 9]), line(4.0, 5.0), np.array([0, 1]), apart(4.0, 0.0))
    assert (more.starts.tolist(), more.rows.tolist()) == ([0, 2, 3, 5], [8, 6, 9, 5, 7])
    assert more.at(np.array([0, 1, 2, 3, 4]))[:, 0].tolist() == [4.0, 2.0, 5.0, 1.0, 3.0]
    assert members.rows.tolist() == [6, 5, 7]
    assert found(more, 0.0, [0, 2]) == {6: 4.0, 8: 16.0, 5: 1.0, 7: 9.0}
    assert found(more, 0.0, [0, 2], far=4.0) == {6: 4.0, 5: 1.0}
    assert found(more, 0.0, [1, 2], far=9.0) == {5: 1.0, 7: 9.0}
    assert found(more, 0.0, [0, 2], (1.0, 4.5)) == {8: 16.0, 5: 1.0, 7: 9.0}  # 5 begins before the ring
    assert found(more, 0.0, [0, 2], (4.5, 5.0)) == {8: 16.0, 6: 4.0, 7: 9.0}
    assert found(more, 0.0, [0, 2], (0.0, 1.0)) == {5: 1.0}
    assert found(more, 0.0, []) == {}


@pytest.mark.usefixtures("one_by_one")
def test_members_at_no_finite_distance_stay_in_their_cell() -> None:
    """The line rises to the next cell there, where others are at its centre."""
    cells = np.array([1, 1, 0, 0])
    distances = apart(0.0, 1e30, np.inf, 3e38)
    members = Ordered.empty(2, 1).with_members(np.array([2, 3, 0, 1]), line(2.0, 3.0, 0.0, 1.0), cells, distances)
    assert found(members, 0.0, [0]) == {0: 0.0, 1: 1.0}
    assert found(members, 0.0, [1]) == {2: 4.0, 3: 9.0}
    assert found(members, 0.0, [0, 1], (0.0, 1.0)) == {2: 4.0}
    assert found(members, 0.0, [0], (np.inf, np.inf)) == {0: 0.0, 1: 1.0}


@pytest.mark.usefixtures("one_by_one")
def test_few_are_those_with_the_nearest_heads() -> None:
    """Beyond its head the second is farther than the third."""
    vectors = torch.zeros(4, HEAD + 1)
    vectors[:, 0] = torch.tensor([9.0, 1.0, 2.0, 0.0])
    vectors[1, HEAD] = 5.0
    members = Ordered.empty(2, HEAD + 1).with_members(np.arange(4), vectors, np.array([0, 0, 0, 1]), apart(0, 0, 0, 0))
    for count, expected in ((2, {1: 26.0, 2: 4.0}), (9, {0: 81.0, 1: 26.0, 2: 4.0})):
        rows, squared = members.few(np.zeros(HEAD + 1, np.float32), np.array([0]), count)
        assert dict(zip(rows.tolist(), squared.tolist(), strict=True)) == expected


def test_a_block_is_read_once_and_as_far_as_it_is_filled() -> None:
    """Three cells in the first block, the last one in the second, too, of which nine places are empty."""
    cells = np.array([0, 0, 1, 1, 2, 2, 2, 2, 2])
    members = Ordered.empty(3, 1).with_members(np.arange(9), line(*map(float, range(9))), cells, apart(*range(9)))
    assert (BLOCK, members.heads.shape) == (8, (2, 8))
    everybody = {row: float(row**2) for row in range(9)}
    assert found(members, 0.0, [0, 1]) == {row: everybody[row] for row in range(8)}
    assert found(members, 0.0, [0, 1, 2]) == found(members, 0.0, [2]) == everybody
    assert found(members, 0.0, [2], (0.0, 6.0)) == {row: everybody[row] for row in range(8)}
    rows, _ = members.few(apart(0.0), np.array([0, 1, 2]), 20)
    assert sorted(rows.tolist()) == list(range(9))


def test_of_many_as_far_from_the_centre_none_is_missed() -> None:
    """Several blocks begin at the very edge of the ring."""
    members = Ordered.empty(1, 1).with_members(
        np.arange(50), torch.zeros(50, 1), np.zeros(50, np.int64), apart(*[1.0] * 45, *[2.0] * 5)
    )
    assert set(found(members, 0.0, [0], (1.0, 1.0))) >= set(range(45))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=20), max_size=5),
    st.integers(0, 2**31),
    st.sets(st.integers(0, 6)),
    st.sampled_from([1, HEAD, HEAD + 1, 40]),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_whatever_comes_all_of_a_ring_are_found_in_it(
    parts: list[list[int]], seed: int, asked: set[int], width: int, scale: float
) -> None:
    """More may be, but none that is too far, and none twice."""
    generator, members = torch.Generator().manual_seed(seed), Ordered.empty(7, width)
    cells, vectors, distances = np.empty(0, np.int64), torch.empty(0, width), apart()
    for part in parts:
        some = torch.randn(len(part), width, generator=generator), scale * torch.rand(len(part), generator=generator)
        rows = len(cells) + np.arange(len(part))
        members = members.with_members(rows, some[0], np.array(part, np.int64), some[1].numpy())
        cells, vectors = np.append(cells, np.array(part, np.int64)), torch.cat([vectors, some[0]])
        distances = np.append(distances, some[1].numpy())
    query, chosen = torch.randn(width, generator=generator), np.array(sorted(asked), np.int64)
    least, most = (np.full(len(chosen), scale * edge) for edge in (0.25, 0.75))
    rows, squared = members.within(query.numpy(), chosen, least, most, 2.0 * width)
    exact = (vectors - query).square().sum(dim=1).numpy()
    near = np.isin(cells, chosen) & (exact <= 2 * width)
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) >= set(
        np.flatnonzero(near & (distances >= 0.25 * scale) & (distances <= 0.75 * scale)).tolist()
    )
    assert set(rows.tolist()) <= set(np.flatnonzero(exact <= 2 * width).tolist())
    assert squared == pytest.approx(exact[rows])
