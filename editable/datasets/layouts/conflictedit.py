"""ConflictEdit: edits of one record, one after another, of which a later one may answer the same question otherwise.

Knows that only the last answer to a question is right; the one that it replaces is the answer before.
"""

from __future__ import annotations

from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.datasets.text import answer, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether it has triples, and edits of them."""
    return record.has("triples", "edits")


def cases(record: Record) -> list[Case]:
    """One case for each question that is answered anew, in the order of the last answers."""
    last: dict[str, Case] = {}
    for edit in record.parts("edits"):
        case = _case(edit)
        last.pop(str(case.edit.prompt), None)
        last[str(case.edit.prompt)] = case
    if not last:
        raise record.wrong("edits", "at least one edit")
    return list(last.values())


def _case(edit: Record) -> Case:
    relation, subject = edit.part("relation"), edit.part("subject").text("label")
    old, new = (edit.part(name).text("label") for name in ("object", "new_object"))
    prompt, asked = (relation.text(name).replace("{}", subject) for name in ("prompt", "query"))
    return Case(
        Edit(prompt, answer(new), subject=subject),
        rephrases=questions((asked,), (new,)),
        before=answer(old),
        where=edit.where,
    )
