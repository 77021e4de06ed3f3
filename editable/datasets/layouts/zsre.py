"""zsRE as MEND wrote it and EasyEdit ships it: question, alternative answer, one rephrase, one unrelated question.

Knows also the one-hop question that EasyEdit adds under `portability`, and that the published files have records
whose alternative is the empty text: nothing to edit, left out by everyone who reads them.
"""

from __future__ import annotations

from editable.datasets.case import Case, Question
from editable.datasets.record import Record
from editable.datasets.text import answer, asked, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether its question is called `src`, as nowhere else."""
    return record.has("src")


def cases(record: Record) -> list[Case]:
    """The one case of a record; none where its alternative is the empty text."""
    if record.fields.get("alt") == "":
        return []
    prompt, target = record.text("src"), record.text("alt")
    earlier = record.texts("answers", "answer", "pred")
    return [
        Case(
            Edit(prompt, answer(target), subject=record.text("subject") if record.has("subject") else None),
            rephrases=questions(record.texts("rephrase"), (target,)),
            locality=_unrelated(record),
            portability=_one_hop(record.part("portability")),
            before=answer(earlier[0]) if earlier else None,
            where=record.where,
        )
    ]


def _unrelated(record: Record) -> tuple[Question, ...]:
    return questions([asked(text) for text in record.texts("loc")], record.texts("loc_ans"))


def _one_hop(part: Record) -> tuple[Question, ...]:
    if not part.has("New Question"):
        return ()
    return questions((part.text("New Question"),), (part.text("New Answer"),), "one-hop")
