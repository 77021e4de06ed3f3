"""ParaRel: a folder with a file of paraphrased patterns and a file of subject-object pairs for each relation.

Knows that only a pattern with the object at its end can be a prompt. Relations without such a pattern are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from editable.datasets import files
from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.datasets.text import answer, questions
from editable.edit import Edit
from editable.errors import DataError

_PATTERNS, _PAIRS = "patterns", "trex_lms_vocab"


def recognises_path(path: Path) -> bool:
    """Whether both folders are there."""
    return (path / _PATTERNS).is_dir() and (path / _PAIRS).is_dir()


def read(path: Path, split: str | None) -> Iterator[Case]:
    """Yield the cases, relation by relation.

    Raises:
        DataError: a folder or a field is missing, or a split is asked for.
    """
    if split is not None:
        raise DataError(f"folder {str(path)!r} (ParaRel) has no splits, and split={split!r} was given; leave it out.")
    if not recognises_path(path):
        raise DataError(
            f"folder {str(path)!r} has no {_PATTERNS}/ and {_PAIRS}/, expected ParaRel's two folders; check the path."
        )
    for file in sorted((path / _PATTERNS).glob("*.jsonl")):
        pairs = path / _PAIRS / file.name
        templates = prompts(pattern.text("pattern") for pattern in files.read(file))
        if templates and pairs.is_file():
            yield from (_case(pair, templates) for pair in files.read(pairs))


def prompts(patterns: Iterable[str]) -> list[str]:
    """The patterns that end with the object [Y], without it; the subject [X] is still to be put in."""
    found = []
    for pattern in patterns:
        before, _, behind = pattern.partition("[Y]")
        if "[X]" in before and not behind.strip(" ."):
            found.append(before.strip())
    return found


def _case(pair: Record, templates: Sequence[str]) -> Case:
    subject, target = pair.text("sub_label"), pair.text("obj_label")
    prompt, *others = (template.replace("[X]", subject) for template in templates)
    return Case(
        Edit(prompt, answer(target), subject=subject),
        rephrases=questions(others, (target,)),
        where=pair.where,
    )
