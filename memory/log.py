"""The append-only history of edits and rollbacks: one SQLite file, each record tied to the one before.

Knows whose log it is (`Identity`), the order in which records came, and whether their bytes still are the
bytes that were acknowledged. Refuses to know what a tensor or a meta value means, which edits are live,
or what a version shows.

Durability: `append` returns after the disk flush of its transaction (write-ahead log,
`synchronous=FULL`). A record it returned survives a crash of the process or the machine; of a call that
did not return, all entries are there or none.

Integrity: the hash chain starts at the identity and covers every field; the header holds the count and
the last hash. A changed, missing, swapped or added row is noticed, and so is a shortened end. The chain
has no key, so it does not stop someone who computes all of it anew, and no file can tell that it is an
older copy of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from editable.memory.errors import CorruptLogError, LogError, WrongBaseError

__all__ = ["Entry", "Identity", "Log", "Record"]

_SCHEMA = 1
_BUSY_SECONDS = 10.0  # how long one writer waits for another before it gives up
_KINDS = ("edit", "rollback", "relearn")
_COLUMNS = {
    "seq": int,
    "version": int,
    "created": str,
    "kind": str,
    "edit_id": str,
    "editor": str,
    "meta": str,
    "payload": bytes,
    "hash": str,
}
_TABLES = (
    """CREATE TABLE header (
        schema_version INTEGER NOT NULL,
        base TEXT NOT NULL,
        tokenizer TEXT NOT NULL,
        editors TEXT NOT NULL,
        source TEXT NOT NULL,
        root TEXT NOT NULL,
        count INTEGER NOT NULL,
        head TEXT NOT NULL
    )""",
    """CREATE TABLE records (
        seq INTEGER PRIMARY KEY,
        version INTEGER NOT NULL,
        created TEXT NOT NULL,
        kind TEXT NOT NULL,
        edit_id TEXT NOT NULL,
        editor TEXT NOT NULL,
        meta TEXT NOT NULL,
        payload BLOB NOT NULL,
        hash TEXT NOT NULL
    )""",
)
_AHEAD = 16  # records read at a time: asking costs more than reading, and a payload may have megabytes
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM records WHERE seq BETWEEN ? AND ?"
_INSERT = f"INSERT INTO records ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
# One statement, hence one view of the file: a writer elsewhere cannot slip in between the count and the rows.
_HEAD = (
    "SELECT count, head, (SELECT MIN(seq) FROM records), (SELECT MAX(seq) FROM records), "
    "(SELECT hash FROM records ORDER BY seq DESC LIMIT 1) FROM header"
)
_RESTORE = "restore the file from a backup (Log.backup makes them)"


@dataclass(frozen=True)
class Identity:
    """Whom a log belongs to. Written once, when the log is created; the hash chain starts from it.

    Args:
        base: SHA-256 of the base weights, in hex.
        tokenizer: SHA-256 of the tokenizer, in hex; "" where there is none.
        editors: canonical JSON of editor name to config; compared as text.
        source: how the model was loaded, such as a hub id. Informative: covered by the chain, never compared.
    """

    base: str
    tokenizer: str
    editors: str
    source: str = ""


@dataclass(frozen=True, eq=False)
class Entry:
    """What a caller wants appended.

    Args:
        kind: "edit", "rollback", or "relearn": an edit that is there already, learned anew.
        edit_id: the edit it is about; not empty.
        editor: name of the editor the edit belongs to.
        tensors: name to dense tensor, any shape, on any device; stored bit for bit.
        meta: plain JSON (dicts with string keys, lists, strings, finite numbers, booleans, None).
    """

    kind: str
    edit_id: str
    editor: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Record(Entry):
    """An entry as the log holds it; its tensors are on the CPU, contiguous, and nobody else's.

    Args:
        seq: its place in the log: 1, 2, 3 ... without gaps.
        version: the snapshot version that first shows it.
        created: when it was appended, ISO 8601 in UTC, by the clock of the writing machine.
        hash: SHA-256 over the previous record's hash and every field of this one, in hex.
    """

    seq: int
    version: int
    created: str
    hash: str


class Log:
    """One log file, open.

    Safe to share between threads. One writer at a time: a second one, here or in another process, is refused
    rather than merged, because what it decided was decided on a history that is no longer the last word.

    Args:
        path: the file; created if it is absent and an identity is given. Its directory must exist.
        identity: whom the log must belong to. None opens an existing log for reading, whoever it belongs to.

    Attributes:
        path: the file.
        identity: whom the log belongs to, as the file says.

    Raises:
        WrongBaseError: the log belongs to other base weights, another tokenizer or other editors.
        CorruptLogError: the file is not SQLite, or its header does not add up.
        LogError: there is no log at `path` and no identity to create one with; the log's schema is newer than
            this package; the file cannot be opened.

    Example:
        >>> with Log("edits.db", Identity(base=digest, tokenizer="", editors="{}")) as log:
        ...     log.append(1, [Entry("edit", "a", tensors={"key": key})])
    """

    path: Path
    identity: Identity

    def __init__(self, path: str | Path, identity: Identity | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._reading_only = identity is None
        if identity is None and not self.path.exists():
            raise LogError(
                f"Log {self.path} does not exist, expected a log to read; check the path, or give an "
                "identity to create it."
            )
        self._db: sqlite3.Connection | None = None
        try:
            self._db = _connect(self.path)
            with self._using("open it") as db:
                _prepare(db, self.path, identity)
                self.identity = _read_identity(db, self.path)
                self._head = _read_head(db, self.path, self.identity)
            if identity is not None:
                _check_owner(self.path, self.identity, identity)
        except BaseException:
            self.close()
            raise

    def append(self, version: int, entries: Sequence[Entry]) -> tuple[Record, ...]:
        """Write entries at the end, all or none, and return once they are on disk.

        Args:
            version: the snapshot version that first shows these entries.
            entries: in order. They share one transaction and so one disk flush; no entries, no flush.

        Returns:
            The records, decoded from the very bytes that were written.

        Raises:
            LogError: an entry cannot be stored; the log is closed or open for reading only; another writer
                has appended since this log was opened; the disk refuses. Nothing was written.
        """
        _check_version(version)
        encoded = [_encode(position, entry) for position, entry in enumerate(entries)]
        if not encoded:
            return ()
        with self._using("append to it") as db:
            self._refuse_reading_only()
            rows = _chained(self._head, version, encoded)
            records = tuple(_decode(row) for row in rows)
            head = _Head(records[-1].seq, records[-1].hash)
            with _transaction(db):
                self._refuse_if_moved(_read_head(db, self.path, self.identity))
                db.executemany(_INSERT, rows)
                db.execute("UPDATE header SET count = ?, head = ?", head)
            self._head = head
        return records

    def records(self) -> Iterator[Record]:
        """Iterate over all records committed by now, in order, each verified before it is handed out.

        Raises:
            CorruptLogError: while iterating, at the first record that does not add up; on the call itself
                where header and rows disagree.
            LogError: the log is closed, or cannot be read.
        """
        with self._using("read it") as db:
            length = _read_head(db, self.path, self.identity).length
        return self._walk(length)

    def _walk(self, length: int) -> Iterator[Record]:
        previous = _root(self.identity)
        for start in range(1, length + 1, _AHEAD):
            end = min(start + _AHEAD - 1, length)
            with self._using("read it") as db:
                rows = {row[0]: row for row in db.execute(_SELECT, (start, end))}
            for seq in range(start, end + 1):
                record = _verified(self.path, seq, previous, rows.get(seq))
                yield record
                previous = record.hash

    def __len__(self) -> int:
        with self._using("count its records") as db:
            return _read_head(db, self.path, self.identity).length

    def backup(self, path: str | Path) -> None:
        """Write a compact copy of the log to a new file, on disk when this returns. Writers wait meanwhile.

        The bytes are copied, not judged: `Log(path).records()` verifies the copy.

        Raises:
            LogError: `path` exists, the log is closed, or the copy cannot be written.
        """
        target = Path(path)
        if target.exists():
            raise LogError(f"Backup {target} exists already, expected a new file; choose another name or move it away.")
        # Under another name until it is whole: a copy cut short must never pass for a backup.
        partial = target.with_name(target.name + ".partial")
        try:
            partial.unlink(missing_ok=True)
            with self._using(f"back it up to {target}") as db:
                db.execute("VACUUM INTO ?", (str(partial),))
            _flush(partial)
            partial.rename(target)
            _flush(target.parent)
        except OSError as error:
            raise LogError(
                f"Backup {target} cannot be written: {error}; check the directory and its free space."
            ) from error

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _using(self, doing: str) -> Iterator[sqlite3.Connection]:
        """Lend the connection, under the lock, with SQLite's errors turned into ours."""
        with self._lock:
            if self._db is None:
                raise LogError(f"Log {self.path} is closed, cannot {doing}; open it again with Log(path, identity).")
            try:
                yield self._db
            except (sqlite3.Error, UnicodeDecodeError) as error:  # the second: damaged names of columns
                raise _translated(self.path, doing, error) from error

    def _refuse_reading_only(self) -> None:
        if self._reading_only:
            raise LogError(
                f"Log {self.path} was opened without an identity, which is for reading; open it with "
                "Log(path, identity) to append."
            )

    def _refuse_if_moved(self, found: _Head) -> None:
        if found != self._head:
            raise LogError(
                f"Log {self.path} has {found.length} records ending in {found.hash[:12]}, expected "
                f"{self._head.length} ending in {self._head.hash[:12]}: another writer has appended since "
                "this log was opened. Nothing was written; close this log, open it again, replay its "
                "records, and append then."
            )


