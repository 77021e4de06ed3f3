"""Sentences: what is found in words, what is compared, and what a book knows after edits came and went."""

from __future__ import annotations

import math

import numpy as np
import pytest

from editable.memory.scope import (
    FEATURES,
    Classifier,
    Phrase,
    SentenceBook,
    comparable,
    compared,
)
from editable.memory.wording import Words as Found
from tests.words import Words

ENCODER = Words()


def by_hand(**weights: float) -> Classifier:
    """Log-odds that are a weighted sum of features by name, as far as tanh is straight; minus `bias`."""
    bias = weights.pop("bias", 0.0)
    row = np.array([[weights.get(name.replace(" ", "_").replace("'s", ""), 0.0) for name in FEATURES]]) / 1e4
    blank = np.zeros(len(FEATURES))
    return Classifier(
        {
            "mean": blank,
            "scale": blank + 1,
            "hidden": row,
            "hidden_bias": np.zeros(1),
            "out": np.array([1e4]),
            "out_bias": np.array([-bias]),
            "negatives": np.array([3.0, 2.0, 1.0, 0.0]),
            "count": np.array([4.0]),
        }
    )


JUDGE = by_hand(subject_alike=10, sentence_cosine=4, goes_on=-20, bias=10)


def phrase(text: str, subject: str | None = None) -> Phrase:
    return Phrase.of(ENCODER.encode([text])[0], subject)


def book(*texts: str, labels: str = "", spaces: str = "") -> SentenceBook:
    """One edit a text, named by its place; labels and spaces by letters."""
    made = SentenceBook.empty()
    for slot, text in enumerate(texts):
        label, space = (labels or "abcdefghij")[slot], (spaces or "n" * len(texts))[slot]
        made = made.add([phrase(text)], str(slot), slot, label, space, ENCODER.digest)
    return made


def asked(made: SentenceBook, text: str, space: str | None = None) -> list[tuple[int, float]]:
    """Slots and scores of the candidates that might be meant."""
    found = made.candidates(ENCODER.encode([text])[0], JUDGE, space)
    return [(one.slot, one.score) for one in found if one.score > 0]


# -------------------------------------------------------------------------------------------------- comparing


def test_how_near_a_phrase_is_counts_what_is_asked_as_much_as_the_sentence() -> None:
    """Of Alpha and of Oscar the same is asked: besides these, only home means something."""
    (found,) = book("the home of Oscar").candidates(ENCODER.encode(["the home of Alpha"])[0], JUDGE)
    the, home, of, oscar, alpha = (one.vector for one in ENCODER.encode(["the", "home", "of", "Oscar", "Alpha"]))
    own, other = the + home + of + alpha, the + home + of + oscar
    cosine = own @ other / (np.linalg.norm(own) * np.linalg.norm(other))
    assert found.cosine == pytest.approx(cosine, abs=1e-3) and found.asked == pytest.approx(1.0, abs=1e-3)
    assert found.near == pytest.approx((cosine + 1) / 2, abs=1e-3)


def test_what_is_compared_by_hand() -> None:
    query = ENCODER.encode(["where does Oscar live now"])[0]
    found = dict(
        zip(FEATURES, compared(query, Found(query.text), phrase("where does Oscar live", "Oscar")), strict=True)
    )
    assert found["subject alike"] == found["subject exact"] == found["subject's least word"] == 1.0
    assert found["subject cosine"] == pytest.approx(1.0, abs=1e-3)
    assert found["sentence cosine"] == pytest.approx(0.9, abs=0.08)  # four of five words
    assert found["relation words"] == pytest.approx(1 / 2)  # live; live and now
    assert found["numbers differ"] == found["other names"] == 0.0
    assert found["words beyond"] == pytest.approx(0.4)
    assert found["goes on"] == 1.0


def relation_cosine(text: str, prompt: str, subject: str) -> float:
    query = ENCODER.encode([text])[0]
    found = compared(query, Found(query.text), phrase(prompt, subject))
    return found[FEATURES.index("relation cosine")]


def test_words_without_meaning_make_no_two_questions_alike() -> None:
    """With what, is, the and of, these two would share most of what stands around the subject."""
    prompt = "What is the capital of Oscar"
    assert relation_cosine("Where was the capital by Oscar", prompt, "Oscar") == pytest.approx(1.0, abs=1e-3)
    assert abs(relation_cosine("What is the weather of Oscar", prompt, "Oscar")) < 0.35  # independent directions


def test_what_stands_in_front_of_a_subject_need_not_be_about_it() -> None:
    prompt = "Oscar lives near"
    assert relation_cosine("strange old tales Oscar lives near", prompt, "Oscar") == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("asked", "subject", "may"),
    [
        ("the capital of Austria is", "Australia", False),  # another word
        ("the capital of Austrlia is", "Australia", True),  # in pieces: misspelt
        ("the Australian capital is", "Australia", True),  # inflected
        ("the hero Iron Mal is", "Iron Man", True),  # short words may be errors that happen to be words
        ("the hero Iron Giant is", "Iron Man", False),
    ],
)
def test_a_name_spelt_otherwise_is_another_one_if_it_is_a_word(asked: str, subject: str, may: bool) -> None:
    read = Words(misspelt=("Austrlia",)).encode([asked])[0]
    start, end = Found(asked).nearest(subject)[1]
    about = read.tokens[(read.spans[:, 0] < end) & (read.spans[:, 1] > start)].mean(axis=0)  # as if it meant the same
    vectors = np.stack([ENCODER.encode(["else"])[0].vector, about, about / np.linalg.norm(about)])
    assert comparable(read, Found(asked), Phrase(f"who is {subject}", subject, vectors)) is may


