"""The test models are deterministic, quick and not degenerate; otherwise the contract would show nothing."""

from __future__ import annotations

import time

import torch

from tests.contract.harness import both_dtypes, everything, named, only, same_bits
from tests.families import EOS, PAD, Loaded


@both_dtypes
def test_building_is_deterministic_and_leaves_the_random_state_alone(loaded: Loaded) -> None:
    before = torch.get_rng_state()
    again = loaded.family.load(loaded.dtype)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(everything(again), everything(loaded))
    assert not loaded.model.training


def test_different_inputs_give_different_answers(loaded: Loaded) -> None:
    logits = loaded.answers([*loaded.edited, *loaded.unrelated])
    assert len(set(logits.argmax(-1).tolist())) >= 4
    distances = torch.cdist(logits, logits) + torch.eye(len(logits)) * 1e9
    assert distances.min() > 0.05 * logits.norm(dim=-1).max()


@only("causal", "seq2seq")
def test_generations_differ(loaded: Loaded) -> None:
    said = loaded.generate([*loaded.edited, *loaded.unrelated])
    assert len({tuple(tokens) for tokens in said}) >= 9


def test_a_row_answers_alike_alone_and_in_a_batch(loaded: Loaded) -> None:
    rows = [*loaded.edited, *loaded.unrelated]
    for side in loaded.family.sides or (loaded.side,):
        alone = torch.cat([loaded.answers([row]) for row in rows])
        torch.testing.assert_close(loaded.answers(rows, side), alone, rtol=1e-3, atol=1e-3)


def test_a_forward_is_quick(loaded: Loaded) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        loaded.logits(loaded.edited[:1])
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


@only("causal", "seq2seq", "text_classifier")
def test_special_tokens_are_distinct_and_known(loaded: Loaded) -> None:
    tokenizer = loaded.tokenizer
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, EOS)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    for text in (*loaded.edited, *loaded.unrelated):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert len(tokenizer) == loaded.model.config.vocab_size


@named("gemma3-sliding")
def test_the_sliding_window_is_shorter_than_prompts(loaded: Loaded) -> None:
    lengths = [len(loaded.tokenizer(text).input_ids) for text in loaded.edited]
    assert max(lengths) > 2 * loaded.model.config.sliding_window
    assert set(loaded.model.config.layer_types) == {"sliding_attention", "full_attention"}
