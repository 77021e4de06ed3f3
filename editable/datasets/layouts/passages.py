"""WISE's passages: WikiBio hallucinations to be corrected, and texts about events after training (temporal).

Knows that its locality is a web text cut at a fixed length, often within a word, and that the temporal file's other
description of the subject is what WISE asks for generality.
"""

from __future__ import annotations

from editable.datasets.case import Case, Question
from editable.datasets.record import Record
from editable.datasets.text import answer, continued, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether it is flat as EasyEdit's records are, without their rephrase."""
    flat = record.has("prompt", "target_new", "locality_prompt")
    return flat and not record.has("rephrase_prompt") and not record.has("locality")


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    target = record.text("target_new")
    return [
        Case(
            Edit(record.text("prompt"), answer(target), subject=record.text("subject")),
            rephrases=questions(record.texts("ood_rephrase"), (target,)),
            locality=(_web_text(record),),
            where=record.where,
        )
    ]


def _web_text(record: Record) -> Question:
    prompt, rest = record.raw("locality_prompt"), record.raw("locality_ground_truth")
    return Question(record.text("locality_prompt"), continued(prompt, rest))
