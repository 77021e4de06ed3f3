"""One edit with everything it is scored on: what every dataset becomes, and all that a protocol needs to know.

Knows nothing of file formats, models or scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from editable.edit import Edit, ModelInput


@dataclass(frozen=True, eq=False)
class Question:
    """An input, and the answers that count as right.

    Args:
        prompt: text, a picture, or a mapping of forward kwargs; as in `Edit`.
        answers: texts with their leading space (each continues the prompt), or class labels; the first is the one
            that is forced. Empty where nobody said: then only what the unedited model does can be compared with.
        kind: what the dataset calls it, such as "Relation_Specificity"; empty where it has one kind only.
    """

    prompt: ModelInput
    answers: tuple[str | int, ...] = ()
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """One edit, its neighbourhood, and what lies outside of it.

    Args:
        edit: the request as the editor gets it: prompt, target, subject. Rephrases are not in it, unless the user
            gives them to learn from (`with_rephrases`).
        rephrases: the neighbourhood N(x_e), never shown to the editor; their answer is the edit's target.
        locality: inputs outside the edit's scope: unrelated ones, and siblings about another subject.
        portability: what follows from the edit without being asked for.
        before: the answer that the edit replaces; None where the dataset does not say.
        generate: beginnings of texts to be generated freely, for fluency and consistency.
        reference: texts about the new answer, which generated ones should resemble (consistency).
        where: file and record, for messages.
    """

    edit: Edit
    rephrases: tuple[Question, ...] = ()
    locality: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()
    before: str | int | None = None
    generate: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    where: str = ""
