"""Figures and their bars."""

from __future__ import annotations

from editable.benchmarks import bars
from editable.benchmarks.bars import Bar

BARS = [
    Bar("low enough", 1.0, "<=", 1.0, (0.5, 2.0)),
    Bar("too high", 1.01, "<=", 1.0),
    Bar("high enough", 8.0, ">=", 8.0),
    Bar("too low", 7.9, ">=", 8.0),
    Bar("not measured", None, "<=", 1.0),
]


def test_the_bar_itself_is_met_and_what_was_not_measured_is_not() -> None:
    assert list(bars.met(BARS).values()) == [True, False, True, False, False]


def test_a_table_shows_the_interval_where_there_is_one() -> None:
    first, second, *_ = bars.table(BARS).cells
    assert first == ["low enough", "1", "0.5", "2", "<= 1", "yes"]
    assert second == ["too high", "1.01", "-", "-", "<= 1", "NO"]
