"""MQuAKE: several rewrites in one record, and questions that need all of them, over several hops.

Knows that such a question can only be asked after the last of its record's edits: it belongs to that case alone.
"""

from __future__ import annotations

from editable.datasets.case import Case, Question
from editable.datasets.record import Record
from editable.datasets.text import answer, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether it has a list of rewrites; a single one is CounterFact's."""
    return isinstance(record.fields.get("requested_rewrite"), list)


def cases(record: Record) -> list[Case]:
    """One case for each rewrite."""
    rewrites = record.parts("requested_rewrite")
    if not rewrites:
        raise record.wrong("requested_rewrite", "at least one rewrite")
    hops = questions(
        record.texts("questions"), (record.text("new_answer"), *record.texts("new_answer_alias")), "multi-hop"
    )
    return [_case(part, ()) for part in rewrites[:-1]] + [_case(rewrites[-1], hops)]


def _case(rewrite: Record, hops: tuple[Question, ...]) -> Case:
    subject = rewrite.text("subject")
    new = rewrite.part("target_new").text("str")
    return Case(
        Edit(rewrite.text("prompt").replace("{}", subject), answer(new), subject=subject),
        rephrases=questions(rewrite.texts("question"), (new,)),
        portability=hops,
        before=answer(rewrite.part("target_true").text("str")),
        where=rewrite.where,
    )
