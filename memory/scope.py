"""Sentences, and which of them a text asks the same as: what a sentence scope knows of its edits.

A `SentenceBook` is an immutable value. Retrieval by cosine proposes phrases; a classifier over what can be compared
about a text and a phrase decides, so that a rephrase is told from a sibling: the same question about another subject.
Plain data in and out: texts come encoded (`Encoded`), by whatever encoder; knows nothing of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from editable.memory.column import Column
from editable.memory.names import Names
from editable.memory.neighbours import Neighbours, cosines
from editable.memory.rows import Rows

CONSIDERED = 16  # phrases that retrieval proposes for a text
LEAST_ALIKE = 0.66  # what each word of a subject must have in common with a word of a text that asks about it
CLOSE = 0.9  # cosine of sentences from which they are compared even so: the subject may go by another name
SPELT = 0.8  # likeness of a subject's letters from which it is the same one, whatever the encoder makes of its spelling
ALMOST = 0.6  # likeness from which one subject may be taken for the other
TELLING = 4  # letters of a word from which it is no accident that it is one
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

_WORD = re.compile(r"\w+(?:[.&-]\w+|['\u2019](?!s\b)\w+)*")  # a possessive 's is no part of a word
_WITHIN_NAMES = "of the and de la le du von van der den di da del al el in for on to at & y"
_WITHOUT_MEANING = (
    "the a an what which who whom whose where when why how is was are were does did do has have had in on of for at to "
    "from by with name it its his her their this that there can could would if as and or"
)
_JOINING = frozenset(_WITHIN_NAMES.split())
_ASKING = frozenset(_WITHOUT_MEANING.split())

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
        words = [m.span() for m in _WORD.finditer(self.text) if m.group().lower() not in _ASKING]
        starts, ends = self.spans[:, 0, None], self.spans[:, 1, None]
        begins, stops = np.array(words or [(0, 0)]).T
        return ((starts < stops) & (ends > begins)).any(axis=1)  # type: ignore[no-any-return]


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
        start, end = _place(encoded.text, subject) if subject else find_subject(encoded.text)
        about = subject if subject else encoded.text[start:end]
        vectors = np.stack([encoded.vector, _asked(encoded, start, end), _mean(encoded, _inside(encoded, start, end))])
        return cls(encoded.text, about, vectors.astype(np.float16))


# --- words ---


def find_subject(text: str) -> tuple[int, int]:
    """Where the name of what a text is about stands: its longest run of capitalised words or numbers.

    Small words that join names (of, the, and) belong to the run; a question's first word does not. Without names it is
    the longest word; (0, 0) in an empty text.
    """
    runs = sorted(_runs(text), key=lambda span: span[0] - span[1])
    if runs:
        return runs[0]
    words = [m for m in _WORD.finditer(text) if m.group().lower() not in _ASKING]
    return max((m.span() for m in words), key=lambda span: span[1] - span[0], default=(0, len(text)))


def _runs(text: str) -> Iterator[tuple[int, int]]:
    start = end = -1
    for match in _WORD.finditer(text):
        word = match.group()
        if not (word[0].isupper() or word[0].isdigit()):
            continue
        if start >= 0 and not _joins(text[end : match.start()]):
            yield start, end
            start = -1
        if start >= 0 or word.lower() not in _ASKING:
            start, end = (match.start() if start < 0 else start), match.end()
    if start >= 0:
        yield start, end


def _joins(between: str) -> bool:
    """Whether what stands between two capitalised words may be part of a name."""
    return not re.search(r"[.,;?!()\"\n]", between) and all(word in _JOINING for word in _WORD.findall(between))


def _place(text: str, subject: str) -> tuple[int, int]:
    """Where a subject stands in a text, exactly or nearly; (0, 0) where nothing is like it."""
    at = text.casefold().find(subject.casefold())
    if at >= 0:
        return at, at + len(subject)
    likeness, span = Words(text).nearest(subject)
    return span if likeness >= 0.6 else (0, 0)


def _bigrams(text: str) -> frozenset[str]:
    padded = f" {text} "
    return frozenset(padded[i : i + 2] for i in range(len(padded) - 1))


def alike(one: str, other: str) -> float:
    """The share of the longer text's letters that the other has in the same order, from 0 to 1."""
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(len(one), len(other), 1)


