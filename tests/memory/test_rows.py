"""Rows: whatever is appended, and to whichever view, every view goes on seeing exactly its own rows."""

from __future__ import annotations

import copy
import gc
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editable.memory import rows as rows_module
from editable.memory.rows import Rows

META = torch.device("meta")


def numbered(*numbers: int) -> Tensor:
    """Rows (len(numbers), 2) that can be told apart."""
    return torch.tensor([[n, n + 0.5] for n in numbers]).reshape(-1, 2)


def test_empty_rows_know_their_shape() -> None:
    rows = Rows.empty(3, 2, dtype=torch.long)
    assert (len(rows), rows.view.shape, rows.view.dtype) == (0, (0, 3, 2), torch.long)
    assert Rows.empty().view.shape == (0,)


def test_appending_gives_a_longer_view_and_leaves_the_older_one() -> None:
    none = Rows.empty(2)
    two = none.append(numbered(1, 2))
    five = two.append(numbered(3, 4, 5))
    assert [len(none), len(two), len(five)] == [0, 2, 5]
    assert torch.equal(two.view, numbered(1, 2))
    assert torch.equal(five.view, numbered(1, 2, 3, 4, 5))


def test_older_views_survive_growth() -> None:
    views = [Rows.empty(2)]
    for n in range(70):
        views.append(views[-1].append(numbered(n)))
    for length, rows in enumerate(views):
        assert torch.equal(rows.view, numbered(*range(length)))


def test_growth_moves_seldom() -> None:
    """Amortised cost: a thousand appends allocate a buffer no oftener than it doubles."""
    rows, buffers = Rows.empty(2), set[int]()
    for n in range(1000):
        rows = rows.append(numbered(n))
        buffers.add(rows.view.data_ptr())
    assert len(buffers) <= 8  # 8, 18, 38 ... rows: eight doublings reach 1,000


def test_a_view_shares_the_buffer() -> None:
    rows = Rows.empty(2).append(numbered(1))
    longer = rows.append(numbered(2))
    assert longer.view.data_ptr() == rows.view.data_ptr()


def test_a_fork_leaves_the_abandoned_sibling_alone() -> None:
    base = Rows.empty(2).append(numbered(1, 2))
    first, second = base.append(numbered(3)), base.append(numbered(4, 5))
    third = base.append(numbered(6))
    assert torch.equal(first.view, numbered(1, 2, 3))
    assert torch.equal(second.view, numbered(1, 2, 4, 5))
    assert torch.equal(third.view, numbered(1, 2, 6))


def test_both_sides_of_a_fork_go_on() -> None:
    base = Rows.empty(2).append(numbered(1))
    abandoned, taken = base.append(numbered(2)), base.append(numbered(3))
    assert torch.equal(abandoned.append(numbered(4)).view, numbered(1, 2, 4))
    assert torch.equal(taken.append(numbered(5)).view, numbered(1, 3, 5))
    assert torch.equal(abandoned.view, numbered(1, 2))


def test_appending_nothing_is_the_same_rows() -> None:
    rows = Rows.empty(2).append(numbered(1))
    assert torch.equal(rows.append(numbered()).view, rows.view)


def test_rows_take_the_buffers_type() -> None:
    rows = Rows.empty(2, dtype=torch.bfloat16).append(torch.tensor([[1.0, 1 / 3]]))
    assert rows.view.dtype == torch.bfloat16
    assert rows.view.tolist() == [[1.0, 0.333984375]]


def test_appended_rows_are_copied() -> None:
    given_rows = numbered(1)
    rows = Rows.empty(2).append(given_rows)
    given_rows.zero_()
    assert torch.equal(rows.view, numbered(1))


def test_a_reader_inside_a_graph_is_not_disturbed() -> None:
    """Views of one buffer share a version counter: a plain write would break a graph that holds an older view."""
    rows = Rows.empty(2).append(numbered(1))
    weight = torch.ones(2, requires_grad=True)
    product = (rows.view * weight).sum()
    version = rows.view._version
    rows.append(numbered(2))
    assert rows.view._version == version
    product.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.5]


def test_rows_are_a_value() -> None:
    with pytest.raises(FrozenInstanceError):
        Rows.empty(2).length = 3  # type: ignore[misc]


def test_the_own_device_needs_no_copy() -> None:
    rows = Rows.empty(2).append(numbered(1))
    assert rows.on(torch.device("cpu")).data_ptr() == rows.view.data_ptr()


def test_a_copy_on_another_device_is_kept() -> None:
    rows = Rows.empty(2).append(numbered(1, 2))
    first, again = rows.on(META), rows.on(META)
    assert (first.device, first.shape) == (META, (2, 2))
    assert again._base is first._base is not None  # both are views of one copy


def test_the_copy_follows_appends_and_serves_older_views() -> None:
    two = Rows.empty(2).append(numbered(1, 2))
    assert two.on(META).shape == (2, 2)
    three = two.append(numbered(3))
    assert three.on(META).shape == (3, 2)
    assert two.on(META).shape == (2, 2)
    assert two.on(META)._base is three.on(META)._base


def test_a_fork_does_not_see_its_siblings_copy() -> None:
    base = Rows.empty(2).append(numbered(1))
    left, right = base.append(numbered(2)), base.append(numbered(3))
    assert left.on(META)._base is not right.on(META)._base


def test_a_deep_copy_is_independent() -> None:
    rows = Rows.empty(2).append(numbered(1))
    twin = copy.deepcopy(rows)
    longer, other = rows.append(numbered(2)), twin.append(numbered(3))
    assert torch.equal(longer.view, numbered(1, 2))
    assert torch.equal(other.view, numbered(1, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=25))
