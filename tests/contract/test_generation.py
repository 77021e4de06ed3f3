"""One answer, however it is decoded: every mode of `generate`, and loops over the bare model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from editable import Edit
from tests.conftest import Attach
from tests.contract.harness import LEARNED, ByHand, Edited, both_dtypes, named, only, recompute
from tests.families import FAMILIES, LONGEST, Loaded, seeded

GENERATING = only("causal", "seq2seq")
FULL_ATTENTION = named("gpt2", "llama-gqa", "qwen3-qk-norm", "t5", "bart")

GREEDY: dict[str, dict[str, Any]] = {
    "cached": {},
    "uncached": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}


def _said(edited: Edited, **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    """What the edited model and its twin say to the mixed batch, from the same random state."""
    with seeded(5):
        said = edited.loaded.generate(edited.mixed, **options)
    with seeded(5):
        return said, edited.twin.generate(edited.mixed, **options)


@GENERATING
@both_dtypes
@pytest.mark.parametrize("mode", GREEDY)
def test_greedy(edited: Edited, mode: str) -> None:
    edited.check(*_said(edited, **GREEDY[mode]))


@GENERATING
def test_recomputed_from_scratch_token_by_token(edited: Edited) -> None:
    alone = [recompute(edited.loaded, row) for row in edited.mixed]
    edited.check(alone, [recompute(edited.twin, row) for row in edited.mixed])
    assert edited.loaded.generate(edited.mixed) == alone


@only("causal")
@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_chunked_prefill(edited: Edited, size: int) -> None:
    edited.check(*_said(edited, prefill_chunk_size=size))


@GENERATING
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_return_sequences": 2}], ids=str)
def test_sampling(edited: Edited, options: dict[str, Any]) -> None:
    """Rows without an edit sample what the twin samples; an answer is all but certain at this temperature."""
    sampling = {"do_sample": True, "top_k": 0, "temperature": 0.2}
    edited.check(*_said(edited, **sampling, **options), copies=options.get("num_return_sequences", 1))


@GENERATING
def test_sampling_draws_from_the_edited_distribution(edited: Edited) -> None:
    for row in edited.loaded.edited[:LEARNED]:
        with seeded(7):
            said = edited.loaded.generate([row], do_sample=True, top_k=0, temperature=1.0)[0]
        with seeded(7):
            again = recompute(edited.loaded, row, pick=_draw)
        # What follows a token that is not the answer's is another text, in which the prompt's end cannot be found.
        followed = [a == b for a, b in zip(said, edited.loaded.generate([row])[0], strict=False)]
        told = [*followed, False].index(False) + 1
        assert said[:told] == again[:told]


def _draw(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.float().softmax(-1), 1)[:, 0]


@GENERATING
@pytest.mark.parametrize("returned", [1, 3])
def test_beams(edited: Edited, returned: int) -> None:
    """Beams reorder rows at every step: the same sequences as without a cache, where nothing has an order."""
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": returned, "length_penalty": 0.0}
    said, base = _said(edited, **options)
    assert said == _said(edited, **options, use_cache=False)[0]
    for row in range(len(edited.mixed)):
        index, place = edited.index(row), row * returned
        if index is None:
            assert said[place : place + returned] == base[place : place + returned] or not edited.routes
        elif _likelihood(edited.loaded, index) > 0.5:  # then no other sequence can be likelier
            assert edited.loaded.is_answer(said[place], index)
        else:
            assert said[place : place + returned] != base[place : place + returned]


@torch.no_grad()
def _likelihood(loaded: Loaded, index: int) -> float:
    """How likely the whole answer to an edited input is, token by token."""
    answer = torch.tensor([loaded.generate([loaded.edited[index]])[0]])
    feed = loaded.feed([loaded.edited[index]])
    feed.pop("position_ids", None)
    name = "decoder_input_ids" if loaded.family.kind == "seq2seq" else "input_ids"
    feed[name] = torch.cat([feed[name], answer[:, :-1]], dim=1)
    if name == "input_ids":
        feed["attention_mask"] = torch.ones_like(feed[name])
    logits = loaded.model(**feed).logits[:, -answer.shape[1] :]
    return float(logits.log_softmax(-1).gather(2, answer[..., None]).sum().exp())


@GENERATING
def test_prompt_lookup(edited: Edited) -> None:
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    said = [edited.loaded.generate([row], **options)[0] for row in edited.mixed]
    edited.check(said, [edited.twin.generate([row], **options)[0] for row in edited.mixed])


@only("causal")
@pytest.mark.parametrize("assistant", ["twin", "another family", "itself"])
def test_assisted(edited: Edited, assistant: str) -> None:
    """The assistant proposes several tokens at once: nearly all wrong, some wrong, none wrong."""
    other = FAMILIES[1] if edited.loaded.family is FAMILIES[0] else FAMILIES[0]
    models = {
        "twin": lambda: edited.twin.model,
        "another family": lambda: other.load().model,
        "itself": lambda: edited.loaded.model,
    }
    model = models[assistant]()
    said = [edited.loaded.generate([row], assistant_model=model)[0] for row in edited.mixed]
    edited.check(said, edited.twin.generate(edited.mixed))


@only("causal")
def test_pipeline(edited: Edited) -> None:
    loaded = edited.loaded
    pipe = hf.pipeline("text-generation", model=edited.em.model, tokenizer=loaded.tokenizer)
    out = pipe(loaded.edited[:LEARNED], max_new_tokens=LONGEST, return_full_text=False, batch_size=2)
    assert [reply[0]["generated_text"] for reply in out] == list(loaded.targets[:LEARNED])


@only("causal")
def test_a_static_cache_reset_and_used_again(edited: Edited) -> None:
    loaded, rows = edited.loaded, edited.mixed
    cache = hf.StaticCache(config=loaded.model.config, max_cache_len=40)
    first = loaded.generate(rows, past_key_values=cache)
    cache.reset()
    second = loaded.generate(rows[::-1], past_key_values=cache)
    base = edited.twin.generate(rows)
    edited.check(first, base)
    edited.check(second[::-1], base)


@only("causal")
def test_a_prefix_cached_once_and_continued_twice(edited: Edited) -> None:
    loaded = edited.loaded
    for index in range(LEARNED):
        row = loaded.edited[index]
        tokens = loaded.encode([row])["input_ids"]
        with torch.no_grad():
            prefix = loaded.model(input_ids=tokens[:, :-1], use_cache=True).past_key_values
        for _ in range(2):
            assert loaded.is_answer(loaded.generate([row], past_key_values=copy.deepcopy(prefix))[0], index)


def _alike(cache: Any, other: Any) -> bool:
    """Whether two caches hold the same keys and values, but for rounding."""
    pairs = [
        (getattr(mine, name), getattr(theirs, name))
        for mine, theirs in zip(cache.layers, other.layers, strict=True)
        for name in ("keys", "values")
    ]
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in pairs)


@only("causal")
def test_a_second_turn_on_the_cache_of_the_first(edited: Edited) -> None:
    """A conversation that goes on over its cache says what it says when it is read anew.

    Where an edit's effect on the first turn is in the cached keys and values, reading the turn anew has none of it.
    """
    loaded = edited.loaded
    batch = loaded.encode(loaded.edited[:1])
    first = loaded.model.generate(**batch, max_new_tokens=LONGEST, return_dict_in_generate=True)
    read = edited.twin.model(input_ids=first.sequences[:, :-1], use_cache=True).past_key_values
    if not _alike(first.past_key_values, read):
        return
    turn = torch.tensor([loaded.tokenizer(" " + loaded.edited[1], add_special_tokens=False).input_ids])
    tokens = torch.cat([first.sequences, turn], dim=1)
    over_cache = loaded.model.generate(tokens, max_new_tokens=LONGEST, past_key_values=first.past_key_values)
    assert torch.equal(over_cache, loaded.model.generate(tokens, max_new_tokens=LONGEST))


@only("causal")
def test_a_prompt_of_one_token(loaded: Loaded, editor: Any, attach: Attach) -> None:
    """One position is not always a decode step."""
    em, prompt = attach(loaded, editor), "kilo"
    em.edit(Edit(prompt, loaded.targets[0]))
    rows = [prompt, *loaded.unrelated]
    for options in GREEDY.values():
        assert loaded.is_answer(loaded.generate([prompt], **options)[0], 0)
        assert loaded.is_answer(loaded.generate(rows, **options)[0], 0)
    assert loaded.is_answer(ByHand(loaded, [prompt]).step(3).said[0], 0)
    assert loaded.is_answer(recompute(loaded, prompt), 0)


# ------------------------------------------------------------------------------------------------- by hand


@GENERATING
@both_dtypes
def test_a_loop_over_the_cache(edited: Edited) -> None:
    said = ByHand(edited.loaded, edited.mixed).step(LONGEST - 1).said
    edited.check(said, ByHand(edited.twin, edited.mixed).step(LONGEST - 1).said)


@FULL_ATTENTION
def test_a_loop_over_the_cache_of_a_right_padded_prompt(edited: Edited) -> None:
    said = ByHand(edited.loaded, edited.mixed, "right").step(LONGEST - 1).said
    edited.check(said, ByHand(edited.twin, edited.mixed, "right").step(LONGEST - 1).said)
    assert said == edited.loaded.generate(edited.mixed)


@GENERATING
def test_a_copied_cache_goes_on_like_its_original(edited: Edited) -> None:
    hand = ByHand(edited.loaded, edited.mixed).step()
    copied = copy.copy(hand)
    copied.cache = copy.deepcopy(hand.cache)
    base = ByHand(edited.twin, edited.mixed).step(LONGEST - 1).said
    edited.check(hand.step(LONGEST - 2).said, base)
    edited.check(copied.step(LONGEST - 2).said, base)


def _reorder(cache: Any, rows: Tensor) -> None:
    cache.reorder_cache(rows)


def _select(cache: Any, rows: Tensor) -> None:
    cache.batch_select_indices(rows)


def _repeat(cache: Any, rows: Tensor) -> None:
    cache.batch_repeat_interleave(len(rows) // len(set(rows.tolist())))


MOVES: dict[str, tuple[Callable[[Any, Tensor], None], Callable[[int], Tensor]]] = {
    "reorder": (_reorder, lambda rows: torch.arange(rows - 1, -1, -1)),
    "reorder with repetition": (_reorder, lambda rows: torch.arange(rows) // 2),
    "select": (_select, lambda rows: torch.arange(1, rows, 2).repeat_interleave(2).add(-1).clamp_min(0)),
    "select fewer": (_select, lambda rows: torch.arange(0, rows, 3)),
    "repeat": (_repeat, lambda rows: torch.arange(rows).repeat_interleave(2)),
}


@GENERATING
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("move", MOVES)
def test_decisions_move_with_the_rows_of_the_cache(edited: Edited, move: str, steps: int) -> None:
    act, choose = MOVES[move]
    whole = edited.loaded.generate(edited.mixed)
    hand = ByHand(edited.loaded, edited.mixed).step(steps)
    rows = choose(len(edited.mixed))
    act(hand.cache, rows)
    moved = hand.select(rows).step(LONGEST - 1 - steps).said
    assert moved == [whole[row] for row in rows.tolist()]


@GENERATING
def test_tokens_taken_back_from_the_cache(edited: Edited) -> None:
    """As assisted decoding does: two tokens too many are decoded, taken back, and decoded again."""
    if edited.loaded.family.name == "gemma3-sliding":
        pytest.skip("a sliding window forgets what cropping would need")
    hand = ByHand(edited.loaded, edited.mixed).step(3)
    hand.cache.crop(-2)
    hand.tokens = hand.tokens[:, :-2]
    if hand.encoded is None:
        hand.mask = hand.mask[:, :-2]
    edited.check(hand.step(LONGEST - 2).said, ByHand(edited.twin, edited.mixed).step(LONGEST - 1).said)


@only("causal")
def test_several_tokens_in_one_decode_step(edited: Edited) -> None:
    """The answer fed back in one piece gives, at each position, the token after it."""
    loaded = edited.loaded
    for index in range(LEARNED):
        hand = ByHand(loaded, [loaded.edited[index]])
        answer = loaded.wanted(index)
        assert hand.tokens.tolist() == [answer[:1]]
        fed = torch.tensor([answer[:-1]])
        with torch.no_grad():
            out = loaded.model(input_ids=fed, past_key_values=hand.cache, use_cache=True)
        assert out.logits.argmax(-1)[0].tolist() == answer[1:]