def least_alike(name: str, window: str) -> float:
    """How like the likest word of the window each word of a name is: the least of them."""
    words = [word for word in _WORD.findall(name.casefold()) if word not in _JOINING]
    there = _WORD.findall(window.casefold())
    if not words or not there:
        return 0.0
    return min(1.0 if word in there else max(alike(word, other) for other in there) for word in words)


class Words:
    """The words of one text, for finding names in it that may be misspelt."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.folded = text.casefold()
        self.spans = [match.span() for match in _WORD.finditer(text)]
        self._windows: dict[int, list[tuple[frozenset[str], tuple[int, int]]]] = {}

    def nearest(self, name: str) -> tuple[float, tuple[int, int]]:
        """How like the name the likest run of words is, from 0 to 1, and where it stands."""
        folded = name.casefold()
        at = self.folded.find(folded)
        if at >= 0 and self._is_whole(at, at + len(folded)):
            return 1.0, (at, at + len(folded))
        grams, count = _bigrams(folded), len(_WORD.findall(name))
        sizes = {max(1, count - 1), max(1, count), count + 1}
        windows = [window for size in sizes for window in self._of(size)]
        if not windows:
            return 0.0, (0, 0)
        shares = [2 * len(grams & own) / (len(grams) + len(own)) for own, _ in windows]
        best = np.argsort(shares)[::-1][:3]
        if shares[best[0]] < 0.25:
            return float(shares[best[0]]), windows[best[0]][1]
        spans = [windows[place][1] for place in best]
        likeness = [alike(folded, self.folded[start:end]) for start, end in spans]
        return max(likeness), spans[likeness.index(max(likeness))]

    def _is_whole(self, start: int, end: int) -> bool:
        before, after = self.folded[start - 1 : start], self.folded[end : end + 1]
        return not (before.isalnum() or after.isalnum())

    def _of(self, size: int) -> list[tuple[frozenset[str], tuple[int, int]]]:
        if size not in self._windows:
            ends = zip(self.spans, self.spans[size - 1 :], strict=False)
            spans = [(first[0], last[1]) for first, last in ends]
            self._windows[size] = [(_bigrams(self.folded[start:end]), (start, end)) for start, end in spans]
        return self._windows[size]


def readings(text: str) -> list[str]:
    """The text, and its last sentence and last two: what comes before these may be about something else."""
    ends = [m.end() for m in re.finditer(r"[.!?]['\")\]]?\s+(?=\S)|\n+", text)]
    parts = [text[end:].strip() for end in reversed(ends) if len(_WORD.findall(text[end:])) > 1]
    return list(dict.fromkeys([text, *parts[:2]]))


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
    """Whether a text may ask the same as a phrase at all: it names the subject, or is very like the whole phrase."""
    likeness, (start, end) = words.nearest(phrase.subject)
    whole, _, about = phrase.vectors.astype(np.float32)
    if ALMOST <= likeness < 1.0 and _another_word(query, start, end, phrase.subject):
        return False
    if likeness == 1.0 or float(query.vector @ whole) >= CLOSE:
        return True
    misspelt = least_alike(phrase.subject, query.text[start:end]) >= LEAST_ALIKE
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
        _strangers(rest, kept),
        _shared_words(rest, _without(phrase.text, phrase.subject)),
        float(re.findall(r"\d+", window) != re.findall(r"\d+", phrase.subject)),
        min(len(_WORD.findall(rest)) / 10, 3.0),
        _goes_on(query.text, phrase.text),
        _longer_name(query.text, start, end, phrase.text),
    ]


def _relations(query: Encoded, start: int, end: int, begin: int) -> list[Numbers]:
    """What may be asked about the subject between start and end: what stands around it; or what stands behind it."""
    behind = (query.spans[:, 0] >= end) & query.meaning
    around = _asked(query, start, end, begin)
    return [around, _mean(query, behind)] if behind.any() else [around]


def _another_word(query: Encoded, start: int, end: int, subject: str) -> bool:
    """Whether a word of the subject is spelt otherwise, as a word that the encoder knows: Austria is no Australia.

    Known are words that the encoder takes as they are, in one token; what is misspelt falls into pieces. Short ones are
    not looked at: of those, errors make one another.
    """
    own, whole = {word.casefold() for word in _WORD.findall(subject)}, set(map(tuple, query.spans.tolist()))
    words = [(m.group().casefold(), m.span()) for m in _WORD.finditer(query.text, start, end)]
    others = [word for word, span in words if word not in own and span in whole and len(word) >= TELLING]
    return any(not _inflected(word, own) for word in others)


def _inflected(word: str, others: Iterable[str]) -> bool:
    """Whether a word is another one with a letter or two behind it, or without: Australian, cities."""
    pairs = (sorted((word, other), key=len) for other in others)
    return any(len(one) >= 4 and longer.startswith(one) and len(longer) - len(one) <= 2 for one, longer in pairs)


def _longer_name(text: str, start: int, end: int, phrase: str) -> float:
    """1 where what stands at a place is the beginning of a longer name, which the phrase does not have."""
    names = (text[start:b] for a, b in _runs(text) if a <= start and b > end)
    return float(any(name.casefold() not in phrase.casefold() for name in names))


def _goes_on(text: str, phrase: str) -> float:
    """1 where a text holds the phrase, and words behind it: then it may be answered already."""
    found = re.search(re.escape(phrase.casefold()) + r"\b(?=.*\w)", text.casefold(), re.DOTALL)
    return float(found is not None and bool(phrase.strip()))


def _apart(vector: Numbers, from_this: Numbers) -> Numbers:
    """What is left of a vector without its part along another, of length 1."""
    rest = vector - (vector @ from_this) * from_this
    return rest / max(float(np.linalg.norm(rest)), 1e-9)  # type: ignore[no-any-return]


def _without(text: str, subject: str) -> str:
    start, end = _place(text, subject)
    return text[:start] + " " + text[end:]


def _strangers(rest: str, words: Words) -> float:
    """How many names, up to 2, a text has beside its subject that are not in the other text."""
    names = [rest[start:end] for start, end in _runs(rest)]
    return float(min(2, sum(words.nearest(name)[0] < 0.7 for name in names)))


def _stems(text: str) -> set[str]:
    return {word[:5] for word in map(str.lower, _WORD.findall(text)) if word not in _ASKING}


def _shared_words(one: str, other: str) -> float:
    left, right = _stems(one), _stems(other)
    return len(left & right) / len(left | right) if left | right else 1.0


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
        score: log-odds that it asks the same; infinite for the very same text.
        text: the phrase.
    """

    slot: int
    owner: str
    cosine: float
    score: float
    text: str


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
        words, numbers = Column.empty(object), Column.empty(np.int32)
        vectors, lost = Rows.empty(3, width, dtype=torch.float16), Rows.empty(2, dtype=torch.long)
        columns = words, words, numbers, numbers, numbers, numbers
        return cls(encoder, vectors, *columns, Names(), Column.empty(np.bool_), lost, Neighbours.empty())

    def __len__(self) -> int:
        return len(self.vectors)

    def phrase(self, row: int) -> Phrase:
        """One of its phrases."""
        at = np.array([row])
        return Phrase(self.text.take(at)[0], self.subject.take(at)[0], self.vectors.view[row].numpy())

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
        words, phrases = Words(query.text), [self.phrase(row) for row in rows.tolist()]
        # Most are about something else, which a look at the words tells; the rest is computed for few.
        whole = cosines(self.vectors.view[torch.from_numpy(rows), 0], query.vector)
        able = np.array([comparable(query, words, phrase) for phrase in phrases])
        scores = np.full(len(phrases), -np.inf)
        if able.any():
            features = [compared(query, words, phrase) for phrase, one in zip(phrases, able, strict=True) if one]
            scores[able] = classifier(np.array(features))
        return [
            Candidate(
                self.leads_to(self.slot[row]),
                str(self.names.names[self.owner[row]][1]),
                float(cosine),
                math.inf if phrase.text == query.text else float(score),
                phrase.text,
            )
            for row, phrase, score, cosine in zip(rows.tolist(), phrases, scores, whole, strict=True)
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