def test_any_tree_of_appends(steps: list[tuple[int, int]]) -> None:
    """Append so many rows to any earlier view, in any order: a plain list of lists agrees."""
    views, expected = [Rows.empty(2)], [list[int]()]
    for number, (parent, count) in enumerate(steps):
        parent %= len(views)
        new = [100 * number + i for i in range(count)]
        views.append(views[parent].append(numbered(*new)))
        expected.append(expected[parent] + new)
    for rows, numbers in zip(views, expected, strict=True):
        assert torch.equal(rows.view, numbered(*numbers))


# --- what nobody sees any more ---


def test_an_abandoned_sibling_that_is_gone_leaves_its_room() -> None:
    """An edit that was refused: appending again takes the same place, without a copy of everything."""
    base = Rows.empty(2).append(numbered(1, 2))
    refused = base.append(numbered(3))
    place = refused.view.data_ptr()
    del refused
    gc.collect()
    again = base.append(numbered(4))
    assert again.view.data_ptr() == place
    assert torch.equal(again.view, numbered(1, 2, 4))


def test_a_sibling_that_somebody_still_holds_keeps_its_room() -> None:
    base = Rows.empty(2).append(numbered(1, 2))
    held = base.append(numbered(3))
    again = base.append(numbered(4))
    assert again.view.data_ptr() != held.view.data_ptr()
    assert torch.equal(held.view, numbered(1, 2, 3))


def test_the_copy_on_a_device_forgets_what_was_written_over() -> None:
    base = Rows.empty(2).append(numbered(1))
    refused = base.append(numbered(2))
    assert refused.on(META).shape == (2, 2)
    copies = refused.buffer.copies
    del refused
    gc.collect()
    again = base.append(numbered(3))
    assert again.buffer.copies is copies
    assert copies[META][0] == 1  # so that the second row is copied anew


# --- rows that lie in a file ---


def filed(*numbers: int) -> Rows:
    return Rows.on_disk(2).append(numbered(*numbers)) if numbers else Rows.on_disk(2)


def test_rows_on_disk_are_the_same_rows() -> None:
    rows, views = filed(), [filed()]
    for n in range(70):
        rows = rows.append(numbered(n))
        views.append(rows)
    assert rows.view.dtype == torch.float32
    for length, view in enumerate(views):
        assert torch.equal(view.view, filed(*range(length)).view)


def test_a_larger_file_begins_with_the_same_rows_and_serves_the_older_views() -> None:
    two = filed(1, 2)
    many = two.append(numbered(*range(100)))
    assert torch.equal(two.view, numbered(1, 2))
    assert torch.equal(many.view, numbered(1, 2, *range(100)))


def test_a_fork_on_disk_leaves_the_abandoned_sibling_alone() -> None:
    base = filed(1, 2)
    first, second = base.append(numbered(3)), base.append(numbered(4, 5))
    third = base.append(numbered(*range(50)))
    assert torch.equal(first.view, numbered(1, 2, 3))
    assert torch.equal(second.view, numbered(1, 2, 4, 5))
    assert torch.equal(third.view, numbered(1, 2, *range(50)))


def test_rows_given_back_to_the_system_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "RELEASED_BYTES", 32)
    rows = filed()
    for n in range(60):
        rows = rows.append(numbered(n))
    assert rows.buffer.held_bytes <= 32  # type: ignore[attr-defined]
    assert torch.equal(rows.view, numbered(*range(60)))


def resident_kib(address: int) -> int:
    """Of the mapping that begins there."""
    _, _, behind = Path("/proc/self/smaps").read_text().partition(f"\n{address:x}-")
    return int(behind.split("\nRss:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_what_was_read_of_a_file_is_given_back_and_read_again() -> None:
    rows = Rows.on_disk(1024).append(torch.ones(64, 1024))
    assert float(rows.view.sum()) == 65536
    assert resident_kib(rows.view.data_ptr()) >= 256
    rows.release()
    assert resident_kib(rows.view.data_ptr()) == 0
    assert float(rows.view.sum()) == 65536


def test_releasing_rows_in_memory_changes_nothing() -> None:
    rows = Rows.empty(3).append(torch.ones(2, 3))
    rows.release()
    assert rows.view.tolist() == [[1.0] * 3] * 2


def test_nothing_on_disk_has_no_file_to_map() -> None:
    assert filed().view.shape == (0, 2)
    assert filed().append(numbered()).view.shape == (0, 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.booleans()), max_size=20))
def test_any_tree_of_appends_on_disk(steps: list[tuple[int, int, bool]]) -> None:
    """As above; and some versions are dropped on the way, whose room may be taken by others."""
    versions: list[tuple[Rows, list[int]]] = [(filed(), [])]
    for number, (parent, count, dropped) in enumerate(steps):
        rows, known = versions[parent % len(versions)]
        new = [100 * number + i for i in range(count)]
        versions.append((rows.append(numbered(*new)), known + new))
        del rows
        if dropped and len(versions) > 2:
            versions.pop(-2)
    for rows, known in versions:
        assert torch.equal(rows.view, numbered(*known))


@pytest.mark.parametrize("rows", [Rows.empty(3, dtype=torch.long), Rows.on_disk(3)], ids=["memory", "disk"])
def test_rows_like_others(rows: Rows) -> None:
    alike = rows.append(torch.ones(4, 3)).like()
    assert (len(alike), alike.view.shape, alike.view.dtype) == (0, (0, 3), rows.view.dtype)
    assert type(alike.buffer) is type(rows.buffer)
    assert alike.append(torch.full((2, 3), 7)).view.tolist() == [[7, 7, 7], [7, 7, 7]]
