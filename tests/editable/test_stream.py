"""Streams: one writer, in order; what fails, fails alone; what waits can be cancelled; nobody waits forever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import wait as wait_for

import pytest

from editable import stream as stream_module
from editable.edit import Edit, Receipt, Verification
from editable.errors import InputError, StateError
from editable.stream import TOGETHER, Stream, batches

SECONDS = 10  # a test that waits longer than this has failed


class Writer:
    """Writes down what it is given; "bad" edits raise; a closed gate keeps it waiting."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.busy = threading.Lock()

    def __call__(self, edits: Sequence[Edit], name: str = "grace", refuse: bool = True) -> list[Receipt]:
        assert self.busy.acquire(blocking=False), "two writers at once"
        try:
            prompts = [str(edit.prompt) for edit in edits]
            self.calls.append((name if refuse else f"{name}, unchecked", prompts))
            self.threads.add(threading.get_ident())
            self.entered.set()
            assert self.gate.wait(SECONDS)
            for prompt in prompts:
                if prompt.startswith("bad"):
                    raise ValueError(prompt)
            return [Receipt(prompt, len(self.calls), Verification(1.0, 1.0)) for prompt in prompts]
        finally:
            self.busy.release()

    @property
    def written(self) -> list[str]:
        return [prompt for _, prompts in self.calls for prompt in prompts]


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def stream(writer: Writer) -> Iterator[Stream]:
    made = Stream(writer)
    yield made
    writer.gate.set()
    made.close()


def edit(prompt: str) -> Edit:
    return Edit(prompt, " x")


def submit(stream: Stream, *prompts: str, editor: str = "grace") -> list[Future[Receipt]]:
    return [stream.submit(edit(prompt), editor) for prompt in prompts]


def held_up(stream: Stream, writer: Writer, first: str = "first") -> Future[Receipt]:
    """The writer is inside its first call and stays there until the gate opens."""
    writer.gate.clear()
    (future,) = submit(stream, first)
    assert writer.entered.wait(SECONDS)
    return future


def results(futures: Sequence[Future[Receipt]]) -> list[str]:
    return [future.result(SECONDS).id for future in futures]


# ------------------------------------------------------------------------------------------------------- submit


def test_edits_are_written_in_order(stream: Stream, writer: Writer) -> None:
    prompts = [f"p{n}" for n in range(30)]
    assert results(submit(stream, *prompts)) == prompts
    assert writer.written == prompts


def test_one_background_thread_writes(stream: Stream, writer: Writer) -> None:
    results(submit(stream, "a", "b"))
    results(submit(stream, "c"))
    assert len(writer.threads) == 1
    assert threading.get_ident() not in writer.threads


def test_what_waits_is_written_together(stream: Stream, writer: Writer) -> None:
    first = held_up(stream, writer)
    waiting = submit(stream, *(f"w{n}" for n in range(TOGETHER + 2)))
    writer.gate.set()
    assert results([first, *waiting]) == ["first", *(f"w{n}" for n in range(TOGETHER + 2))]
    assert [len(prompts) for _, prompts in writer.calls] == [1, TOGETHER, 2]


def test_editors_do_not_mix(stream: Stream, writer: Writer) -> None:
    first = held_up(stream, writer)
    futures = [submit(stream, prompt, editor=name)[0] for prompt, name in (("a", "x"), ("b", "y"), ("c", "x"))]
    writer.gate.set()
    assert results([first, *futures]) == ["first", "a", "b", "c"]
    assert writer.calls[1:] == [("x", ["a", "c"]), ("y", ["b"])]


def test_checked_and_unchecked_edits_do_not_mix(stream: Stream, writer: Writer) -> None:
    first = held_up(stream, writer)
    futures = [stream.submit(edit(prompt), "x", verify) for prompt, verify in (("a", True), ("b", False), ("c", True))]
    writer.gate.set()
    assert results([first, *futures]) == ["first", "a", "b", "c"]
    assert writer.calls[1:] == [("x", ["a", "c"]), ("x, unchecked", ["b"])]


def test_a_failing_edit_fails_alone(stream: Stream, writer: Writer) -> None:
    first = held_up(stream, writer)
    futures = submit(stream, "a", "bad one", "b", "bad two")
    writer.gate.set()
    assert results([first, futures[0], futures[2]]) == ["first", "a", "b"]
    for future, text in ((futures[1], "bad one"), (futures[3], "bad two")):
        with pytest.raises(ValueError, match=text):
            future.result(SECONDS)
    assert results(submit(stream, "later")) == ["later"]  # the writer lives on


def test_a_waiting_edit_can_be_cancelled(stream: Stream, writer: Writer) -> None:
    first = held_up(stream, writer)
    kept, dropped = submit(stream, "kept", "dropped")
    assert dropped.cancel()
    assert not first.cancel()  # it is being learned
    writer.gate.set()
    assert results([first, kept]) == ["first", "kept"]
    assert "dropped" not in writer.written
    with pytest.raises(CancelledError):
        dropped.result(SECONDS)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    """A producer that is too fast waits; it goes on as soon as there is room."""
    monkeypatch.setattr(stream_module, "QUEUED", 2)
    stream = Stream(writer)
    futures = [held_up(stream, writer)]
    futures += submit(stream, "a", "b")
    third: list[Future[Receipt]] = []
    producer = threading.Thread(target=lambda: third.extend(submit(stream, "c")))
    producer.start()
    producer.join(0.2)
    assert producer.is_alive()
    writer.gate.set()
    producer.join(SECONDS)
    assert results([*futures, *third]) == ["first", "a", "b", "c"]
    stream.close()


