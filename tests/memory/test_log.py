"""The log: what goes in comes out bit for bit, what was acknowledged survives, no damage goes unnoticed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from editable.memory import log as log_module
from editable.memory.errors import CorruptLogError, LogError, WrongBaseError
from editable.memory.log import Entry, Identity, Log, Record

IDENTITY = Identity(base="a" * 64, tokenizer="b" * 64, editors='{"grace":{"radius":1.0}}', source="a-hub/model")


def entry(edit_id: str = "e1", **changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "kind": "edit",
        "editor": "grace",
        "tensors": {"key": torch.arange(4.0), "value": torch.ones(2, dtype=torch.bfloat16)},
        "meta": {"prompt": "The capital of Australia is"},
    }
    return Entry(edit_id=edit_id, **(fields | changes))


def fill(path: Path, count: int = 5) -> None:
    with Log(path, IDENTITY) as log:
        for n in range(1, count + 1):
            log.append(n, [entry(f"e{n}", meta={"n": n, "note": "some text"})])


def read(path: Path) -> list[Record]:
    with Log(path) as log:
        return list(log.records())


def raw(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    """Change the file behind the log's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        for statement, values in statements:
            db.execute(statement, values)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    left, right = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (left, right))
    return torch.equal(left, right)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edits.db"


# --- what goes in comes out -------------------------------------------------------------------------------

TENSORS = {
    "fp32": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 1e-45]),
    "fp64": torch.tensor([[0.1], [1 / 3]], dtype=torch.float64),
    "bf16": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "fp16": torch.tensor([65504.0, 6e-8], dtype=torch.float16),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "bool": torch.tensor([[True, False], [False, False]]),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 7),
}


def test_values_come_back_bit_for_bit(path: Path) -> None:
    meta = {
        "nested": {"list": [1, 2.5, None, True, "é \u2028 \x00 \ud800"], "empty": {}},
        "big": 10**30,
        "tiny": 5e-324,
    }
    with Log(path, IDENTITY) as log:
        (written,) = log.append(7, [entry(tensors=TENSORS, meta=meta)])
    (reread,) = read(path)
    for record in (written, reread):
        assert set(record.tensors) == set(TENSORS)
        assert all(same_bits(record.tensors[name], TENSORS[name]) for name in TENSORS)
        assert record.meta == meta
        assert (record.kind, record.edit_id, record.editor) == ("edit", "e1", "grace")
        assert (record.seq, record.version) == (1, 7)
    assert (written.hash, written.created) == (reread.hash, reread.created)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None, database=None)
