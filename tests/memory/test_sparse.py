"""Sparse rows: numbers stay, storage goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from editable.memory import sparse
from editable.memory.radius import Codebook
from editable.memory.rows import Rows
from editable.memory.sparse import SparseRows


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "FEWEST", 2)


def numbered(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


@pytest.mark.parametrize("empty", [Rows.empty, Rows.on_disk], ids=["memory", "disk"])
def test_numbers_stay_and_storage_goes(empty: Callable[[int], Rows]) -> None:
    whole = SparseRows.of(empty(1)).append(numbered(0, 1, 2, 3, 4))
    left = whole.let_go(np.array([0, 1, 3])).settled().append(numbered(5))
    assert len(left.rows) == 3
    assert left.at(torch.tensor([2, 4, 5])).tolist() == [[2.0], [4.0], [5.0]]
    assert whole.view.tolist() == numbered(0, 1, 2, 3, 4).tolist()


def test_all_rows_let_go() -> None:
    left = SparseRows.of(Rows.empty(1)).append(numbered(0, 1)).let_go(np.array([0, 1])).settled()
    assert left.slice(0, 2).shape == (2, 1)
    assert left.append(numbered(7)).at(torch.tensor([2])).tolist() == [[7.0]]


def test_a_book_goes_on_after_all_its_keys_were_forgotten() -> None:
    book = Codebook.empty(1, 0.0).add(numbered(0)[0], "x", "a", 1.0).add(numbered(9)[0], "y", "a", 1.0)
    book = book.forget(frozenset({"a"})).settled().add(numbered(5)[0], "z", "b", 1.0)
    row, share = book.find(numbered(0, 5))
    assert (share <= 1).tolist() == [False, True]
    assert int(row[1]) == 2