# --- the chain: from entries to rows and back -------------------------------------------------------------


class _Head(NamedTuple):
    """Where the chain ends: how many records, and the hash the next one continues."""

    length: int
    hash: str


class _Encoded(NamedTuple):
    """An entry in the column order of the table."""

    kind: str
    edit_id: str
    editor: str
    meta: str
    payload: bytes


_Row = tuple[Any, ...]  # the columns of one record, in the order of _COLUMNS


def _sha256(values: Sequence[str | int]) -> str:
    """One hash over several values. JSON quotes and escapes, so no two lists of values share a text."""
    return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()


def _root(identity: Identity) -> str:
    """Hash that the first record continues: without it, a valid chain could be moved to another model."""
    return _sha256(["editable log", _SCHEMA, identity.base, identity.tokenizer, identity.editors, identity.source])


def _row_hash(previous: str, columns: Sequence[Any]) -> str:
    """Hash of one record.

    Args:
        previous: hash of the record before it.
        columns: all columns but the hash, in table order; the payload, which is last, enters by its digest.
    """
    *plain, payload = columns
    return _sha256([previous, *plain, hashlib.sha256(payload).hexdigest()])


def _chained(head: _Head, version: int, encoded: Sequence[_Encoded]) -> list[_Row]:
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    rows: list[_Row] = []
    previous = head.hash
    for seq, entry in enumerate(encoded, start=head.length + 1):
        columns = (seq, version, created, *entry)
        previous = _row_hash(previous, columns)
        rows.append((*columns, previous))
    return rows


