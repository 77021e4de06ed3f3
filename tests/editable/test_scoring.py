"""What is asked of a system, and what its answers come to; worked out by hand with a parrot for a model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch

from editable import Edit, metrics
from editable.datasets.case import Case, Question
from editable.edit import ModelInput
from editable.errors import InputError
from editable.metrics import Accuracy
from editable.scoring import Base, CaseScore, Drift, Scores, drift_summary, drifts, fingerprint, replies, score
from editable.system import Answer, Asked
from tests.editable.parrot import LETTERS, Parrot

RIGHT, WRONG = Accuracy(1.0, 1.0), Accuracy(0.0, 0.0)
LIKELY = math.log(1 + (LETTERS - 1) * math.exp(-10))  # nats of a letter it says, and of one it does not
UNLIKELY = 10 + LIKELY

CASE = Case(
    Edit("capital", " Rome"),
    rephrases=(Question("the capital"), Question("seat")),
    locality=(Question("sky", (" blue",), "colour"), Question("weather"), Question("twin", (" Bonn",), "colour")),
    portability=(Question("airport", (" Ciampino", " FCO")), Question("mayor")),
    before=" Bonn",
    where="here",
)
KNOWS = {"sky": " blue", "twin": " Bonn", "the capital": " Rome", "seat": " Rimini", "airport": " FCO"}


@pytest.fixture
def base() -> Base:
    return Base(Parrot(KNOWS))


def edited(**options: object) -> Parrot:
    system = Parrot({**KNOWS, "twin": " Rome"}, **options)  # type: ignore[arg-type]
    system.insert([CASE.edit])
    return system


def test_every_part_of_a_case(base: Base) -> None:
    (found,) = score(edited(), [CASE], base).cases
    assert found.where == "here"
    assert found.own == RIGHT
    # " Rimini" against " Rome": " R", then i and m for o and m: 3 of 5 letters, the last one not e.
    assert found.rephrases == (RIGHT, Accuracy(3 / 5, 0.0))
    # The first answer is forced (" Ciampino" against " FCO": the space), any of them is right freely; the question
    # without an answer is not asked.
    assert found.portability == (Accuracy(1 / 9, 1.0),)
    assert [drift.kind for drift in found.locality] == ["colour", "", "colour"]
    assert [drift.before for drift in found.locality] == [RIGHT, None, RIGHT]
    assert [drift.after for drift in found.locality] == [RIGHT, None, Accuracy(2 / 5, 0.0)]
    assert all(drift.bit_equal for drift in found.locality)


def test_the_new_answer_against_the_old_one(base: Base) -> None:
    (found,) = score(edited(), [CASE], base).cases
    assert found.efficacy is not None
    assert found.efficacy.new_nats == pytest.approx(LIKELY)
    # " Bonn" is given one letter in five, the space, where the parrot says " Rome"; but o is second in both.
    assert found.efficacy.true_nats == pytest.approx((2 * LIKELY + 3 * UNLIKELY) / 5)
    assert len(found.paraphrases) == 2
    # Only "twin" has the replaced answer for its own: it says " Rome" now.
    (neighbour,) = found.neighbours
    assert neighbour.new_nats == pytest.approx(LIKELY)
    assert neighbour.true_nats == pytest.approx((2 * LIKELY + 3 * UNLIKELY) / 5)
    (unknown,) = score(edited(), [Case(CASE.edit, CASE.rephrases, CASE.locality)], base).cases
    assert (unknown.efficacy, unknown.paraphrases, unknown.neighbours) == (None, (), ())


def test_an_answer_that_does_not_stop_is_not_exact() -> None:
    system = Parrot({"a": " yes and so on and on", "b": " yes", "c": " yes\n"})
    found = replies(system, [Question(prompt, (" yes",)) for prompt in "abc"])
    assert [reply.accuracy for reply in found] == [Accuracy(1.0, 0.0), RIGHT, RIGHT]


class Seven(Parrot):
    """A classifier that says 7 to everything."""

    def target_ids(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[torch.Tensor]:
        return [torch.tensor([int(target)]) for _, target in zip(prompts, targets, strict=True)]

    def forced(self, prompts: Sequence[ModelInput], targets: Sequence[str | int]) -> list[torch.Tensor]:
        return [torch.eye(9)[[7]] for _ in zip(prompts, targets, strict=True)]

    def free(self, prompts: Sequence[ModelInput], most_tokens: Sequence[int]) -> list[Answer]:
        return [Answer("seven", (7,)) for _ in zip(prompts, most_tokens, strict=True)]


def test_labels_are_compared_as_labels() -> None:
    found = replies(Seven(), [Question("image", labels) for labels in ((7,), (3,), (3, 7))])
    assert [reply.accuracy for reply in found] == [RIGHT, WRONG, Accuracy(0.0, 1.0)]


def test_a_question_without_answers_cannot_be_scored() -> None:
    with pytest.raises(
        InputError, match=r"Question 'who\?' has no answers, expected at least one .* Question\(answers"
    ):
        replies(Parrot(), [Question("who?")])


def test_a_case_without_a_target_cannot_be_scored(base: Base) -> None:
    given = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[-100, 2]])}
    case = Case(Edit(given), where="data.json, record 3")
    with pytest.raises(InputError, match=r"Case 'data.json, record 3' has an edit without a target, expected text or"):
        score(edited(), [case], base)


def test_drift_by_hand(base: Base) -> None:
    same, moved = drifts(edited(spoils=["ab"]), ["sky", "ab"], base)
    assert same.nats is not None
    assert same == Drift(True, 0.0, 1.0, same.nats, 2)
    assert same.nats == pytest.approx((LIKELY, LIKELY))
    before, after = base.asked.logits(["ab"])[0], base.asked.logits(["ab"])[0] / 2
    assert not moved.bit_equal
    assert moved.kl_nats == pytest.approx(metrics.kl_nats(before, after))
    assert moved.kl_nats > 0.01
    assert moved.agreement == 1.0  # flatter, and the most likely letter is the same
    assert moved.nats == pytest.approx((LIKELY, math.log(1 + (LETTERS - 1) * math.exp(-5))))
    assert moved.tokens == 1


def test_summary_by_hand(base: Base) -> None:
    perfect = Case(Edit("river", " Po"), locality=(Question("sky", (" blue",)),))
    system = edited(spoils=["sky"])
    system.insert([perfect.edit])
    found = score(system, [CASE, perfect], base).summary()
    assert found["edits"] == 2
    assert found["success_rate_forced"] == found["success_rate_exact"] == 1.0
    assert found["generalization_rate_forced"] == pytest.approx((1 + 3 / 5) / 2)
    assert found["generalization_rate_exact"] == 0.5
    assert found["edit_success_exact"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["portability_forced"] == pytest.approx(1 / 9)
    # Three locality inputs have answers; one of them lost 3 of 5 letters.
    assert found["drawdown_forced"] == pytest.approx(3 / 5 / 3)
    assert found["drawdown_exact"] == pytest.approx(1 / 3)
    assert found["bit_equal_share"] == 0.5  # "sky" is there twice, of four inputs
    assert found["counterfact_efficacy"] == 1.0
    assert found["counterfact_paraphrase"] == 1.0  # " Rimini" is nearer to " Rome" (3 of 5) than to " Bonn" (1 of 5)
    assert found["counterfact_neighbourhood"] == 0.0
    assert found["counterfact_score"] == 0.0
    assert found["fluency_bits"] is None


def test_drift_of_nothing() -> None:
    assert set(drift_summary([]).values()) == {None}


def test_texts_are_generated_for_fluency_and_consistency() -> None:
    case = Case(Edit("x", " y"), generate=("Rome is", "In Rome"), reference=("Rome is old and big.",))
    system = Parrot({"Rome is": " old and big.", "In Rome": " one is"})
    base = Base(Parrot(), references=case.reference)
    (found,) = score(system, [case], base).cases
    bits = [metrics.fluency("Rome is old and big."), metrics.fluency("In Rome one is")]
    assert bits[0] is not None
    assert bits[1] is not None
    assert found.fluency_bits == pytest.approx((bits[0] + bits[1]) / 2)
    # Six terms in the reference, each once but none doubled; said: rome 2, is 2, old, and, big; "in" and "one" unknown.
    said, reference = [2, 2, 1, 1, 1], [1, 1, 1, 1, 1]
    cosine = sum(a * b for a, b in zip(said, reference, strict=True)) / math.sqrt(11 * 5)
    assert found.consistency == pytest.approx(cosine)


def test_scores_survive_json(base: Base) -> None:
    (found,) = score(edited(spoils=["sky"]), [CASE], base).cases
    assert CaseScore.from_dict(json.loads(json.dumps(found.as_dict()))) == found


class Counting(Parrot):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(KNOWS)
        self.asked = 0

    def forced(self, *given: object) -> list[torch.Tensor]:
        self.asked += 1
        return super().forced(*given)  # type: ignore[arg-type]

    def logits(self, *given: object) -> list[torch.Tensor]:
        self.asked += 1
        return super().logits(*given)  # type: ignore[arg-type]


def test_the_base_is_asked_once() -> None:
    counting = Counting()
    base = Base(counting)
    first = score(edited(), [CASE], base)
    asked = counting.asked
    assert asked > 0
    assert score(edited(), [CASE], base) == first
    assert counting.asked == asked


def test_scores_of_many_cases_do_not_depend_on_the_chunks(base: Base) -> None:
    cases = [CASE] * 70
    assert score(edited(), cases, base) == Scores(score(edited(), [CASE], base).cases * 70)


def test_fingerprints_tell_inputs_apart() -> None:
    tensor = torch.tensor([1.0, 2.0])
    inputs = ["a", "b", tensor, tensor.double(), tensor[None], {"x": tensor}, {"y": tensor}, {"x": tensor, "z": 1}]
    assert len({fingerprint(one) for one in inputs}) == len(inputs)  # type: ignore[arg-type]
    assert fingerprint(tensor) == fingerprint(tensor.clone())


def test_a_parrot_can_be_asked() -> None:
    asked: Asked = Parrot()
    assert asked.free(["x"], [1])[0].text == ""