def test_a_subject_that_is_no_name_tells_nothing_of_texts_that_are_not_alike() -> None:
    def may(text: str, prompt: str, subject: str) -> bool:
        (query,) = ENCODER.encode([text])
        return comparable(query, Found(text), phrase(prompt, subject))

    prompt = "say seven eight nine lima"
    assert not may("what colour is east and seven", prompt, "seven")
    assert may("say eight and nine and seven", prompt, "seven")
    assert may("what colour is east and Seven", prompt.replace("seven", "Seven"), "Seven")


def test_numbers_and_names_beside_the_subject_are_noticed() -> None:
    query = ENCODER.encode(["Was Apollo 12 seen by Oscar Wilde"])[0]
    found = dict(zip(FEATURES, compared(query, Found(query.text), phrase("Apollo 11 was", "Apollo 11")), strict=True))
    assert found["numbers differ"] == 1.0
    assert found["other names"] == 1.0


def test_the_classifier_by_hand() -> None:
    weights = {
        "mean": np.array([1.0, 0.0]),
        "scale": np.array([2.0, 1.0]),
        "hidden": np.array([[1.0, 0.0], [0.0, -1.0]]),
        "hidden_bias": np.array([0.0, 0.5]),
        "out": np.array([2.0, 3.0]),
        "out_bias": np.array([0.25]),
        "negatives": np.array([3.0, 2.0, 1.0]),
        "count": np.array([100.0]),
    }
    expected = 2 * math.tanh(1.0) + 3 * math.tanh(-0.5) + 0.25
    assert Classifier(weights)(np.array([[3.0, 1.0]])).tolist() == pytest.approx([expected])
    assert [Classifier(weights).threshold(rate) for rate in (0, 0.01, 0.02, 0.5)] == [3.0, 2.0, 1.0, 1.0]


# ------------------------------------------------------------------------------------------------------- book


def test_the_very_text_is_certain() -> None:
    made = book("where does Oscar live", "where does Maria live")
    assert asked(made, "where does Maria live")[0] == (1, math.inf)


def test_a_rephrase_finds_its_edit_and_not_its_sibling() -> None:
    made = book("where does Oscar live", "where does Maria live")
    assert [slot for slot, _ in asked(made, "in which town does Maria live")] == [1]
    assert asked(made, "where does Juliett live") == []


def test_adding_phrases_changes_nothing_that_was_there() -> None:
    """Else a look-up would go through the whole history."""
    made = book("where does Oscar live", "where does Maria live", "where does Juliett live")
    columns = made.text, made.subject, made.slot, made.owner, made.label, made.space, made.live
    assert [column.version.change for column in columns] == [None] * len(columns)
    assert [one.text for one in made.phrases(np.array([2, 0]))] == ["where does Juliett live", "where does Oscar live"]


def test_namespaces_may_be_asked_apart() -> None:
    made = book("where does Oscar live", "where does Oscar live", spaces="xy")
    assert {slot for slot, _ in asked(made, "where does Oscar live")} == {0, 1}
    assert [slot for slot, _ in asked(made, "where does Oscar live", "x")] == [0]
    assert asked(made, "where does Oscar live", "unknown") == []


def test_a_forgotten_edit_is_not_found_and_older_versions_keep_it() -> None:
    made = book("where does Oscar live", "where does Maria live")
    left = made.forget(["0"])
    assert asked(left, "where does Oscar live") == []
    assert asked(made, "where does Oscar live")[0][0] == 0
    assert (left.slot_of("0"), left.slot_of("1"), left.rows_of("0")) == (None, 1, [])
    assert left.forget(["0", "stranger"]).rows_of("1") == [1]


def rivals(made: SentenceBook, text: str, label: str, needed: float = 0.5) -> list[str]:
    return made.rivals(ENCODER.encode([text])[0], "Oscar", JUDGE, "n", label, needed)


def test_rivals_ask_the_same_and_answer_otherwise() -> None:
    made = book("where does Oscar live", "where does Maria live", "where does Oscar live now", labels="abb")
    assert rivals(made, "where does Oscar live", "c") == ["0", "2"]
    assert rivals(made, "where does Oscar live", "b") == ["0"]
    assert rivals(made.forget(["2"]), "where does Oscar live", "c") == ["0"]
    assert rivals(SentenceBook.empty(), "where does Oscar live", "c") == []


def test_what_lost_its_place_leads_to_the_latest() -> None:
    made = book("where does Oscar live", "the home of Oscar is", "Oscar lives in").with_lost([(0, 1), (1, 2)])
    assert [made.leads_to(slot) for slot in range(3)] == [2, 2, 2]
    assert made.superseded_by(1) == ["0"]
    assert asked(made, "where does Oscar live")[0] == (2, math.inf)


def test_forgetting_gives_the_place_back() -> None:
    made = book("where does Oscar live", "the home of Oscar is", "Oscar lives in").with_lost([(0, 1), (1, 2), (0, 2)])
    assert [made.forget(["2"]).leads_to(slot) for slot in range(2)] == [1, 1]
    assert made.forget(["1"]).leads_to(0) == 2
    assert made.forget(["1", "2"]).leads_to(0) == 0
    assert made.forget(["0"]).superseded_by(1) == []