def _decode(row: _Row) -> Record:
    seq, version, created, kind, edit_id, editor, meta_text, payload, digest = row
    meta = json.loads(meta_text)
    if not isinstance(meta, dict):
        raise TypeError(f"meta is a JSON {type(meta).__name__}, expected an object")
    return Record(
        kind=kind,
        edit_id=edit_id,
        editor=editor,
        tensors=load_tensors(payload),
        meta=meta,
        seq=seq,
        version=version,
        created=created,
        hash=digest,
    )


def _verified(path: Path, seq: int, previous: str, row: _Row | None) -> Record:
    """Turn a row into its record, once everything about it adds up."""
    if row is None:
        raise _corrupt(path, seq, f"is missing, expected a row with seq {seq}")
    for (name, expected), value in zip(_COLUMNS.items(), row, strict=True):
        if type(value) is not expected:
            raise _corrupt(path, seq, f"has {type(value).__name__} in column {name!r}, expected {expected.__name__}")
    *columns, stored = row
    computed = _row_hash(previous, columns)
    if stored != computed:
        raise _corrupt(
            path,
            seq,
            f"has the hash {stored!r}, expected {computed!r} from its columns and the record before it",
        )
    try:
        return _decode(row)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
        raise _corrupt(path, seq, f"has the right hash but cannot be decoded: {error}") from error


