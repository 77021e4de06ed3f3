"""The root of the error tree, and the errors of the stores in this folder. The whole tree: `editable/errors.py`."""


class EditableError(Exception):
    """Base of all errors raised by this package."""


class LogError(EditableError):
    """The log cannot be read, written or trusted."""


class WrongBaseError(LogError):
    """The log or pack belongs to other base weights, another tokenizer or another editor."""


class CorruptLogError(LogError):
    """A record's bytes or the hash chain do not add up."""
