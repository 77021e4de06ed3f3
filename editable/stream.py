"""Edits that come in while the model serves: a bounded queue with one background writer, and batches of a stream."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from editable.edit import Edit, Receipt
from editable.errors import InputError, StateError

QUEUED = 256  # edits that may wait before submit() blocks
TOGETHER = 8  # waiting edits that the writer learns in one go


class Write(Protocol):
    """Learns, checks, logs and publishes edits as one version; refuses those that fail their checks, if told to."""

    def __call__(self, edits: Sequence[Edit], name: str, refuse: bool) -> list[Receipt]:
        """Receipts in order, from the editor of that name."""
        ...


@dataclass(frozen=True, eq=False)
class _Waiting:
    edit: Edit
    editor: str
    verify: bool
    future: Future[Receipt] = field(default_factory=Future)


class Stream:
    """Feeds a writer from the background. The thread starts with the first edit and ends with `close`."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = threading.Event()

    def submit(self, edit: Edit, editor: str, verify: bool = True) -> Future[Receipt]:
        """Queue one edit.

        Raises:
            StateError: closed.
        """
        waiting = _Waiting(edit, editor, verify)
        with self._starting:
            if self._closed.is_set():
                raise StateError("This EditableModel is closed, expected an open one; attach a new one to edit again.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="editable-writer", daemon=True)
                self._thread.start()
        self._queue.put(waiting)
        if self._closed.is_set():  # it was closed while this call waited for room
            self._cancel_waiting()
        return waiting.future

    def close(self) -> None:
        """Cancel what still waits, let the edit that is being learned finish, end the thread."""
        with self._starting:
            self._closed.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._cancel_waiting()
            self._queue.put(None)
            thread.join()
        self._cancel_waiting()

    def _cancel_waiting(self) -> None:
        ended = False
        while True:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            ended = ended or waiting is None
            if waiting is not None and waiting.future.cancel():
                waiting.future.set_running_or_notify_cancel()  # or those who wait() for it go on waiting
        if ended:
            self._queue.put(None)  # that was for the thread

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, ended = self._gather(first)
            running = [w for w in batch if w.future.set_running_or_notify_cancel()]
            for alike in dict.fromkeys((w.editor, w.verify) for w in running):
                self._serve([w for w in running if (w.editor, w.verify) == alike], *alike)
            if ended:
                return

    def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """What waits already, up to TOGETHER, and whether the end was among it."""
        batch = [first]
        while len(batch) < TOGETHER:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False

    def _serve(self, batch: Sequence[_Waiting], editor: str, verify: bool) -> None:
        """All together; where that fails, one by one, so that a bad edit fails alone."""
        try:
            receipts = self._write([w.edit for w in batch], editor, verify)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for waiting in batch:
                self._serve([waiting], editor, verify)
            return
        for waiting, receipt in zip(batch, receipts, strict=True):
            waiting.future.set_result(receipt)


def batches(
    write: Callable[[Sequence[Edit]], list[Receipt]],
    edits: Iterable[Edit],
    batch_size: int,
    on_error: Callable[[Edit, Exception], None] | None,
) -> Iterator[Receipt]:
    """Write a stream in the calling thread, batch by batch.

    Raises:
        InputError: a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1.")
    return _batches(write, iter(edits), batch_size, on_error)


def _batches(
    write: Callable[[Sequence[Edit]], list[Receipt]],
    edits: Iterator[Edit],
    size: int,
    on_error: Callable[[Edit, Exception], None] | None,
) -> Iterator[Receipt]:
    while batch := list(itertools.islice(edits, size)):
        yield from write(batch) if on_error is None else _salvaged(write, batch, on_error)


def _salvaged(
    write: Callable[[Sequence[Edit]], list[Receipt]],
    batch: Sequence[Edit],
    on_error: Callable[[Edit, Exception], None],
) -> list[Receipt]:
    """All together; where that fails, one by one, so that only the bad ones are left out."""
    try:
        return write(batch)
    except Exception as error:
        if len(batch) == 1:
            on_error(batch[0], error)
            return []
    return [receipt for edit in batch for receipt in _salvaged(write, [edit], on_error)]


def with_progress(receipts: Iterable[Receipt], doing: str, total: int | None) -> Iterator[Receipt]:
    """The same receipts, with a progress bar on stderr while they come."""
    from rich.console import Console
    from rich.progress import track

    yield from track(receipts, doing, total, console=Console(stderr=True))