def _corrupt(path: Path, seq: int, what: str) -> CorruptLogError:
    return CorruptLogError(f"Log {path}: record {seq} {what}. Trust nothing from record {seq} on; {_RESTORE}.")


# --- entries: what may be stored --------------------------------------------------------------------------


def _check_version(version: int) -> None:
    if type(version) is not int or not 0 <= version < 2**63:
        raise LogError(
            f"Version {version!r} cannot be logged, expected an integer from 0 to 2**63 - 1; give the "
            "version of the snapshot that first shows the entries."
        )


def _encode(position: int, entry: Entry) -> _Encoded:
    where = f"Entry {position} (edit {entry.edit_id!r})"
    if entry.kind not in _KINDS:
        raise LogError(f"{where} has kind {entry.kind!r}, expected one of {_KINDS}; use one of them.")
    if not entry.edit_id:
        raise LogError(f"{where} has an empty edit_id, expected the id of the edit it is about; give one.")
    _check_text(where, "edit_id", entry.edit_id)
    _check_text(where, "editor", entry.editor)
    return _Encoded(
        entry.kind, entry.edit_id, entry.editor, _meta_text(where, entry.meta), _payload(where, entry.tensors)
    )


def _check_text(where: str, name: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except (AttributeError, UnicodeEncodeError) as error:
        raise LogError(
            f"{where} has {name} {value!r}, expected text that UTF-8 can hold ({error}); pass such text."
        ) from error


def _meta_text(where: str, meta: Mapping[str, Any]) -> str:
    """Canonical JSON. Values that JSON would quietly change (tuples, integer keys) are refused."""
    try:
        text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":"), allow_nan=False)
        reason = "" if json.loads(text) == dict(meta) else "reading it back gives other values"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    if reason:
        raise LogError(
            f"{where} has meta that is not plain JSON: {reason}. Expected dicts with string keys, lists, "
            "strings, finite numbers, booleans and None; convert the values (tuples to lists, tensors to the "
            "entry's tensors) and append again. Nothing was written."
        )
    return text


