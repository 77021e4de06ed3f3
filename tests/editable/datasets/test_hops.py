"""Hops: what is asked leads from one thing to the next, by edits where there are any and by the world where not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise

import pytest

from editable.datasets.hops import ALIKE, BESIDE, EDITED, LENGTHS, Relation, World, hops
from editable.datasets.lessons import Lesson

SHIPPED = World.shipped()
SMALL = World(
    [
        Relation("home", "person", "town", "{} lives in", ["Where does {} live?"], ["the home of {}"], {"Ann": "Aby"}),
        Relation(
            "mayor", "town", "person", "The mayor of {} is", ["Who governs {}?"], ["the mayor of {}"], {"Aby": "Bob"}
        ),
    ]
)
"""Two relations about each other: Ann lives in Aby, which Bob governs."""


def some(world: World, count: int, seed: int = 0) -> list[Lesson]:
    return list(islice(hops(world, seed), count))


def told(lesson: Lesson) -> list[tuple[object, object]]:
    return [(edit.prompt, edit.target) for edit in lesson.edits]


def test_the_same_seed_gives_the_same_lessons() -> None:
    shown = [[(told(one), one.question, one.answer) for one in some(SHIPPED, 40, seed)] for seed in (0, 0, 1)]
    assert shown[0] == shown[1] != shown[2]


def answers(question: str, edits: list[tuple[object, object]], world: World) -> Iterator[str]:
    """All answers that a question has, read outside in, what edits say before what the world does."""
    for relation in world.relations:
        for pattern in (relation.prompt, *relation.questions, *relation.phrases):
            before, after = pattern.split("{}")
            if not (question.startswith(before) and question.endswith(after) and len(question) > len(before + after)):
                continue
            inner = question[len(before) : len(question) - len(after)]
            for thing in (inner, *(found.strip() for found in answers(inner, edits, world))):
                new = [to for prompt, to in edits if prompt in {p.format(thing) for p in _wordings(relation)}]
                known = relation.facts.get(thing)
                yield from map(str, new or ([f" {known}"] if known else []))


def _wordings(relation: Relation) -> tuple[str, ...]:
    return (relation.prompt, *relation.questions)


@pytest.mark.parametrize("world", [SMALL, SHIPPED], ids=["small", "shipped"])
def test_the_answer_is_what_the_edits_and_the_world_lead_to(world: World) -> None:
    for lesson in some(world, 150):
        assert lesson.answer in set(answers(lesson.question, told(lesson), world)), lesson


def test_some_questions_build_on_no_edit_some_on_one_some_on_two() -> None:
    """Where the edits are left out, the answer is another one, unless none of them mattered."""
    lessons = some(SHIPPED, 300)
    alone = sum(lesson.answer in set(answers(lesson.question, [], SHIPPED)) for lesson in lessons)
    assert 0.02 < alone / 300 < 0.15  # EDITED[0] of them, but for those that the edits beside change
    needed = Counter(
        sum(
            lesson.answer not in set(answers(lesson.question, told(lesson)[:at] + told(lesson)[at + 1 :], SHIPPED))
            for at in range(len(lesson.edits))
        )
        for lesson in lessons
    )
    assert needed[1] > needed[0] > 0 and needed[2] > 0 and set(needed) == {0, 1, 2}


def test_every_lesson_has_an_edit_and_no_more_than_two_and_those_beside() -> None:
    counts = [len(lesson.edits) for lesson in some(SHIPPED, 300)]
    assert max(counts) <= max(EDITED) + max(BESIDE)
    assert sum(count == 0 for count in counts) < 6  # one alone beside a question may be about the very same thing
    assert 0 < ALIKE < 1 and sum(LENGTHS.values()) == pytest.approx(1) and sum(EDITED.values()) == pytest.approx(1)


def test_a_path_goes_on_as_long_as_there_is_something_to_say() -> None:
    draw = random.Random(0)
    for _ in range(50):
        path = SHIPPED.path(4, draw)
        assert all(one.to == other.of for one, other in pairwise(path))
        assert len(path) == 4 or not SHIPPED.about[path[-1].to]


def test_the_shipped_world_is_whole() -> None:
    names = [relation.name for relation in SHIPPED.relations]
    assert len(set(names)) == len(names) == 45
    assert sum(len(relation.facts) for relation in SHIPPED.relations) == 2301
    for relation in SHIPPED.relations:
        wordings = [*_wordings(relation), *relation.phrases]
        assert len(set(wordings)) == len(wordings)
        assert all(wording.count("{}") == 1 for wording in wordings), relation.name
        assert not relation.prompt.endswith("?") and relation.prompt == relation.prompt.strip()
        assert relation.questions and len(relation.phrases) > 1
        assert all(text and text == text.strip() for pair in relation.facts.items() for text in pair)


def test_what_is_one_thing_has_one_name() -> None:
    """No thing of a kind is another one with an article or another spelling of its first letter."""
    for kind, things in SHIPPED.things.items():
        folded = Counter(thing.lower().removeprefix("the ") for thing in things)
        assert max(folded.values()) == 1, (kind, folded.most_common(1))
