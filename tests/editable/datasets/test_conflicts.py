"""Contradictions within a stream: found by question, settled by policy."""

from __future__ import annotations

import time

import pytest
import torch

from editable.datasets import Case, ConflictError, Question
from editable.datasets.conflicts import Conflict, Policy, find, settle
from editable.edit import Edit


def case(prompt: str, target: str, *rephrases: str, where: str = "") -> Case:
    return Case(Edit(prompt, target), rephrases=tuple(Question(text, (target,)) for text in rephrases), where=where)


def picture(value: float, label: int) -> Case:
    return Case(Edit(torch.full((1, 2, 2), value), label))


STREAM = [
    case("Who runs Ost?", " Iva"),
    case("Who runs Tolm?", " Kai"),
    case("who  RUNS ost", " Ada"),
    case("Name Ost's mayor.", " Ben", "Who runs Ost ?"),
    case("Who runs Tolm", "  kai "),
]


def test_what_is_found() -> None:
    assert find(STREAM) == [
        Conflict(0, 2, "who  RUNS ost", (" Iva", " Ada")),
        Conflict(0, 3, "Who runs Ost ?", (" Iva", " Ben")),
    ]


@pytest.mark.parametrize(
    ("policy", "kept"), [("keep", [0, 1, 2, 3, 4]), ("first", [0, 1, 4]), ("last", [1, 3, 4]), ("drop", [1, 4])]
)
def test_how_it_is_settled(policy: Policy, kept: list[int]) -> None:
    settled = settle(STREAM, policy)
    assert [STREAM.index(left) for left in settled] == kept


def test_a_question_that_is_the_others_rephrase_in_either_order() -> None:
    asked, rephrased = case("A", " x"), case("B", " y", "a.")
    assert [(c.first, c.second, c.question, c.answers) for c in find([asked, rephrased])] == [
        (0, 1, "a.", (" x", " y"))
    ]
    assert [(c.question, c.answers) for c in find([rephrased, asked])] == [("A", (" y", " x"))]
    assert find([case("A", " x", "c"), case("B", " y", "C!")])[0].question == "C!"


def test_every_case_that_contradicts_another_is_found() -> None:
    stream = [case("A", " x"), case("A", " x"), case("A", " y"), case("B", " y")]
    assert [(c.first, c.second) for c in find(stream)] == [(0, 2), (1, 2)]
    assert settle(stream, "drop") == stream[3:]
    assert settle(stream, "first") == [stream[0], stream[1], stream[3]]
    assert settle(stream, "last") == stream[2:]


def test_a_pair_is_found_once_and_a_case_never_contradicts_itself() -> None:
    assert len(find([case("A", " x", "B"), case("A", " y", "B")])) == 1
    assert find([case("A", " x", "A?", "a")]) == []


def test_first_and_last_keep_what_only_contradicts_the_left_out() -> None:
    stream = [case("A", " x"), case("A", " y", "B"), case("B", " z")]
    assert settle(stream, "first") == [stream[0], stream[2]]
    assert settle(stream, "last") == [stream[0], stream[2]]
    assert settle(stream, "drop") == []


def test_images_by_their_pixels_and_rephrases_of_the_edit() -> None:
    stream = [picture(0.5, 1), picture(0.25, 2), picture(0.5, 3), picture(0.5, 1)]
    assert [(c.first, c.second, c.question, c.answers) for c in find(stream)] == [
        (0, 2, "image of shape (1, 2, 2)", (1, 3)),
        (2, 3, "image of shape (1, 2, 2)", (3, 1)),
    ]
    shown = Case(Edit("B", " y", rephrases=["A"]))
    assert len(find([case("A", " x"), shown])) == 1


def test_mappings_are_left_alone() -> None:
    forward = {"input_ids": torch.tensor([[1]]), "labels": torch.tensor([[1]])}
    assert find([Case(Edit(forward)), Case(Edit(forward)), Case(Edit(forward, " x"))]) == []


def test_refusal_names_records_and_questions() -> None:
    stream = [case("A", " x", where="data.json, record 1"), case("A", " y")]
    with pytest.raises(ConflictError) as caught:
        settle(stream, "refuse")
    assert str(caught.value) == (
        "1 conflict, expected one answer to each question: data.json, record 1 answers ' x' and case 1 answers ' y' to "
        '\'A\'. Correct the records, or settle it with conflicts="first", "last" or "drop".'
    )
    assert settle(stream[:1], "refuse") == stream[:1]
    many = [case("A", f" {number}") for number in range(8)]
    with pytest.raises(ConflictError, match=r"^7 conflicts, .*; and 2 more\. Correct"):
        settle(many, "refuse")


def test_many_answers_to_one_question_take_linear_time() -> None:
    stream = [case("A", f" {number}") for number in range(20_000)]
    begin = time.perf_counter()
    assert len(find(stream)) == 19_999
    assert time.perf_counter() - begin < 10  # 0.2 s; all pairs are 200 million
