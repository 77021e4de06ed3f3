"""A forward, a generation, a cache: each sees exactly one published version, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.contract.harness import LEARNED, ByHand, Edited, edits_of, once, only
from tests.families import LONGEST, Loaded

GENERATING = only("causal", "seq2seq")

CALLS: dict[str, Callable[[Edited], Callable[..., Tensor]]] = {
    "em.generate": lambda edited: edited.em.generate,
    "model.generate": lambda edited: edited.loaded.model.generate,
}


class During(hf.LogitsProcessor):
    """Does something once, in the middle of a generation."""

    def __init__(self, act: Callable[[], Any], step: int) -> None:
        self.act = act
        self.left = step

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.left == 0:
            self.act()
        self.left -= 1
        return scores


def _generate(edited: Edited, door: str, act: Callable[[], Any], step: int, **options: Any) -> Tensor:
    during = During(act, step)
    batch = edited.loaded.encode(edited.loaded.edited)
    out = CALLS[door](edited)(**batch, max_new_tokens=LONGEST, logits_processor=[during], **options)
    assert during.left < 0, "nothing was published during the generation"
    return out


MODES: dict[str, dict[str, Any]] = {
    "cached": {},
    "uncached": {"use_cache": False},
    "static": {"cache_implementation": "static"},
}


@once
@GENERATING
@pytest.mark.parametrize("door", CALLS)
@pytest.mark.parametrize("mode", MODES)
def test_an_edit_published_meanwhile_is_seen_by_the_next_generation(fresh: Edited, mode: str, door: str) -> None:
    batch = fresh.loaded.encode(fresh.loaded.edited)
    before = fresh.loaded.model.generate(**batch, max_new_tokens=LONGEST)
    for step, index in ((0, LEARNED), (1, LEARNED + 1)):
        published = edits_of(fresh.loaded, [index])
        now = _generate(fresh, door, partial(fresh.em.edit, published), step, **MODES[mode])
        assert torch.equal(now, before)
        before = fresh.loaded.model.generate(**batch, max_new_tokens=LONGEST)
        assert not torch.equal(now, before)
        assert fresh.loaded.is_answer(fresh.loaded.generate([fresh.loaded.edited[index]])[0], index)


@once
@GENERATING
@pytest.mark.parametrize("door", CALLS)
@pytest.mark.parametrize("mode", MODES)
def test_a_rollback_meanwhile_is_seen_by_the_next_generation(fresh: Edited, mode: str, door: str) -> None:
    batch = fresh.loaded.encode(fresh.loaded.edited)
    before = fresh.loaded.model.generate(**batch, max_new_tokens=LONGEST)
    receipt = fresh.receipts[2]  # its answer is the longest
    now = _generate(fresh, door, lambda: fresh.em.rollback(receipt.id), 0, **MODES[mode])
    assert torch.equal(now, before)
    said = fresh.loaded.generate(fresh.loaded.edited)
    assert said[2] == fresh.twin.generate(fresh.loaded.edited)[2] or not fresh.routes
    assert fresh.loaded.is_answer(said[1], 1)


@GENERATING
def test_a_cache_keeps_the_version_it_was_filled_under(fresh: Edited) -> None:
    """Also in the caller's own loop: the edits came and went after the prompt was read."""
    rows = fresh.loaded.edited
    whole = ByHand(fresh.loaded, rows).step(LONGEST - 1).said
    hand = ByHand(fresh.loaded, rows)
    for receipt in fresh.receipts:
        fresh.em.rollback(receipt.id)
    hand.step()
    fresh.em.edit(edits_of(fresh.loaded, [LEARNED]))
    assert hand.step(LONGEST - 2).said == whole
    now, base = ByHand(fresh.loaded, rows).step(LONGEST - 1).said, fresh.twin.generate(rows)
    assert fresh.loaded.is_answer(now[LEARNED], LEARNED)
    assert now[:LEARNED] == base[:LEARNED] or not fresh.routes


@GENERATING
def test_a_cache_filled_unedited_goes_on_unedited(edited: Edited) -> None:
    with edited.em.unedited():
        hand = ByHand(edited.loaded, edited.mixed)
    assert hand.step(LONGEST - 1).said == ByHand(edited.twin, edited.mixed).step(LONGEST - 1).said


@once
def test_versions_count_published_changes(fresh: Edited) -> None:
    first = fresh.em.version
    assert [receipt.version for receipt in fresh.receipts[:-1]] == [fresh.receipts[0].version] * (LEARNED - 1)
    assert fresh.receipts[-1].version == first > fresh.receipts[0].version
    fresh.em.rollback(fresh.receipts[0].id)
    assert fresh.em.version > first


def test_as_it_was_then(fresh: Edited) -> None:
    loaded, em = fresh.loaded, fresh.em
    then = {em.version: loaded.logits(loaded.edited)}
    for change in (partial(em.edit, edits_of(loaded, [LEARNED])), partial(em.rollback, fresh.receipts[1].id)):
        change()
        then[em.version] = loaded.logits(loaded.edited)
    assert len(then) == 3
    for version, logits in then.items():
        with em.at(version):
            assert torch.equal(loaded.logits(loaded.edited), logits)
        assert torch.equal(loaded.logits(loaded.edited), then[em.version])


@once
def test_views_of_other_versions_nest(edited: Edited) -> None:
    loaded, em = edited.loaded, edited.em
    now, base = loaded.logits(edited.mixed), edited.twin.logits(edited.mixed)
    with em.unedited():
        with em.at(em.version):
            assert torch.equal(loaded.logits(edited.mixed), now)
        assert torch.equal(loaded.logits(edited.mixed), base)
    with pytest.raises(RuntimeError, match="left by an error"), em.unedited():
        raise RuntimeError("left by an error")
    assert torch.equal(loaded.logits(edited.mixed), now)


@once
@pytest.mark.parametrize("view", ["unedited", "at"])
def test_a_view_of_another_version_is_this_threads_only(fresh: Edited, view: str) -> None:
    loaded, em = fresh.loaded, fresh.em
    then, version = loaded.logits(loaded.edited), em.version
    em.edit(edits_of(loaded, [LEARNED]))
    now = loaded.logits(loaded.edited)
    with em.unedited() if view == "unedited" else em.at(version):
        assert torch.equal(_in_another_thread(loaded), now)
        mine = fresh.twin.logits(loaded.edited) if view == "unedited" else then
        assert torch.equal(loaded.logits(loaded.edited), mine)


def _in_another_thread(loaded: Loaded) -> Tensor:
    seen: list[Tensor] = []
    thread = threading.Thread(target=lambda: seen.append(loaded.logits(loaded.edited)))
    thread.start()
    thread.join()
    return seen[0]
