"""An editor's configuration as JSON, and back: what a log is bound to, and what the command line opens a store with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

Stated = list[Any]
"""[class, {field: value}]; a value that is a dataclass of its own (a scope) is stated alike."""


def stated(configured: Any) -> Stated:
    """A frozen dataclass as plain JSON."""
    own = {field.name: getattr(configured, field.name) for field in fields(configured)}
    return [type(configured).__name__, {name: _value(value) for name, value in own.items()}]


def _value(value: Any) -> Any:
    return stated(value) if is_dataclass(value) else value


def restored(plain: Stated, *folders: ModuleType) -> Any:
    """The dataclass that was stated; its class is looked for in these modules.

    Raises:
        AttributeError: no such class there.
    """
    name, config = plain
    cls = next((vars(folder)[name] for folder in folders if name in vars(folder)), None)
    if cls is None:
        raise AttributeError(f"there is no {name} in {', '.join(folder.__name__ for folder in folders)}")
    return cls(**{field: _restored(value, folders) for field, value in config.items()})


def _restored(value: Any, folders: tuple[ModuleType, ...]) -> Any:
    if _is_stated(value):
        return restored(value, *folders)
    return tuple(value) if isinstance(value, list) else value  # a frozen dataclass holds no lists


def _is_stated(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Mapping)
