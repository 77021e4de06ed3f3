"""Asking in batches gives what asking by hand, one by one, gives; in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editable.asking import Asker
from tests.contract.harness import named, only
from tests.families import EOS, FAMILIES, LONGEST, Family, Loaded, logits_of


def asker(loaded: Loaded, rows: int = 3) -> Asker:
    return Asker(loaded.model, loaded.tokenizer, rows)


@only("causal")
@pytest.mark.parametrize("side", ["left", "right"])
def test_forced_is_one_plain_forward_over_prompt_and_target(loaded: Loaded, side: str) -> None:
    loaded.tokenizer.padding_side = side
    found = asker(loaded).forced(loaded.edited, loaded.targets)
    for prompt, target, logits in zip(loaded.edited, loaded.targets, found, strict=True):
        before = loaded.tokenizer(prompt).input_ids
        answer = loaded.tokenizer(target, add_special_tokens=False).input_ids
        with torch.no_grad():
            whole = loaded.model(input_ids=torch.tensor([before + answer])).logits[0]
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, whole[len(before) - 1 : -1], rtol=1e-4, atol=1e-4)


@only("seq2seq")
def test_forced_by_the_decoder(loaded: Loaded) -> None:
    found = asker(loaded).forced(loaded.edited, loaded.targets)
    for prompt, target, logits in zip(loaded.edited, loaded.targets, found, strict=True):
        wanted = torch.tensor([loaded.tokenizer(text_target=target).input_ids])
        assert int(wanted[0, -1]) == EOS
        batch = loaded.encode([prompt])
        with torch.no_grad():
            whole = loaded.model(**batch, labels=wanted).logits[0]
        torch.testing.assert_close(logits, whole[: wanted.shape[1] - 1], rtol=1e-4, atol=1e-4)


@only("text_classifier", "image_classifier")
def test_classifiers_are_forced_to_say_all_classes(loaded: Loaded) -> None:
    found = asker(loaded).forced(loaded.edited, loaded.targets)
    for row, logits in zip(loaded.edited, found, strict=True):
        torch.testing.assert_close(logits, loaded.logits([row]).float(), rtol=1e-4, atol=1e-4)
    ids = asker(loaded).target_ids(loaded.edited, loaded.targets)
    assert [one.tolist() for one in ids] == [[label] for label in loaded.targets]


@only("causal", "seq2seq")
def test_target_ids_are_the_targets_and_have_no_end_token(loaded: Loaded) -> None:
    for ids, target in zip(asker(loaded).target_ids(loaded.edited, loaded.targets), loaded.targets, strict=True):
        assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == target
        assert EOS not in ids.tolist()


@only("causal", "seq2seq")
def test_free_is_generate_alone_up_to_its_end(loaded: Loaded) -> None:
    prompts = [*loaded.edited, *loaded.unrelated]
    found = asker(loaded).free(prompts, [LONGEST] * len(prompts))
    for prompt, answer in zip(prompts, found, strict=True):
        (tokens,) = loaded.generate([prompt])
        kept = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        assert list(answer.tokens) == kept
        assert answer.stopped == (EOS in tokens)
        assert answer.text == loaded.tokenizer.decode(kept, skip_special_tokens=True)


@only("causal")
def test_every_row_has_its_own_cut_off(loaded: Loaded) -> None:
    most = [1, 5, 2, 4, 3, 1]
    cut = asker(loaded).free(loaded.edited, most)
    whole = asker(loaded).free(loaded.edited, [LONGEST] * len(most))
    for short, long, count in zip(cut, whole, most, strict=True):
        assert short.tokens == long.tokens[:count]
        assert short.stopped == (long.stopped and len(long.tokens) < count)


@only("text_classifier", "image_classifier")
def test_classifiers_answer_with_a_label(loaded: Loaded) -> None:
    found = asker(loaded).free(loaded.edited, [1] * len(loaded.edited))
    labels = loaded.logits(loaded.edited).argmax(-1).tolist()
    assert [answer.tokens for answer in found] == [(label,) for label in labels]
    names = getattr(getattr(loaded.model, "config", None), "id2label", {})
    assert [answer.text for answer in found] == [str(names.get(label, label)) for label in labels]
    assert all(answer.stopped for answer in found)


def test_logits_are_one_forward_each(loaded: Loaded) -> None:
    rows = [*loaded.edited, *loaded.unrelated]
    for row, logits in zip(rows, asker(loaded).logits(rows), strict=True):
        with torch.no_grad():
            alone = _alone(loaded, row)
        assert torch.equal(logits, alone)


def _alone(loaded: Loaded, row: Any) -> torch.Tensor:
    if loaded.tokenizer is None:
        return logits_of(loaded.model(row[None]))
    given = {"input_ids": torch.tensor([loaded.tokenizer(row).input_ids])}
    if loaded.family.kind == "seq2seq":
        given["decoder_input_ids"] = torch.tensor([[loaded.model.generation_config.decoder_start_token_id]])
    logits = logits_of(loaded.model(**given))
    return logits[0] if logits.ndim == 3 else logits


@only("causal")
def test_prompt_ids_are_those_that_logits_have_positions_for(loaded: Loaded) -> None:
    ids, logits = asker(loaded).prompt_ids(loaded.edited), asker(loaded).logits(loaded.edited)
    assert [one.tolist() for one in ids] == [loaded.tokenizer(text).input_ids for text in loaded.edited]
    assert [len(one) for one in ids] == [len(one) for one in logits]


@only("seq2seq", "image_classifier")
def test_prompt_ids_of_what_has_none(loaded: Loaded) -> None:
    assert [len(ids) for ids in asker(loaded).prompt_ids(loaded.edited)] == [0] * len(loaded.edited)


@named("llama-gqa", "t5", "vit")
def test_the_order_is_kept_whatever_goes_together(loaded: Loaded) -> None:
    alone, together = asker(loaded, rows=1), asker(loaded, rows=4)
    most = [LONGEST] * len(loaded.edited)
    assert together.free(loaded.edited, most) == alone.free(loaded.edited, most)
    pairs = zip(
        together.forced(loaded.edited, loaded.targets), alone.forced(loaded.edited, loaded.targets), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_same_call_gives_the_same_bits() -> None:
    family: Family = FAMILIES[0]
    loaded = family.load()
    first, second = (asker(loaded).forced(loaded.edited, loaded.targets) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
