"""Pairs of texts that ask the same or do not: what a scope's classifier learns from, made from editing cases.

A case has a prompt, rephrases, and siblings about other subjects. Putting one subject in the place of another, names
that nobody has, typing errors and sentences in front make many of few.
"""

from __future__ import annotations

import random
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from editable.datasets.case import Case

KINDS = ("rephrase", "sibling", "namesake", "other relation", "unrelated", "answered")
PER_CASE = 1  # pairs of each kind that a case gives
TYPO, PREFIX, LOWER = 0.2, 0.25, 0.05  # how often a text has one
VARIANT = 0.15  # how often a name of several words is written otherwise
INVENTED = 0.4  # how often a subject is a name that nobody has

_ONSETS, _VOWELS, _CODAS = (
    part.split(" ")
    for part in (
        "b br ch d dr f g gr h j k kl l m n p r s sh st t tr v w z",
        "a e i o u ai ea ie ou",
        "   n r s l m nd rt x ck",
    )
)


@dataclass(frozen=True)
class Pair:
    """A text, and the prompt of an edit.

    Args:
        text: what is asked.
        prompt: of the edit.
        subject: of the edit, where it is given.
        kind: one of KINDS; the first is the one where both ask the same.
        group: number of the relation, so that whole relations can be held out.
    """

    text: str
    prompt: str
    subject: str | None
    kind: str
    group: int


@dataclass(frozen=True)
class Relation:
    """Prompts with {} in the place of their subject, the subjects there are, and answers."""

    templates: tuple[str, ...]
    subjects: tuple[str, ...]
    answers: tuple[str, ...]


def relations(cases: Sequence[Case]) -> list[Relation]:
    """Cases with one template of prompts go together; those without a subject in their prompt are left out."""
    templates: dict[str, list[str]] = defaultdict(list)
    subjects: dict[str, list[str]] = defaultdict(list)
    answers: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        subject, prompt = case.edit.subject, case.edit.prompt
        if not isinstance(prompt, str) or not subject or prompt.count(subject) != 1:
            continue
        form = prompt.replace(subject, "{}")
        texts = [q.prompt for q in case.rephrases if isinstance(q.prompt, str) and q.prompt.count(subject) == 1]
        templates[form] += [form, *(text.replace(subject, "{}") for text in texts)]
        siblings = (_filling(form, q.prompt) for q in case.locality if isinstance(q.prompt, str))
        subjects[form] += [subject, *filter(None, siblings)]
        answers[form] += [str(case.edit.target).strip(), str(case.before or case.edit.target).strip()]
    made = [[tuple(dict.fromkeys(of[form])) for of in (templates, subjects, answers)] for form in templates]
    return [Relation(*one) for one in made if len(one[0]) > 1]


def _filling(form: str, text: str) -> str | None:
    """What stands in the template's place, where the text has that form."""
    before, _, after = form.partition("{}")
    fits = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    return text[len(before) : len(text) - len(after)] if fits else None


def pairs(cases: Sequence[Case], unrelated: Sequence[str], seed: int = 0) -> list[Pair]:
    """Pairs of every kind from every relation.

    Args:
        cases: with subjects, rephrases and siblings.
        unrelated: sentences that are about something else; also put in front of others.
        seed: of all that is drawn.
    """
    draw, found = random.Random(seed), relations(cases)
    made = []
    for number, relation in enumerate(found):
        others = [one for one in found if one is not relation]
        for _ in range(PER_CASE * max(len(relation.subjects), len(relation.templates))):
            made += list(_pairs(relation, others, unrelated, number, draw))
    return made


def _pairs(
    relation: Relation, others: Sequence[Relation], unrelated: Sequence[str], group: int, draw: random.Random
) -> Iterator[Pair]:
    form, asked = draw.sample(relation.templates, 2)
    subject = invented(draw) if draw.random() < INVENTED else draw.choice(relation.subjects)
    prompt, given = form.format(subject), subject if draw.random() < 0.5 else None
    texts = {
        "rephrase": asked.format(_written(subject, draw)),
        "sibling": draw.choice(relation.templates).format(_other(subject, relation, draw)),
        "namesake": draw.choice(relation.templates).format(_namesake(subject, relation, draw)),
        "unrelated": draw.choice(unrelated),
        "answered": _answered(draw.choice([prompt, asked.format(subject)]), relation, unrelated, draw),
    }
    if others:
        texts["other relation"] = draw.choice(draw.choice(others).templates).format(subject)
    for kind, text in texts.items():
        yield Pair(_roughened(text, unrelated, draw), prompt, given, kind, group)


