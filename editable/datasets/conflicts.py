"""Cases that contradict each other: one question, two answers.

A case asks its prompt and its rephrases. Questions are the same up to case, white space and the punctuation at their
end; images, if their pixels are. Mappings of forward arguments are never compared. Knows no file layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from editable.datasets.case import Case
from editable.edit import ModelInput
from editable.errors import ConflictError, DataError

Policy = Literal["keep", "first", "last", "drop", "refuse"]

_SHOWN = 5


@dataclass(frozen=True)
class Conflict:
    """Two cases, by their indices, that answer one question differently.

    Args:
        first: the index of the earlier case.
        second: the index of the later one.
        question: the question both ask, as the later one puts it; a description of its shape for an image.
        answers: the answer of the earlier case, and of the later one.
    """

    first: int
    second: int
    question: str
    answers: tuple[str | int, str | int]


def find(cases: Sequence[Case]) -> list[Conflict]:
    """The conflicts, in the order of their later case, each pair of cases once.

    Every case that contradicts another one is in the list, with the first case that it contradicts for each
    question; pairs beyond that are left out, so that time and length stay linear in the number of questions.
    """
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        for key in _keys(case):
            groups.setdefault(key, []).append(index)
    pairs: dict[tuple[int, int], str] = {}
    for key, members in groups.items():
        for pair in _contradicting(cases, members):
            pairs.setdefault(pair, key)
    ordered = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    return [_conflict(cases, first, second, pairs[first, second]) for first, second in ordered]


def settle(cases: Sequence[Case], policy: Policy) -> list[Case]:
    """The cases without those that the policy leaves out, in their order.

    Args:
        cases: the whole stream.
        policy: "keep" leaves all in, for streams where a later edit replaces an earlier one; "first" and "last" keep
            the earlier or the later of two; "drop" keeps neither; "refuse" raises.

    Raises:
        ConflictError: the policy is "refuse" and there are conflicts.
        DataError: there is no such policy.
    """
    if policy not in get_args(Policy):
        raise DataError(f"conflicts={policy!r}, expected one of {', '.join(get_args(Policy))}; name one of them.")
    if policy == "keep":
        return list(cases)
    if policy == "first":
        return list(_agreeing(cases))
    if policy == "last":
        return list(_agreeing(cases[::-1]))[::-1]
    found = find(cases)
    if policy == "refuse" and found:
        raise _refusal(cases, found)
    conflicting = {index for conflict in found for index in (conflict.first, conflict.second)}
    return [case for index, case in enumerate(cases) if index not in conflicting]


def _agreeing(cases: Iterable[Case]) -> Iterator[Case]:
    """Those that contradict none of the ones given out before."""
    answers: dict[str, str | int | None] = {}
    for case in cases:
        keys, answer = _keys(case), _answer(case)
        if all(answers.get(key, answer) == answer for key in keys):
            answers.update(dict.fromkeys(keys, answer))
            yield case


def _contradicting(cases: Sequence[Case], members: Sequence[int]) -> Iterator[tuple[int, int]]:
    """For each member, itself and the first member that answers otherwise, in order."""
    first = members[0]
    other = next((m for m in members if _answer(cases[m]) != _answer(cases[first])), None)
    if other is None:
        return
    for member in members:
        partner = first if _answer(cases[member]) != _answer(cases[first]) else other
        yield min(member, partner), max(member, partner)


def _conflict(cases: Sequence[Case], first: int, second: int, key: str) -> Conflict:
    asked = next(prompt for prompt in _prompts(cases[second]) if _key(prompt) == key)
    question = f"image of shape {tuple(asked.shape)}" if isinstance(asked, Tensor) else str(asked)
    return Conflict(first, second, question, (_target(cases[first]), _target(cases[second])))


def _refusal(cases: Sequence[Case], found: Sequence[Conflict]) -> ConflictError:
    shown = "; ".join(
        f"{cases[c.first].where or f'case {c.first}'} answers {c.answers[0]!r} and "
        f"{cases[c.second].where or f'case {c.second}'} answers {c.answers[1]!r} to {c.question!r}"
        for c in found[:_SHOWN]
    )
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ConflictError(
        f"{len(found)} conflict{'s' if len(found) > 1 else ''}, expected one answer to each question: {shown}{more}. "
        'Correct the records, or settle it with conflicts="first", "last" or "drop".'
    )


def _prompts(case: Case) -> tuple[ModelInput, ...]:
    return case.edit.prompt, *(question.prompt for question in case.rephrases), *case.edit.rephrases


def _keys(case: Case) -> list[str]:
    """What the case asks, each question once, in a form that hashes; none where its answer is inside a mapping."""
    if case.edit.target is None:
        return []
    return list(dict.fromkeys(key for prompt in _prompts(case) if (key := _key(prompt)) is not None))


def _key(prompt: ModelInput) -> str | None:
    if isinstance(prompt, str):
        return f"text {_normal(prompt)}"
    if isinstance(prompt, Tensor):
        pixels = prompt.detach().cpu().contiguous().numpy()
        return f"image {tuple(prompt.shape)} {prompt.dtype} {hashlib.sha256(pixels.tobytes()).hexdigest()}"
    return None


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .?!:;,…")


def _target(case: Case) -> str | int:
    target = case.edit.target
    if target is None:
        raise AssertionError("a case without target has no keys")
    return target


def _answer(case: Case) -> str | int | None:
    target = case.edit.target
    return _normal(target) if isinstance(target, str) else target
