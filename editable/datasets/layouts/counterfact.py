"""CounterFact as ROME wrote it: one requested rewrite, paraphrases, neighbours with the same true answer.

Knows that attribute prompts are about subjects whose true answer is the new one: with it, they are the texts that
generated ones should resemble.
"""

from __future__ import annotations

from collections.abc import Mapping

from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.datasets.text import answer, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether it has one rewrite; a list of them is MQuAKE's."""
    return isinstance(record.fields.get("requested_rewrite"), Mapping)


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    rewrite = record.part("requested_rewrite")
    subject = rewrite.text("subject")
    new, true = (rewrite.part(name).text("str") for name in ("target_new", "target_true"))
    return [
        Case(
            Edit(rewrite.text("prompt").replace("{}", subject), answer(new), subject=subject),
            rephrases=questions(record.texts("paraphrase_prompts"), (new,)),
            locality=questions(record.texts("neighborhood_prompts"), (true,), "neighborhood"),
            before=answer(true),
            generate=tuple(dict.fromkeys(record.texts("generation_prompts"))),
            reference=tuple(dict.fromkeys(text + answer(new) for text in record.texts("attribute_prompts"))),
            where=record.where,
        )
    ]
