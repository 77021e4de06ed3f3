"""Edits and facts from outside: the arguments of one command, or a file with a JSON object a line.

Knows the fields of an Edit and of a Fact, and what a person got wrong in which line. Refuses to know what becomes of
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from editable.assess import Fact
from editable.edit import Edit
from editable.errors import InputError

TEXT, TEXTS, TEXT_OR_NULL, TEXT_OR_LABEL = "text", "a list of texts", "text or null", "text or an integer label"
FIELDS: Mapping[str, str] = {
    "prompt": TEXT,
    "target": TEXT_OR_LABEL,
    "rephrases": TEXTS,
    "locality": TEXTS,
    "subject": TEXT_OR_NULL,
    "namespace": TEXT,
}


CONTRAST: Mapping[str, str] = {"wrong_prompts": TEXTS, "wrong_targets": TEXTS}

T = TypeVar("T")


def edits_of(file: Path) -> dict[str, Edit]:
    """Read a file of edits; blank lines are skipped.

    Returns:
        The edits by the place they came from, `file:line`.

    Raises:
        InputError: names file, line and field.
    """
    return _read(file, "edits", edit_of)


def facts_of(file: Path) -> dict[str, Fact]:
    """Read a file of facts to assess, in the same way: an edit's fields, `wrong_prompts` and `wrong_targets`."""
    return _read(file, "facts", fact_of)


def _read(file: Path, what: str, made: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}; expected a JSON object a line, in UTF-8.") from error
    places = {f"{file}:{number}": line for number, line in enumerate(lines, start=1) if line.strip()}
    if not places:
        raise InputError(f"{file} holds no {what}, expected a JSON object a line.")
    return {place: _of_line(line, place, made) for place, line in places.items()}


def _of_line(line: str, place: str, made: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: the line is not JSON ({error}), expected one object a line.") from error
    if not isinstance(fields, dict):
        raise InputError(f"{place}: the line is a JSON {type(fields).__name__}, expected an object with Edit's fields.")
    try:
        return made(fields)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def edit_of(fields: Mapping[str, Any]) -> Edit:
    """Make an Edit from plain JSON.

    Raises:
        InputError: names the field that is missing, unknown or not what it should be.
    """
    if unknown := sorted(fields.keys() - FIELDS.keys()):
        raise InputError(f"field {unknown[0]!r} is unknown, expected some of {', '.join(FIELDS)}.")
    for name in ("prompt", "target"):
        if name not in fields:
            raise InputError(f"field {name!r} is missing, expected {FIELDS[name]}.")
    for name, value in fields.items():
        if not _fits(value, FIELDS[name]):
            raise InputError(f"field {name!r} is {json.dumps(value)}, expected {FIELDS[name]}.")
    return Edit(**fields)


def fact_of(fields: Mapping[str, Any]) -> Fact:
    """Make a Fact from plain JSON.

    Raises:
        InputError: names the field that is missing, unknown or not what it should be.
    """
    contrast = {name: fields.get(name, []) for name in CONTRAST}
    for name, value in contrast.items():
        if not _fits(value, CONTRAST[name]):
            raise InputError(f"field {name!r} is {json.dumps(value)}, expected {CONTRAST[name]}.")
    edit = edit_of({name: value for name, value in fields.items() if name not in CONTRAST})
    return Fact(edit, contrast["wrong_prompts"], contrast["wrong_targets"])


def _fits(value: Any, expected: str) -> bool:
    if expected == TEXTS:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if isinstance(value, str):
        return True
    return (expected == TEXT_OR_NULL and value is None) or (expected == TEXT_OR_LABEL and type(value) is int)
