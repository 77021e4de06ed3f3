"""The layout of the facts this package ships, and the simplest one to write a file of your own in.

Only `prompt` and `target` are needed. `siblings` are questions of the same kind about another subject, with their true
`answer` where it is known; `unrelated` are prompts; `portability` are questions that follow, with their `answer`.
"""

from __future__ import annotations

from collections.abc import Iterable

from editable.datasets.case import Case, Question
from editable.datasets.record import Record
from editable.datasets.text import answer, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether it has a prompt and a target, and nothing that QAEdit adds to them."""
    return record.has("prompt", "target") and not record.has("rephrase") and not record.has("locality")


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    target = record.text("target")
    return [
        Case(
            Edit(
                record.text("prompt"),
                answer(target),
                subject=record.text("subject") if record.has("subject") else None,
            ),
            rephrases=questions(record.texts("rephrases"), (target,)),
            locality=(
                *_answered(record.parts("siblings"), "sibling"),
                *questions(record.texts("unrelated"), kind="unrelated"),
            ),
            portability=_answered(record.parts("portability"), ""),
            before=answer(record.text("before")) if record.has("before") else None,
            where=record.where,
        )
    ]


def _answered(parts: Iterable[Record], kind: str) -> tuple[Question, ...]:
    return tuple(q for part in parts for q in questions((part.text("prompt"),), part.texts("answer"), kind))
