"""The edits of a model as a person sees them: a list that explains itself in a terminal and in a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from editable.edit import Edit, ModelInput
from editable.errors import UnknownEditError
from editable.pictures import is_picture

WIDTH = 44  # characters of a prompt or target that a table shows


@dataclass(frozen=True)
class Listed:
    """One edit with its history.

    Args:
        id: its id.
        editor: name of the editor that holds it.
        prompt: text, or a description of the tensor.
        target: text or label.
        rephrases: as given, described like the prompt.
        subject: as given.
        namespace: as given.
        version: the version that first showed it.
        rolled_back: the version that no longer showed it, None while it is live.
        superseded_by: id of the live edit that took its place, if one did.
        relearned: the version in which it was last learned again, because one that it was learned with was rolled
            back; None if that never happened.
    """

    id: str
    editor: str
    prompt: str
    target: str | int | None
    rephrases: tuple[str, ...]
    subject: str | None
    namespace: str
    version: int
    rolled_back: int | None = None
    superseded_by: str | None = None
    relearned: int | None = None

    @property
    def state(self) -> str:
        """One word, and whose doing it is."""
        if self.rolled_back is not None:
            return f"rolled back in v{self.rolled_back}"
        return f"superseded by {self.superseded_by}" if self.superseded_by else "live"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "rephrases": list(self.rephrases), "state": self.state}


def described(edit: Edit) -> dict[str, Any]:
    """An edit as plain JSON, for the log; tensors are described by their shape."""
    return {
        "prompt": as_text(edit.prompt),
        "target": edit.target,
        "rephrases": [as_text(r) for r in edit.rephrases],
        "subject": edit.subject,
        "namespace": edit.namespace,
    }


def as_text(prompt: ModelInput) -> str:
    """Text as it is; files by their path, other pictures and tensors described by their shape."""
    if isinstance(prompt, str | os.PathLike):
        return os.fspath(prompt)
    if is_picture(prompt):
        file = getattr(prompt, "filename", "")
        name = f"{Path(file).name} " if isinstance(file, str) and file else ""
        return f"<picture {name}{prompt.width}x{prompt.height}>"
    if isinstance(prompt, Tensor):
        return f"<tensor {'x'.join(map(str, prompt.shape))}>"
    return f"<inputs {', '.join(sorted(prompt))}>"


class Edits(Sequence[Listed]):
    """Edits in the order they came, live ones by default; index by position or by id."""

    def __init__(self, edits: Sequence[Listed], version: int) -> None:
        self._edits = list(edits)
        self._version = version

    @overload
    def __getitem__(self, index: int | str) -> Listed: ...
    @overload
    def __getitem__(self, index: slice) -> Edits: ...
    def __getitem__(self, index: int | str | slice) -> Listed | Edits:
        if isinstance(index, str):
            return self._by_id(index)
        if isinstance(index, slice):
            return Edits(self._edits[index], self._version)
        return self._edits[index]

    def _by_id(self, edit_id: str) -> Listed:
        for edit in self._edits:
            if edit.id == edit_id:
                return edit
        raise UnknownEditError(f"Edit {edit_id!r} is not among these {len(self)} edits; print them to see their ids.")

    def __len__(self) -> int:
        return len(self._edits)

    def __iter__(self) -> Iterator[Listed]:
        return iter(self._edits)

    def __repr__(self) -> str:
        if not self._edits:
            return f"no edits (version {self._version})"
        rows = aligned([HEADINGS, *(_cells(edit) for edit in self._edits)])
        count = f"{len(self._edits)} edit{'s' if len(self._edits) != 1 else ''} (version {self._version})"
        return "\n".join([count, *rows])

    def _repr_html_(self) -> str:
        if not self._edits:
            return f"<p>{html.escape(repr(self))}</p>"
        head = "".join(f"<th>{html.escape(h)}</th>" for h in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(edit)) + "</tr>" for edit in self._edits
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


HEADINGS = ("id", "prompt", "target", "editor", "version", "state")


def _cells(edit: Listed) -> tuple[str, ...]:
    version = f"v{edit.version}" + (f", relearned v{edit.relearned}" if edit.relearned is not None else "")
    return (edit.id, short(edit.prompt), short(str(edit.target)), edit.editor, version, edit.state)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def short(text: str) -> str:
    """On one line, and cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def listed(records: Mapping[str, Any], edit_id: str, editor: str, version: int) -> Listed:
    """From what `described` gave."""
    return Listed(
        id=edit_id,
        editor=editor,
        prompt=records["prompt"],
        target=records["target"],
        rephrases=tuple(records["rephrases"]),
        subject=records["subject"],
        namespace=records["namespace"],
        version=version,
    )
