"""Generated questions that build on edits: the capital of the country a book comes from, once that has changed.

Made from a small world, `world.jsonl`: relations between kinds of things, with their wordings and facts that are well
known, as they stood in the early 2020s. A question follows up to four of them from one thing to the next. Edits say
something new at none, one or two of these; everywhere else the world stays as it is, and a model has to know it by
itself. Knows texts and no model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from editable.datasets.lessons import Lesson, invented
from editable.edit import Edit

LENGTHS = {1: 0.1, 2: 0.6, 3: 0.25, 4: 0.05}  # how many questions follow so many relations
EDITED = {0: 0.1, 1: 0.75, 2: 0.15}  # and have edits at so many of these
BESIDE = (0, 0, 0, 1, 2, 4, 7)  # edits that do not matter in front of a question, each as often
ALIKE = 0.4  # of these say about another thing what the question asks about its own
ELSE = 0.3  # say something else about a thing that the question is about
INVENTED = 0.3  # of the things that edits are about are unheard of

_WORLD = Path(__file__).parent / "world.jsonl"


@dataclass(frozen=True)
class Relation:
    """What things of one kind have to do with those of another.

    Args:
        name: what it is called.
        of: the kind of things it is about.
        to: the kind of things it leads to.
        prompt: a sentence that the thing it leads to completes; `{}` stands for what it is about, here and below.
        questions: other words for that.
        phrases: what stands for the thing it leads to in a longer question: the capital of {}.
        facts: from one thing to the other.
    """

    name: str
    of: str
    to: str
    prompt: str
    questions: Sequence[str]
    phrases: Sequence[str]
    facts: Mapping[str, str]

    def worded(self, thing: str, draw: random.Random) -> str:
        """The prompt or one of the questions, about a thing."""
        return draw.choice((self.prompt, draw.choice(self.questions))).format(thing)


@dataclass(frozen=True)
class World:
    """Relations, and what they are about."""

    relations: Sequence[Relation]

    @classmethod
    def shipped(cls) -> World:
        """The one this package has."""
        lines = _WORLD.read_text(encoding="utf-8").splitlines()
        return cls([Relation(**json.loads(line)) for line in lines])

    @cached_property
    def things(self) -> Mapping[str, Sequence[str]]:
        """All things of each kind."""
        found: dict[str, dict[str, None]] = {}
        for relation in self.relations:
            found.setdefault(relation.of, {}).update(dict.fromkeys(relation.facts))
            found.setdefault(relation.to, {}).update(dict.fromkeys(relation.facts.values()))
        return {kind: list(names) for kind, names in found.items()}

    @cached_property
    def about(self) -> Mapping[str, Sequence[Relation]]:
        """The relations about each kind."""
        return {kind: [one for one in self.relations if one.of == kind] for kind in self.things}

    def path(self, length: int, draw: random.Random) -> list[Relation]:
        """Relations one after another, fewer where the last one leads to nothing that another is about."""
        path = [draw.choice([one for one in self.relations if length == 1 or self.about[one.to]])]
        while len(path) < length and self.about[path[-1].to]:
            path.append(draw.choice(self.about[path[-1].to]))
        return path

    def thing(self, kind: str, draw: random.Random) -> str:
        """One of a kind, known or unheard of."""
        return invented(draw) if draw.random() < INVENTED else draw.choice(self.things[kind])


def hops(world: World, seed: int = 0) -> Iterator[Lesson]:
    """Lessons without end, the same ones for the same arguments."""
    draw = random.Random(seed)
    while True:
        path = world.path(draw.choices(list(LENGTHS), list(LENGTHS.values()))[0], draw)
        edits = draw.choices(list(EDITED), list(EDITED.values()))[0]
        edited = set(draw.sample(range(len(path)), min(edits, len(path))))
        things = _walked(path, edited, world, draw)
        if things is not None:
            yield _lesson(path, edited, things, world, draw)


def _walked(path: Sequence[Relation], edited: set[int], world: World, draw: random.Random) -> list[str] | None:
    """The things on a path, what edits say included; None where the world does not know how it goes on.

    Nor does it come back to a thing: what an edit says about that would hold there too.
    """
    things = [world.thing(path[0].of, draw) if 0 in edited else draw.choice(list(path[0].facts))]
    for place, relation in enumerate(path):
        known = relation.facts.get(things[-1])
        left = [known] if known is not None else []
        if place in edited:
            goes_on = place + 1 < len(path) and place + 1 not in edited
            others = path[place + 1].facts if goes_on else world.things[relation.to]
            left = [other for other in others if other != known]
        left = [thing for thing in left if thing not in things]
        if not left:
            return None
        things.append(draw.choice(left))
    return things


def _lesson(
    path: Sequence[Relation], edited: set[int], things: Sequence[str], world: World, draw: random.Random
) -> Lesson:
    edits = [_edit(path[place], things[place], things[place + 1], draw) for place in edited]
    beside = max(draw.choice(BESIDE), 0 if edits else 1)
    edits += [edit for edit in (_another(path, things, world, draw) for _ in range(beside)) if edit is not None]
    draw.shuffle(edits)
    return Lesson(tuple(edits), _question(path, things[0], draw), f" {things[-1]}")


def _edit(relation: Relation, thing: str, target: str, draw: random.Random) -> Edit:
    return Edit(relation.worded(thing, draw), f" {target}", subject=thing)


def _another(path: Sequence[Relation], things: Sequence[str], world: World, draw: random.Random) -> Edit | None:
    """An edit that does not matter to a question; None where the one drawn does."""
    kind, place = draw.random(), draw.randrange(len(path))
    relation = path[place] if kind < ALIKE else draw.choice(world.relations)
    thing = world.thing(relation.of, draw)
    if kind >= 1 - ELSE:
        relation, thing = draw.choice(world.about[path[place].of]), things[place]
    if (relation.name, thing) in {(one.name, own) for one, own in zip(path, things, strict=False)}:
        return None
    return _edit(relation, thing, draw.choice(world.things[relation.to]), draw)


def _question(path: Sequence[Relation], thing: str, draw: random.Random) -> str:
    for relation in path[:-1]:
        thing = draw.choice(relation.phrases).format(thing)
    return path[-1].worded(thing, draw)
