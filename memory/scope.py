"""Sentences, and which of them a text asks the same as: what a sentence scope knows of its edits.

A `SentenceBook` is an immutable value. Retrieval by cosine proposes phrases; a classifier over what can be compared
about a text and a phrase decides, so that a rephrase is told from a sibling: the same question about another subject.
Plain data in and out: texts come encoded (`Encoded`), by whatever encoder; knows nothing of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from editable.memory.column import Column
from editable.memory.names import Names
from editable.memory.neighbours import Neighbours, cosines
from editable.memory.rows import Rows
from editable.memory.wording import (
    ASKING,
    WORD,
    Words,
    another_word,
    asks_more,
    find_subject,
    folded,
    goes_on,
    is_name,
    least_alike,
    longer_name,
    place,
    shared_words,
    strangers,
    without,
)

CONSIDERED = 16  # phrases that retrieval proposes for a text
LEAST_ALIKE = 0.66  # what each word of a subject must have in common with a word of a text that asks about it
CLOSE = 0.9  # cosine of sentences from which they are compared even so: the subject may go by another name
SPELT = 0.8  # likeness of a subject's letters from which it is the same one, whatever the encoder makes of its spelling
ALMOST = 0.6  # likeness from which one subject may be taken for the other
SUBJECT_CLOSE = 0.3  # cosine of subjects below which one that is spelt otherwise is another one
BEFORE = 60  # characters before a subject that may belong to what is asked about it
NEAR = 0.5  # cosine of sentences, and of subjects, below which two prompts are not the same question
FEATURES = (
    "sentence cosine",
    "subject alike",
    "subject exact",
    "subject's least word",
    "relation cosine",
    "subject cosine",
    "other names",
    "relation words",
    "numbers differ",
    "words beyond",
    "goes on",
    "longer name",
)
"""What is compared, in the order of a classifier's inputs; see `compared`."""

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as an encoder reads it.

    Args:
        text: the text.
        vector: (width,) of length 1.
        tokens: (tokens, width) what it makes of each token.
        spans: (tokens, 2) first character of each token, and the one behind its last.
    """

    text: str
    vector: Numbers
    tokens: Numbers
    spans: Numbers

    @cached_property
    def meaning(self) -> Numbers:
        """(tokens,) which belong to words that mean something; the same for all phrases that it is compared with."""
        words = [m.span() for m in WORD.finditer(self.text) if m.group().lower() not in ASKING]
        starts, ends = self.spans[:, 0, None], self.spans[:, 1, None]
        begins, stops = np.array(words or [(0, 0)]).T
        return ((starts < stops) & (ends > begins)).any(axis=1)  # type: ignore[no-any-return]

    @cached_property
    def asked(self) -> Numbers:
        """(width,) of length 1: what is asked about what it seems to be about; the same for all phrases, too."""
        return _asked(self, *find_subject(self.text))


@dataclass(frozen=True, eq=False)
class Phrase:
    """What is kept of one prompt.

    Args:
        text: the prompt.
        subject: what it is about, as it stands in the text where it does.
        vectors: (3, width) float16: of the whole, of what is asked about the subject (its words that mean something),
            and of the subject.
    """

    text: str
    subject: str
    vectors: Numbers

    @classmethod
    def of(cls, encoded: Encoded, subject: str | None = None) -> Phrase:
        """With the subject as given, or found in the text."""
        start, end = place(encoded.text, subject) if subject else find_subject(encoded.text)
        about = subject if subject else encoded.text[start:end]
        vectors = np.stack([encoded.vector, _asked(encoded, start, end), _mean(encoded, _inside(encoded, start, end))])
        return cls(encoded.text, about, vectors.astype(np.float16))


# --- comparing ---


def _inside(encoded: Encoded, start: int, end: int) -> Numbers:
    """(tokens,) which stand between two characters."""
    return (encoded.spans[:, 0] < end) & (encoded.spans[:, 1] > start)


def _asked(encoded: Encoded, start: int, end: int, begin: int = 0) -> Numbers:
    """(width,) of length 1: the mean of the words outside start to end, from `begin` on, that mean something.

    What, is, the and their like stand in any question: with them, all questions about one subject look the same.
    """
    rest = ~_inside(encoded, start, end) & (encoded.spans[:, 0] >= begin)
    meant = rest & encoded.meaning
    return _mean(encoded, meant if meant.any() else rest)


def _mean(encoded: Encoded, kept: Numbers) -> Numbers:
    if not kept.any():
        return encoded.vector
    mean = encoded.tokens[kept].mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-9)  # type: ignore[no-any-return]


def comparable(query: Encoded, words: Words, phrase: Phrase) -> bool:
    """Whether a text may ask the same as a phrase at all: it names the subject, or is very like the whole phrase.

    A subject that is no name, but some word of the phrase, tells too little for texts that are not alike at all.
    """
    likeness, (start, end) = words.nearest(phrase.subject)
    whole, _, about = phrase.vectors.astype(np.float32)
    if not is_name(phrase.subject) and float(query.vector @ whole) < NEAR:
        return False
    window = query.text[start:end]
    if ALMOST <= likeness < 1.0 and another_word(phrase.subject, window, _known(query, start, end)):
        return False
    if likeness == 1.0 or float(query.vector @ whole) >= CLOSE:
        return True
    misspelt = least_alike(phrase.subject, window) >= LEAST_ALIKE
    if not misspelt or likeness >= SPELT:
        return misspelt
    return float(_mean(query, _inside(query, start, end)) @ about) >= SUBJECT_CLOSE


def compared(query: Encoded, words: Words, phrase: Phrase) -> list[float]:
    """What can be said of a text beside a phrase, in the order of FEATURES.

    Of the text only what stands shortly before the subject and behind it counts.
    """
    likeness, (start, end) = words.nearest(phrase.subject)
    begin = max(0, start - BEFORE)
    near = _mean(query, query.spans[:, 0] >= begin)
    subject = _mean(query, _inside(query, start, end))
    whole, asked, about = phrase.vectors.astype(np.float32)
    rest, kept = query.text[begin:start] + " " + query.text[end:], Words(phrase.text)
    window = query.text[start:end]
    return [
        float(max(query.vector @ whole, near @ whole)),
        likeness,
        float(likeness == 1.0),
        least_alike(phrase.subject, window),
        max(float(_apart(one, subject) @ _apart(asked, about)) for one in _relations(query, start, end, begin)),
        float(subject @ about),
        strangers(rest, kept),
        shared_words(rest, without(phrase.text, phrase.subject)),
        float(re.findall(r"\d+", window) != re.findall(r"\d+", phrase.subject)),
        min(len(WORD.findall(rest)) / 10, 3.0),
        goes_on(query.text, phrase.text),
        longer_name(query.text, start, end, phrase.text),
    ]


def _relations(query: Encoded, start: int, end: int, begin: int) -> list[Numbers]:
    """What may be asked about the subject between start and end: what stands around it; or what stands behind it."""
    behind = (query.spans[:, 0] >= end) & query.meaning
    around = _asked(query, start, end, begin)
    return [around, _mean(query, behind)] if behind.any() else [around]


def _known(query: Encoded, start: int, end: int) -> set[str]:
    """The folded words between two characters that the encoder takes as they are, in one token.

    What is misspelt falls into pieces.
    """
    whole = set(map(tuple, query.spans.tolist()))
    return {folded(m.group()) for m in WORD.finditer(query.text, start, end) if m.span() in whole}


def _apart(vector: Numbers, from_this: Numbers) -> Numbers:
    """What is left of a vector without its part along another, of length 1."""
    rest = vector - (vector @ from_this) * from_this
    return rest / max(float(np.linalg.norm(rest)), 1e-9)  # type: ignore[no-any-return]


# --- deciding ---


@dataclass(frozen=True, eq=False)
class Classifier:
    """A small network from what is compared to the log-odds that a text asks the same as a phrase.

    Args:
        weights: mean and scale (features,) of the inputs; hidden (h, features), hidden_bias (h,), out (h,) and out_bias
            (1,) of the layers; negatives (q,), its scores of held-out texts that ask something else, highest first, and
            their number (1,) as "count".
    """

    weights: Mapping[str, Numbers]

    def __call__(self, features: Numbers) -> Numbers:
        """(n,) log-odds for (n, features)."""
        w = self.weights
        hidden = np.tanh((features - w["mean"]) / w["scale"] @ w["hidden"].T + w["hidden_bias"])
        return hidden @ w["out"] + w["out_bias"]

    def threshold(self, false_fire: float) -> float:
        """The log-odds that so large a share of texts asking something else reached."""
        negatives = self.weights["negatives"]
        rank = int(false_fire * float(self.weights["count"][0]))
        return float(negatives[min(rank, len(negatives) - 1)])


@dataclass(frozen=True, eq=False)
class Candidate:
    """A phrase that was considered for a text.

    Args:
        slot: of the edit it leads to: its own, or the one that took its place.
        owner: the edit whose phrase it is.
        cosine: of the sentences.
        asked: cosine of what they ask: of the words around what each is about.
        score: log-odds that it asks the same; infinite for the very same text.
        text, subject: the phrase, and what it is about.
    """

    slot: int
    owner: str
    cosine: float
    asked: float
    score: float
    text: str
    subject: str

    @property
    def near(self) -> float:
        """How near a text is whatever it calls the subject: the mean of both cosines.

        What asks the same of something that is told in many words is far from the phrase as a whole.
        """
        return (self.cosine + self.asked) / 2

    @property
    def named(self) -> bool:
        """Whether the text has its subject, under that name or nearly, or is as good as the phrase."""
        return self.score > -math.inf

    def more_in(self, text: str, named: bool) -> bool:
        """Whether a text asks for more than the phrase does; see `asks_more`."""
        return asks_more(text, self.text, self.subject, named)


@dataclass(frozen=True, eq=False)
class SentenceBook:
    """Phrases, and the edits they belong to.

    Args:
        encoder: digest of what encodes its texts; empty in an empty book.
        vectors: (n, 3, width) float16, of each phrase.
        text, subject: of each phrase.
        slot: of each phrase, the slot of its edit.
        owner, label, space: of each phrase, the numbers of its edit's id, answer and namespace.
        names: what these numbers stand for; shared by all versions.
        live: of each phrase, whether it may be found.
        lost: (k, 2) slots: the first edit asks the same as the second, which came later and answers otherwise.
        near: what finds the nearest; a cache.
    """

    encoder: str
    vectors: Rows
    text: Column
    subject: Column
    slot: Column
    owner: Column
    label: Column
    space: Column
    names: Names
    live: Column
    lost: Rows
    near: Neighbours

    @classmethod
    def empty(cls, width: int = 0, encoder: str = "") -> SentenceBook:
        """No phrase yet."""
        vectors, lost = Rows.empty(3, width, dtype=torch.float16), Rows.empty(2, dtype=torch.long)
        # Each of its own: columns of one store would be histories of one another.
        texts, subjects = Column.empty(object), Column.empty(object)
        slots, owners, labels, spaces = (Column.empty(np.int32) for _ in range(4))
        live, near = Column.empty(np.bool_), Neighbours.empty()
        return cls(encoder, vectors, texts, subjects, slots, owners, labels, spaces, Names(), live, lost, near)

    def __len__(self) -> int:
        return len(self.vectors)

    def phrases(self, rows: Numbers) -> list[Phrase]:
        """Those in some rows."""
        vectors = self.vectors.view[torch.from_numpy(rows)].numpy()
        return list(map(Phrase, self.text.take(rows), self.subject.take(rows), vectors))

    def rows_of(self, owner: str) -> list[int]:
        """The phrases of an edit; none once it is forgotten."""
        rows = self.owner.where(self.names.find(("owner", owner))).tolist()
        return [row for row in rows if self.live[row]]

    def slot_of(self, owner: str) -> int | None:
        """The slot of a live edit."""
        rows = self.rows_of(owner)
        return self.slot[rows[0]] if rows else None

    def owner_of(self, slot: int) -> str:
        """The edit that has or had a slot."""
        return str(self.names.names[self.owner[int(self.slot.where(slot)[0])]][1])

    # Looking up

    def candidates(
        self, query: Encoded, classifier: Classifier, space: str | None = None, count: int = CONSIDERED
    ) -> list[Candidate]:
        """The phrases nearest by cosine to one text, and how surely each asks the same; surest first."""
        rows = self.near.nearest(self.vectors, query.vector, self._seen(space), count)
        made = self._judged(query, rows, classifier)
        return sorted(made, key=lambda one: (-one.score, -one.slot))

    def rivals(
        self, query: Encoded, subject: str, classifier: Classifier, space: str, label: Hashable, needed: float
    ) -> list[str]:
        """Edits of a namespace that ask the same as an edit's prompt to come, and answer otherwise.

        Which they are does not depend on what else there is, so that a history without an edit is like one in which it
        was forgotten.
        """
        if not len(self):
            return []
        own = Phrase.of(query, subject).vectors.astype(np.float32)
        other = self.label.array() != self.names.number(("label", label))
        rows = np.flatnonzero(self._seen(space) & other)
        views = self.vectors.view[torch.from_numpy(rows)]
        for part, least in ((0, NEAR), (2, NEAR)):
            kept = cosines(views[:, part], own[part]) >= least
            rows, views = rows[kept], views[torch.from_numpy(kept)]
        found = {one.owner for one in self._judged(query, rows, classifier) if one.score >= needed}
        return sorted(found)

    def _judged(self, query: Encoded, rows: Numbers, classifier: Classifier) -> list[Candidate]:
        if not len(rows):
            return []
        words, phrases = Words(query.text), self.phrases(rows)
        # Most are about something else, which a look at the words tells; the rest is computed for few.
        views = self.vectors.view[torch.from_numpy(rows)]
        whole, asked = cosines(views[:, 0], query.vector), cosines(views[:, 1], query.asked)
        able = np.array([comparable(query, words, phrase) for phrase in phrases])
        scores = np.full(len(phrases), -np.inf)
        if able.any():
            features = [compared(query, words, phrase) for phrase, one in zip(phrases, able, strict=True) if one]
            scores[able] = classifier(np.array(features))
        return [
            Candidate(
                self.leads_to(slot),
                str(self.names.names[owner][1]),
                float(cosine),
                float(asking),
                math.inf if phrase.text == query.text else float(score),
                phrase.text,
                phrase.subject,
            )
            for slot, owner, phrase, score, cosine, asking in zip(
                self.slot.take(rows).tolist(),
                self.owner.take(rows).tolist(),
                phrases,
                scores,
                whole,
                asked,
                strict=True,
            )
        ]

    def _seen(self, space: str | None) -> Numbers:
        live = self._live
        return live if space is None else live & (self.space.array() == self.names.find(("space", space)))

    @cached_property
    def _live(self) -> Numbers:
        return self.live.array()

    def leads_to(self, slot: int) -> int:
        """The latest edit that has taken a slot's place, or the slot itself."""
        while slot in self._heirs:
            slot = self._heirs[slot]
        return slot

    @cached_property
    def _heirs(self) -> dict[int, int]:
        pairs = self.lost.view.tolist()
        alive = set(self.slot.take(np.flatnonzero(self._live)).tolist()) if pairs else set()
        heirs: dict[int, int] = {}
        for old, new in pairs:
            if new in alive:
                heirs[old] = max(new, heirs.get(old, -1))
        return heirs

    def superseded_by(self, slot: int) -> list[str]:
        """The live edits whose place an edit took."""
        pairs = self.lost.view
        old = pairs[pairs[:, 1] == slot, 0].tolist() if len(pairs) else []
        return sorted(self.owner_of(one) for one in old if self.rows_of(self.owner_of(one)))

    # Changing

    def add(
        self, phrases: Sequence[Phrase], owner: str, slot: int, label: Hashable, space: str, encoder: str
    ) -> SentenceBook:
        """With the phrases of one more edit, all read by the same encoder."""
        base = self if len(self) else SentenceBook.empty(phrases[0].vectors.shape[1], encoder)
        vectors = base.vectors.append(torch.from_numpy(np.stack([phrase.vectors for phrase in phrases])))
        count, number = len(phrases), base.names.number
        return replace(
            base,
            vectors=vectors,
            text=base.text.append([phrase.text for phrase in phrases]),
            subject=base.subject.append([phrase.subject for phrase in phrases]),
            slot=base.slot.append([slot] * count),
            owner=base.owner.append([number(("owner", owner))] * count),
            label=base.label.append([number(("label", label))] * count),
            space=base.space.append([number(("space", space))] * count),
            live=base.live.append([True] * count),
            near=base.near.following(vectors),
        )

    def with_lost(self, pairs: Sequence[tuple[int, int]]) -> SentenceBook:
        """With slots that have lost their place to later ones."""
        return replace(self, lost=self.lost.append(torch.tensor(pairs))) if pairs else self

    def forget(self, owners: Iterable[str]) -> SentenceBook:
        """As if these edits had never been added."""
        rows = [row for owner in owners for row in self.rows_of(owner)]
        return replace(self, live=self.live.put(rows, False)) if rows else self
