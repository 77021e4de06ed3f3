"""Files of records: JSON lists and JSON lines, read one record at a time, and the files of a folder.

Knows where a file breaks off and says so. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from editable.datasets.record import Record, identified
from editable.errors import DataError

SUFFIXES = (".json", ".jsonl")

_DECODER = json.JSONDecoder()
_CUT = re.compile(r"|-|\.|[eE][-+]?|t|tr|tru|f|fa|fal|fals|n|nu|nul")  # what is left of a number or a word
_SPACE = re.compile(r"[ \t\r\n]*")


def find(path: Path, split: str | None) -> list[Path]:
    """The files of records at this path: itself, or those in this folder, of this split only if one is named.

    Raises:
        DataError: there are none, or it is a file of another kind, or one file, which has no splits.
    """
    if not path.is_dir():
        return [_single(path, split)]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    chosen = [file for file in found if split is None or split.lower() in _words(file)]
    if not chosen:
        seen = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        wanted = "files of records" if split is None else f"files of the split {split!r}"
        raise DataError(
            f"folder {str(path)!r} holds {seen}; expected {wanted} ({', '.join(SUFFIXES)}), or the layout of an image "
            "folder, MNIST, CIFAR or ParaRel; check the path."
        )
    return chosen


def read(path: Path) -> Iterator[Record]:
    """The records of one file, in order, read as they are asked for.

    Raises:
        DataError: it is no JSON, it breaks off, or something in it is no object.
    """
    values = _lines(path) if path.suffix.lower() == ".jsonl" else _values(path)
    for number, (place, value) in enumerate(values, start=1):
        where = f"{path}, {place or f'record {number}'}"
        yield record(where, value)


def record(where: str, value: Any) -> Record:
    """One value of a file as a record.

    Raises:
        DataError: it has no fields.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where} is {type(value).__name__} {str(value)[:40]!r}, expected an object with fields; "
            "correct the record, or take it out of the file."
        )
    return Record(value, identified(where, value))


def _single(path: Path, split: str | None) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"file {str(path)!r} has the extension {path.suffix!r}, expected one of {', '.join(SUFFIXES)}, an image "
            "archive (.npz), an IDX file or a CIFAR .bin file; convert it to JSON lines."
        )
    if split is not None:
        raise DataError(f"file {str(path)!r} has no splits, and split={split!r} was given; leave split out.")
    return path


def _words(file: Path) -> list[str]:
    return re.split(r"[^a-z0-9]+", file.stem.lower())


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = _decoded(path, line, f"line {number}").strip()
            if text:
                yield f"line {number}", _line_value(path, number, text, complete=line.endswith(b"\n"))


def _line_value(path: Path, number: int, text: str, *, complete: bool) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = "is no JSON" if complete else "is truncated, the file breaks off in it"
        raise DataError(
            f"{path}, line {number}: {text[:60]!r} {what} ({error.msg}), expected one JSON object a line; "
            "correct or remove that line."
        ) from error


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list, or JSON values one after another: some files named .json hold lines."""
    text = _decoded(path, path.read_bytes(), "file")
    at = _after_space(text, 0)
    listed = text[at : at + 1] == "["
    at = _after_space(text, at + listed)
    number = 1
    while text[at : at + 1] != "]" if listed else at < len(text):
        value, at = _value(path, text, at, number)
        yield "", value
        at = _after_space(text, at)
        if listed and text[at : at + 1] != "]":
            at = _after_comma(path, text, at, number)
        number += 1
    behind = _after_space(text, at + listed)
    if behind < len(text):
        raise _broken(path, text, behind, number, "text behind the list")


def _value(path: Path, text: str, at: int, number: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _broken(path, text, error.pos, number, error.msg) from error


def _after_comma(path: Path, text: str, at: int, number: int) -> int:
    if text[at : at + 1] != ",":
        raise _broken(path, text, at, number, "a comma or the end of the list is missing behind it")
    return _after_space(text, at + 1)


def _broken(path: Path, text: str, at: int, number: int, why: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    if _breaks_off(text[at:].strip(), why):
        return DataError(
            f"{path} is truncated: it breaks off in record {number}, line {line}; expected a complete JSON list; "
            "fetch the file again."
        )
    return DataError(
        f"{path}, record {number}, line {line}: no JSON from {text[at : at + 30]!r} on ({why}); expected a JSON "
        "list of objects; correct the file."
    )


def _breaks_off(rest: str, why: str) -> bool:
    """Whether what is left, where reading failed, is the beginning of something right."""
    within_escape = why.startswith("Invalid \\") and len(rest) < len(r"\uXXXX")
    return within_escape or why.startswith("Unterminated") or bool(_CUT.fullmatch(rest))


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _decoded(path: Path, data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, {place}: byte {error.start} is no UTF-8, expected a text file in UTF-8; convert the file."
        ) from error
