"""What happened to the edits of a store, read from its log alone.

Knows records, and what they add up to at a version. Loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from editable.errors import InputError, LogError, UnknownEditError
from editable.listing import Listed, listed
from editable.memory.log import Log, Record

Plain = dict[str, Any]
"""Plain JSON."""


def read(store: Path, tensors_of: str | None = None) -> list[Record]:
    """Read and verify all records; tensors of one edit at most, since those of a long history would fill the memory.

    Raises:
        LogError: there is no store, or it cannot be read or trusted.
    """
    if not store.exists():
        raise LogError(f"Store {store} does not exist, expected the file that holds the edits; pass it with --store.")
    with Log(store) as log:
        return [r if r.edit_id == tensors_of else replace(r, tensors={}) for r in log.records()]


def latest(records: Sequence[Record]) -> int:
    """Give the newest version."""
    return records[-1].version if records else 0


def edits_at(records: Sequence[Record], version: int) -> dict[str, Listed]:
    """Give every edit made by a version, by id, with its state then.

    Raises:
        InputError: there was no such version.
    """
    if not 0 <= version <= latest(records):
        raise InputError(f"Version {version} does not exist, expected one from 0 to {latest(records)}.")
    seen = [r for r in records if r.version <= version]
    made = [r for r in seen if r.kind == "edit"]
    gone = {r.edit_id: r.version for r in seen if r.kind == "rollback"}
    anew = {r.edit_id: r.version for r in seen if r.kind == "relearn"}
    heirs = {old: r.edit_id for r in made for old in r.meta.get("superseded", ())}
    return {
        r.edit_id: replace(
            listed(r.meta["request"], r.edit_id, r.editor, r.version),
            rolled_back=gone.get(r.edit_id),
            superseded_by=_standing(r.edit_id, heirs, gone),
            relearned=anew.get(r.edit_id),
        )
        for r in made
    }


def _standing(edit_id: str, heirs: Mapping[str, str], gone: Mapping[str, int]) -> str | None:
    """Who stands in an edit's place: what took the place of one rolled back takes that of all it had superseded."""
    heir = heirs.get(edit_id)
    while heir is not None and heir in gone:
        heir = heirs.get(heir)
    return heir


def known(edits: Mapping[str, Listed], edit_id: str, store: Path) -> Listed:
    """Look an edit up.

    Raises:
        UnknownEditError: no edit has this id.
    """
    if edit_id not in edits:
        raise UnknownEditError(
            f"Edit {edit_id!r} is unknown, expected the id of one of the {len(edits)} edits in {store}; "
            "`editable log` prints them."
        )
    return edits[edit_id]


def events(records: Sequence[Record], query: str | None) -> list[Plain]:
    """Give what happened, newest first, to the edits that hold the text."""
    edits = edits_at(records, latest(records))
    return [_event(r, edits[r.edit_id]) for r in reversed(records) if _holds(edits[r.edit_id], query)]


def _holds(edit: Listed, query: str | None) -> bool:
    texts = (edit.id, edit.prompt, str(edit.target), edit.subject or "", *edit.rephrases)
    return query is None or any(query.casefold() in text.casefold() for text in texts)


def _event(record: Record, edit: Listed) -> Plain:
    return {
        "version": record.version,
        "created": record.created,
        "kind": record.kind,
        "id": edit.id,
        "editor": edit.editor,
        "prompt": edit.prompt,
        "target": edit.target,
        "state": edit.state,
    }


def about(store: Path, edit_id: str) -> Plain:
    """Give everything the log says of one edit.

    Raises:
        UnknownEditError: no edit has this id.
    """
    records = read(store, tensors_of=edit_id)
    edit = known(edits_at(records, latest(records)), edit_id, store)
    record = [r for r in records if r.edit_id == edit_id and r.kind != "rollback"][-1]
    return {
        **edit.as_dict(),
        "created": record.created,
        "verified": record.meta.get("verified"),
        "superseded": record.meta.get("superseded", []),
        "tensors": {n: {"dtype": str(t.dtype), "shape": list(t.shape)} for n, t in record.tensors.items()},
        "patch": record.meta["patch"],
        "seq": record.seq,
        "hash": record.hash,
    }


def difference(records: Sequence[Record], a: int, b: int) -> tuple[list[Plain], list[Plain]]:
    """Give the edits that are live at version b and not at a, and the other way round, with their state at b.

    Raises:
        InputError: there was no such version.
    """
    before, after = edits_at(records, a), edits_at(records, b)
    live_before = {i for i, edit in before.items() if edit.state == "live"}
    live_after = {i for i, edit in after.items() if edit.state == "live"}
    added = [edit.as_dict() for i, edit in after.items() if i in live_after - live_before]
    removed = [
        after[i].as_dict() if i in after else {**edit.as_dict(), "state": "not made yet"}
        for i, edit in before.items()
        if i in live_before - live_after
    ]
    return added, removed