# -------------------------------------------------------------------------------------------------------- close


def test_closing_finishes_the_running_edit_and_cancels_the_rest(stream: Stream, writer: Writer) -> None:
    first = held_up(stream, writer)
    waiting = submit(stream, "a", "b")
    closing = threading.Thread(target=stream.close)
    closing.start()
    assert not wait_for(waiting, 2).not_done  # someone who waits for them is told
    writer.gate.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert results([first]) == ["first"]
    assert all(future.cancelled() for future in waiting)
    assert writer.written == ["first"]


def test_closing_ends_the_thread(writer: Writer) -> None:
    before = set(threading.enumerate())
    stream = Stream(writer)
    results(submit(stream, "a"))
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "editable-writer"
    assert thread.daemon
    stream.close()
    assert not thread.is_alive()
    stream.close()  # and again


def test_a_stream_never_used_has_no_thread(writer: Writer) -> None:
    before = threading.active_count()
    stream = Stream(writer)
    assert threading.active_count() == before
    stream.close()


def test_a_closed_stream_refuses(stream: Stream) -> None:
    stream.close()
    with pytest.raises(StateError, match="This EditableModel is closed, expected an open one; attach a new one"):
        submit(stream, "a")


def test_closing_frees_a_producer_that_waits_for_room(monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    monkeypatch.setattr(stream_module, "QUEUED", 1)
    stream = Stream(writer)
    held_up(stream, writer)
    late = submit(stream, "a")
    producer = threading.Thread(target=lambda: late.extend(submit(stream, "b")))
    producer.start()
    time.sleep(0.1)  # inside put(), waiting for room
    closing = threading.Thread(target=stream.close)
    closing.start()
    time.sleep(0.1)
    writer.gate.set()
    closing.join(SECONDS)
    producer.join(SECONDS)
    assert not producer.is_alive()
    assert not wait_for(late, 2).not_done


def test_an_edit_submitted_while_closing_does_not_wait_forever(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> None:
    """The producer has passed the check; before its edit is in the queue, the stream is closed to the end."""
    results(submit(stream, "a"))
    put = stream._queue.put
    from_here = threading.get_ident()

    def late_put(item: object) -> None:
        if item is not None and threading.get_ident() == from_here:
            closing = threading.Thread(target=stream.close)
            closing.start()
            closing.join(1)  # a close that waits for the producer is as good
        put(item)  # type: ignore[arg-type]

    monkeypatch.setattr(stream._queue, "put", late_put)
    try:
        (future,) = submit(stream, "late")
    except StateError:
        return
    assert not wait_for([future], 2).not_done


# ------------------------------------------------------------------------------------------------------ batches


def receipts_of(
    writer: Writer, prompts: Iterator[str], size: int, on_error: Callable[[Edit, Exception], None] | None = None
) -> Iterator[str]:
    return (receipt.id for receipt in batches(writer, map(edit, prompts), size, on_error))


def test_a_stream_is_written_batch_by_batch_in_this_thread(writer: Writer) -> None:
    assert list(receipts_of(writer, iter("abcdefg"), 3)) == list("abcdefg")
    assert writer.calls == [("grace", list("abc")), ("grace", list("def")), ("grace", ["g"])]
    assert writer.threads == {threading.get_ident()}


def test_a_stream_is_read_as_it_is_needed(writer: Writer) -> None:
    taken: list[str] = []

    def source() -> Iterator[str]:
        for letter in "abcdef":
            taken.append(letter)
            yield letter

    receipts = receipts_of(writer, source(), 2)
    assert taken == []
    assert next(receipts) == "a"
    assert taken == ["a", "b"]
    assert writer.written == ["a", "b"]


def test_the_first_failure_raises_and_what_was_yielded_stays(writer: Writer) -> None:
    receipts, seen = receipts_of(writer, iter(["a", "b", "bad", "c", "d"]), 2), []
    with pytest.raises(ValueError, match="bad"):
        for receipt in receipts:
            seen.append(receipt)
    assert seen == ["a", "b"]
    assert writer.calls == [("grace", ["a", "b"]), ("grace", ["bad", "c"])]


def test_failures_are_told_and_left_out(writer: Writer) -> None:
    told: list[tuple[str, str]] = []
    receipts = receipts_of(
        writer,
        iter(["a", "bad 1", "b", "c", "bad 2"]),
        3,
        lambda one, error: told.append((str(one.prompt), str(error))),
    )
    assert list(receipts) == ["a", "b", "c"]
    assert told == [("bad 1", "bad 1"), ("bad 2", "bad 2")]


def test_an_empty_stream(writer: Writer) -> None:
    assert list(receipts_of(writer, iter(()), 4)) == []
    assert writer.calls == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused_at_once(writer: Writer, size: int) -> None:
    with pytest.raises(InputError, match=f"batch_size is {size}, expected at least 1"):
        batches(writer, [edit("a")], size, None)


def test_a_future_cancelled_as_it_starts_is_not_set_twice(stream: Stream, writer: Writer) -> None:
    """Cancelling at random moments: a future is either cancelled and unwritten, or has its receipt."""
    futures = submit(stream, *(f"p{n}" for n in range(60)))
    cancelled = {n for n, future in enumerate(futures) if n % 3 == 0 and future.cancel()}
    wait_for(futures, SECONDS)
    for n, future in enumerate(futures):
        assert future.done()
        assert future.cancelled() == (n in cancelled)
        assert (f"p{n}" in writer.written) == (n not in cancelled)
    assert not any(isinstance(f.exception(), InvalidStateError) for f in futures if not f.cancelled())
