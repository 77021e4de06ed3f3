"""KnowEdit: WikiData_recent, WikiData_counterfact, ZsRE and WikiBio, with portability and locality in named groups.

Knows that an answer is a text, a list of aliases, or a list of such lists, of which each one counts as right.
"""

from __future__ import annotations

from collections.abc import Mapping

from editable.datasets.case import Case, Question
from editable.datasets.record import Record
from editable.datasets.text import answer, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether its locality or its portability is in groups, next to a prompt or to WikiBio's text."""
    grouped = any(isinstance(record.fields.get(name), Mapping) for name in ("locality", "portability"))
    return grouped and (record.has("prompt") or record.has("text", "labels"))


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    target = record.text("target_new", "labels")
    true = record.texts("ground_truth")
    return [
        Case(
            Edit(record.text("prompt", "text"), answer(target), subject=record.text("subject", "concept")),
            rephrases=questions(record.texts("rephrase_prompt", "rephrase"), (target,)),
            locality=_groups(record.part("locality")),
            portability=_groups(record.part("portability")),
            before=answer(true[0]) if true else None,
            where=record.where,
        )
    ]


def _groups(part: Record) -> tuple[Question, ...]:
    return tuple(
        question
        for kind in part.fields
        for item in part.parts(kind)
        for question in questions(item.texts("prompt"), item.texts("ground_truth"), kind)
    )
