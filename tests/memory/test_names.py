"""Names are numbered in order, and found as a dictionary would find them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Hashable

from hypothesis import given, settings
from hypothesis import strategies as st

from editable.memory.names import NONE, Names

ANY = st.one_of(
    st.integers(-5, 40).map(lambda number: number * 4096),
    st.text(max_size=2),
    st.tuples(st.integers(0, 3), st.booleans()),
    st.sampled_from([1, True, 1.0, 0, False, None, float("nan")]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, max_size=120), st.lists(ANY, max_size=10))
def test_as_a_dictionary(names: list[Hashable], others: list[Hashable]) -> None:
    found, known = Names(), dict[Hashable, int]()
    for name in names:
        assert found.number(name) == known.setdefault(name, len(known))
        assert found.find(name) == known[name]
    assert found.names == list(known)
    assert len(found) == len(known)
    for name in others:
        assert found.find(name) == known.get(name, NONE)


def test_by_hand() -> None:
    names = Names()
    assert names.find("a") == NONE
    assert [names.number(name) for name in ("a", "b", "a", "c")] == [0, 1, 0, 2]
    assert names.names == ["a", "b", "c"]


def test_it_takes_less_than_a_dictionary() -> None:
    words = [f"edit {number}" for number in range(20_000)]

    def taken(make: object) -> int:
        tracemalloc.start()
        kept = make()  # type: ignore[operator]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == len(words)
        return size

    def numbered() -> Names:
        names = Names()
        for word in words:
            names.number(word)
        return names

    assert taken(numbered) < taken(lambda: {word: number for number, word in enumerate(words)}) / 2
