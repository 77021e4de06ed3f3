"""What a log adds up to when it is opened."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from editable import history as history_module
from editable.adapters import GRACE
from editable.history import History
from editable.memory.errors import CorruptLogError
from editable.memory.log import Entry, Identity, Log

IDENTITY = Identity(base="0" * 64, tokenizer="", editors="{}")


@pytest.fixture(params=[True, False], ids=["collected", "not collected"])
def collected(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the process collects garbage."""
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def logged(path: Path, count: int) -> Log:
    """A log of edits whose keys lie on a line, ten apart, in balls of one."""
    log = Log(path, IDENTITY)
    for number in range(count):
        tensors = {"keys": torch.tensor([[10.0 * number]]), "values": torch.ones(1, 2), "answer": torch.tensor([7])}
        request: dict[str, object] = {
            "prompt": "?",
            "target": "!",
            "rephrases": [],
            "subject": None,
            "namespace": "default",
        }
        meta = {"request": request, "patch": {"radius": 1.0}, "superseded": []}
        log.append(number + 1, [Entry("edit", f"e{number}", "grace", tensors, meta)])
    return log


def test_every_edit_is_there_and_garbage_is_collected_as_before(tmp_path: Path, collected: bool) -> None:
    with logged(tmp_path / "log", 3) as log:
        history = History({"grace": GRACE()}, log)
    assert [edit.id for edit in history.edits(3)] == ["e0", "e1", "e2"]
    book = history.start.states["grace"].routes.book.codebook
    assert book.find(torch.tensor([[10.5], [12.0]]))[1].tolist() == [0.5, torch.inf]
    assert gc.isenabled() == collected


def test_garbage_is_collected_as_before_where_a_log_is_refused(tmp_path: Path, collected: bool) -> None:
    with logged(tmp_path / "log", 2) as log:
        with log._using("spoil it") as db:
            db.execute("UPDATE records SET editor = 'other' WHERE seq = 2")
        with pytest.raises(CorruptLogError, match="record 2"):
            History({"grace": GRACE()}, log)
    assert gc.isenabled() == collected


@pytest.mark.parametrize(
    ("most", "most_bytes", "expected"), [(1024, 1 << 20, [5]), (2, 1 << 20, [2, 2, 1]), (1024, 40, [2, 2, 1])]
)
def test_how_many_edits_are_read_before_they_are_inserted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, most_bytes: int, expected: list[int]
) -> None:
    """Twenty bytes each: a key of one number, a value of two, and a token."""
    monkeypatch.setattr(history_module, "TOGETHER", most)
    monkeypatch.setattr(history_module, "TOGETHER_BYTES", most_bytes)
    with logged(tmp_path / "log", 5) as log:
        assert [len(some) for _, some in History._runs(log.records())] == expected
