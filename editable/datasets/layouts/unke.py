"""Questions with free, often long answers: UnKE, EditEverything, and plain question-and-answer lists such as NQ-Open.

Knows UnKE's one paraphrase and its questions about parts of the answer.
"""

from __future__ import annotations

from editable.datasets.case import Case, Question
from editable.datasets.record import Record
from editable.datasets.text import answer, asked, questions
from editable.edit import Edit


def recognises(record: Record) -> bool:
    """Whether it is a question and its answer."""
    return record.has("question", "answer")


def cases(record: Record) -> list[Case]:
    """The one case of a record."""
    answers = record.texts("answer")
    if not answers:
        raise record.wrong("answer", "some text, or a list of texts")
    return [
        Case(
            Edit(_prompt(record.text("question")), answer(answers[0])),
            rephrases=questions(record.texts("para_question"), answers),
            portability=_about_parts(record),
            where=record.where,
        )
    ]


def _prompt(text: str) -> str:
    return text if text[-1] in ".?!:" else asked(text)


def _about_parts(record: Record) -> tuple[Question, ...]:
    asked_for, answers = record.texts("sub_question"), record.texts("sub_answer")
    if len(asked_for) != len(answers):
        raise record.wrong("sub_answer", f"{len(asked_for)} texts, one for each sub_question")
    return tuple(q for text, said in zip(asked_for, answers, strict=True) for q in questions((text,), (said,), "part"))
