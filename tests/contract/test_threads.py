"""Threads read while one writes: every answer belongs to exactly one published version."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.conftest import Attach
from tests.contract.harness import LEARNED, Edited, edits_of, named, once, only, routing
from tests.families import LONGEST, Loaded, logits_of

PAIRS = ((0, 1), (2, 3), (4, 5))
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"use_cache": False}, {"num_beams": 2})

Answer = tuple[tuple[int, ...], ...]


@pytest.fixture(autouse=True)
def hasty_threads() -> Iterator[None]:
    """Switch threads far more often than usual, so that what can come between two steps does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def _asking(loaded: Loaded, rows: Sequence[Any], **options: Any) -> Callable[[], Answer]:
    """Ask for whole generations, or labels. Rows are tokenised once, here: tokenizers are not made for threads."""
    batch = loaded.encode(rows)
    if not loaded.family.generates:
        return lambda: tuple((label,) for label in logits_of(loaded.model(**batch)).argmax(-1).tolist())
    return lambda: tuple(map(tuple, loaded.model.generate(**batch, max_new_tokens=LONGEST, **options).tolist()))


class Reader:
    """Asks again and again, in a thread of its own, until it is told to stop."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self.ask = ask
        self.seen: list[Answer] = []
        self.stopped = threading.Event()

    def read(self) -> None:
        while not self.stopped.is_set():
            self.seen.append(self.ask())


@contextmanager
def _reading(readers: Sequence[Reader]) -> Iterator[list[Future[None]]]:
    """Readers at work; what they raise is raised at the end."""
    with ThreadPoolExecutor(len(readers)) as pool:
        running = [pool.submit(reader.read) for reader in readers]
        try:
            yield running
        finally:
            for reader in readers:
                reader.stopped.set()
        for future in running:
            future.result()


def _wait_for_news(readers: Sequence[Reader], running: Sequence[Future[None]]) -> None:
    """Until each reader has given an answer that it began after this call."""
    marks = [len(reader.seen) + 2 for reader in readers]
    limit = time.monotonic() + 60
    while any(len(reader.seen) < mark for reader, mark in zip(readers, marks, strict=True)):
        if time.monotonic() > limit or any(future.done() for future in running):
            return
        time.sleep(0.002)


@routing  # others may answer alike in two versions
@named("gpt2", "gemma3-sliding", "t5", "bert", "vit", "resnet")
def test_every_answer_is_some_published_versions(loaded: Loaded, editor: Any, attach: Attach) -> None:
    """Two edits appear in one version, one of them vanishes in the next: nobody sees half of it, or late."""
    em = attach(loaded, editor)
    ask = _asking(loaded, loaded.edited)
    readers, versions = [Reader(ask), Reader(ask)], [em.version]
    with _reading(readers) as running:
        for pair in PAIRS:
            receipts = em.edit(edits_of(loaded, pair))
            versions.append(em.version)
            _wait_for_news(readers, running)
            em.rollback(receipts[1].id)
            versions.append(em.version)
            _wait_for_news(readers, running)
    order = {_asked_at(em, version, ask): place for place, version in enumerate(versions)}
    assert len(order) == len(versions)
    for reader in readers:
        places = [order.get(answer, -1) for answer in reader.seen]
        assert -1 not in places, "an answer that no version gives"
        assert places == sorted(places), "a later call saw an earlier version"
        assert set(places) >= set(range(1, len(versions))), "a version that calls begun after it did not see"


def _asked_at(em: Any, version: int, ask: Callable[[], Answer]) -> Answer:
    with em.at(version):
        return ask()


@named("llama-gqa", "bart")
def test_concurrent_generations_do_not_mix(edited: Edited) -> None:
    """Different batches at once, edited and not, with a cache and without: each as if it ran alone."""
    batches = (edited.mixed, edited.loaded.edited[:LEARNED], edited.loaded.unrelated)
    jobs = [_asking(edited.loaded, rows, **options) for rows in batches for options in OPTIONS] * 3
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = [future.result() for future in [pool.submit(job) for job in jobs]]
    assert together == alone


@named("llama-gqa", "resnet")
def test_concurrent_writers_take_turns(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    with ThreadPoolExecutor(3) as pool:
        receipts = list(pool.map(em.edit, edits_of(loaded, range(3))))
    assert sorted(receipt.version for receipt in receipts) == [1, 2, 3]
    assert em.version == 3
    one_by_one = [loaded.answers([row]).argmax(-1).item() for row in loaded.edited[:3]]
    wanted = [loaded.wanted(i)[0] if loaded.family.generates else loaded.targets[i] for i in range(3)]
    assert one_by_one == wanted


@once
@only("causal", "seq2seq", "text_classifier")
def test_the_users_tokenizer_is_left_alone(fresh: Edited) -> None:
    """It pads as its last caller said: a writer must not change that under the hands of a reader."""
    tokenizer = fresh.loaded.tokenizer
    tokenizer(fresh.loaded.edited, padding="max_length", max_length=40, truncation=True)
    before = (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation)
    assert all(before)
    fresh.em.edit(edits_of(fresh.loaded, [LEARNED]))
    fresh.em.ask(fresh.loaded.edited[0])
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == before


@once
@pytest.mark.parametrize("view", ["unedited", "at"])
@named("qwen3-qk-norm", "vit")
def test_one_thread_looks_back_while_others_serve(edited: Edited, view: str) -> None:
    ask = _asking(edited.loaded, edited.loaded.edited)
    now, base = ask(), _asking(edited.twin, edited.loaded.edited)()
    assert now != base
    back = edited.em.unedited if view == "unedited" else partial(edited.em.at, 0)

    def look(at_the_past: bool) -> Answer:
        if not at_the_past:
            return ask()
        with back():
            return ask()

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(look, [True, False] * 8))
    assert seen == [base, now] * 8
