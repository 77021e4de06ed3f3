"""One look-up in a book of sentences, by number of phrases, beside one forward of the encoder that it follows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from editable import encoders
from editable.benchmarks import common, timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.setting import TAIL, Setting, Tail
from editable.benchmarks.report import Table
from editable.datasets import Case
from editable.encoders import Encoder
from editable.memory.scope import Encoded, Phrase, SentenceBook
from editable.scope_data import invented
from editable.scopes.sentence import classifier_of

APART = 0.5  # length of what is added to a real phrase's unit vectors to make another one
TOGETHER = 1000  # phrases that are added at a time
ASKED = 64  # texts of each kind
FLAT = 2.0  # most that the largest book's look-up may take of one among a thousand
FEWEST = 1000  # phrases from which books are compared


def run(setting: Setting) -> Part:
    """Rephrases of edits that are in the book, and unrelated questions; the encoder by itself."""
    options, encoder = setting.options, encoders.load("minilm")
    cases = [case for case in common.cases(options) if case.edit.subject and isinstance(case.edit.prompt, str)]
    asked = _asked(cases, common.unrelated(options, ASKED))
    read = {kind: encoder.encode(texts) for kind, texts in asked.items()}
    found = {
        count: {kind: _tail(book, texts, setting) for kind, texts in read.items()}
        for count, book in _books(cases, [count for count in options.counts if count], encoder, options.seed)
    }
    return part(found, _encoding(encoder, [text for texts in asked.values() for text in texts]))


def _asked(cases: Sequence[Case], unrelated: Sequence[str]) -> dict[str, list[str]]:
    rephrases = [str(question.prompt) for case in cases for question in case.rephrases]
    return {"rephrases": rephrases[:ASKED], "unrelated": list(unrelated)}


def _books(
    cases: Sequence[Case], counts: Sequence[int], encoder: Encoder, seed: int
) -> Iterator[tuple[int, SentenceBook]]:
    """The cases' prompts, and so many in all of the same form about invented subjects; indexes are ready."""
    real = [
        Phrase.of(read, case.edit.subject)
        for read, case in zip(encoder.encode([str(case.edit.prompt) for case in cases]), cases, strict=True)
    ]
    book, made = SentenceBook.empty(), made_phrases(real, seed)
    for count in counts:
        while len(book) < count:
            some = real[:count] if not len(book) else [next(made) for _ in range(min(TOGETHER, count - len(book)))]
            book = book.add(some, str(len(book)), len(book), len(book), "default", encoder.digest)
        yield count, replace(book, near=book.near.settled(book.vectors))


def made_phrases(real: Sequence[Phrase], seed: int) -> Iterator[Phrase]:
    """Phrases near real ones, about subjects that nobody has heard of."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    while True:
        like, subject = draw.choice(real), invented(draw)
        noise = rng.standard_normal(like.vectors.shape)
        vectors = like.vectors + APART * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        yield Phrase(like.text.replace(like.subject, subject), subject, unit.astype(np.float16))


def _tail(book: SentenceBook, texts: Sequence[Encoded], setting: Setting) -> Tail:
    """One text at a time; the first turn warms up."""
    judge = classifier_of(None)
    rounds = range(setting.options.repeats + 1)
    seconds = [timing.clocked(lambda t=text: book.candidates(t, judge))() for _ in rounds for text in texts]  # type: ignore[misc]
    return Tail.of(seconds[len(texts) :])


def _encoding(encoder: Encoder, texts: Sequence[str]) -> Tail:
    """Each text once more with a letter behind it, so that none has been read before."""
    return Tail.of([timing.clocked(lambda t=text: encoder.encode([f"{t} x"]))() for text in texts])  # type: ignore[misc]


def part(found: Mapping[int, Mapping[str, Tail]], encoding: Tail) -> Part:
    """By number of phrases."""
    rows = [(f"{count} phrases, {kind}", *tail.cells) for count, by in found.items() for kind, tail in by.items()]
    counts = [count for count in found if count >= FEWEST]
    bars = [
        Bar(
            f"look-up of {kind} among {counts[-1]} phrases over {counts[0]}",
            found[counts[-1]][kind].p50 / found[counts[0]][kind].p50,
            "<=",
            FLAT,
        )
        for kind in (found[counts[0]] if len(counts) > 1 else ())
    ]
    times = {f"{count} phrases": {kind: tail.as_dict() for kind, tail in by.items()} for count, by in found.items()}
    return Part(
        timing={**times, "encoder": encoding.as_dict()},
        tables=[Table("one look-up of a text, ms", ("", *TAIL), [*rows, ("the encoder, one text", *encoding.cells)])],
        bars=bars,
    )
