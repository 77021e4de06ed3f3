"""How texts of any dataset are put for a decoder: prompts without space around them, answers that continue them.

Knows nothing of files, fields or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from editable.datasets.case import Question


def answer(text: str) -> str:
    """The text as it continues a prompt: one leading space, none behind."""
    return f" {text.strip()}"


def asked(text: str) -> str:
    """A question as it stands, without the mark of its origin, and with a question mark."""
    text = text.strip().removeprefix("nq question:").strip()
    return text if text.endswith("?") else f"{text}?"


def continued(prompt: str, rest: str) -> tuple[str, ...]:
    """The rest of a passage that was cut anywhere, as the one answer to its stripped beginning.

    A cut within a word must not become a space. An empty rest is no answer.
    """
    apart = prompt[-1:].isspace() or rest[:1].isspace()
    rest = rest.strip()
    return (f" {rest}" if apart else rest,) if rest else ()


def questions(prompts: Iterable[str], answers: Iterable[str] = (), kind: str = "") -> tuple[Question, ...]:
    """One question for each different prompt, all with the same answers."""
    said = tuple(dict.fromkeys(answer(text) for text in answers if text.strip()))
    return tuple(Question(prompt, said, kind) for prompt in dict.fromkeys(text.strip() for text in prompts))
