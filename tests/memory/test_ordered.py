"""Members in the order of their cells: everybody once, in his own cell, whenever he came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory.loops import HEAD
from editable.memory.ordered import MOST, Coded, Ordered


def line(*places: float) -> Tensor:
    return torch.tensor(places)[:, None]


def coded(rows: list[int], cells: list[int], offsets: Tensor) -> Coded:
    return Coded.of(np.array(rows, np.int64), np.array(cells, np.int64), offsets)


def test_codes_by_hand() -> None:
    """The largest number of an offset is 127 units; the others are rounded to units."""
    one = coded([3, 4, 5], [0, 1, 0], torch.tensor([[0.0, -254.0, 3.2], [1.27, 0.635, 0.0], [0.0, 0.0, 0.0]]))
    assert one.scales[:2].tolist() == pytest.approx([2.0, 0.01])
    assert one.codes.tolist() == [[0, -MOST, 2], [MOST, 64, 0], [0, 0, 0]]
    assert one.apart.tolist() == pytest.approx([254.02016, 1.4199032, 0.0])
    assert (one.rows.tolist(), one.cells.tolist()) == ([3, 4, 5], [0, 1, 0])


def test_by_hand() -> None:
    """Rows 5, 6, 7 in cells 2, 0, 2; then row 8 in cell 0 and row 9 in cell 1."""
    members = Ordered.empty(3, 1).with_members(coded([5, 6, 7], [2, 0, 2], line(0.0, 5.0, 2.0)))
    assert (members.starts.tolist(), members.rows.tolist()) == ([0, 1, 1, 3], [6, 5, 7])
    more = members.with_members(coded([8, 9], [0, 1], line(-4.0, 0.5)))
    assert (more.starts.tolist(), more.rows.tolist()) == ([0, 2, 3, 5], [8, 6, 9, 5, 7])
    assert more.apart.tolist() == [4.0, 5.0, 0.5, 0.0, 2.0]
    assert more.heads[:, 0].tolist() == [-MOST, MOST, MOST, 0, MOST]
    assert members.rows.tolist() == [6, 5, 7]


def test_of_equally_far_ones_the_new_come_later() -> None:
    members = Ordered.empty(1, 1).with_members(coded([0, 1], [0, 0], line(1.0, -1.0)))
    assert members.with_members(coded([2, 3], [0, 0], line(1.0, 0.5))).rows.tolist() == [3, 0, 1, 2]


def test_members_at_no_finite_distance_come_last_in_their_cell() -> None:
    members = Ordered.empty(2, 1).with_members(coded([2, 3], [1, 0], line(0.0, float("inf"))))
    more = members.with_members(coded([4, 5], [0, 0], line(3e38, float("nan"))))
    assert (more.starts.tolist(), more.rows.tolist()) == ([0, 3, 4], [4, 3, 5, 2])


def test_the_first_numbers_of_a_code_lie_apart() -> None:
    offsets = torch.arange(float(HEAD + 2))[None]
    members = Ordered.empty(1, HEAD + 2).with_members(coded([0], [0], offsets))
    assert (members.heads.shape, members.tails.shape) == ((1, HEAD), (1, 2))
    assert members.tails.tolist() == [[round(HEAD * MOST / (HEAD + 1)), MOST]]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=20), max_size=5),
    st.integers(0, 2**31),
    st.sampled_from([1, HEAD, HEAD + 1, 100]),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
)
def test_whatever_comes_everybody_is_there_as_he_is(
    parts: list[list[int]], seed: int, width: int, scale: float
) -> None:
    """In his cell, in order, and no farther from where he is than the code may be wrong."""
    generator, members = torch.Generator().manual_seed(seed), Ordered.empty(7, width)
    cells, offsets = np.empty(0, np.int64), torch.empty(0, width)
    for part in parts:
        some = scale * torch.randn(len(part), width, generator=generator)
        rows = len(cells) + np.arange(len(part))
        members = members.with_members(Coded.of(rows, np.array(part, np.int64), some))
        cells, offsets = np.append(cells, np.array(part, np.int64)), torch.cat([offsets, some])
    assert sorted(members.rows.tolist()) == list(range(len(cells)))
    for cell in range(7):
        there = slice(members.starts[cell], members.starts[cell + 1])
        assert set(cells[members.rows[there]]) <= {cell}
        assert (np.sort(members.apart[there]) == members.apart[there]).all()
    codes = torch.cat([members.heads, members.tails], dim=1)
    assert not codes[:, width:].any()
    stands_for = codes[:, :width].double() * torch.from_numpy(members.scales)[:, None]
    wrong = (stands_for - offsets[torch.from_numpy(members.rows).long()].double()).norm(dim=1).numpy()
    assert (wrong <= members.error * members.scales).all()
