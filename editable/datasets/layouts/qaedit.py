"""QAEdit: real questions with one paraphrase and a list of unrelated questions.

Knows nothing beyond these fields.
"""

from __future__ import annotations

from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.datasets.text import answer, asked, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether a rephrase or a list of questions stands by its prompt and target."""
    return record.has("prompt", "target") and (
        record.has("rephrase") or isinstance(record.fields.get("locality"), list)
    )


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
            rephrases=questions(record.texts("rephrase"), (target,)),
            locality=tuple(
                question
                for part in record.parts("locality")
                for question in questions((asked(part.text("loc")),), part.texts("loc_ans"))
            ),
            where=record.where,
        )
    ]
