"""Members in the order of their cells: everybody once, in his own cell, whenever he came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editable.memory import ordered
from editable.memory.ordered import HEAD, Ordered


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places)[:, None]


def found(members: Ordered, place: float, cells: list[int], far: float = np.inf) -> dict[int, float]:
    rows, apart = members.within(np.array([place], np.float32), np.array(cells, np.int64), far)
    return dict(zip(rows.tolist(), apart.tolist(), strict=True))


def test_by_hand() -> None:
    """Rows 5, 6, 7 in cells 2, 0, 2; then row 8 in cell 0 and row 9 in cell 1."""
    members = Ordered.empty(3, 1).with_members(np.array([5, 6, 7]), line(1.0, 2.0, 3.0), np.array([2, 0, 2]))
    assert (members.starts.tolist(), members.rows.tolist()) == ([0, 1, 1, 3], [6, 5, 7])
    more = members.with_members(np.array([8, 9]), line(4.0, 5.0), np.array([0, 1]))
    assert (more.starts.tolist(), more.rows.tolist()) == ([0, 2, 3, 5], [6, 8, 9, 5, 7])
    assert more.at(np.array([0, 1, 2, 3, 4]))[:, 0].tolist() == [2.0, 4.0, 5.0, 1.0, 3.0]
    assert members.rows.tolist() == [6, 5, 7]
    assert found(more, 0.0, [0, 2]) == {6: 4.0, 8: 16.0, 5: 1.0, 7: 9.0}
    assert found(more, 0.0, [0, 2], 4.0) == {6: 4.0, 5: 1.0}
    assert found(more, 0.0, [1, 2], 9.0) == {5: 1.0, 7: 9.0}
    assert found(more, 0.0, []) == {}


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members between two cells are passed over, however few they are."""
    monkeypatch.setattr(ordered, "GAP", 0)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=20), max_size=5),
    st.integers(0, 2**31),
    st.sets(st.integers(0, 6)),
    st.sampled_from([1, HEAD, HEAD + 1, 40]),
)
def test_whatever_comes_all_of_a_cell_is_found_in_it(
    parts: list[list[int]], seed: int, asked: set[int], width: int
) -> None:
    generator, members, known = (
        torch.Generator().manual_seed(seed),
        Ordered.empty(7, width),
        list[tuple[int, torch.Tensor]](),
    )
    for cells in parts:
        rows, vectors = (
            np.arange(len(known), len(known) + len(cells)),
            torch.randn(len(cells), width, generator=generator),
        )
        members = members.with_members(rows, vectors, np.array(cells, np.int64))
        known += zip(cells, vectors, strict=True)
    query = torch.randn(width, generator=generator)
    rows, apart = members.within(query.numpy(), np.array(sorted(asked), np.int64), 2.0 * width)
    exact = {row: float((vector - query).square().sum()) for row, (cell, vector) in enumerate(known) if cell in asked}
    assert dict(zip(rows.tolist(), apart.tolist(), strict=True)) == pytest.approx(
        {row: square for row, square in exact.items() if square <= 2 * width}
    )


def test_cells_a_few_members_apart_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of cells with 2, 0, 3, 1 members: the first and the last are one run if there may be three between them."""
    cells = np.array([0, 0, 2, 2, 2, 3])
    members = Ordered.empty(4, 1).with_members(np.arange(6), line(0.0, 1.0, 2.0, 3.0, 4.0, 5.0), cells)
    for gap, runs in ((3, ([0], [6])), (2, ([0, 5], [2, 6]))):
        monkeypatch.setattr(ordered, "GAP", gap)
        starts, stops = members._runs(np.array([0, 1, 3]))
        assert (starts.tolist(), stops.tolist()) == runs
    assert found(members, 0.0, [0, 1, 3]) == {0: 0.0, 1: 1.0, 5: 25.0}
    assert found(members, 0.0, [1]) == {}
