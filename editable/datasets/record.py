"""One record of a file: its fields, each checked where it is read, and where it stands.

Knows no layout. Whatever is missing, empty or of another type is refused with file, record, field and value.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from editable.errors import DataError

_IDENTITIES = ("id", "case_id", "known_id", "uuid", "idx")


@dataclass(frozen=True)
class Record:
    """The fields of one record, or of a part of it.

    Args:
        fields: as the file has them; a field that is None counts as absent, because tables fill gaps so.
        where: file and record, for messages.
        path: how this part is reached from the whole record, such as "requested_rewrite."; empty for the whole.
    """

    fields: Mapping[str, Any]
    where: str
    path: str = ""

    def has(self, *names: str) -> bool:
        """Whether all of these fields are there."""
        return all(self.fields.get(name) is not None for name in names)

    def text(self, *names: str) -> str:
        """The text in the first of these fields that is there, stripped.

        Raises:
            DataError: none is there, or it is empty or no text.
        """
        name = next((name for name in names if self.has(name)), names[0])
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, "some text")
        return value.strip()

    def texts(self, *names: str) -> tuple[str, ...]:
        """The texts in the first of these fields that is there, each stripped: one text, or lists of them.

        Empty ones are left out, and none at all where no such field is there.

        Raises:
            DataError: something in it is no text.
        """
        name = next((name for name in names if self.has(name)), None)
        return () if name is None else tuple(self._flat(name, self.fields[name]))

    def raw(self, name: str) -> str:
        """The text in this field with the white space around it; empty where the field is absent.

        Raises:
            DataError: it is no text.
        """
        value = self.fields.get(name)
        if not isinstance(value, str | None):
            raise self.wrong(name, "text")
        return value or ""

    def part(self, name: str) -> Record:
        """The fields below this one; no fields where it is absent.

        Raises:
            DataError: it is no object.
        """
        return self._below(name, {} if self.fields.get(name) is None else self.fields[name])

    def parts(self, name: str) -> tuple[Record, ...]:
        """The objects in this list; none where the field is absent.

        Raises:
            DataError: it is no list of objects.
        """
        value = [] if self.fields.get(name) is None else self.fields[name]
        if not isinstance(value, list):
            raise self.wrong(name, "a list of objects")
        return tuple(self._below(f"{name}[{position}]", part) for position, part in enumerate(value))

    def wrong(self, name: str, expected: str) -> DataError:
        """The error that says what is wrong with this field."""
        value = self.fields.get(name)
        seen = "is missing" if name not in self.fields else f"is {reprlib.repr(value)} ({type(value).__name__})"
        return self._error(f"field {self.path + name!r} {seen}", expected)

    def _error(self, what: str, expected: str) -> DataError:
        return DataError(f"{self.where}: {what}, expected {expected}; correct the record, or take it out of the file.")

    def _below(self, name: str, value: Any) -> Record:
        if not isinstance(value, Mapping):
            seen = f"field {self.path + name!r} is {reprlib.repr(value)} ({type(value).__name__})"
            raise self._error(seen, "an object with fields")
        return Record(value, self.where, f"{self.path}{name}.")

    def _flat(self, name: str, value: Any) -> Iterator[str]:
        if isinstance(value, str):
            if value.strip():
                yield value.strip()
        elif isinstance(value, list | tuple):
            for item in value:
                yield from self._flat(name, item)
        else:
            raise self.wrong(name, "text, or a list of texts")


def identified(where: str, fields: Mapping[str, Any]) -> str:
    """The place with the record's own id behind it, where it has one."""
    name = next((name for name in _IDENTITIES if isinstance(fields.get(name), str | int)), None)
    return where if name is None else f"{where} ({name} {fields[name]})"
