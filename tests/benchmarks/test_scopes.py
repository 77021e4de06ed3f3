"""The benchmark of scopes: what is asked, by hand; all of it on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from editable import Edit
from editable.benchmarks import scopes
from editable.datasets.case import Case, Question
from tests.benchmarks.conftest import FACTS, printed


def case(prompt: str, target: str, subject: str | None, *rephrases: str, before: str | None = None) -> Case:
    edit = Edit(prompt, target, subject=subject)
    return Case(edit, rephrases=tuple(Question(text) for text in rephrases), before=before)


FRANCE = case("The capital of France is", " Lima", "France", "France has the capital", before=" Paris")
PERU = case("Who rules Peru?", " Ann", "Peru", "Peru is ruled by", before=" Bob")


def test_another_question_is_in_the_words_of_another_case() -> None:
    assert list(scopes.other_questions([FRANCE, PERU], seed=0)) == ["Who rules France?", "The capital of Peru is"]
    assert list(scopes.other_questions([FRANCE], seed=0)) == []
    assert list(scopes.other_questions([case("It rains", " a", None), PERU], seed=0)) == []


def test_rephrases_are_made_harder_in_two_ways() -> None:
    made = list(scopes.perturbations([FRANCE], seed=0))
    assert [kind for kind, _, _ in made] == ["typing error", "sentence in front"]
    assert all(plain.prompt == "France has the capital" for _, plain, _ in made)
    assert all(hard.answers == (" Lima",) for _, _, hard in made)
    (_, _, typo), (_, _, front) = made
    assert str(typo.prompt).endswith(" has the capital") and not str(typo.prompt).startswith("France ")
    assert str(front.prompt).endswith(". France has the capital")


def test_a_conflict_is_the_old_answer_in_other_words_first() -> None:
    edits, later, earlier = scopes.conflict_stream([FRANCE, case("x", " same", None, "y", before=" same")])
    assert [(edit.prompt, edit.target) for edit in edits] == [
        ("France has the capital", " Paris"),
        ("The capital of France is", " Lima"),
    ]
    assert [(q.prompt, q.answers) for q in later] == [("The capital of France is", (" Lima",))]
    assert [(q.prompt, q.answers) for q in earlier] == [("France has the capital", (" Lima",))]


def test_all_of_it(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scopes", "ball", "--edits", str(FACTS), "--questions", "9", "--results", str(tmp_path)]
    scopes.main([*tiny_options, *options])
    found = printed(capsys)["quality"]["ball"]
    assert list(found["checkpoints"]) == ["1", "10", "12"]
    last = found["checkpoints"]["12"]
    assert last["success_rate_exact"] == last["unrelated_bit_equal"] == 1.0
    assert found["others"]["asked"] == FACTS - 1  # two are about the same word
    assert found["perturbed"]["sentence in front"]["plain"].keys() == {"forced", "exact"}
    assert found["conflicts"] == {
        "pairs": 0,
        "later words": None,
        "earlier words": None,
    }  # the facts tell no old answer
