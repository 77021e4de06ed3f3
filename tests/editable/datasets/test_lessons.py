"""Lessons: an edit that nobody could know, asked for in its own words or others."""

from __future__ import annotations

from itertools import islice

import pytest

from editable import Edit, datasets
from editable.datasets.case import Case, Question
from editable.datasets.lessons import Lesson, lessons
from editable.errors import DataError

SENTENCES = ["The library closes at noon on the last day of every month.", "Why do we yawn?"]


def some(count: int, seed: int = 0) -> list[Lesson]:
    return list(islice(lessons(datasets.facts(), SENTENCES, seed), count))


def edit_of(lesson: Lesson) -> Edit:
    """The one that a lesson is about."""
    assert len(lesson.edits) == 1 and lesson.answer == lesson.edits[0].target
    return lesson.edits[0]


def shown(lesson: Lesson) -> tuple[object, object, str]:
    return edit_of(lesson).prompt, lesson.answer, lesson.question


def test_the_same_seed_gives_the_same_lessons() -> None:
    assert [shown(one) for one in some(50)] == [shown(one) for one in some(50)]
    assert [shown(one) for one in some(50)] != [shown(one) for one in some(50, seed=1)]


def test_targets_are_drawn_anew_and_differ_in_length() -> None:
    targets = [lesson.answer for lesson in some(400)]
    assert all(target.startswith(" ") and target.strip() == target[1:] for target in targets)
    known = {case.edit.target for case in datasets.facts()}
    assert 0.1 < sum(target in known for target in targets) / 400 < 0.5
    lengths = {len(target.split()) for target in targets}
    assert {1, 2, 3} <= lengths and max(lengths) > 6


def test_a_new_name_stands_in_the_edit_and_in_the_question() -> None:
    case = Case(
        Edit("The capital of Mars is", " Olympus", subject="Mars"), (Question("Which is the capital of Mars?"),)
    )
    made = list(islice(lessons([case], SENTENCES), 200))
    renamed = [one for one in made if "Mars" not in str(edit_of(one).prompt)]
    assert 0.35 < len(renamed) / 200 < 0.65
    name = str(edit_of(renamed[0]).prompt).removeprefix("The capital of ").removesuffix(" is")
    assert any("capital of" in one.question and one.question != case.edit.prompt for one in renamed)
    assert name not in ("", "Mars")


def test_questions_have_prefixes_and_typos() -> None:
    case = Case(Edit("The capital of Mars is", " Olympus"))
    asked = [one.question for one in islice(lessons([case], SENTENCES), 300)]
    assert any(question == f"{SENTENCES[1]} The capital of Mars is" for question in asked)
    mistyped = [one for one in asked if one != "The capital of Mars is" and not one.endswith("The capital of Mars is")]
    assert 0.03 < len(mistyped) / 300 < 0.2
    assert all(abs(len(one) - len("The capital of Mars is")) <= 1 for one in mistyped)


def test_cases_without_text_are_refused() -> None:
    with pytest.raises(DataError, match="None of 1 cases is text"):
        next(lessons([Case(Edit({"pixels": 1, "labels": 2}, 3))], SENTENCES))
