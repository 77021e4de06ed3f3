"""Threads read while one writes: every answer belongs to exactly one published version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import Attach
from tests.contract.harness import LEARNED, Edited, edits_of, named, only
from tests.families import Loaded

READERS = 2
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"use_cache": False}, {"num_beams": 2})
PAIRS = ((0, 1), (2, 3), (4, 5))

Answer = tuple[tuple[int, ...], ...]


def _answer(loaded: Loaded) -> Answer:
    """What the model says to all edited inputs at once: whole generations, or labels."""
    if loaded.family.generates:
        return tuple(map(tuple, loaded.generate(loaded.edited)))
    return tuple((label,) for label in loaded.answers(loaded.edited).argmax(-1).tolist())


def _read_until(done: threading.Event, loaded: Loaded, seen: list[tuple[float, Answer]]) -> None:
    while not done.is_set():
        start = time.monotonic()
        seen.append((start, _answer(loaded)))


@named("gpt2", "gemma3-sliding", "t5", "bert", "vit", "resnet")
def test_every_answer_is_some_published_versions(loaded: Loaded, editor: Any, attach: Attach) -> None:
    """Two edits appear in one version, one of them vanishes in the next; no reader sees half of a version."""
    em = attach(loaded, editor)
    seen: list[list[tuple[float, Answer]]] = [[] for _ in range(READERS)]
    versions, done = [em.version], threading.Event()
    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(_read_until, done, loaded, into) for into in seen]
        try:
            for pair in PAIRS:
                receipts = em.edit(edits_of(loaded, pair))
                versions.append(em.version)
                em.rollback(receipts[1].id)
                versions.append(em.version)
            _wait_for(lambda: all(seen))
        finally:
            done.set()
        for reader in readers:
            reader.result()
    _check(em, loaded, seen, versions)


def _check(em: Any, loaded: Loaded, seen: list[list[tuple[float, Answer]]], versions: list[int]) -> None:
    published = {}
    for version in versions:
        with em.at(version):
            published[version] = _answer(loaded)
    assert len(set(published.values())) == len(versions)
    order = {answer: position for position, answer in enumerate(published.values())}
    for answers in seen:
        places = [order.get(answer) for _, answer in answers]
        assert None not in places
        assert places == sorted(places), "a later call saw an earlier version"  # type: ignore[type-var]


def _wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)


@named("llama-gqa", "bart")
def test_concurrent_generations_do_not_mix(edited: Edited) -> None:
    """Different batches at once, edited and not, with a cache and without: each as if it ran alone."""
    jobs = [
        (rows, options)
        for rows in (edited.mixed, edited.loaded.edited[:LEARNED], edited.loaded.unrelated)
        for options in OPTIONS
    ]
    alone = [edited.loaded.generate(rows, **options) for rows, options in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: edited.loaded.generate(job[0], **job[1]), jobs * 3))
    assert together == alone * 3


@named("llama-gqa", "resnet")
def test_concurrent_writers_take_turns(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    with ThreadPoolExecutor(3) as pool:
        receipts = list(pool.map(em.edit, edits_of(loaded, range(3))))
    assert len({receipt.version for receipt in receipts}) == 3
    assert em.version == max(receipt.version for receipt in receipts)
    one_by_one = [loaded.answers([row]).argmax(-1).item() for row in loaded.edited[:3]]
    wanted = [loaded.wanted(i)[0] if loaded.family.generates else loaded.targets[i] for i in range(3)]
    assert one_by_one == wanted


@only("causal")
def test_readers_see_an_edit_as_soon_as_it_is_published(loaded: Loaded, editor: Any, attach: Attach) -> None:
    em = attach(loaded, editor)
    with ThreadPoolExecutor(1) as pool:
        em.edit(edits_of(loaded, [0])[0])
        said = pool.submit(loaded.generate, loaded.edited[:1]).result()
    assert loaded.is_answer(said[0], 0)


@pytest.mark.parametrize("view", ["unedited", "at"])
@named("qwen3-qk-norm", "vit")
def test_one_thread_looks_back_while_others_serve(edited: Edited, view: str) -> None:
    now, base = _answer(edited.loaded), _answer(edited.twin)
    assert now != base

    def look(back: bool) -> Answer:
        if not back:
            return _answer(edited.loaded)
        with edited.em.unedited() if view == "unedited" else edited.em.at(0):
            return _answer(edited.loaded)

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(look, [True, False] * 8))
    assert seen == [base, now] * 8
