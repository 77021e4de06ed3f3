"""An encoder without weights: a text is its words, each a fixed direction of its own."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from editable.memory.scope import Encoded

WIDTH = 48


@dataclass(frozen=True)
class Words:
    """Implements `editable.encoders.Encoder`: texts are as near as they have words in common.

    Args:
        digest: what tells it from others.
        misspelt: words that it does not know, and takes in two pieces.
    """

    digest: str = "words"
    misspelt: tuple[str, ...] = ()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """See `Encoder`."""
        return [self._encoded(text) for text in texts]

    def _encoded(self, text: str) -> Encoded:
        spans = np.array([span for word in re.finditer(r"\w+", text) for span in self._pieces(word)]).reshape(-1, 2)
        tokens = np.array([_direction(text[start:end].lower()) for start, end in spans]).reshape(-1, WIDTH)
        vector = tokens.sum(axis=0)
        return Encoded(text, vector / max(float(np.linalg.norm(vector)), 1e-9), tokens, spans)

    def _pieces(self, word: re.Match[str]) -> list[tuple[int, int]]:
        start, end = word.span()
        middle = (start + end) // 2
        return [(start, middle), (middle, end)] if word.group() in self.misspelt else [(start, end)]


def _direction(word: str) -> np.ndarray:
    vector = np.random.default_rng(zlib.crc32(word.encode())).standard_normal(WIDTH)
    return vector / np.linalg.norm(vector)
