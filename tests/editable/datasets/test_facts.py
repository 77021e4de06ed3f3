"""The shipped facts and the unrelated texts: complete, varied, and free of contradictions."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import editable.datasets
from editable.datasets import Case, facts, unrelated
from editable.datasets.conflicts import find

FOLDER = Path(editable.datasets.__file__).parent
LINES: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / "facts.jsonl").read_text("utf-8").splitlines()]


def normal(text: object) -> str:
    return str(text).lower().rstrip(" ?.,")


def asked(case: Case) -> list[str]:
    return [normal(case.edit.prompt), *(normal(question.prompt) for question in case.rephrases)]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return facts()


def test_counts(cases: list[Case]) -> None:
    assert len(cases) == len(LINES) == 454
    assert len({line["relation"] for line in LINES}) == 37
    assert sum(bool(case.portability) for case in cases) == 188
    assert max(Counter(line["relation"] for line in LINES).values()) <= 15


def test_every_line_is_whole() -> None:
    for line in LINES:
        assert list(line) == [
            *("prompt", "target", "before", "subject", "relation"),
            *("rephrases", "siblings", "unrelated", "portability"),
        ]
        assert re.match(r" \S", line["target"])
        assert re.match(r" \S", line["before"])
        assert line["target"] != line["before"]
        assert len(line["rephrases"]) >= 2
        assert len(line["siblings"]) == 2
        assert 1 <= len(line["unrelated"]) <= 2
        for question in [*line["siblings"], *line["portability"]]:
            assert question["answer"] is None or re.match(r" \S", question["answer"]), question
            assert question["prompt"] == question["prompt"].strip()


def test_known_values(cases: list[Case]) -> None:
    by_subject = {case.edit.subject: case for case in cases}
    france, kazakhstan = by_subject["France"], by_subject["Kazakhstan"]
    assert (france.edit.prompt, france.edit.target, france.before) == (
        "The capital of France is",
        " Marseille",
        " Paris",
    )
    assert [(q.prompt, q.answers, q.kind) for q in france.locality[:2]] == [
        ("The capital of Spain is", (" Madrid",), "sibling"),
        ("The capital of Japan is", (" Tokyo",), "sibling"),
    ]
    assert [(q.prompt, q.answers) for q in france.portability] == [
        ("The capital of France lies on the coast of the", (" Mediterranean",))
    ]
    assert kazakhstan.edit.target == " Astana"


def test_no_two_contradict_each_other(cases: list[Case]) -> None:
    assert find(cases) == []
    assert len({case.edit.subject for case in cases}) == len(cases)
    every = [text for case in cases for text in asked(case)]
    assert len(set(every)) == len(every)


def test_what_must_not_change_is_nobodys_edit(cases: list[Case]) -> None:
    answers = {text: case.edit.target for case in cases for text in asked(case)}
    for case in cases:
        for question in (*case.locality, *case.portability):
            edited = answers.get(normal(question.prompt))
            assert edited is None or edited in question.answers, question.prompt


def test_rephrases_are_other_wordings_about_the_same_subject(cases: list[Case]) -> None:
    for case in cases:
        texts = asked(case)
        subject = normal(case.edit.subject)
        assert any(str(q.prompt).endswith("?") for q in case.rephrases)
        assert any(not str(q.prompt).endswith("?") for q in case.rephrases)
        assert all(subject in text for text in texts)
        assert not any(a.startswith(b) for a in texts for b in texts if a is not b), texts
        assert all(subject in normal(question.prompt) for question in case.portability)
        assert not any(re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", normal(q.prompt)) for q in case.locality)


def test_a_limit_gives_many_relations() -> None:
    assert len(facts(20)) == 20
    assert len({line["relation"] for line in LINES[:37]}) == 37


def test_unrelated_texts_are_about_none_of_the_facts() -> None:
    texts = unrelated()
    assert len(texts) == len(set(texts)) == 200
    assert unrelated(3) == texts[:3]
    subjects = "|".join(re.escape(line["subject"]) for line in LINES)
    assert [text for text in texts if re.search(rf"(?<!\w)({subjects})(?!\w)", text, re.IGNORECASE)] == []
    used = {normal(text) for line in LINES for text in [line["prompt"], *line["rephrases"], *line["unrelated"]]}
    assert used.isdisjoint(map(normal, texts))
    assert all(text == text.strip() and text for text in texts)
