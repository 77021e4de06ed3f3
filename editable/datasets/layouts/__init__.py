"""One file per public layout of editing data; the list of layouts is this folder.

A layout of records has `recognises(record)` and `cases(record)`; a layout of whole files or folders has
`recognises_path(path)` and `read(path, split)`. Names are the file names.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from editable.datasets.case import Case
from editable.datasets.record import Record
from editable.errors import DataError


def names() -> list[str]:
    """The names of all layouts."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> ModuleType:
    """The layout of this name.

    Raises:
        DataError: there is none; the message has the closest names.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise DataError(f"layout {name!r} does not exist, expected one of {', '.join(names())}; {hint}check the name.")
    return importlib.import_module(f"{__name__}.{name}")


def of_path(path: Path, name: str | None) -> ModuleType | None:
    """The layout that reads this file or folder as a whole; None where it consists of records."""
    if name is not None:
        layout = named(name)
        return layout if hasattr(layout, "read") else None
    return next((layout for layout in _having("recognises_path") if layout.recognises_path(path)), None)


def of_record(record: Record, name: str | None) -> ModuleType:
    """The layout that this record has.

    Raises:
        DataError: none recognises it, or the one named reads whole files.
    """
    if name is None:
        layout = next((layout for layout in _having("recognises") if layout.recognises(record)), None)
        if layout is None:
            raise _unrecognised(record)
        return layout
    layout = named(name)
    if not hasattr(layout, "cases"):
        raise DataError(f"{record.where}: layout {name!r} reads files and folders, not records; name another layout.")
    return layout


def cases(record: Record, layout: ModuleType) -> list[Case]:
    """The cases of one record."""
    found: list[Case] = layout.cases(record)
    return found


def _having(function: str) -> Iterator[ModuleType]:
    return (layout for layout in map(named, names()) if hasattr(layout, function))


def _unrecognised(record: Record) -> DataError:
    known = ", ".join(name for name in names() if hasattr(named(name), "recognises"))
    seen = ", ".join(map(str, record.fields)) or "(none)"
    return DataError(
        f"{record.where}: no layout recognises a record with the fields {seen}; expected one of the layouts {known}. "
        "Name one with layout=..., or rename the fields: the layout 'facts' needs only prompt and target."
    )
