"""Threads that look up while another writes: how long that takes with it and without, and whether they see it whole.

A reader pins the book that is published, asks it, and keeps some of its answers, which are compared afterwards with a
plain loop over the keys of that very book. Windows with the writer and without it take turns.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editable.benchmarks import timing
from editable.benchmarks.bars import Bar
from editable.benchmarks.insertion.setting import Part
from editable.benchmarks.memory.books import Filled
from editable.benchmarks.memory.scan import differing, scanned
from editable.benchmarks.memory.setting import TAIL, Setting, Tail
from editable.benchmarks.report import Table
from editable.memory.radius import Codebook

READERS = 3
WINDOWS = 4  # with the writer, and as many without
KEPT = 8  # answers of each reader in each window that are looked at again
LARGE = 500_000  # keys from which it is one: each is compared with a loop over all of them
FORGET_EVERY = 4  # insertions
BAR = 1.5  # p99 of a reader with the writer over that without

Answer = tuple[Codebook, Tensor, tuple[Tensor, Tensor]]


@dataclass
class Shared:
    """What readers see, and what came of it.

    Args:
        book: the published version.
        queries: what is asked.
        seconds: of all lookups in this window.
        answers: some of them, with the book and the query.
        written: versions published.
    """

    book: Codebook
    queries: Tensor
    seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    written: int = 0


@dataclass(frozen=True)
class Found:
    """Of one book.

    Args:
        alone, beside: seconds of lookups in each window without and with the writer.
        written: versions published.
        checked, torn: answers that were looked at again, and those that no published version gives.
        asked_seconds: of all windows with the writer, in sum.
    """

    alone: Sequence[Sequence[float]]
    beside: Sequence[Sequence[float]]
    written: int
    checked: int
    torn: int
    asked_seconds: float


def measure(setting: Setting, filled: Filled) -> Found:
    """Windows in turn, of `--seconds` in sum."""
    shared = Shared(filled.book, torch.cat(list(filled.queries.values())))
    length = setting.options.seconds / (2 * WINDOWS)
    windows: dict[bool, list[list[float]]] = {False: [], True: []}
    for turn in range(2 * WINDOWS):
        shared.seconds = []
        with _reading(shared, seed=turn), _writing(shared, filled, setting.options.writes_per_second, turn % 2 == 1):
            time.sleep(length)
        windows[turn % 2 == 1].append(shared.seconds)
    torn = sum(_torn(answer) for answer in shared.answers)
    return Found(windows[False], windows[True], shared.written, len(shared.answers), torn, length * WINDOWS)


def _torn(answer: Answer) -> int:
    book, query, found = answer
    return differing(found, scanned(book, query[None]))


@contextmanager
def _reading(shared: Shared, seed: int) -> Iterator[None]:
    with _threads(*[lambda done, n=n: _read(shared, 1000 * seed + n, done) for n in range(READERS)]):
        yield


@contextmanager
def _writing(shared: Shared, filled: Filled, per_second: float, at_all: bool) -> Iterator[None]:
    with _threads(*[lambda done: _write(shared, filled, per_second, done)] * at_all):
        yield


@contextmanager
def _threads(*acts: Any) -> Iterator[None]:
    """Each act in a thread of its own, until this is left; given an event that says so."""
    done = threading.Event()
    threads = [threading.Thread(target=act, args=(done,)) for act in acts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@torch.inference_mode()
def _read(shared: Shared, seed: int, done: threading.Event) -> None:
    draw, kept = random.Random(seed), 0
    while not done.is_set():
        book, query = shared.book, shared.queries[draw.randrange(len(shared.queries))]
        start = time.perf_counter()
        answer = book.find(query[None])
        shared.seconds.append(time.perf_counter() - start)
        if kept < (KEPT if len(book) < LARGE else 1) and draw.random() < 0.1:
            shared.answers.append((book, query, answer))
            kept += 1


def _write(shared: Shared, filled: Filled, per_second: float, done: threading.Event) -> None:
    """Insert, now and then forget, at most so often; the last owners come again when all spare keys are in."""
    owners: list[str] = []
    while not done.wait(1 / per_second):
        owners.append(f"written {shared.written}")
        key = filled.spare[shared.written % len(filled.spare)]
        book = shared.book.add(key, owners[-1], owners[-1], filled.radius)
        if len(owners) % FORGET_EVERY == 0:
            book = book.forget(frozenset({owners.pop(0)}))
        shared.book = book
        shared.written += 1


# --- showing ---


def part(found: Mapping[int, Found]) -> Part:
    """By number of keys."""
    rng = np.random.default_rng(0)
    tails = {n: (Tail.of(np.concatenate(one.alone)), Tail.of(np.concatenate(one.beside))) for n, one in found.items()}
    slower = {n: timing.ratio_of_windows(one.beside, one.alone, 99, rng) for n, one in found.items()}
    rows = [
        (f"{n} keys", *alone.cells, *beside.cells, slower[n].ratio, found[n].written / found[n].asked_seconds)
        for n, (alone, beside) in tails.items()
    ]
    header = ("", *(f"alone {name}" for name in TAIL), *(f"beside {name}" for name in TAIL), "p99 ratio", "writes/s")
    torn, checked = sum(one.torn for one in found.values()), sum(one.checked for one in found.values())
    return Part(
        {"torn_answers": torn},
        {f"{n} keys": _times(found[n], *tails[n], slower[n]) for n in found},
        [Table(f"a lookup of {READERS} readers without a writer and beside one, ms", header, rows)],
        [
            Bar(f"answers of {checked} that no published version gives", torn, "<=", 0),
            *(
                Bar(f"{n} keys, readers' p99 with a writer / without", one.ratio, "<=", BAR, (one.low, one.high))
                for n, one in slower.items()
            ),
        ],
    )


def _times(one: Found, alone: Tail, beside: Tail, slower: timing.Ratio) -> dict[str, Any]:
    times = {"alone": alone.as_dict(), "beside_writer": beside.as_dict(), "p99_ratio": slower.as_dict()}
    return {**times, "writes_per_second": round(one.written / one.asked_seconds, 2), "answers_checked": one.checked}
