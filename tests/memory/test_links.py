"""Links: every row that was ever said to name a number, each once and in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from editable.memory.links import Links


def test_nothing_names_what_was_never_named() -> None:
    links = Links()
    assert (links.of(0), links.of(10**6), links.of(-1)) == ([], [], [])


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 50)), max_size=80))
def test_any_entries(entries: list[tuple[int, int]]) -> None:
    links = Links()
    for number, row in entries:
        links.add(number, row)
    for number in range(201):
        assert links.of(number) == sorted({row for own, row in entries if own == number})
