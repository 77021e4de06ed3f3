"""Compiled loops do what they say by hand; what they are for is tested where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from editable.memory import loops

LINE = np.array([[0.0], [3.0], [1.0], [7.0]], np.float32)
AT_ZERO = np.zeros(1, np.float32)
IN_ORDER = np.empty(0, np.int64)


def test_squares_stop_where_bounds_are_beyond_the_least_so_far() -> None:
    """Nine, and then one: from there on only what may be nearer than 1 is measured, and nothing behind a bound of 2."""
    everywhere = np.array([1, 2, 0, 3])
    measured = loops.squares(AT_ZERO, LINE, everywhere, np.empty(0, np.float32), 1.0, 0.0)
    assert measured.tolist() == [9.0, 1.0, 0.0, 49.0]
    bounds = np.array([0.5, 0.9, 2.0, 2.5], np.float32)
    assert loops.squares(AT_ZERO, LINE, everywhere, bounds, 1.0, 0.0).tolist() == [9.0, 1.0, np.inf, np.inf]
    assert loops.squares(AT_ZERO, LINE, everywhere, bounds, 2.0, 0.1).tolist() == [9.0, 1.0, 0.0, np.inf]


@pytest.mark.parametrize(
    ("most", "expected"), [(0.5, {}), (1.0, {2: 1.0}), (9.0, {1: 9.0, 2: 1.0}), (49.0, {1: 9.0, 2: 1.0, 3: 49.0})]
)
def test_late_rows_by_hand(most: float, expected: dict[int, float]) -> None:
    """Rows 1 and 2 have sketches that say the truth, row 3 has none."""
    arguments = AT_ZERO, AT_ZERO, LINE[1:3], LINE, IN_ORDER, 1, 4
    rows, squared = loops.late(*arguments, most, 1.0, 0.0)
    assert dict(zip(rows.tolist(), squared.tolist(), strict=True)) == expected


def test_late_rows_whose_sketches_are_too_far_are_not_measured() -> None:
    """A sketch that lies shows it: row 1 is at 3, and its sketch at 5."""
    sketches, between = np.array([[5.0], [1.0]], np.float32), (1, 3)
    near = loops.late(AT_ZERO, AT_ZERO, sketches, LINE, IN_ORDER, *between, 16.0, 1.0, 0.0)[0]
    wide = loops.late(AT_ZERO, AT_ZERO, sketches, LINE, IN_ORDER, *between, 16.0, 1.0, 1.0)[0]
    assert (near.tolist(), wide.tolist()) == ([2], [1, 2])


def test_late_rows_are_measured_where_their_keys_lie() -> None:
    moved = np.array([0, 3, 2, 1])
    rows, squared = loops.late(AT_ZERO, AT_ZERO, LINE[:0], LINE, moved, 1, 4, 100.0, 1.0, 0.0)
    assert dict(zip(rows.tolist(), squared.tolist(), strict=True)) == {1: 49.0, 2: 1.0, 3: 9.0}


def test_without_a_place_for_what_is_compiled_it_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def njit(cache: bool = False, **_: Any) -> Callable[[Any], Any]:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: loop

    monkeypatch.setattr(loops, "njit", njit)
    assert loops.compiled(abs)(-3) == 3
    assert asked == [True, False]
