"""Output of the command line: tables and progress for a person, one JSON document for a program.

Knows terminals and pipes. Refuses to know what is printed. Rich is imported when something is: importing it draws a
number from Python's random state, which is the user's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

PIPED_WIDTH = 100  # columns where there is no terminal to ask


def out(quiet: bool = False) -> Console:
    """Give the console of results. Text is printed as it is: a prompt may hold brackets."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(markup=False, highlight=False, emoji=False, quiet=quiet, width=width)


def err() -> Console:
    """Give the console of progress; what is drawn there leaves no trace, and a pipe never sees it."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def each(items: Sequence[T], doing: str) -> Iterator[T]:
    """Iterate with a progress bar."""
    return progress(items, doing, len(items))


def progress(items: Iterator[T] | Sequence[T], doing: str, total: int) -> Iterator[T]:
    """Iterate over something without a length, with a progress bar."""
    from rich.progress import track

    console = err()
    yield from track(items, doing, total, console=console, transient=True, disable=not console.is_terminal)


def tell(document: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def line(text: object) -> str:
    """Put any text on one line."""
    return " ".join(str(text).split()) or "(nothing)"


def pair(edit: Mapping[str, Any]) -> str:
    """Put an edit on one line."""
    return f"{line(edit['prompt'])} -> {line(edit['target'])}"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], whole: Sequence[str] = ()) -> Table:
    """Lay rows out under headings.

    Args:
        headings: one per column.
        rows: cells; line breaks inside are taken out.
        whole: headings of columns whose cells are never broken, so that they can be copied.
    """
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        made.add_column(heading, no_wrap=heading in whole, overflow="fold")
    for row in rows:
        made.add_row(*(line(cell) for cell in row))
    return made
