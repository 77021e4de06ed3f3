"""Finished parts survive; a torn last line is the only damage that is forgiven."""

from __future__ import annotations

from pathlib import Path

import pytest

from editable.errors import StateError
from editable.journal import Journal


def fail() -> float:
    raise AssertionError("made again")


def test_a_part_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "parts.jsonl"
    journal = Journal(path, "k")
    assert "a" not in journal
    assert journal.part("a", lambda: (0.1, None)) == [0.1, None]  # as JSON gives it back
    assert "a" in journal
    assert journal.part("a", fail) == [0.1, None]
    assert Journal(path, "k").part("a", fail) == [0.1, None]


def test_floats_come_back_to_the_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-300, 2 / 3, float("inf")]
    Journal(tmp_path / "parts.jsonl").part("a", lambda: values)
    assert Journal(tmp_path / "parts.jsonl").part("a", fail) == values


def test_a_part_that_fails_is_not_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "parts.jsonl")
    with pytest.raises(AssertionError):
        journal.part("a", fail)
    assert "a" not in journal
    assert journal.part("a", lambda: 1) == 1


@pytest.mark.parametrize("torn", [b'{"key": "k", "par', b"{", b'{"key": "k", "part": "b", "value": 2}'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "parts.jsonl"
    Journal(path, "k").part("a", lambda: 1)
    path.write_bytes(path.read_bytes() + torn)
    journal = Journal(path, "k")
    assert "b" not in journal
    journal.part("b", lambda: 3)
    again = Journal(path, "k")
    assert (again.part("a", fail), again.part("b", fail)) == (1, 3)


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    Journal(path, "k").part("a", lambda: 1)
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    expected = r"Journal 'parts.jsonl', line 2 cannot be read .* expected a finished part; remove the file"
    with pytest.raises(StateError, match=expected):
        Journal(path, "k")


def test_another_measurements_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    Journal(path, "k").part("a", lambda: 1)
    with pytest.raises(StateError, match=r"line 1 has key 'k', expected 'other'; it belongs to another measurement"):
        Journal(path, "other")


def test_removed_parts_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    journal = Journal(path)
    journal.part("a", lambda: 1)
    journal.remove()
    journal.remove()
    assert not path.exists()
    assert journal.part("a", lambda: 2) == 2


def test_without_a_path_nothing_is_written() -> None:
    journal = Journal()
    assert journal.part("a", lambda: {"x": (1,)}) == {"x": [1]}
    assert journal.part("a", fail) == {"x": [1]}
