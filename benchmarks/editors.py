"""Editors and baselines by name: what `--editor` and `--set` mean.

The lists are the folders `editable.adapters` and `baselines`: a module there holds one frozen dataclass, and the
module's name is its name. Adding a method needs no change here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from editable import EditableModel
from editable.benchmarks.baselines import Baseline
from editable.edited import EditedSystem
from editable.editor import Editor
from editable.errors import InputError
from editable.routing import Scope
from editable.system import System


def editors() -> list[str]:
    """Names of the editors, in alphabetical order."""
    import editable.adapters as folder

    return _modules(folder)


def baselines() -> list[str]:
    """Names of the baselines."""
    import editable.benchmarks.baselines as folder

    return _modules(folder)


def _modules(folder: ModuleType) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__) if not module.name.startswith("_"))


def find(name: str, options: Mapping[str, str] | None = None) -> Editor:
    """The editor of that name, configured.

    Args:
        name: of a module of `editable.adapters`.
        options: field to value, as text.

    Raises:
        InputError: no such editor or field, or a value that its field cannot have.
    """
    if name not in editors():
        raise InputError(_unknown("Editor", name, editors()))
    return _configured("editable.adapters", name, "learn", options or {})  # type: ignore[no-any-return]


def method(name: str, options: Mapping[str, str] | None = None) -> Editor | Baseline:
    """The editor or the baseline of that name, configured; see `find`."""
    if name in editors():
        return find(name, options)
    if name not in baselines():
        raise InputError(_unknown("Editor or baseline", name, [*editors(), *baselines()]))
    return _configured("editable.benchmarks.baselines", name, "on", options or {})  # type: ignore[no-any-return]


@contextmanager
def attached(
    name: str, found: Editor | Baseline, model: nn.Module, tokenizer: Any, log: Path | None = None
) -> Iterator[System]:
    """A system with that method on the model, which is given back afterwards.

    Args:
        name: what tables call an editor.
        found: the method.
        model: the base model.
        tokenizer: what reads text for it.
        log: where an editor's edits are kept; baselines keep none.
    """
    if isinstance(found, Baseline):
        yield found.on(model, tokenizer)
        return
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with closing(EditableModel(model, tokenizer, editor=found, log=log)) as em:
        yield EditedSystem(em, name)


def given(assignments: Sequence[str]) -> dict[str, str]:
    """Options from `--set field=value`.

    Raises:
        InputError: no equals sign.
    """
    found = {}
    for assignment in assignments:
        field, equals, value = assignment.partition("=")
        if not equals or not field:
            raise InputError(f"--set {assignment!r} has no field and value, expected field=value; write values=single.")
        found[field.strip()] = value.strip()
    return found


def _configured(folder: str, name: str, act: str, options: Mapping[str, str]) -> Any:
    module = importlib.import_module(f"{folder}.{name}")
    own = [cls for cls in vars(module).values() if _is_method(cls, module, act)]
    if len(own) != 1:
        raise InputError(
            f"Module {module.__name__} holds {len(own)} dataclasses with a method {act!r}, expected exactly one; "
            "give each method a file of its own."
        )
    return own[0](**_typed(own[0], options))


def _is_method(cls: object, module: ModuleType, act: str) -> bool:
    own = inspect.isclass(cls) and is_dataclass(cls) and cls.__module__ == module.__name__
    return own and hasattr(cls, act)


def _typed(cls: type[Any], options: Mapping[str, str]) -> dict[str, Any]:
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cls)}
    hints = get_type_hints(cls)
    for name in options:
        if name not in known:
            raise InputError(_unknown(f"Option of {cls.__name__}", name, list(known)))
    return {name: _value(f"{cls.__name__}.{name}", text, hints[name]) for name, text in options.items()}


def _value(name: str, text: str, kind: Any) -> Any:
    """Text as the type of a field: int, float, bool, str, a literal, or one of these or None."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if text.lower() == "none" and NoneType in arguments:
            return None
        kind = next(argument for argument in arguments if argument is not NoneType)
        return _value(name, text, kind)
    if kind is Scope:
        return scope(name, text)
    if origin is Literal:
        kinds = {str(value): value for value in arguments}
        if text not in kinds:
            raise InputError(f"{name} is {text!r}, expected one of {', '.join(kinds)}.")
        return kinds[text]
    if origin is tuple:
        return tuple(_value(name, part, arguments[0]) for part in text.split(","))
    if kind is bool:
        return _value(name, text.lower(), Literal["true", "false"]) == "true"
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {text!r}, expected {getattr(kind, '__name__', kind)}.") from error


def scope(name: str, text: str) -> Scope:
    """A scope by the name of its file, with its fields: sentence, or sentence(false_fire=0.001)."""
    import editable.scopes as folder

    file, _, inside = text.removesuffix(")").partition("(")
    if file not in _modules(folder):
        raise InputError(_unknown(f"{name}: scope", file, _modules(folder)))
    found: Scope = _configured("editable.scopes", file, "find", given([part for part in inside.split(",") if part]))
    return found


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    nearest = f"the nearest are: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
    return f"{what} {name!r} does not exist, expected one of {len(known)}; {nearest}."
