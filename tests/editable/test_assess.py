"""CKA: scores worked out by hand, what is refused, and the way from assessing to editing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from editable import Edit
from editable.adapters import GRACE
from editable.assess import Fact, assess
from editable.errors import InputError
from tests.conftest import Attach
from tests.contract.harness import named
from tests.families import FAMILIES, Loaded

PARIS = Edit("Paris is the capital of", " France")


class Told:
    """Answers of one or two tokens whose probabilities are told, by prompt and answer; the vocabulary is 0, 1 and 2."""

    def __init__(self, probabilities: dict[tuple[str, str], Sequence[float]]) -> None:
        self.probabilities = probabilities

    def forced(self, prompts: Sequence[Any], targets: Sequence[Any]) -> list[Tensor]:
        """Token 0 has the probability that was told, the others share the rest."""
        told = [torch.tensor(self.probabilities[pair]) for pair in zip(prompts, targets, strict=True)]
        return [torch.stack([p, (1 - p) / 2, (1 - p) / 2], dim=1).log() for p in told]

    def target_ids(self, prompts: Sequence[Any], targets: Sequence[Any]) -> list[Tensor]:
        """All zeros."""
        return [
            torch.zeros(len(self.probabilities[pair]), dtype=torch.long) for pair in zip(prompts, targets, strict=True)
        ]


class Logits(Told):
    """The logits themselves are told, of answers that are all token 0."""

    def __init__(self, logits: list[Tensor]) -> None:
        self.logits = logits

    def forced(self, prompts: Sequence[Any], targets: Sequence[Any]) -> list[Tensor]:
        """As told."""
        assert len(prompts) == len(targets) == len(self.logits)
        return self.logits

    def target_ids(self, prompts: Sequence[Any], targets: Sequence[Any]) -> list[Tensor]:
        """All zeros."""
        assert len(prompts) == len(targets)
        return [torch.zeros(len(one), dtype=torch.long) for one in self.logits]


def test_the_score_by_hand() -> None:
    """P(o | s, r) over the mean of P(o | s, r'): .2 / ((.1 + .5) / 2) = 2/3, so the model lacks the fact."""
    fact = Fact(PARIS, ["Paris is the sister city of", "Paris has never been in"])
    told = Told(
        {
            (str(PARIS.prompt), " France"): [0.2],
            ("Paris is the sister city of", " France"): [0.1],
            ("Paris has never been in", " France"): [0.5],
        }
    )
    (mark,) = assess(told, [fact])  # type: ignore[arg-type]
    assert (mark.right, mark.wrong) == pytest.approx((0.2, 0.3))
    assert mark.score == pytest.approx(2 / 3)
    assert mark.lacking
    assert mark.fact is fact


def test_answers_of_other_lengths_are_compared_by_token() -> None:
    """√(.5 · .8) against a wrong answer's .5 of one token: 1.26, though as a whole it is the less likely one."""
    told = Told({(str(PARIS.prompt), " France"): [0.5, 0.8], (str(PARIS.prompt), " Spain"): [0.5]})
    (mark,) = assess(told, [Fact(PARIS, targets=[" Spain"])])  # type: ignore[arg-type]
    assert mark.score == pytest.approx(math.sqrt(0.4) / 0.5)
    assert not mark.lacking


def test_probabilities_too_small_for_a_quotient() -> None:
    """exp(-800) is 0 as a float: the score is of logarithms, here exp(-800) over exp(-801)."""
    told = Logits([torch.tensor([[-800.0 - one, 0.0, -2000.0]]) for one in range(2)])
    (mark,) = assess(told, [Fact(PARIS, ["x"])])  # type: ignore[arg-type]
    assert mark.right == 0.0
    assert mark.score == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"Fact 'Paris is the capital of' has nothing wrong to compare with, expected at least one of prompts"),
        ({"prompts": "Paris is"}, r"Fact.prompts is 'Paris is', expected a sequence; write prompts=\[\.\.\.\]"),
        ({"targets": " Spain"}, r"Fact.targets is ' Spain', expected a sequence"),
        ({"prompts": [" "]}, r"Fact.prompts\[0\] is ' ', expected some text"),
    ],
)
def test_what_cannot_be_assessed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Fact(PARIS, **given)


def test_a_fact_needs_a_target_of_its_own() -> None:
    labels = {"input_ids": torch.ones(1, 2, dtype=torch.long), "labels": torch.tensor([[-100, 3]])}
    with pytest.raises(InputError, match=r"Fact.edit has no target, expected text or a label"):
        Fact(Edit(labels), ["x"])


def both_ways(loaded: Loaded) -> list[Fact]:
    """One input with two answers, each against the other: whatever the model, it lacks one of the two."""
    first = loaded.targets[0]
    second = next(target for target in loaded.targets if target != first)
    return [Fact(Edit(loaded.edited[0], a), targets=[b]) for a, b in ((first, second), (second, first))]


def test_what_is_lacking_is_edited_and_then_known(attach: Attach) -> None:
    loaded = FAMILIES[0].load()
    em = attach(loaded, GRACE())
    before = em.assess(both_ways(loaded))
    (lacked,) = [mark.fact for mark in before if mark.lacking]
    em.edit(lacked.edit)
    assert not em.assess([lacked])[0].lacking
    with em.unedited():
        assert [mark.score for mark in em.assess(both_ways(loaded))] == [mark.score for mark in before]


def test_scores_are_the_models_own_probabilities(attach: Attach) -> None:
    """Against a forward by hand, in a batch with a longer prompt and alone."""
    loaded = FAMILIES[0].load()
    em = attach(loaded, GRACE())
    prompt, answer, other = loaded.edited[0], loaded.targets[0], loaded.edited[1]
    facts = [Fact(Edit(prompt, answer), prompts=[other])]
    ids = [loaded.tokenizer(text).input_ids for text in (prompt, other)]
    target = loaded.wanted(0)[:-1]
    with torch.no_grad():
        logs = [loaded.model(torch.tensor([one + target])).logits[0].double().log_softmax(-1) for one in ids]
    expected = [
        math.exp(sum(float(log[len(one) - 1 + i, token]) for i, token in enumerate(target)) / len(target))
        for log, one in zip(logs, ids, strict=True)
    ]
    (mark,) = em.assess(facts)
    assert (mark.right, mark.wrong) == pytest.approx(tuple(expected), rel=1e-4)
    assert mark.score == pytest.approx(expected[0] / expected[1], rel=1e-4)


@named("t5", "bert", "vit")
def test_other_kinds_of_models_are_assessed(loaded: Loaded, attach: Attach) -> None:
    marks = attach(loaded, GRACE()).assess(both_ways(loaded))
    assert marks[0].score == pytest.approx(1 / marks[1].score)
    assert [mark.lacking for mark in marks].count(True) == 1
    assert (marks[0].right, marks[0].wrong) == (marks[1].wrong, marks[1].right)
