"""Editing data: one shape for every public dataset (`Case`), loaded from files, folders or the hub.

Knows how to find the layout of what it is given. A file with one wrong record is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from editable.datasets import files, hub, layouts
from editable.datasets.case import Case, Question
from editable.datasets.conflicts import Conflict, Policy, settle
from editable.datasets.record import Record
from editable.errors import ConflictError, DataError

__all__ = [
    "Case",
    "Conflict",
    "ConflictError",
    "DataError",
    "Policy",
    "Question",
    "facts",
    "load",
    "unrelated",
    "with_rephrases",
]

_HERE = Path(__file__).parent
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_SUFFIXES = (*files.SUFFIXES, ".npz", ".bin", ".gz", ".csv", ".txt")  # of files; ids may have dots, as in "v1.0"


def load(
    source: str | Path,
    layout: str | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    conflicts: Policy = "keep",
) -> list[Case]:
    """Load the cases of a file, a folder or a dataset on the hub.

    Args:
        source: a path, or a hub id such as "zjunlp/KnowEdit" (with the optional package `datasets`).
        layout: the name of a file in `editable/datasets/layouts`; found from the fields where it is not given.
        split: of a hub dataset, or of a folder: only the files or sub-folders with this word in their name.
        limit: at most so many cases, the first ones; what comes behind them is not read.
        conflicts: what to do, among those, with cases that answer one question differently; see `conflicts.settle`.

    Raises:
        DataError: the source does not exist, cannot be read, or has a record that cannot be used.
        ConflictError: there are conflicts, and the policy is "refuse".
        MissingPackageError: an optional package is needed.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, expected a positive number of cases; leave it out to load all.")
    if layout is not None:
        layouts.named(layout)
    settle((), conflicts)  # refuses a policy that does not exist before anything is read
    cases = list(islice(_cases(source, layout, split), limit))
    if not cases:
        raise DataError(f"{str(source)!r} holds no record, expected at least one; check the path and the file.")
    return settle(cases, conflicts)


def facts(limit: int | None = None) -> list[Case]:
    """The facts this package ships, or the first of them: every few cases have many relations among them."""
    return load(_HERE / "facts.jsonl", "facts", limit=limit)


def unrelated(limit: int | None = None) -> list[str]:
    """General questions and sentences that none of the shipped facts is about, or the first of them."""
    return (_HERE / "unrelated.txt").read_text(encoding="utf-8").splitlines()[:limit]


def with_rephrases(case: Case) -> Case:
    """The case whose edit carries its rephrases, for the editor to learn from; they are still asked."""
    shown = tuple(question.prompt for question in case.rephrases)
    return replace(case, edit=replace(case.edit, rephrases=shown))


def _cases(source: str | Path, layout: str | None, split: str | None) -> Iterator[Case]:
    path = Path(source).expanduser()
    if not path.exists():
        yield from _of_records(hub.read(_hub_id(source), split), layout)
        return
    whole = layouts.of_path(path, layout)
    if whole is not None:
        yield from whole.read(path, split)
        return
    for file in files.find(path, split):
        yield from _of_records(files.read(file), layout)


def _of_records(records: Iterator[Record], name: str | None) -> Iterator[Case]:
    """The cases of records that have one layout, the first one's."""
    layout = None
    for record in records:
        layout = layout or layouts.of_record(record, name)
        yield from layouts.cases(record, layout)


def _hub_id(source: str | Path) -> str:
    """The source as a hub id, unless it reads as a path.

    Raises:
        DataError: it does; the file is not there.
    """
    text = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(text) or Path(text).suffix.lower() in _SUFFIXES:
        raise DataError(
            f"{text!r} does not exist (looked in {Path.cwd()}), expected a file, a folder, or a hub id such as "
            "'zjunlp/KnowEdit'; check the path."
        )
    return text
