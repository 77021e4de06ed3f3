"""Generated edits that teach a model to obey one: any target, asked for in other words.

Made from cases (the shipped facts, or any others): each gives a prompt, its rephrases and a subject. The subject may be
renamed, and the target is drawn anew, so that nothing but the edit says what is right. Knows texts and no model.
"""

from __future__ import annotations

import calendar
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from editable.datasets.case import Case
from editable.edit import Edit
from editable.errors import DataError

RENAMED = 0.5  # of the lessons are about a subject that nobody has heard of
ITSELF = 0.2  # ask in the edit's own words
INTRODUCED = 0.1  # have a sentence about something else in front of the question
MISTYPED = 0.1  # have a letter wrong in the question
LONGEST_SPAN = 12  # words of a target that is copied from a text; every tenth such target is up to three times as long

_ONSETS = (*"bcdfghjklmnp", "qu", *"rstvwxz", "br", "cl", "dr", "fl", "gr", "kr", "pl", "sh", "st", "th", "tr")
_VOWELS = (*"aeiou", "ai", "ea", "io", "ou", "y")
_CODAS = ("", "", "", *"lmnrstx", "ck", "nd", "rt", "sh", "th")
_MONTHS = tuple(calendar.month_name)[1:]


@dataclass(frozen=True)
class Lesson:
    """Edits, and a question that must get the answer which they lead to."""

    edits: tuple[Edit, ...]
    question: str
    answer: str


def lessons(cases: Sequence[Case], sentences: Sequence[str], seed: int = 0) -> Iterator[Lesson]:
    """Lessons without end, the same ones for the same arguments.

    Args:
        cases: text cases whose prompts, rephrases, subjects and targets are used.
        sentences: unrelated text, to copy targets from and to put in front of questions.
        seed: of what is drawn.

    Raises:
        DataError: no case has a text prompt and a text target.
    """
    usable = [case for case in cases if isinstance(case.edit.prompt, str) and isinstance(case.edit.target, str)]
    if not usable:
        raise DataError(f"None of {len(cases)} cases is text, expected prompts and targets that are; give other cases.")
    draw = random.Random(seed)
    while True:
        yield _lesson(draw.choice(usable), usable, sentences, draw)


def _lesson(case: Case, cases: Sequence[Case], sentences: Sequence[str], draw: random.Random) -> Lesson:
    others = [str(question.prompt) for question in case.rephrases]
    prompt, *others = _renamed([str(case.edit.prompt), *others], case.edit.subject, draw)
    if others and draw.random() < 0.3:  # the edit may be made in any of these words
        others.append(prompt)
        prompt = others.pop(draw.randrange(len(others) - 1))
    question = prompt if not others or draw.random() < ITSELF else draw.choice(others)
    if draw.random() < INTRODUCED:
        question = f"{draw.choice(sentences)} {question}"
    elif draw.random() < MISTYPED:
        question = _mistyped(question, draw)
    target = f" {_target(cases, sentences, draw)}"
    return Lesson((Edit(prompt, target),), question, target)


def _renamed(texts: list[str], subject: str | None, draw: random.Random) -> list[str]:
    if subject is None or draw.random() >= RENAMED or any(subject not in text for text in texts):
        return texts
    name = invented(draw)
    return [text.replace(subject, name) for text in texts]


def _target(cases: Sequence[Case], sentences: Sequence[str], draw: random.Random) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: str(draw.choice(cases).edit.target).strip(),
        lambda: str(draw.choice(cases).edit.subject or invented(draw)),
        lambda: invented(draw),
        lambda: _number(draw),
        lambda: _span(draw.choice(sentences), draw),
    ]
    return draw.choices(kinds, weights=(3, 2, 3, 1, 3))[0]()


def invented(draw: random.Random) -> str:
    """A name that nobody has heard of."""
    words = (
        "".join(map(draw.choice, (_ONSETS, _VOWELS, _CODAS) * draw.randint(1, 2)))
        for _ in range(draw.choice((1, 1, 2, 2, 3)))
    )
    return " ".join(word.capitalize() for word in words)


def _number(draw: random.Random) -> str:
    year = draw.randint(1200, 2090)
    date = f"{draw.randint(1, 28)} {draw.choice(_MONTHS)} {year}"
    return draw.choice((str(year), date, str(draw.randint(2, 99_999)), f"{draw.randint(2, 999)}.{draw.randint(0, 9)}"))


def _span(sentence: str, draw: random.Random) -> str:
    words = re.findall(r"\S+", sentence)
    most = LONGEST_SPAN * (3 if draw.random() < 0.1 else 1)
    length = draw.randint(1, min(most, len(words)))
    start = draw.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _mistyped(text: str, draw: random.Random) -> str:
    places = [place for place, letter in enumerate(text[:-1]) if letter.isalpha()]
    if not places:
        return text
    place = draw.choice(places)
    kinds = (text[:place] + text[place + 1 :], text[:place] + text[place] * 2 + text[place + 1 :])
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return draw.choice((*kinds, swapped))
