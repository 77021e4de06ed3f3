"""Low-rank deltas: the numbers of the formula, and one pair of products for however many different ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from editable.deltas import Delta, Stack, add, add_each, packed, unpacked
from editable.edit import Patch

FIRST = Delta(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0], [-1.0]]), 0.5)
"""Rank 1, two features in, three out."""

SECOND = Delta(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), 2.0)
"""Rank 2."""

GIVEN = torch.tensor([[[1.0, 1.0]], [[2.0, -1.0]], [[4.0, 0.0]]])  # three rows of one position
ROWS = torch.tensor([[[10.0, 20.0, 30.0]]]).repeat(3, 1, 1)


def test_one_delta_by_hand() -> None:
    """A x is 3, 0, 4; times s it is 1.5, 0, 2; B makes (3, 0, -1) of 1."""
    wanted = [[14.5, 20.0, 28.5], [10.0, 20.0, 30.0], [16.0, 20.0, 28.0]]
    assert add(ROWS, GIVEN, FIRST)[:, 0].tolist() == wanted


def test_a_delta_for_each_row_by_hand() -> None:
    """The first row takes the second delta: A x = (1, 1), B A x = (1, 2, 0), twice that is added."""
    stack = Stack.of([FIRST, SECOND])
    due = torch.tensor([[True], [True], [False]])
    found = add_each(ROWS, GIVEN, stack, torch.tensor([1, 0, 1]), due)
    assert found[:, 0].tolist() == [[12.0, 24.0, 30.0], [10.0, 20.0, 30.0], [10.0, 20.0, 30.0]]


def test_rows_that_are_not_due_keep_every_bit() -> None:
    """Adding a delta of zeros would turn -0.0 into 0.0."""
    rows = torch.full((1, 1, 3), -0.0)
    nothing = Delta(torch.zeros(1, 2), torch.zeros(3, 1), 1.0)
    number, never = torch.zeros(1, dtype=torch.long), torch.tensor([[False]])
    assert torch.signbit(add_each(rows, GIVEN[:1], Stack.of([nothing]), number, never)).all()
    assert not torch.signbit(add_each(rows, GIVEN[:1], Stack.of([nothing]), number, ~never)).any()


def test_only_due_positions_change() -> None:
    given, rows = GIVEN[:1].repeat(1, 3, 1), ROWS[:1].repeat(1, 3, 1)
    due = torch.tensor([[False, True, False]])
    found = add_each(rows, given, Stack.of([FIRST]), torch.zeros(1, dtype=torch.long), due)
    assert found[0].tolist() == [[10.0, 20.0, 30.0], [14.5, 20.0, 28.5], [10.0, 20.0, 30.0]]


class Products(TorchDispatchMode):
    """Counts batched products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "bmm" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_batch_costs_two_products_however_many_deltas_it_meets() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = [Delta(torch.randn(2, 4, generator=generator), torch.randn(6, 2, generator=generator), 1.0)] * 50
    stack, given, rows = Stack.of(deltas), torch.randn(8, 3, 4), torch.randn(8, 3, 6)
    due = torch.ones(8, 3, dtype=torch.bool)
    for number in (torch.zeros(8, dtype=torch.long), torch.arange(8) * 6):
        with Products() as products:  # type: ignore[no-untyped-call]
            add_each(rows, given, stack, number, due)
        assert products.count == 2


def test_what_is_added_in_half_precision_was_computed_in_the_deltas_own() -> None:
    rows, given = ROWS.bfloat16(), GIVEN.bfloat16()
    found = add(rows, given, FIRST)
    assert found.dtype == torch.bfloat16 and torch.equal(found, add(ROWS, GIVEN, FIRST).bfloat16())


def test_a_stack_grows_and_lets_go() -> None:
    older = Stack.of([SECOND])
    newer = older.append([FIRST.padded(2)])
    assert len(older.down) == 1 and len(newer.down) == 2
    left = newer.let_go(np.array([0]))
    number, due = torch.tensor([1, 1, 1]), torch.ones(3, 1, dtype=torch.bool)
    assert torch.equal(add_each(ROWS, GIVEN, left, number, due), add(ROWS, GIVEN, FIRST))


def test_a_patch_brings_back_what_was_packed() -> None:
    tensors, meta = packed({"a.b": FIRST, "c": SECOND})
    found = unpacked(Patch("x", tensors, meta))
    assert list(found) == ["a.b", "c"]
    for path, delta in (("a.b", FIRST), ("c", SECOND)):
        assert _same(found[path].down, delta.down) and _same(found[path].up, delta.up)
        assert found[path].scaling == delta.scaling
    assert unpacked(Patch("x", {"answer": torch.tensor([1])})) == {}


def _same(found: Tensor, wanted: Tensor) -> bool:
    return torch.equal(found, wanted) and found.data_ptr() != wanted.data_ptr()
