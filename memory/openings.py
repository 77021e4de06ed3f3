"""What some answer begins with: a filter that tells at once, for nearly every text, that its end begins none.

A text that has followed an edit's answer already ends in the first tokens of it. Whether a text does is asked at every
prefill, about each of its last tokens, and the truth is almost always no. One bit for each beginning of each answer
says so without a search; where it says perhaps, the edit that is found has the last word. Knows tokens, not edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BITS_EACH = 16  # at least, for each beginning: one in sixteen others passes, and each further token is asked as well
LEAST_BITS = 1 << 13
FACTOR = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its products spread over the high bits
WORD = (1 << 64) - 1

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Openings:
    """A Bloom filter with one hash (Bloom, CACM 1970), of answers that only ever become more.

    Args:
        marks: (bits / 8,) uint8. Versions share it: what one adds may be found in another, and then is perhaps.
        entered: beginnings in it.
        taken: answers in it.
    """

    marks: Numbers
    entered: int = 0
    taken: int = 0

    @classmethod
    def empty(cls) -> Openings:
        """Of no answer."""
        return cls(np.zeros(LEAST_BITS // 8, np.uint8))

    def following(self, answers: Tensor, spans: Tensor) -> Openings:
        """With the answers that came since.

        Args:
            answers: (a,) the tokens of all answers.
            spans: (n, 2) of each answer its first place in them, and its length.
        """
        tokens, places = answers.cpu().numpy(), spans.cpu().numpy()
        new = _beginnings(tokens, places[self.taken :])
        entered, marks = self.entered + len(new), self.marks
        if entered * BITS_EACH > 8 * len(marks):
            marks = np.zeros(1 << (2 * entered * BITS_EACH - 1).bit_length() >> 3, np.uint8)
            new = _beginnings(tokens, places)
        at, bit = _bits(new, len(marks))
        np.bitwise_or.at(marks, at, bit)
        return Openings(marks, entered, len(places))

    def ending(self, tokens: Numbers, key: Numbers, longest: int) -> Numbers:
        """Where texts perhaps end in the beginning of an answer, something before it.

        Args:
            tokens: (batch, positions).
            key: (batch,) each text's last token.
            longest: most tokens to look at.

        Returns:
            (batch, longest): whether the last 1, 2 ... tokens begin an answer; never False where they do.
        """
        columns = key[:, None] - np.arange(longest)
        first = np.take_along_axis(tokens, columns.clip(0), axis=1).astype(np.uint64)
        at, bit = _bits(_next(np.zeros_like(first), first), len(self.marks))
        found: Numbers = (self.marks[at] & bit > 0) & (columns > 0)
        for row, before in np.argwhere(found[:, 1:]).tolist():
            found[row, before + 1] = self._begin(tokens[row, columns[row, before + 1] : key[row] + 1].tolist())
        return found

    def _begin(self, tokens: list[int]) -> bool:
        """Whether these tokens, and all beginnings of them, are in it. Plain integers: there are few to look at."""
        state, shift = 0, 64 - (8 * len(self.marks)).bit_length() + 1
        for token in tokens:
            state = (state + token + 1) * FACTOR & WORD
            bit = state >> shift
            if not self.marks[bit >> 3] >> (bit & 7) & 1:
                return False
        return True


def _beginnings(tokens: Numbers, spans: Numbers) -> Numbers:
    """The hash of every beginning of every answer: (sum of the lengths,) uint64."""
    state, found = np.zeros(len(spans), np.uint64), [np.empty(0, np.uint64)]
    for place in range(int(spans[:, 1].max(initial=0))):
        longer = spans[:, 1] > place
        spans = spans[longer]
        state = _next(state[longer], tokens[spans[:, 0] + place].astype(np.uint64))
        found.append(state)
    return np.concatenate(found)


def _next(state: Numbers, tokens: Numbers) -> Numbers:
    """The hashes (...,) with one more token each."""
    return (state + tokens + np.uint64(1)) * np.uint64(FACTOR)


def _bits(hashes: Numbers, size: int) -> tuple[Numbers, Numbers]:
    """(byte, bit in it) of each hash (...,), in a filter of `size` bytes: its leading bits."""
    number = hashes >> np.uint64(64 - (8 * size).bit_length() + 1)
    return (number >> np.uint64(3)).astype(np.int64), np.uint8(1) << (number & np.uint64(7)).astype(np.uint8)
