"""Which facts a model lacks: contrastive knowledge assessment (CKA; Dong et al., Findings of EMNLP 2022, section 2).

A fact is known where the model finds it more likely than statements like it that are wrong. A plain probability cannot
tell: rare names are unlikely even where they are right. Works with any model that answers, edited or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editable.edit import Edit, ModelInput, check_prompt
from editable.errors import InputError
from editable.scoring import likelihoods
from editable.system import Asked

THRESHOLD = 1.0  # the paper's: a fact less likely than what is wrong is one the model lacks
TOGETHER = 32  # facts asked about in one go


@dataclass(frozen=True, eq=False)
class Fact:
    """A statement to be assessed, and statements like it that are wrong.

    Args:
        edit: says it rightly, prompt and target; what would be edited where the model lacks it.
        prompts: other prompts after which the target is wrong; in the paper the subject in other relations, such as
            "Paris is the sister city of" where "Paris is the capital of" has the target " France".
        targets: other answers to the prompt that are wrong, texts or labels like the target.

    Raises:
        InputError: there is nothing to compare with, or the edit has no target of its own.
    """

    edit: Edit
    prompts: Sequence[ModelInput] = ()
    targets: Sequence[str | int] = ()

    def __post_init__(self) -> None:
        for name in ("prompts", "targets"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(f"Fact.{name} is {value!r}, expected a sequence; write {name}=[...] around it.")
            object.__setattr__(self, name, tuple(value))
        for place, prompt in enumerate(self.prompts):
            check_prompt(f"Fact.prompts[{place}]", prompt)
        if self.edit.target is None:
            raise InputError("Fact.edit has no target, expected text or a label whose likelihood can be asked for.")
        if not self.prompts and not self.targets:
            raise InputError(
                f"Fact {str(self.edit.prompt)[:60]!r} has nothing wrong to compare with, expected at least one of "
                "prompts (after which its target is wrong) or targets (wrong answers to its prompt)."
            )

    @property
    def right(self) -> tuple[ModelInput, str | int]:
        """Prompt and target."""
        assert self.edit.target is not None
        return self.edit.prompt, self.edit.target

    @property
    def wrong(self) -> list[tuple[ModelInput, str | int]]:
        """Prompts and targets that do not belong together."""
        prompt, target = self.right
        return [*((other, target) for other in self.prompts), *((prompt, other) for other in self.targets)]


@dataclass(frozen=True, eq=False)
class Assessment:
    """What a model makes of one fact.

    Args:
        fact: what was asked about.
        right: probability of the right statement's target by token (the geometric mean over its tokens, so that
            answers of other lengths can be compared; the paper's are of one token), its end token not counted.
        wrong: mean probability of the wrong ones, by token likewise.
        score: CKA = right / wrong.
    """

    fact: Fact
    right: float
    wrong: float
    score: float

    @property
    def lacking(self) -> bool:
        """Whether the model finds the fact less likely than what is wrong."""
        return self.score < THRESHOLD


def assess(asked: Asked, facts: Sequence[Fact]) -> list[Assessment]:
    """Score each fact: CKA(s, r, o) = P(o | s, r) / E_{r'}[P(o | s, r')], over its wrong statements."""
    found: list[Assessment] = []
    for start in range(0, len(facts), TOGETHER):
        some = facts[start : start + TOGETHER]
        pairs = [pair for fact in some for pair in (fact.right, *fact.wrong)]
        logs = iter([-nats for nats in likelihoods(asked, pairs)])
        found += [_assessment(fact, [next(logs) for _ in range(1 + len(fact.wrong))]) for fact in some]
    return found


def _assessment(fact: Fact, logs: Sequence[float]) -> Assessment:
    right, wrong = logs[0], _log_mean(logs[1:])
    # In logarithms: probabilities may be too small for their quotient.
    return Assessment(fact, math.exp(right), math.exp(wrong), math.exp(min(right - wrong, 700.0)))


def _log_mean(logs: Sequence[float]) -> float:
    return float(torch.tensor(logs, dtype=torch.float64).logsumexp(dim=0)) - math.log(len(logs))