@given(meta=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_meta_comes_back(tmp_path_factory: pytest.TempPathFactory, meta: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "edits.db"
    with Log(path, IDENTITY) as log:
        log.append(1, [entry(meta=meta)])
        assert [record.meta for record in log.records()] == [meta]


def test_views_and_parameters_are_stored_as_values(path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"row": whole[1], "column": whole[:, 1], "t": whole.T, "parameter": torch.nn.Parameter(whole)}
    with Log(path, IDENTITY) as log:
        (record,) = log.append(1, [entry(tensors=tensors)])
        whole.zero_()
    assert record.tensors["column"].tolist() == [1.0, 5.0, 9.0]
    assert record.tensors["t"].is_contiguous()
    assert not record.tensors["parameter"].requires_grad


def test_records_are_in_order_numbered_and_dated(path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with Log(path, IDENTITY) as log:
        log.append(1, [entry("a"), entry("b")])
        log.append(2, [Entry("rollback", "a", "grace")])
        records = list(log.records())
        assert len(log) == 3
    assert [(r.seq, r.version, r.kind, r.edit_id) for r in records] == [
        (1, 1, "edit", "a"),
        (2, 1, "edit", "b"),
        (3, 2, "rollback", "a"),
    ]
    assert all(before <= datetime.fromisoformat(r.created) <= datetime.now(UTC) for r in records)
    assert len({r.hash for r in records}) == 3
    assert records[2].tensors == {}
    assert records[2].meta == {}


def test_an_entry_keeps_its_own_mappings() -> None:
    meta = {"a": 1}
    made = Entry("edit", "x", meta=meta)
    meta["a"] = 2
    assert made.meta == {"a": 1}
    with pytest.raises(TypeError):
        made.meta["a"] = 3  # type: ignore[index]


def test_a_reopened_log_continues_the_chain(path: Path) -> None:
    fill(path, 2)
    fill(path, 2)
    records = read(path)
    assert [r.seq for r in records] == [1, 2, 3, 4]
    with Log(path) as log:
        assert log.identity == IDENTITY


def test_records_show_what_was_committed_when_they_were_asked_for(path: Path) -> None:
    with Log(path, IDENTITY) as log:
        log.append(1, [entry("a")])
        iterator = log.records()
        log.append(2, [entry("b")])
        assert [r.edit_id for r in iterator] == ["a"]


def test_backup_is_a_whole_log(path: Path, tmp_path: Path) -> None:
    fill(path)
    copy = tmp_path / "copy.db"
    with Log(path) as log:
        log.backup(copy)
        assert [r.hash for r in read(copy)] == [r.hash for r in log.records()]
    with Log(copy, IDENTITY) as log:
        log.append(6, [entry("e6")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.db", "edits.db"]


def test_backup_refuses_to_overwrite(path: Path, tmp_path: Path) -> None:
    fill(path)
    with (
        Log(path) as log,
        pytest.raises(LogError, match=r"edits.db exists already, expected a new file; choose"),
    ):
        log.backup(path)
    with (
        Log(path) as log,
        pytest.raises(LogError, match=r"could not back it up to .*; check that the directory"),
    ):
        log.backup(tmp_path / "absent" / "copy.db")


# --- all or nothing ---------------------------------------------------------------------------------------

BAD_ENTRIES = [
    (entry(meta={"a": {1, 2}}), r"Entry 1 \(edit 'e1'\) has meta that is not plain JSON: Object of type set"),
    (entry(meta={"a": float("nan")}), "not plain JSON: Out of range float values.*; convert the values"),
    (entry(meta={"a": (1, 2)}), "not plain JSON: reading it back gives other values.*tuples to lists"),
    (
        entry(meta={"a": {1: "x"}}),
        "not plain JSON: reading it back gives other values.*dicts with string keys",
    ),
    (
        entry(tensors={"a": [1.0]}),
        r"Entry 1 \(edit 'e1'\) has tensors of type {'a': 'list'}, expected torch.Tensor",
    ),
    (
        entry(tensors={"a": torch.eye(2).to_sparse()}),
        r"has tensors {'a': 'torch.float32 \(2, 2\)'} that cannot be written as safetensors: .*Expected",
    ),
    (
        entry(tensors={"a": torch.ones(1, dtype=torch.complex128)}),
        "torch.complex128 .* convert them and append",
    ),
    (
        entry(tensors={"__metadata__": torch.ones(1)}),
        "cannot be written as safetensors: .*Nothing was written",
    ),
    (entry(kind="delete"), r"Entry 1 .* has kind 'delete', expected one of \('edit', 'rollback', 'relearn'\)"),
    (entry(edit_id=""), "has an empty edit_id, expected the id of the edit it is about"),
    (entry(edit_id=5), "has edit_id 5, expected text that UTF-8 can hold .*; pass such text"),  # type: ignore[arg-type]
    (entry(editor="\ud800"), r"has editor '\\ud800', expected text that UTF-8 can hold"),
]


@pytest.mark.parametrize(("bad", "text"), BAD_ENTRIES)
def test_an_entry_that_cannot_be_stored_leaves_nothing(path: Path, bad: Entry, text: str) -> None:
    with Log(path, IDENTITY) as log:
        log.append(1, [entry("before")])
        with pytest.raises(LogError, match=f"(?s){text}"):
            log.append(2, [entry("good"), bad])
        assert [r.edit_id for r in log.records()] == ["before"]
        log.append(2, [entry("after")])
    assert [r.edit_id for r in read(path)] == ["before", "after"]


@pytest.mark.parametrize("version", [-1, 2**63, 1.0, True])
def test_a_version_that_cannot_be_stored_is_refused(path: Path, version: Any) -> None:
    with Log(path, IDENTITY) as log:
        with pytest.raises(LogError, match=r"Version .* cannot be logged, expected an integer from 0 to"):
            log.append(version, [entry()])
        assert len(log) == 0


def test_a_full_disk_leaves_the_log_as_it_was(path: Path) -> None:
    with Log(path, IDENTITY) as log:
        log.append(1, [entry("before")])
        assert log._db is not None
        log._db.execute("PRAGMA max_page_count = 10")
        big = entry("big", tensors={"a": torch.zeros(100_000)})
        with pytest.raises(LogError, match=r"could not append to it, SQLite says .*full\. Nothing was written; check"):
            log.append(2, [entry("good"), big])
        assert [r.edit_id for r in log.records()] == ["before"]
        log._db.execute("PRAGMA max_page_count = 100000")
        log.append(2, [big])
    assert [r.edit_id for r in read(path)] == ["before", "big"]


def test_an_interrupted_transaction_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Log(path, IDENTITY) as log:
        with monkeypatch.context() as patch:
            patch.setattr(Log, "_refuse_if_moved", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                log.append(1, [entry()])
        assert len(log) == 0
        log.append(1, [entry()])


def test_no_entries_write_nothing(path: Path) -> None:
    with Log(path, IDENTITY) as log:
        assert log.append(1, []) == ()
        assert len(log) == 0


def test_the_settings_that_make_an_append_durable(path: Path) -> None:
    with Log(path, IDENTITY) as log:
        assert log._db is not None
        assert log._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert log._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert log._db.execute("PRAGMA fullfsync").fetchone() == (1,)


def test_without_a_write_ahead_log_it_refuses() -> None:
    with pytest.raises(LogError, match="SQLite has journal mode 'memory' here, expected 'wal'; put the log on"):
        Log(":memory:", IDENTITY)


# --- whose log it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"base": "c" * 64},
            f"other base weights: it was made with {'a' * 64}, expected {'c' * 64}; load the weights",
        ),
        (
            {"tokenizer": ""},
            f"another tokenizer: it was made with {'b' * 64}, expected none; load the tokenizer",
        ),
        (
            {"editors": "{}"},
            r'other editors: .*{"grace":{"radius":1.0}}, expected {}; attach the same editors',
        ),
    ],
)
def test_a_log_of_another_model_is_refused(path: Path, changes: dict[str, str], text: str) -> None:
    fill(path)
    fields = {"base": IDENTITY.base, "tokenizer": IDENTITY.tokenizer, "editors": IDENTITY.editors}
    other = Identity(**(fields | changes), source="elsewhere")
    with pytest.raises(WrongBaseError, match=rf"edits.db belongs to {text}.*\(source: a-hub/model\).*a new log"):
        Log(path, other)
    assert len(read(path)) == 5


def test_the_source_is_not_compared(path: Path) -> None:
    fill(path)
    with Log(path, Identity(IDENTITY.base, IDENTITY.tokenizer, IDENTITY.editors, "elsewhere")) as log:
        assert log.identity.source == "a-hub/model"


def test_reading_needs_a_log(path: Path, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"edits.db does not exist, expected a log to read; check the path, or give"):
        Log(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(LogError, match=r"edits.db is empty, expected a log to read; check the path"):
        Log(path)
    with pytest.raises(LogError, match=r"could not open it, SQLite says unable to open .*; check that the directory"):
        Log(tmp_path / "absent" / "edits.db", IDENTITY)


def test_a_log_opened_for_reading_refuses_to_append(path: Path) -> None:
    fill(path)
    with Log(path) as log, pytest.raises(LogError, match=r"opened without an identity.*open it with Log"):
        log.append(6, [entry()])


def test_an_identity_that_is_not_text_is_refused(path: Path) -> None:
    with pytest.raises(LogError, match="Identity has base None, expected text that UTF-8 can hold"):
        Log(path, Identity(base=None, tokenizer="", editors=""))  # type: ignore[arg-type]


def test_a_closed_log_says_so(path: Path) -> None:
    log = Log(path, IDENTITY)
    log.append(1, [entry()])
    iterator = log.records()
    log.close()
    log.close()
    calls: dict[str, Callable[[], Any]] = {
        "append to it": lambda: log.append(2, [entry()]),
        "read it": log.records,
        "count its records": lambda: len(log),
        "back it up to": lambda: log.backup(path.with_name("copy.db")),
    }
    for doing, call in calls.items():
        with pytest.raises(LogError, match=rf"edits.db is closed, cannot {doing}.*; open it again with Log"):
            call()
    with pytest.raises(LogError, match="closed"):
        next(iterator)


# --- damage -----------------------------------------------------------------------------------------------


REST = "version, created, kind, edit_id, editor, meta, payload, hash"


def flip_in(column: str) -> tuple[str, tuple[Any, ...]]:
    """Change the last byte of one column of record 3."""
    kind = "BLOB" if column == "payload" else "TEXT"
    old = f"CAST({column} AS BLOB)"
    last = f"CASE WHEN substr({old}, -1) = x'00' THEN x'01' ELSE x'00' END"
    new = f"CAST(substr({old}, 1, length({old}) - 1) || {last} AS {kind})"
    return f"UPDATE records SET {column} = {new} WHERE seq = 3", ()


@pytest.mark.parametrize("column", ["payload", "meta", "created", "kind", "edit_id", "editor"])
def test_a_flipped_byte_is_found(path: Path, column: str) -> None:
    fill(path)
    raw(path, flip_in(column))
    seen = []
    text = r"edits.db: record 3 has the hash '\w{64}', expected '\w{64}' from .*record 3 on; restore"
    with Log(path) as log, pytest.raises(CorruptLogError, match=text):
        for record in log.records():
            seen.append(record.seq)
    assert seen == [1, 2]  # what came before is sound, and was handed out


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        (
            "UPDATE records SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE seq = 3",
            r"record 3 has the hash 'x\w*', expected '\w{64}'",
        ),
        ("UPDATE records SET version = version + 1 WHERE seq = 3", "record 3 has the hash"),
        (
            "UPDATE records SET version = 'three' WHERE seq = 3",
            r"record 3 has str in column 'version', expected int\. .*; restore",
        ),
        (
            "UPDATE records SET meta = CAST(meta AS BLOB) WHERE seq = 3",
            "record 3 has bytes in column 'meta', expected str",
        ),
        ("UPDATE records SET meta = CAST(x'ff' AS TEXT) WHERE seq = 3", "record 3 has the hash"),
        (
            "DELETE FROM records WHERE seq = 3",
            r"record 3 is missing, expected a row with seq 3\. Trust nothing from record 3 on; restore",
        ),
        ("DELETE FROM records WHERE seq = 1", "header counts 5 records .* rows go from record 2 to 5"),
        (
            "DELETE FROM records WHERE seq = 5",
            r"header counts 5 records ending in '\w{64}', but the rows go from record 1 to 4, .*\. Restore",
        ),
        ("DELETE FROM records", "header counts 5 records .* from record 1 to 0"),
        (f"INSERT INTO records SELECT 6, {REST} FROM records LIMIT 1", "5 records .* from record 1 to 6"),
        (f"INSERT INTO records SELECT 0, {REST} FROM records LIMIT 1", "5 records .* from record 0 to 5"),
        ("UPDATE header SET count = 4", "header counts 4 records .* from record 1 to 5"),
        (
            "UPDATE header SET head = root",
            r"header counts 5 records ending in '\w{64}', .* or one of the two was changed",
        ),
        (
            "UPDATE header SET base = replace(base, 'a', 'c')",
            r"its header \(schema version 1, identity .*cccc.* root hash '\w{64}' written with it",
        ),
        (
            "UPDATE header SET tokenizer = ''",
            "with it: the header was changed. Restore the file from a backup",
        ),
        ("UPDATE header SET editors = '{}'", "does not give the root hash"),
        ("UPDATE header SET source = 'elsewhere'", "does not give the root hash"),
        ("UPDATE header SET root = 'x'", "does not give the root hash 'x'"),
        ("UPDATE header SET schema_version = 0", "schema version 0"),
        ("DELETE FROM header", "its header has 0 rows, expected 1; restore the file"),
        ("INSERT INTO header SELECT * FROM header", "its header has 2 rows, expected 1"),
        (
            "ALTER TABLE records RENAME COLUMN meta TO other",
            "cannot be read as a log: SQLite says no such column: meta.*; check the path, or restore",
        ),
    ],
)
@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_damage_is_found(path: Path, identity: Identity | None, statement: str, text: str) -> None:
    fill(path)
    raw(path, (statement, ()))
    with pytest.raises(CorruptLogError, match=text), Log(path, identity) as log:
        list(log.records())


def test_swapped_rows_are_found(path: Path) -> None:
    fill(path)
    raw(
        path,
        *((f"UPDATE records SET seq = {to} WHERE seq = {seq}", ()) for seq, to in ((2, 9), (4, 2), (9, 4))),
    )
    with pytest.raises(CorruptLogError, match="record 2 has the hash"):
        read(path)


def test_rows_of_another_log_are_found(path: Path, tmp_path: Path) -> None:
    """The chain starts at the identity, so a valid history cannot be moved to another model."""
    fill(path)
    other = tmp_path / "other.db"
    with Log(other, Identity("c" * 64, "", "{}")) as log:
        log.append(1, [entry()])
    raw(
        path,
        ("ATTACH ? AS other", (str(other),)),
        ("DELETE FROM records", ()),
        ("INSERT INTO records SELECT * FROM other.records", ()),
        ("UPDATE header SET count = 1, head = (SELECT hash FROM records)", ()),
    )
    with pytest.raises(CorruptLogError, match="record 1 has the hash"):
        read(path)


@pytest.mark.parametrize(("column", "value"), [("payload", b"not safetensors"), ("meta", "{"), ("meta", "[]")])
def test_a_record_with_the_right_hash_must_still_decode(path: Path, column: str, value: Any) -> None:
    fill(path, 1)
    with closing(sqlite3.connect(path)) as db:
        row = dict(zip(log_module._COLUMNS, db.execute("SELECT * FROM records").fetchone(), strict=True))
    row[column] = value
    row["hash"] = log_module._row_hash(log_module._root(IDENTITY), list(row.values())[:-1])
    raw(
        path,
        (f"UPDATE records SET {column} = ?, hash = ?", (value, row["hash"])),
        ("UPDATE header SET head = ?", (row["hash"],)),
    )
    with pytest.raises(CorruptLogError, match=r"record 1 has the right hash but cannot be decoded: .*; restore"):
        read(path)


def test_a_damaged_log_takes_no_records(path: Path) -> None:
    fill(path)
    with Log(path, IDENTITY) as log:
        raw(path, ("DELETE FROM records WHERE seq = 5", ()))
        with pytest.raises(CorruptLogError, match="header counts 5 records"):
            log.append(6, [entry()])


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_a_file_that_is_not_sqlite_is_refused_and_left_alone(path: Path, identity: Identity | None) -> None:
    path.write_bytes(b"a" * 5000)
    with pytest.raises(CorruptLogError, match=r"edits.db cannot be read as a log: .*not a database.*; check the path"):
        Log(path, identity)
    assert path.read_bytes() == b"a" * 5000


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_a_database_of_something_else_is_refused_and_left_alone(path: Path, identity: Identity | None) -> None:
    raw(path, ("CREATE TABLE songs (title TEXT)", ()))
    before = path.read_bytes()
    with pytest.raises(LogError, match=r"a SQLite file with the tables \['songs'\], expected those of a log"):
        Log(path, identity)
    assert path.read_bytes() == before


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_a_log_that_lost_its_tables_is_not_taken_for_a_new_one(path: Path, identity: Identity | None) -> None:
    fill(path)
    damaged = bytearray(path.read_bytes())
    damaged[103:105] = b"\0\0"  # SQLite's file format: the number of tables, on the first page
    path.write_bytes(damaged)
    for size in (len(damaged), 1):
        os.truncate(path, size)
        with pytest.raises(CorruptLogError, match=rf"{size} bytes but no tables, expected a log .*restore"):
            Log(path, identity)
        assert path.read_bytes() == damaged[:size]


def test_a_creation_cut_short_can_be_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_root", "_transaction", "_read_identity"):
        with monkeypatch.context() as patch:
            patch.setattr(log_module, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                Log(path, IDENTITY)
    fill(path)
    assert len(read(path)) == 5


def test_a_damaged_name_of_a_column_is_found(path: Path) -> None:
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"head TEXT", b"he\xd4d TEXT", 1))
    with pytest.raises(CorruptLogError, match=r"cannot be read as a log: SQLite says .*; check the path"):
        read(path)


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_a_newer_schema_is_refused(path: Path, identity: Identity | None) -> None:
    fill(path)
    raw(
        path,
        ("UPDATE header SET schema_version = 2", ()),
        ("ALTER TABLE header RENAME COLUMN base TO model", ()),
    )
    with pytest.raises(LogError, match="has schema version 2, expected at most 1; upgrade this package"):
        Log(path, identity)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.db"
    fill(path, 4)
    return path


CELLS = [("records", column, seq) for column in log_module._COLUMNS for seq in (1, 2, 3, 4)]
CELLS += [
    ("header", column, 1)
    for column in ("schema_version", "base", "tokenizer", "editors", "source", "root", "count", "head")
]


@settings(max_examples=500, deadline=None, database=None)
@given(cell=st.sampled_from(CELLS), position=st.integers(0, 2**20), mask=st.integers(1, 255))
def test_every_single_byte_flip_is_found(sound: Path, cell: tuple[str, str, int], position: int, mask: int) -> None:
    table, column, row = cell
    path = sound.with_name("flipped.db")
    shutil.copy(sound, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        db.text_factory = bytes
        (value,) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()
        number = isinstance(value, int)
        stored = bytearray(value.to_bytes(8, "big", signed=True) if number else value)
        stored[position % len(stored)] ^= mask
        changed: Any = int.from_bytes(stored, "big", signed=True) if number else bytes(stored)
        assume(column != "seq" or changed not in (1, 2, 3, 4))  # SQLite itself keeps them unique
        as_text = "?" if number or column == "payload" else "CAST(? AS TEXT)"
        db.execute(f"UPDATE {table} SET {column} = {as_text} WHERE rowid = ?", (changed, row))
    with pytest.raises(LogError):
        read(path)


def test_a_flip_anywhere_in_the_file_is_found_or_harmless(sound: Path) -> None:
    """Bytes that SQLite does not use may change; then every record must still be the one that was written."""
    rng = random.Random(0)
    whole, hashes = sound.read_bytes(), [r.hash for r in read(sound)]
    path = sound.with_name("scratched.db")
    found = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert [r.hash for r in read(path)] == hashes
        except LogError:
            found += 1
    assert found > 50


# --- other threads, other processes -----------------------------------------------------------------------


def test_threads_append_one_valid_chain(path: Path) -> None:
    with Log(path, IDENTITY) as log:
        seqs: list[int] = []

        def write(name: int) -> None:
            for n in range(20):
                seqs.extend(r.seq for r in log.append(n, [entry(f"{name}-{n}-{half}") for half in "ab"]))
                assert len(list(log.records())) % 2 == 0

        threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        records = list(log.records())
    assert sorted(seqs) == [r.seq for r in records] == list(range(1, 161))
    assert {r.edit_id for r in records} == {f"{t}-{n}-{h}" for t in range(4) for n in range(20) for h in "ab"}


def test_a_writer_that_waits_too_long_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_BUSY_SECONDS", 0.01)
    with Log(path, IDENTITY) as log, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogError, match=r"could not append to it, another process held it for .*; wait until"):
            log.append(1, [entry()])
        other.execute("ROLLBACK")
        assert len(log.append(1, [entry()])) == 1


# Imports once and forks a child per command, so that a round costs milliseconds and dies alone.
WRITER = """
import os, sys
from pathlib import Path
import torch
from editable.memory.log import Entry, Identity, Log

def say(*words):  # in one write: print may use several, and a kill between two leaves half a line
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

identity = Identity(base="a" * 64, tokenizer="b" * 64, editors='{"grace":{"radius":1.0}}')
entries = [Entry("edit", half, "grace", {"key": torch.zeros(500)}) for half in "ab"]
for line in sys.stdin:
    command, path = line.split()
    child = os.fork()
    if child == 0:
        log = Log(path, identity)
        say("pid", os.getpid())
        while True:
            record = log.append(1, entries)[-1]
            say("ack", record.seq, record.hash)
            if command == "once":
                log.close()
                os._exit(0)
    os.waitpid(child, 0)
    say("gone")
"""


class Writer:
    """Another process that appends until it is killed, and says what was acknowledged to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, command: str, path: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command} {path}\n")
        self.process.stdin.flush()
        return int(self.line()[1])

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the writer ended with {self.process.wait()}"
        return line.split()

    def rest(self) -> Iterator[list[str]]:
        return iter(self.line, ["gone"])


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    made = Writer()
    yield made
    made.process.communicate()


def test_what_was_acknowledged_survives_a_kill(path: Path, writer: Writer) -> None:
    rng = random.Random(0)
    acknowledged: dict[int, str] = {}
    for _ in range(10):
        child = writer.start("forever", path)
        lines = [writer.line() for _ in range(rng.randrange(1, 8))]
        time.sleep(rng.random() * 0.004)
        os.kill(child, signal.SIGKILL)
        lines += writer.rest()
        acknowledged |= {int(seq): digest for _, seq, digest in lines}
        found = {record.seq: record.hash for record in read(path)}
        assert acknowledged.items() <= found.items()
        assert len(found) % 2 == 0  # each append wrote two entries: both, or none
    assert len(acknowledged) >= 10


def test_a_second_process_that_writes_is_noticed(path: Path, writer: Writer) -> None:
    with Log(path, IDENTITY) as log:
        log.append(1, [entry("mine")])
        writer.start("once", path)
        assert [line[:2] for line in writer.rest()] == [["ack", "3"]]
        text = r"has 3 records ending in \w{12}, expected 1 ending in \w{12}: another writer has appended since"
        with pytest.raises(LogError, match=f"{text} this log was opened. Nothing was written; close this log"):
            log.append(2, [entry("too late")])
        assert [r.edit_id for r in log.records()] == ["mine", "a", "b"]
    with Log(path, IDENTITY) as log:
        log.append(2, [entry("again")])
    assert [r.edit_id for r in read(path)] == ["mine", "a", "b", "again"]