def _answered(text: str, relation: Relation, unrelated: Sequence[str], draw: random.Random) -> str:
    """A question with an answer behind it, and perhaps more: nothing is asked any more."""
    said = f"{text} {draw.choice(relation.answers)}"
    return said if draw.random() < 0.5 else f"{said}. {draw.choice(unrelated)}"


def _roughened(text: str, unrelated: Sequence[str], draw: random.Random) -> str:
    if draw.random() < LOWER:
        text = text.lower()
    if draw.random() < PREFIX:
        text = f"{draw.choice(unrelated).rstrip(' .?!')}. {text}"
    return text


def _other(subject: str, relation: Relation, draw: random.Random) -> str:
    """Another subject, of the relation or invented."""
    rest = [one for one in relation.subjects if one != subject]
    return draw.choice(rest) if rest and draw.random() < 1 - INVENTED else invented(draw)


def _namesake(subject: str, relation: Relation, draw: random.Random) -> str:
    """Another subject that shares a word, or all but a number, with this one."""
    if any(c.isdigit() for c in subject):
        return "".join(str((int(c) + draw.randint(1, 9)) % 10) if c.isdigit() else c for c in subject)
    words, known = subject.split(), [word for one in relation.subjects for word in one.split() if word not in subject]
    other = draw.choice(known) if known and draw.random() < 1 - INVENTED else invented(draw, 1)
    place = draw.randrange(len(words)) if len(words) > 1 else draw.randrange(2)
    return " ".join([*words[:place], other, *words[place + (len(words) > 1) :]])


def invented(draw: random.Random, words: int | None = None) -> str:
    """A name that nobody has."""
    count = words or draw.choice((1, 1, 2, 2, 2, 3))
    name = " ".join(_word(draw) for _ in range(count))
    return f"{name} {draw.randint(1, 2020)}" if words is None and draw.random() < 0.08 else name


def _word(draw: random.Random) -> str:
    syllables = range(draw.choice((1, 2, 2, 3)))
    made = "".join(draw.choice(_ONSETS) + draw.choice(_VOWELS) + draw.choice(_CODAS) for _ in syllables)
    return made.capitalize()


def _written(name: str, draw: random.Random) -> str:
    """The name, perhaps with a typing error, or as it is written elsewhere."""
    kind = draw.random()
    if kind < TYPO:
        return misspelt(name, draw)
    return variant(name, draw) if kind < TYPO + VARIANT else name


def variant(name: str, draw: random.Random) -> str:
    """A name of two or three words as it is written elsewhere: with an initial, with a name more, or with one less."""
    words = name.split()
    if len(words) not in (2, 3) or not all(word.isalpha() and word[0].isupper() for word in words):
        return name
    first, last = words[0], words[-1]
    middle = words[1] if len(words) == 3 else _word(draw)
    return draw.choice(
        (
            f"{first[0]}. {' '.join(words[1:])}",
            f"{' '.join(words[1:])} {first[0]}",
            f"{first} {middle[0]}. {last}",
            f"{first} {last}" if len(words) == 3 else f"{first} {middle} {last}",
        )
    )


def misspelt(name: str, draw: random.Random) -> str:
    """The name with one typing error: a letter lost, doubled, changed, or swapped with the next."""
    places = [i for i, c in enumerate(name) if c.isalpha()]
    if len(places) < 3:
        return name
    at, kind = draw.choice(places[1:]), draw.randrange(4)
    letter = draw.choice(string.ascii_lowercase)
    before, here, after = name[:at], name[at], name[at + 1 :]
    return (
        before + after,
        before + here + here + after,
        before + letter + after,
        before + after[:1] + here + after[1:],
    )[kind]
