"""Every error this package raises on purpose, in one tree.

EditableError
├── SiteError            a module path that does not exist or cannot be read as rows
├── InputError           an edit or a call that cannot be understood
│   └── UnknownEditError an id that was never given out, or is rolled back already
├── DataError            a data file, a folder or a record that cannot be used
│   └── ConflictError    two cases ask for different answers to one question
├── VerificationError    an edit was learned, but the model does not do what it asks
├── StateError           the operation does not fit the model's state (closed, compiled before attaching ...)
├── LogError             the log cannot be read or trusted
│   ├── WrongBaseError   the log or pack belongs to other base weights or another tokenizer
│   └── CorruptLogError  a record's bytes or hash chain do not add up
└── MissingPackageError  an optional package or packaged model is not installed

Every message names the thing, the value seen, what was expected, and the next step.
"""

from editable.memory.errors import CorruptLogError, EditableError, LogError, WrongBaseError

__all__ = [
    "ConflictError",
    "CorruptLogError",
    "DataError",
    "EditableError",
    "InputError",
    "LogError",
    "MissingPackageError",
    "SiteError",
    "StateError",
    "UnknownEditError",
    "VerificationError",
    "WrongBaseError",
]


class SiteError(EditableError):
    """A module path does not exist, or its activation cannot be read as rows."""


class InputError(EditableError, ValueError):
    """An edit or a call that cannot be understood."""


class UnknownEditError(InputError, KeyError):
    """An edit id that was never given out, or that is rolled back already."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr


class DataError(EditableError, ValueError):
    """A data file, a folder or one of its records cannot be used; nothing of it was loaded."""


class ConflictError(DataError):
    """Two cases ask for different answers to one question."""


class VerificationError(EditableError):
    """An edit was learned, but the model does not do what it asks; nothing has changed."""


class StateError(EditableError, RuntimeError):
    """The operation does not fit the model's present state."""


class MissingPackageError(EditableError, ImportError):
    """An optional package, or a packaged model, is not installed."""
