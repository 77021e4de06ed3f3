"""Why a prompt is answered as it is: the edits that were considered for it, and which of them fires."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editable.editor import Considered
from editable.listing import Listed, aligned, short

HEADINGS = ("fires", "id", "prompt", "target", "editor", "reason")


@dataclass(frozen=True)
class Explained:
    """One edit that was considered, and what its editor says about it."""

    edit: Listed
    considered: Considered

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        edit = {name: getattr(self.edit, name) for name in ("prompt", "target", "editor")}
        return {**asdict(self.considered), **edit}

    @property
    def cells(self) -> tuple[str, ...]:
        """As a table shows it, under HEADINGS."""
        edit, fires = self.edit, "yes" if self.considered.fired else "no"
        return (fires, edit.id, short(edit.prompt), short(str(edit.target)), edit.editor, self.considered.reason)


@dataclass(frozen=True)
class Explanation:
    """The edits considered for one prompt, nearest first. Prints as a table, in a notebook too.

    Args:
        prompt: what was asked.
        version: of the edits that were looked at.
        found: nearest first.
    """

    prompt: str
    version: int
    found: Sequence[Explained]

    @property
    def fired(self) -> list[str]:
        """Ids of the edits that the prompt falls under: at most one of each editor that routes."""
        return [one.edit.id for one in self.found if one.considered.fired]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        considered = [one.as_dict() for one in self.found]
        return {"prompt": self.prompt, "version": self.version, "fired": self.fired, "considered": considered}

    @property
    def _title(self) -> str:
        what = f"falls under {', '.join(self.fired)}" if self.fired else "falls under no edit: the base model answers"
        return f"{short(self.prompt)!r} {what} (version {self.version})"

    def __repr__(self) -> str:
        lines = [HEADINGS, *(one.cells for one in self.found)]
        return "\n".join([self._title, *(aligned(lines) if self.found else ())])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(h)}</th>" for h in HEADINGS)
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in one.cells) for one in self.found]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p>{html.escape(self._title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
