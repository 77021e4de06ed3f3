"""Openings against a plain list of answers: no beginning is ever missed, and few other texts pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editable.memory.openings import BITS_EACH, LEAST_BITS, Openings

ANSWERS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=6)
TEXTS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def of(answers: list[list[int]], openings: Openings | None = None) -> Openings:
    """Of these answers; those that `openings` has are the first of them."""
    flat = torch.tensor([token for answer in answers for token in answer], dtype=torch.long)
    lengths = torch.tensor([len(answer) for answer in answers], dtype=torch.long)
    spans = torch.stack([lengths.cumsum(0) - lengths, lengths], dim=1)
    return (openings or Openings.empty()).following(flat, spans)


def ends(openings: Openings, text: list[int], longest: int) -> list[bool]:
    found: list[bool] = openings.ending(np.array([text]), np.array([len(text) - 1]), longest)[0].tolist()
    return found


def plainly(answers: list[list[int]], text: list[int], longest: int) -> list[bool]:
    tails = [text[len(text) - count :] if count < len(text) else None for count in range(1, longest + 1)]
    return [tail is not None and any(answer[: len(tail)] == tail for answer in answers) for tail in tails]


@given(ANSWERS, TEXTS, st.integers(1, 5))
def test_no_beginning_of_an_answer_is_missed(answers: list[list[int]], text: list[int], longest: int) -> None:
    found, wanted = ends(of(answers), text, longest), plainly(answers, text, longest)
    assert all(there for there, needed in zip(found, wanted, strict=True) if needed)


@given(ANSWERS, ANSWERS, TEXTS)
def test_answers_that_come_later_are_as_good_as_those_there_at_first(
    early: list[list[int]], late: list[list[int]], text: list[int]
) -> None:
    assert ends(of(early + late, of(early)), text, 4) == ends(of(early + late), text, 4)


def test_what_begins_no_answer_does_not_pass() -> None:
    """By hand: [7, 8, 9] and [5]; the whole text can be no beginning, since nothing would be before it."""
    openings = of([[7, 8, 9], [5]])
    assert ends(openings, [1, 7], 2) == [True, False]
    assert ends(openings, [1, 7, 8], 3) == [False, True, False]
    assert ends(openings, [1, 7, 9], 3) == [False, False, False]
    assert ends(openings, [1, 7, 8, 9], 4) == [False, False, True, False]
    assert ends(openings, [7, 8], 2) == [False, False]
    assert ends(openings, [3, 5], 1) == [True]
    assert ends(openings, [3, 8], 1) == [False]


def test_each_row_ends_at_its_own_key() -> None:
    tokens = np.array([[1, 7, 8, 0, 0], [0, 0, 1, 2, 7]])
    assert of([[7, 8]]).ending(tokens, np.array([2, 4]), 2).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("count", [100, 5000])
def test_few_other_texts_pass_however_many_answers_there_are(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(1000, 2**30, (count, 3), generator=generator).tolist()
    openings = of(answers)
    others = torch.randint(2**31, 2**40, (2000, 2), generator=generator).numpy()
    passed = openings.ending(others, np.ones(2000, np.int64), 1)
    assert 8 * len(openings.marks) >= max(LEAST_BITS, BITS_EACH * 3 * count)
    assert passed.mean() < 1.2 / BITS_EACH
    assert all(ends(openings, [0, *answer], 3)[2] for answer in answers[:50])


def test_a_larger_filter_holds_what_the_smaller_one_did() -> None:
    answers = [[number, number + 1] for number in range(0, 2000, 2)]
    small = of(answers[:100])
    large = of(answers, small)
    assert len(large.marks) > len(small.marks)
    assert all(ends(large, [9999, *answer], 2)[1] for answer in answers)
