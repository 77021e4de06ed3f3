"""The flat layout of EasyEdit, which it uses for CounterFact and gives to its editors: one text a field.

Knows the parallel fields for one rephrase, one locality and one portability question.
"""

from __future__ import annotations

from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.datasets.text import answer, asked, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether its rephrase has EasyEdit's name, and its locality is not in groups, as in KnowEdit."""
    return record.has("prompt", "rephrase_prompt") and not record.has("locality") and not record.has("portability")


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    target = record.text("target_new")
    true = record.texts("ground_truth")
    return [
        Case(
            Edit(
                record.text("prompt"),
                answer(target),
                subject=record.text("subject") if record.has("subject") else None,
            ),
            rephrases=questions(record.texts("rephrase_prompt"), (target,)),
            locality=questions(map(_prompt, record.texts("locality_prompt")), record.texts("locality_ground_truth")),
            portability=questions(record.texts("portability_prompt"), record.texts("portability_ground_truth")),
            before=answer(true[0]) if true else None,
            where=record.where,
        )
    ]


def _prompt(text: str) -> str:
    return asked(text) if text.startswith("nq question:") else text
