"""`editable bench`: find the benchmarks, list them, hand over to one.

Knows that a benchmark is a module of `editable.benchmarks` with a function `main`. Refuses to know what its options
are: those are its own, its help included.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import typer

from editable.cli import terminal
from editable.errors import InputError

HANDED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


def bench(context: typer.Context) -> None:
    """Measure what editing costs and what it is worth. Alone, list the benchmarks; behind a name, its options."""
    name, *options = context.args or ["--help"]
    known = dict(benchmarks())
    if name == "--help":
        typer.echo("Usage: editable bench NAME [OPTIONS]...; editable bench NAME --help shows its options.\n")
        terminal.out().print(terminal.table(("name", "what it measures"), list(known.items()), ("name",)))
        return
    if name not in known:
        raise InputError(_unknown(name, list(known)))
    importlib.import_module(f"editable.benchmarks.{name}").main(options)


def benchmarks() -> Iterator[tuple[str, str]]:
    """Name and first line of each benchmark; read, not imported, since they bring much that a list does not need."""
    import editable.benchmarks as folder

    for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        spec = importlib.util.find_spec(module.name)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            yield module.name.rpartition(".")[2], (ast.get_docstring(tree) or "").partition("\n")[0]


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0)
    return (
        f"There is no benchmark {name!r}, expected one of {', '.join(known)}; the closest is {near[0]!r}. "
        "`editable bench` says what each measures."
    )
