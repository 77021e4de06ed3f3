"""The records a model's edits come from, and what they add up to: a list to read, and the snapshot of any version.

Held by the log where there is one, else in memory. Knows nothing of serving.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from editable.edit import Patch
from editable.editor import Editor
from editable.errors import InputError, UnknownEditError
from editable.listing import Edits, Listed, listed
from editable.memory.log import Entry, Log, Record
from editable.pack import Packed
from editable.snapshot import Snapshot

TOGETHER = 1024  # records read before their edits are inserted in one go
TOGETHER_BYTES = 64 << 20  # and what their tensors may take meanwhile


class History:
    """What was inserted and rolled back, in order. One writer; readers may look at any time.

    Args:
        editors: name to editor.
        log: where records are kept; None keeps them in memory. Its records are read once, here.
    """

    def __init__(self, editors: Mapping[str, Editor], log: Log | None = None) -> None:
        self.editors = editors
        self.log = log
        self._unlogged: list[Record] = []
        self._listed: dict[str, Listed] = {}
        self._took_over: dict[str, list[str]] = {}  # edit id to the ids it superseded
        self.start = Snapshot()
        if log is not None:
            with _uncollected():
                self.start = self._snapshot(self._noted(log.records()))

    def append(self, version: int, entries: Sequence[Entry]) -> None:
        """Keep what `version` changes; on disk, where there is a log, once this returns."""
        if self.log is not None:
            records = self.log.append(version, entries)
        else:
            records = tuple(_record(len(self._unlogged) + i + 1, version, e) for i, e in enumerate(entries))
            self._unlogged.extend(records)
        for record in records:
            self._note(record)

    def _noted(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self._note(record)
            yield record

    def _note(self, record: Record) -> None:
        if record.kind == "relearn":
            self._listed[record.edit_id] = replace(self._listed[record.edit_id], relearned=record.version)
            return
        if record.kind == "rollback":
            gone = replace(self._listed[record.edit_id], rolled_back=record.version)
            self._listed[record.edit_id] = gone
            # What had taken its place has now taken the place of those whose place it had taken.
            self._take_over(self._took_over.pop(record.edit_id, []), gone.superseded_by)
            return
        self._listed[record.edit_id] = listed(record.meta["request"], record.edit_id, record.editor, record.version)
        self._take_over([e for e in record.meta["superseded"] if e in self._listed], record.edit_id)

    def _take_over(self, edit_ids: Sequence[str], by: str | None) -> None:
        for edit_id in edit_ids:
            self._listed[edit_id] = replace(self._listed[edit_id], superseded_by=by)
        if by is not None:
            self._took_over.setdefault(by, []).extend(edit_ids)

    def edits(self, version: int, rolled_back: bool = False) -> Edits:
        """The edits in the order they came; `version` is what the list says it shows."""
        known = list(self._listed.values())
        return Edits([e for e in known if rolled_back or e.rolled_back is None], version)

    def live(self, edit_id: str) -> Listed:
        """A live edit.

        Raises:
            UnknownEditError: the id was never given out, or is rolled back.
        """
        known = self._listed.get(edit_id)
        if known is None:
            raise UnknownEditError(
                f"Edit {edit_id!r} is unknown, expected the id of a live edit; print em.edits to see them."
            )
        if known.rolled_back is not None:
            raise UnknownEditError(
                f"Edit {edit_id!r} was rolled back in version {known.rolled_back} already, expected the id of a live "
                "edit; print em.edits to see them."
            )
        return known

    def known(self, edit_id: str) -> Listed:
        """An edit that there is or was."""
        return self._listed[edit_id]

    def is_new(self, edit_id: str) -> bool:
        """Whether an edit from elsewhere is not known here yet.

        Raises:
            InputError: it was rolled back here.
        """
        known = self._listed.get(edit_id)
        if known is not None and known.rolled_back is not None:
            raise InputError(
                f"Edit {edit_id!r} of the pack was rolled back here in version {known.rolled_back}, expected an edit "
                "that was not; make the edit again if it is wanted after all."
            )
        return known is None

    def packed(self, edit_ids: frozenset[str] | None = None) -> list[Packed]:
        """The live edits, all or those wanted, ready to be carried elsewhere."""
        live = {edit.id for edit in self.edits(0) if edit_ids is None or edit.id in edit_ids}
        latest: dict[str, Record] = {}
        for record in self._records():
            if record.kind != "rollback" and record.edit_id in live:
                latest.pop(record.edit_id, None)  # what was learned anew goes to the end, where it was inserted
                latest[record.edit_id] = record
        return [Packed(_patch(record), record.editor, record.meta["request"]) for record in latest.values()]

    def snapshot(self, version: int) -> Snapshot:
        """A version, built again from the records that led to it."""
        return self._snapshot(record for record in self._records() if record.version <= version)

    def _records(self) -> Iterable[Record]:
        return list(self._unlogged) if self.log is None else self.log.records()

    def _snapshot(self, records: Iterable[Record]) -> Snapshot:
        """Everything inserted and forgotten in the order in which it happened.

        An editor may have recorded how an edit related to those that were there: then no others must be there again.
        What a unit was before the rest of it was learned again goes with what was rolled back.
        """
        states: dict[str, Any] = {}
        gone: dict[str, set[str]] = {}
        version = 0
        for name, some in self._runs(records):
            version, editor, ids = some[-1].version, self.editors[name], {record.edit_id for record in some}
            state = states[name] if name in states else editor.empty()
            if some[0].kind == "rollback":
                gone.setdefault(name, set()).update(ids)
            else:
                past = gone.pop(name, set()) | (ids if some[0].kind == "relearn" else set())
                state = editor.forget(frozenset(past), state) if past else state
                state = editor.insert([_patch(record) for record in some], state)
            states[name] = state
        for name, ids in gone.items():
            states[name] = self.editors[name].forget(frozenset(ids), states[name])
        return Snapshot().replace(version, states)

    @staticmethod
    def _runs(records: Iterable[Record]) -> Iterator[tuple[str, list[Record]]]:
        """Records of one kind and editor that come one after another, not too many; all that a version relearned."""
        some: list[Record] = []
        held = 0
        for record in records:
            apart = some and _group(record) != _group(some[0])
            full = len(some) == TOGETHER or held >= TOGETHER_BYTES
            if apart or (full and record.kind != "relearn"):
                yield some[0].editor, some
                some, held = [], 0
            some.append(record)
            held += sum(tensor.nbytes for tensor in record.tensors.values())
        if some:
            yield some[0].editor, some


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is made inside all stays: looking for garbage in it again and again would take a sixth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _group(record: Record) -> tuple[str, str, int]:
    return record.editor, record.kind, record.version if record.kind == "relearn" else -1


def _patch(record: Record) -> Patch:
    return Patch(record.edit_id, record.tensors, record.meta["patch"])


def _record(seq: int, version: int, entry: Entry) -> Record:
    return Record(
        entry.kind,
        entry.edit_id,
        entry.editor,
        entry.tensors,
        entry.meta,
        seq=seq,
        version=version,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        hash="",
    )
