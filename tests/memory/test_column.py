"""Columns: each is what a plain list would be, and every version of it goes on being what it was."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editable.memory.column import Column

PAIR = np.dtype([("number", np.int32), ("share", np.float64)])


def counted(length: int) -> Column:
    """0, 1, 2 ... appended one by one."""
    column = Column.empty(np.int64)
    for number in range(length):
        column = column.append([number])
    return column


def test_an_empty_column() -> None:
    column = Column.empty(np.float32)
    assert len(column) == 0
    assert column.tolist() == []
    assert column.array().dtype == np.float32
    assert column.take(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("at_once", [False, True])
def test_appended_or_made_at_once(length: int, at_once: bool) -> None:
    column = Column.of(np.arange(length)) if at_once else counted(length)
    assert len(column) == length
    assert column.tolist() == list(range(length))
    assert [column[row] for row in range(length)] == list(range(length))
    assert column[-1] == length - 1
    assert column.append([99, 98]).tolist() == [*range(length), 99, 98]
    assert column.tolist() == list(range(length))


@pytest.mark.parametrize("row", [3, -4, 100])
def test_a_row_that_is_not_there_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match=f"^row {row} of a column of 3$"):
        counted(3)[row]


def test_numbers_come_back_as_plain_python() -> None:
    assert type(counted(2)[1]) is int
    assert type(Column.of(np.array([True]))[0]) is bool
    assert Column.of(np.array([0.1], np.float32))[0] == float(np.float32(0.1))


def test_records() -> None:
    column = Column.empty(PAIR).append([(1, 0.5), (2, 0.25)])
    changed = column.put([0], np.array([(7, 0.75)], PAIR))
    assert (column[0], changed[0], changed[1]) == ((1, 0.5), (7, 0.75), (2, 0.25))
    assert column.take(np.array([1, 0]), "share").tolist() == [0.25, 0.5]
    assert changed.array("number").tolist() == [7, 2]
    assert column.tolist("number") == [1, 2]
    assert column.take(np.array([0]))["number"].tolist() == [1]


def test_a_column_holds_a_copy() -> None:
    numbers = np.arange(3)
    column = Column.of(numbers)
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
    assert column.array(start=38).tolist() == [38, 39]
    assert column.take(np.array([39, 0, 16, 1])).tolist() == [39, 0, 16, 1]


def test_one_number_for_many_rows() -> None:
    assert counted(5).put([1, 3], 9).tolist() == [0, 9, 2, 9, 4]
    assert counted(5).put([], 9).tolist() == [0, 1, 2, 3, 4]


def test_versions_share_one_array() -> None:
    column = counted(100)
    array, versions = column.store.data, [column]
    for row in range(20):
        versions.append(versions[-1].put([row], -1).append([row]))
    assert all(version.store is column.store for version in versions)
    assert versions[-1].store.data is array
    assert [version.array()[: len(version)].sum() for version in versions[:2]] == [4950, 4949]


def test_what_nobody_holds_is_given_back() -> None:
    """A change is kept for the versions before it."""
    first = counted(4)
    second = first.put([0], 10)
    third = second.put([1], 11)
    change = weakref.ref(second.version)
    del second
    gc.collect()
    assert change() is not None
    assert first.tolist() == [0, 1, 2, 3]
    del first
    gc.collect()
    assert change() is None
    assert third.tolist() == [10, 11, 2, 3]


def test_both_sides_of_a_fork_go_on() -> None:
    base = counted(3)
    left, right = base.append([10]), base.append([20])
    assert left.append([11]).tolist() == [0, 1, 2, 10, 11]
    assert right.append([21]).tolist() == [0, 1, 2, 20, 21]
    assert (left.tolist(), right.tolist(), base.tolist()) == ([0, 1, 2, 10], [0, 1, 2, 20], [0, 1, 2])


def test_a_shorter_future_of_a_fork() -> None:
    base = counted(3)
    left = base.append([10, 11, 12])
    right = base.put([0], -1).append([20])
    assert (left.tolist(), right.tolist()) == ([0, 1, 2, 10, 11, 12], [-1, 1, 2, 20])
    assert left.put([5], 0).tolist() == [0, 1, 2, 10, 11, 0]
    assert right.append([21, 22, 23]).tolist() == [-1, 1, 2, 20, 21, 22, 23]
    assert left.tolist() == [0, 1, 2, 10, 11, 12]


def test_readers_of_a_version_never_see_a_later_one() -> None:
    """One writer puts -1 over everything, again and again; three readers hold what was there."""
    column, wrong, done = counted(2000), list[int](), threading.Event()
    held = [column]

    def read() -> None:
        rows = np.arange(0, 2000, 3)
        while not done.is_set():
            version, number = held[-1], len(held)
            got = version.take(rows)
            if not (got == (rows if number == 1 else rows - 10**6 * (rows % 10 < number - 1))).all():
                wrong.append(number)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(10):
        step = len(held)
        rows = np.arange(2000)[np.arange(2000) % 10 == step - 1]
        held.append(held[-1].put(rows, rows - 10**6))
    done.set()
    for reader in readers:
        reader.join()
    assert column.tolist() == list(range(2000))
    assert wrong == []


numbers = st.integers(-5, 5)
append_step = st.tuples(st.just("append"), st.integers(0, 99), st.lists(numbers, max_size=20))
put_step = st.tuples(st.just("put"), st.integers(0, 99), st.lists(st.tuples(st.integers(0, 99), numbers), max_size=6))
of_step = st.tuples(st.just("of"), st.just(0), st.lists(numbers, max_size=40))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(append_step, put_step, of_step), max_size=14))
def test_any_tree_of_changes_is_a_tree_of_lists(steps: list[tuple[str, int, list[Any]]]) -> None:
    """Each step changes any version there is; at the end every version is still its own list."""
    versions, expected = [Column.empty(np.int32)], [list[int]()]
    for act, which, given_numbers in steps:
        column, plain = versions[which % len(versions)], list(expected[which % len(versions)])
        if act == "append":
            column = column.append(given_numbers)
            plain += given_numbers
        elif act == "of":
            column, plain = Column.of(np.array(given_numbers, np.int32)), given_numbers
        elif plain:
            pairs = {row % len(plain): number for row, number in given_numbers}
            column = column.put(list(pairs), list(pairs.values()))
            for row, number in pairs.items():
                plain[row] = number
        versions.append(column)
        expected.append(plain)
    for column, plain in zip(versions, expected, strict=True):
        check(column, plain)


def check(column: Column, plain: list[int]) -> None:
    assert column.tolist() == plain
    assert len(column) == len(plain)
    assert [column[row] for row in range(len(plain))] == plain
    rows = np.arange(len(plain))[::-1]
    assert column.take(rows).tolist() == plain[::-1]
    assert column.array(start=len(plain) // 2).tolist() == plain[len(plain) // 2 :]


def test_where_a_number_is() -> None:
    first = Column.empty(np.int32).append([3, 5, 3])
    later = first.put([0], 7)
    assert first.where(3).tolist() == [0, 2]
    assert (later.where(3).tolist(), later.where(7).tolist(), later.where(9).tolist()) == ([2], [0], [])