def _payload(where: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes, read back once: what is acknowledged must be readable."""
    odd = {name: type(value).__name__ for name, value in tensors.items() if not isinstance(value, Tensor)}
    if odd:
        raise LogError(f"{where} has tensors of type {odd}, expected torch.Tensor; move other values to meta.")
    try:
        # Cloned, because safetensors refuses views that share storage.
        dense = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        payload = save_tensors(dense, metadata={"format": "pt"})
        load_tensors(payload)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        shown = {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors.items()}
        raise LogError(
            f"{where} has tensors {shown} that cannot be written as safetensors: {error}. Expected dense "
            "tensors of a dtype that safetensors knows; convert them and append again. Nothing was written."
        ) from error
    return payload


# --- the file ---------------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _translated(path, "open it", error) from error
    # Damaged text must reach the hash check, which names the record, rather than fail to decode before it.
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return db


def _prepare(db: sqlite3.Connection, path: Path, identity: Identity | None) -> None:
    """Refuse a file that is not ours before touching it; fill a new one; make commits durable."""
    tables = _tables(db)
    if tables and not tables >= {"header", "records"}:
        raise LogError(
            f"{path} is a SQLite file with the tables {sorted(map(str, tables))}, expected those of a log "
            "(header, records); check the path."
        )
    if identity is None:
        if not tables:
            _refuse_lost_tables(path)
            raise LogError(f"{path} is empty, expected a log to read; check the path, or give an identity.")
        return
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA fullfsync=ON")  # macOS: a plain fsync leaves the data in the drive's cache
    if not tables:
        _create(db, path, identity)
    # After the tables: a file that is not empty then has tables, however early its creation was cut short.
    (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise LogError(
            f"Log {path}: SQLite has journal mode {mode!r} here, expected 'wal'; put the log on a local disk."
        )


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _refuse_lost_tables(path: Path) -> None:
    """Keep a log whose first page is damaged from passing for a new one, which would be written over it."""
    size = path.stat().st_size if path.exists() else 0
    if size:
        raise CorruptLogError(
            f"{path} has {size} bytes but no tables, expected a log or an empty file; check the path, or {_RESTORE}."
        )


def _create(db: sqlite3.Connection, path: Path, identity: Identity) -> None:
    for name in ("base", "tokenizer", "editors", "source"):
        _check_text("Identity", name, getattr(identity, name))
    root = _root(identity)
    with _transaction(db):
        if _tables(db):  # another process was quicker; its identity is compared like any other
            return
        _refuse_lost_tables(path)
        for statement in _TABLES:
            db.execute(statement)
        db.execute(
            "INSERT INTO header VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (_SCHEMA, identity.base, identity.tokenizer, identity.editors, identity.source, root, 0, root),
        )


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE takes the write lock first: what is read inside stays true until the commit.
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _header(db: sqlite3.Connection, path: Path, select: str) -> _Row:
    rows = db.execute(select).fetchall()
    if len(rows) != 1:
        raise CorruptLogError(f"Log {path}: its header has {len(rows)} rows, expected 1; {_RESTORE}.")
    return tuple(rows[0])


def _read_identity(db: sqlite3.Connection, path: Path) -> Identity:
    (schema,) = _header(db, path, "SELECT schema_version FROM header")
    if isinstance(schema, int) and schema > _SCHEMA:
        raise LogError(f"Log {path} has schema version {schema}, expected at most {_SCHEMA}; upgrade this package.")
    *fields, root = _header(db, path, "SELECT base, tokenizer, editors, source, root FROM header")
    if schema != _SCHEMA or not all(type(value) is str for value in fields) or root != _root(Identity(*fields)):
        raise CorruptLogError(
            f"Log {path}: its header (schema version {schema!r}, identity {fields!r}) does not give the "
            f"root hash {root!r} written with it: the header was changed. {_RESTORE.capitalize()}."
        )
    return Identity(*fields)


def _read_head(db: sqlite3.Connection, path: Path, identity: Identity) -> _Head:
    """Where the header says the chain ends, which must be where the rows end."""
    count, head, first, last, tail = _header(db, path, _HEAD)
    if last is None:
        first, last, tail = 1, 0, _root(identity)
    if (first, last, tail) != (1, count, head):
        raise CorruptLogError(
            f"Log {path}: its header counts {count!r} records ending in {head!r}, but the rows go from "
            f"record {first} to {last}, ending in {tail!r}: rows were removed or added, or one of the two "
            f"was changed. {_RESTORE.capitalize()}."
        )
    return _Head(count, head)


def _check_owner(path: Path, stored: Identity, given: Identity) -> None:
    for name, what, remedy in (
        ("base", "other base weights", "load the weights it was made with"),
        ("tokenizer", "another tokenizer", "load the tokenizer it was made with"),
        ("editors", "other editors", "attach the same editors with the same configs"),
    ):
        theirs, ours = getattr(stored, name), getattr(given, name)
        if theirs != ours:
            raise WrongBaseError(
                f"Log {path} belongs to {what}: it was made with {theirs or 'none'}, expected "
                f"{ours or 'none'}; {remedy} (source: {stored.source or 'not recorded'}), or give "
                "the path of a new log."
            )


def _translated(path: Path, doing: str, error: sqlite3.Error | UnicodeDecodeError) -> LogError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte is the class of error
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
        return CorruptLogError(
            f"{path} cannot be read as a log: SQLite says {error}. Expected a file written by this package; "
            f"check the path, or {_RESTORE}."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogError(
            f"Log {path}: could not {doing}, another process held it for {_BUSY_SECONDS:.0f} s (SQLite says "
            f"{error}); wait until it is done, then try again."
        )
    return LogError(
        f"Log {path}: could not {doing}, SQLite says {error}. Nothing was written; check that the "
        "directory exists, can be written to and has room."
    )


def _flush(path: Path) -> None:
    """Force a file, or the names in a directory, to disk. Windows cannot do it for directories."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
