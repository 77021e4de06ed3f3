"""What a KV cache carries follows its rows, on the caches of transformers themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from editable.carry import Carried, carried_by, carry
from editable.snapshot import Snapshot

CONFIG = hf.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9)
SNAPSHOT = Snapshot(3)


def dynamic(rows: int = 3, tokens: int = 4) -> Any:
    return _filled(hf.DynamicCache(config=CONFIG), rows, tokens)


def static(rows: int = 3, tokens: int = 4) -> Any:
    return _filled(hf.StaticCache(config=CONFIG, max_cache_len=10), rows, tokens)


def _filled(cache: Any, rows: int, tokens: int) -> Any:
    """Keys of row r are all r, so that one can see where a row went."""
    states = torch.arange(float(rows))[:, None, None, None].expand(rows, 2, tokens, 4).contiguous()
    for layer in range(2):
        cache.update(states, states, layer)
    return cache


CACHES: dict[str, Callable[..., Any]] = {"dynamic": dynamic, "static": static}
both = pytest.mark.parametrize("make", CACHES.values(), ids=CACHES.keys())


def tied(cache: Any, pads: bool = True) -> Any:
    decisions = {"one": {"row": torch.tensor([10, 11, 12]), "said": torch.arange(6).reshape(3, 2)}}
    carry(cache, Carried(SNAPSHOT, 4, pads=torch.tensor([2, 0, 1]) if pads else None, decisions=decisions))
    return cache


def held(cache: Any) -> Carried:
    carried = carried_by(cache)
    assert carried is not None
    return carried


def rows_of(cache: Any) -> list[float]:
    """Which row each row of the cache was."""
    return list(cache.layers[0].keys[:, 0, 0, 0].tolist())


def check_rows(cache: Any, *rows: int) -> None:
    """Keys, pads and every decision hold these rows in this order."""
    carried = held(cache)
    assert rows_of(cache) == list(rows)
    assert carried.pads is not None
    assert carried.pads.tolist() == [[2, 0, 1][row] for row in rows]
    assert carried.decisions["one"]["row"].tolist() == [10 + row for row in rows]
    assert carried.decisions["one"]["said"].tolist() == [[2 * row, 2 * row + 1] for row in rows]


def test_nothing_is_carried_by_nothing() -> None:
    assert carried_by(None) is None
    assert carried_by(dynamic()) is None
    assert carried_by(((1, 2),)) is None


@both
def test_a_cache_keeps_what_it_is_given(make: Callable[..., Any]) -> None:
    cache = tied(make())
    assert held(cache).snapshot is SNAPSHOT
    check_rows(cache, 0, 1, 2)
    later = Carried(SNAPSHOT, 5)
    carry(cache, later)
    assert carried_by(cache) is later


@both
def test_beams_reorder(make: Callable[..., Any]) -> None:
    cache = tied(make())
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    check_rows(cache, 2, 2, 0)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    check_rows(cache, 0, 2, 2)


@both
def test_tying_again_follows_only_once(make: Callable[..., Any]) -> None:
    """Every forward ties anew; the cache's methods must not be wrapped once more each time."""
    cache = tied(tied(tied(make())))
    cache.reorder_cache(torch.tensor([1, 2, 0]))
    check_rows(cache, 1, 2, 0)


def test_rows_are_repeated() -> None:
    cache = tied(dynamic())
    cache.batch_repeat_interleave(2)
    check_rows(cache, 0, 0, 1, 1, 2, 2)


def test_rows_are_repeated_by_their_decisions_where_there_are_no_pads() -> None:
    cache = tied(dynamic(), pads=False)
    cache.batch_repeat_interleave(2)
    assert held(cache).decisions["one"]["row"].tolist() == [10, 10, 11, 11, 12, 12]
    assert held(cache).pads is None


def test_rows_are_repeated_by_their_pads_where_there_are_no_decisions() -> None:
    cache = dynamic()
    carry(cache, Carried(SNAPSHOT, 4, pads=torch.tensor([2, 0, 1])))
    cache.batch_repeat_interleave(2)
    pads = held(cache).pads
    assert pads is not None
    assert pads.tolist() == [2, 2, 0, 0, 1, 1]


def test_a_cache_that_carries_only_a_version_is_repeated() -> None:
    cache = dynamic()
    carry(cache, Carried(SNAPSHOT, 4))
    cache.batch_repeat_interleave(2)
    assert rows_of(cache) == [0, 0, 1, 1, 2, 2]
    assert held(cache).snapshot is SNAPSHOT


def test_rows_are_selected() -> None:
    cache = tied(dynamic())
    cache.batch_select_indices(torch.tensor([2, 0]))
    check_rows(cache, 2, 0)


def test_cropping_forgets_the_latest_tokens() -> None:
    cache = tied(dynamic())
    cache.crop(-1)
    assert int(cache.get_seq_length()) == 3
    assert held(cache).seen == 3
    check_rows(cache, 0, 1, 2)


@both
def test_a_deep_copy_goes_its_own_way(make: Callable[..., Any]) -> None:
    cache = tied(make())
    twin = copy.deepcopy(cache)
    twin.reorder_cache(torch.tensor([2, 1, 0]))
    check_rows(twin, 2, 1, 0)
    check_rows(cache, 0, 1, 2)
    assert held(twin).snapshot is SNAPSHOT  # the version itself is shared
    cache.reorder_cache(torch.tensor([1, 1, 1]))
    check_rows(twin, 2, 1, 0)


@both
def test_an_emptied_cache_starts_anew(make: Callable[..., Any]) -> None:
    cache = tied(make())
    cache.reset()
    assert carried_by(cache) is None
    cache.reset()  # and again
    tied(cache)
    assert held(cache).seen == 4


@both
def test_other_caches_are_not_touched(make: Callable[..., Any]) -> None:
    """Methods are bound to the one object, never to its class."""
    kind = type(make())
    before = dict(vars(kind))
    tied(make())
    assert dict(vars(kind)) == before
    other = make()
    other.reorder_cache(torch.tensor([2, 1, 0]))
    assert rows_of(other) == [2, 1, 0]
    assert "reorder_cache" not in vars(other)


def test_selecting_leaves_the_given_tensors_alone() -> None:
    pads, row = torch.tensor([2, 0, 1]), torch.tensor([10, 11, 12])
    decision = {"row": row}
    carried = Carried(SNAPSHOT, 4, pads=pads, decisions={"one": decision})
    carried.select(torch.tensor([1, 0]))
    assert (pads.tolist(), row.tolist(), decision["row"] is row) == ([2, 0, 1], [10, 11, 12], True)
    assert carried.decisions["one"]["row"].tolist() == [11, 10]
