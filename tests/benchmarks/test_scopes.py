"""The benchmark of scopes: what is asked, by hand; all of it on a tiny model."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from editable import Edit
from editable.asking import Asker
from editable.benchmarks import scopes
from editable.benchmarks.baselines.prompting import Prompting
from editable.datasets.case import Case, Question
from editable.edit import ModelInput
from editable.metrics import Accuracy
from editable.scoring import Base, CaseScore, Scores
from tests.benchmarks.conftest import FACTS, printed
from tests.families import Loaded


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


def chosen(*options: str) -> Namespace:
    return scopes.options().parse_args(options)


def test_subjects_texts_and_answers_only_where_they_are_asked_for(tmp_path: Path) -> None:
    rewrite = {"prompt": "{} is in", "subject": "Lima", "target_new": {"str": "Peru"}, "target_true": {"str": "Chile"}}
    more = {"generation_prompts": ["Lima"], "neighborhood_prompts": ["Arica is in"]}
    (tmp_path / "facts.json").write_text(json.dumps([{"requested_rewrite": rewrite, **more}]))
    data = ("--data", str(tmp_path / "facts.json"))
    (given,), (found,) = scopes.cases_of(chosen(*data)), scopes.cases_of(chosen(*data, "--subjects", "found"))
    assert (given.edit.subject, found.edit.subject) == ("Lima", None)
    (bits,) = scopes.cases_of(chosen(*data, "--parts", "bits"))
    assert (given.locality[0].answers, bits.locality[0].answers) == ((" Chile",), ())
    assert given.generate == () and scopes.cases_of(chosen(*data, "--parts", "all,texts"))[0].generate == ("Lima",)


def test_a_method_has_the_options_that_are_set() -> None:
    assert scopes.methods(chosen("--editor", "prompting", "--set", "lines=2")) == {"prompting": Prompting(lines=2)}


class Kept(Asker):
    """Answers as the base does; notes what it holds whenever it is asked."""

    name, numbers = "kept", 0

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.edits: list[Edit] = []
        self.seen: list[list[str]] = []

    @property
    def held(self) -> int:
        return len(self.edits)

    def insert(self, edits: Sequence[Edit]) -> None:
        self.edits += edits

    def reset(self) -> None:
        self.edits = []

    def logits(self, prompts: Sequence[ModelInput]) -> list[Tensor]:
        self.seen.append([str(edit.prompt) for edit in self.edits])
        return super().logits(prompts)


def test_alone_is_with_the_edits_of_the_same_record_only(tiny: Loaded) -> None:
    locality = (Question("four seven", ()),)
    cases = [
        replace(case(prompt, " lima", None), where=where, locality=locality)
        for prompt, where in (("one two", "a"), ("two three", "a"), ("nine", "b"))
    ]
    kept = Kept(tiny.model, tiny.tokenizer)
    found = scopes.alone(kept, cases, Base(Asker(tiny.model, tiny.tokenizer)))
    assert kept.seen == [["one two", "two three"], ["one two", "two three"], ["nine"]]
    assert [drift.bit_equal for one in found.cases for drift in one.locality] == [True] * 3


def test_what_follows_is_counted_by_kind() -> None:
    asked = (Question("a", (" x",), "alias"), Question("b", (), "alias"), Question("c", (" y",), "hop"))
    half, whole = Accuracy(0.5, 0.0), Accuracy(1.0, 1.0)
    scores = Scores((CaseScore("", whole, portability=(half, whole)), CaseScore("", whole, portability=(whole, whole))))
    found = scopes.by_kind(scores, [replace(FRANCE, portability=asked), replace(PERU, portability=asked)])
    assert found == {"alias": {"forced": 0.75, "exact": 0.5}, "hop": {"forced": 1.0, "exact": 1.0}}


def test_all_of_it(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scopes", "ball", "--edits", str(FACTS), "--questions", "9", "--results", str(tmp_path)]
    scopes.main([*tiny_options, *options, "--parts", "all,perturbed,others,conflicts,alone"])
    found = printed(capsys)["quality"]["ball"]
    assert list(found["checkpoints"]) == ["1", "10", "12"]
    last = found["checkpoints"]["12"]
    assert last["success_rate_exact"] == last["unrelated_bit_equal"] == 1.0
    assert found["alone"]["success_rate_exact"] == 1.0
    assert found["others"]["asked"] == FACTS - 1  # two are about the same word
    assert found["perturbed"]["sentence in front"]["plain"].keys() == {"forced", "exact"}
    assert found["conflicts"] == {
        "pairs": 0,
        "later words": None,
        "earlier words": None,
    }  # the facts tell no old answer
