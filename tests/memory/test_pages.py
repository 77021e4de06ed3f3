"""Pages: a column is what a plain list would be, and every version of it goes on being what it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editable.memory import pages as pages_module
from editable.memory.pages import Pages

SMALL = 16  # rows of a page here; the first one begins with as many


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pages_module, "PAGE", SMALL)
    yield


def counted(length: int) -> Pages:
    """0, 1, 2 ... appended one by one."""
    column = Pages.empty(np.int64)
    for number in range(length):
        column = column.append(number)
    return column


def test_an_empty_column() -> None:
    column = Pages.empty(np.float32)
    assert len(column) == 0
    assert column.tolist() == []
    assert column.array().dtype == np.float32
    assert column.where(1.0).tolist() == []
    assert column.take(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("length", [1, SMALL - 1, SMALL, SMALL + 1, 2 * SMALL, 2 * SMALL + 1])
@pytest.mark.parametrize("at_once", [False, True])
def test_appended_or_made_at_once(length: int, at_once: bool) -> None:
    column = Pages.of(np.arange(length)) if at_once else counted(length)
    assert len(column) == length
    assert column.tolist() == list(range(length))
    assert [column[row] for row in range(length)] == list(range(length))
    assert column[-1] == length - 1
    longer = column.append(99)
    assert longer.tolist() == [*range(length), 99]
    assert column.tolist() == list(range(length))


@pytest.mark.parametrize("row", [3, -4, 100])
def test_a_row_that_is_not_there_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match=f"^row {row} of a column of 3$"):
        counted(3)[row]


def test_numbers_come_back_as_plain_python() -> None:
    assert type(counted(2)[1]) is int
    assert type(Pages.of(np.array([True]))[0]) is bool
    assert Pages.of(np.array([0.1], np.float32))[0] == float(np.float32(0.1))


def test_a_column_holds_a_copy() -> None:
    numbers = np.arange(3)
    column = Pages.of(numbers)
    numbers[0] = 7
    column.array()[1] = 7
    column.take(np.array([2]))[0] = 7
    assert column.tolist() == [0, 1, 2]


def test_a_column_is_a_value() -> None:
    with pytest.raises(FrozenInstanceError):
        counted(1).length = 2  # type: ignore[misc]


def test_put_changes_these_rows_in_a_new_column() -> None:
    column = counted(40)
    changed = column.put([0, 15, 16, 39], [-1, -2, -3, -4])
    assert [changed[row] for row in (0, 1, 15, 16, 17, 39)] == [-1, 1, -2, -3, 17, -4]
    assert column.tolist() == list(range(40))


def test_one_number_for_many_rows() -> None:
    assert counted(5).put([1, 3], 9).tolist() == [0, 9, 2, 9, 4]
    assert counted(5).put([], 9).tolist() == [0, 1, 2, 3, 4]


def test_where_looks_in_every_page_and_only_at_rows_that_are_there() -> None:
    column = counted(40).put([2, 15, 16, 33], 7)
    assert column.where(7).tolist() == [2, 7, 15, 16, 33]
    assert Pages.empty(np.int32).append(0).where(0).tolist() == [0]  # not in the spare room behind it


def test_take_follows_the_order_asked_for() -> None:
    rows = np.array([39, 0, 16, 15, 16])
    assert counted(40).take(rows).tolist() == rows.tolist()
    assert counted(10).take(np.array([9, 0, 9])).tolist() == [9, 0, 9]


def test_appending_shares_the_storage() -> None:
    """Amortised cost: the pages before the last are the same objects, and the last one mostly too."""
    column, pages = Pages.empty(np.int64), set[int]()
    for number in range(10 * SMALL):
        column = column.append(number)
        pages |= {id(page) for page in column.pages}
    assert len(column.pages) == 10
    assert len(pages) <= 11


def test_putting_copies_only_the_pages_that_change() -> None:
    column = counted(4 * SMALL)
    changed = column.put([SMALL, SMALL + 1], 0)
    same = [old is new for old, new in zip(column.pages, changed.pages, strict=True)]
    assert same == [True, False, True, True]


def test_both_sides_of_a_fork_go_on() -> None:
    base = counted(3)
    left, right = base.append(10), base.append(20)
    assert left.append(11).tolist() == [0, 1, 2, 10, 11]
    assert right.append(21).tolist() == [0, 1, 2, 20, 21]
    assert (left.tolist(), right.tolist(), base.tolist()) == ([0, 1, 2, 10], [0, 1, 2, 20], [0, 1, 2])


def test_a_change_does_not_reach_what_is_appended_elsewhere() -> None:
    base = counted(SMALL + 3)
    changed = base.put([SMALL], -1)
    longer, other = base.append(50), changed.append(60)
    assert longer.tolist() == [*range(SMALL + 3), 50]
    assert other.tolist() == [*range(SMALL), -1, SMALL + 1, SMALL + 2, 60]


@pytest.mark.parametrize("length", [1, SMALL, SMALL + 1])
def test_the_last_row_can_be_written_before_anybody_sees_it(length: int) -> None:
    before = counted(length - 1)
    fresh = before.append(0)
    fresh.amend([length - 1], [77])
    assert fresh.tolist() == [*range(length - 1), 77]
    assert before.tolist() == list(range(length - 1))
    assert before.append(5).tolist() == [*range(length - 1), 5]
    assert fresh[-1] == 77


@pytest.mark.parametrize("start", [0, 1, SMALL - 1, SMALL, SMALL + 1])
@pytest.mark.parametrize("count", [0, 1, SMALL, 3 * SMALL + 1])
def test_many_rows_appended_at_once_are_as_one_by_one(start: int, count: int) -> None:
    before = counted(start)
    after = before.append(*range(100, 100 + count))
    assert after.tolist() == [*range(start), *range(100, 100 + count)]
    assert before.tolist() == list(range(start))
    assert before.append(*range(200, 203)).tolist() == [*range(start), 200, 201, 202]
    assert after.tolist() == [*range(start), *range(100, 100 + count)]


numbers = st.integers(-5, 5)
append_step = st.tuples(st.just("append"), st.integers(0, 99), st.lists(numbers, max_size=20))
put_step = st.tuples(st.just("put"), st.integers(0, 99), st.lists(st.tuples(st.integers(0, 99), numbers), max_size=6))
of_step = st.tuples(st.just("of"), st.just(0), st.lists(numbers, max_size=40))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(append_step, put_step, of_step), max_size=14))
def test_any_tree_of_changes_is_a_tree_of_lists(steps: list[tuple[str, int, list[Any]]]) -> None:
    """Each step changes any version there is; at the end every version is still its own list."""
    versions, expected = [Pages.empty(np.int32)], [list[int]()]
    for act, which, given_numbers in steps:
        column, plain = versions[which % len(versions)], list(expected[which % len(versions)])
        if act == "append":
            for number in given_numbers:
                column = column.append(number)
            plain += given_numbers
        elif act == "of":
            column, plain = Pages.of(np.array(given_numbers, np.int32)), given_numbers
        elif plain:
            pairs = {row % len(plain): number for row, number in given_numbers}
            column = column.put(list(pairs), list(pairs.values()))
            for row, number in pairs.items():
                plain[row] = number
        versions.append(column)
        expected.append(plain)
    for column, plain in zip(versions, expected, strict=True):
        check(column, plain)


def check(column: Pages, plain: list[int]) -> None:
    assert column.tolist() == plain
    assert len(column) == len(plain)
    for number in (-5, 0, 3):
        assert column.where(number).tolist() == [row for row, one in enumerate(plain) if one == number]
    rows = np.arange(len(plain))[::-1]
    assert column.take(rows).tolist() == plain[::-1]
