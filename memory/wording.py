"""What the words of a text say by themselves: names, how alike two are, sentences. Knows no vectors."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

WORD = re.compile(r"\w+(?:[.&-]\w+|['\u2019](?!s\b)\w+)*")  # a possessive 's is no part of a word
_WITHIN_NAMES = "of the and de la le du von van der den di da del al el in for on to at & y"
_WITHOUT_MEANING = (
    "the a an what which who whom whose where when why how is was are were does did do has have had in on of for at to "
    "from by with name it its his her their this that there can could would if as and or"
)
TELLING = 4  # letters of a word from which it is no accident that it is one
JOINING = frozenset(_WITHIN_NAMES.split())
ASKING = frozenset(_WITHOUT_MEANING.split())
MORE = 2  # words that a text has beyond those of a phrase, where it asks for more than that
_SMALL = JOINING | ASKING | {"i"}
_ROMAN = re.compile("[IVXLCDM]+")


def is_name(subject: str) -> bool:
    """Whether something in it is capitalised, or a number."""
    return any(letter.isupper() or letter.isdigit() for letter in subject)


def find_subject(text: str) -> tuple[int, int]:
    """Where the name of what a text is about stands: its longest run of capitalised words or numbers.

    Small words that join names (of, the, and) belong to the run; a question's first word does not. Without names it is
    the longest word; (0, 0) in an empty text.
    """
    names = sorted(runs(text), key=lambda span: span[0] - span[1])
    if names:
        return names[0]
    words = [m for m in WORD.finditer(text) if m.group().lower() not in ASKING]
    return max((m.span() for m in words), key=lambda span: span[1] - span[0], default=(0, len(text)))


def runs(text: str) -> Iterator[tuple[int, int]]:
    """Where names stand: capitalised words and numbers, and the small words that join them."""
    start = end = -1
    for match in WORD.finditer(text):
        word = match.group()
        if not (word[0].isupper() or word[0].isdigit()):
            continue
        if start >= 0 and not _joins(text[end : match.start()]):
            yield start, end
            start = -1
        if start >= 0 or word.lower() not in ASKING:
            start, end = (match.start() if start < 0 else start), match.end()
    if start >= 0:
        yield start, end


def _joins(between: str) -> bool:
    """Whether what stands between two capitalised words may be part of a name."""
    return not re.search(r"[.,;?!()\"\n]", between) and all(word in JOINING for word in WORD.findall(between))


def place(text: str, subject: str) -> tuple[int, int]:
    """Where a subject stands in a text, exactly or nearly; (0, 0) where nothing is like it."""
    at = folded(text).find(folded(subject))
    if at >= 0:
        return at, at + len(subject)
    likeness, span = Words(text).nearest(subject)
    return span if likeness >= 0.6 else (0, 0)


def folded(text: str) -> str:
    """Small letters without accents, one for each letter, so that places in the text stay."""
    if text.isascii():
        return text.lower()
    return "".join(unicodedata.normalize("NFKD", letter)[0].lower()[0] for letter in text)


def _bigrams(text: str) -> frozenset[str]:
    padded = f" {text} "
    return frozenset(padded[i : i + 2] for i in range(len(padded) - 1))


def alike(one: str, other: str) -> float:
    """The share of the longer text's letters that the other has in the same order, from 0 to 1."""
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(len(one), len(other), 1)


def is_initial(word: str) -> bool:
    """Whether a word is one capital letter, and no word of that length."""
    return len(word) == 1 and word.isupper() and folded(word) not in _SMALL


def begins(one: str, other: str) -> bool:
    """Whether one of two words is the initial of the other, which is no number of a king."""
    short, long = sorted((one, other), key=len)
    return is_initial(short) and len(long) > 2 and folded(long[0]) == folded(short) and not _ROMAN.fullmatch(long)


def least_alike(name: str, window: str) -> float:
    """How like the likest word of the window each word of a name is: the least of them.

    An initial is like any word that it begins. Where the window has none, those before the last word of a name of at
    least two words more do not count: they may be left out.
    """
    words = [word for word in WORD.findall(name) if folded(word) not in JOINING]
    there = WORD.findall(window)
    in_full = [word for word in words if not is_initial(word)]
    if len(in_full) > 1 and not any(map(is_initial, there)):
        words = [*(word for word in words[:-1] if not is_initial(word)), words[-1]]
    return min((_likest(word, there) for word in words), default=0.0)


def _likest(word: str, others: Sequence[str]) -> float:
    own, there = folded(word), [folded(other) for other in others]
    same = own in there or any(begins(word, other) for other in others)
    return 1.0 if same else max((alike(own, other) for other in there), default=0.0)


def another_word(name: str, window: str, known: Collection[str]) -> bool:
    """Whether a word of a name stands in the window as another word that is known: Austria is no Australia.

    Short ones are not looked at: of those, errors make one another. A name that is there in full, with a word or two
    more in between, is that name. `known` words are folded.
    """
    words = WORD.findall(name)
    own, there = set(map(folded, words)), {folded(word): word for word in WORD.findall(window)}
    in_full = {folded(word) for word in words if not is_initial(word)}
    if len(in_full) > 1 and in_full <= there.keys():
        return False
    others = [word for word in there if word not in own and word in known and len(word) >= TELLING]
    return any(not (inflected(word, own) or any(begins(one, there[word]) for one in words)) for word in others)


class Words:
    """The words of one text, for finding names in it that may be misspelt."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.folded = folded(text)
        self.spans = [match.span() for match in WORD.finditer(text)]
        self._windows: dict[int, list[tuple[frozenset[str], tuple[int, int]]]] = {}

    def nearest(self, name: str) -> tuple[float, tuple[int, int]]:
        """How like the name the likest run of words is, from 0 to 1, and where it stands."""
        wanted = folded(name)
        at = self.folded.find(wanted)
        if at >= 0 and self._is_whole(at, at + len(wanted)):
            return 1.0, (at, at + len(wanted))
        grams, count = _bigrams(wanted), len(WORD.findall(name))
        sizes = {max(1, count - 1), max(1, count), count + 1}
        windows = [window for size in sizes for window in self._of(size)]
        if not windows:
            return 0.0, (0, 0)
        shares = [2 * len(grams & own) / (len(grams) + len(own)) for own, _ in windows]
        best = np.argsort(shares)[::-1][:3]
        if shares[best[0]] < 0.25:
            return float(shares[best[0]]), windows[best[0]][1]
        spans = [windows[place][1] for place in best]
        likeness = [alike(wanted, self.folded[start:end]) for start, end in spans]
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
    parts = [text[end:].strip() for end in reversed(ends) if len(WORD.findall(text[end:])) > 1]
    return list(dict.fromkeys([text, *parts[:2]]))


def inflected(word: str, others: Iterable[str]) -> bool:
    """Whether a word is another one with a letter or two behind it, or without: Australian, cities."""
    pairs = (sorted((word, other), key=len) for other in others)
    return any(len(one) >= 4 and longer.startswith(one) and len(longer) - len(one) <= 2 for one, longer in pairs)


def longer_name(text: str, start: int, end: int, phrase: str) -> float:
    """1 where what stands at a place is the beginning of a longer name, which the phrase does not have."""
    names = (text[start:b] for a, b in runs(text) if a <= start and b > end)
    return float(any(folded(name) not in folded(phrase) for name in names))


def goes_on(text: str, phrase: str) -> float:
    """1 where a text holds the phrase, and words behind it: then it may be answered already."""
    found = re.search(re.escape(folded(phrase)) + r"\b(?=.*\w)", folded(text), re.DOTALL)
    return float(found is not None and bool(phrase.strip()))


def without(text: str, subject: str) -> str:
    """The text with a gap in the place of its subject."""
    start, end = place(text, subject)
    return text[:start] + " " + text[end:]


def replaced(text: str, subject: str, other: str) -> str:
    """The text with another name in the place of its subject; the text itself where that is not in it."""
    start, end = place(text, subject)
    return text[:start] + other + text[end:] if end else text


def strangers(rest: str, words: Words) -> float:
    """How many names, up to 2, a text has beside its subject that are not in the other text."""
    names = [rest[start:end] for start, end in runs(rest)]
    return float(min(2, sum(words.nearest(name)[0] < 0.7 for name in names)))


def asks_more(text: str, phrase: str, subject: str, named: bool) -> bool:
    """Whether a text asks for more than a phrase does.

    What builds on an answer (the capital of the country where she was born, after where she was born) has to say what
    that was the answer to, and what it wants besides. So it has, names aside, `MORE` more words that mean something
    than the phrase, or all of them and one besides. A rephrase has about as many, whatever they are; and so it has
    where the subject is not `named`, but for the one word that says whose it is (the father of ...).
    """
    asked, known = _meant(_nameless(_reading_of(text, subject), subject)), _meant(without(phrase, subject))
    return len(asked) - len(known) >= MORE or (named and bool(known) and asked > known)


def _reading_of(text: str, subject: str) -> str:
    """The shortest reading that has the subject, which a full stop within a name would cut in two; else the last."""
    read = readings(text)
    return min((one for one in read if folded(subject) in folded(one)), key=len, default=read[-1])


def _meant(text: str) -> set[str]:
    """Its words that mean something, by how they begin; what an apostrophe leaves is no word."""
    return {stem for stem in _stems(text) if len(stem) > 1}


def _nameless(text: str, subject: str) -> str:
    """The text with a gap in the place of each name, and of its subject, or of what it is about instead."""
    start, end = place(text, subject)
    start, end = (start, end) if end else find_subject(text)
    text = text[:start] + " " + text[end:]
    for start, end in reversed(list(runs(text))):
        text = text[:start] + " " + text[end:]
    return text


def _stems(text: str) -> set[str]:
    return {word[:5] for word in WORD.findall(folded(text)) if word not in ASKING}


def shared_words(one: str, other: str) -> float:
    """The share of all meaning words of two texts that both have, by how they begin; 1 if neither has any."""
    left, right = _stems(one), _stems(other)
    return len(left & right) / len(left | right) if left | right else 1.0
