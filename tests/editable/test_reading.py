"""Prompts read off token ids: padding and special tokens left out, of a chat the last user turn."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from editable.prompt import Generation, read_call
from editable.reading import Prompts, Reading, tokens_of
from editable.snapshot import Snapshot
from tests.families import FAMILIES, tokenizer

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture
def words() -> hf.PreTrainedTokenizerFast:
    return tokenizer("bos")


def ids(words: hf.PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(words(text, add_special_tokens=False).input_ids)


def test_special_tokens_are_left_out(words: hf.PreTrainedTokenizerFast) -> None:
    reading = Reading(words)
    assert reading.text(words("who is oscar").input_ids) == "who is oscar"
    assert reading.text([0, 0, *words("who is oscar").input_ids, 2]) == "who is oscar"


def test_of_a_chat_the_last_user_turn(words: hf.PreTrainedTokenizerFast) -> None:
    words.chat_template = TEMPLATE
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "who is oscar"},
        {"role": "assistant", "content": "a friend"},
        {"role": "user", "content": "say seven"},
    ]
    text = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert Reading(words).text(ids(words, text)) == "say seven"
    assert Reading(words).text(ids(words, f"{text}nine")) == "say seven nine"


def test_a_template_that_is_not_used_changes_nothing(words: hf.PreTrainedTokenizerFast) -> None:
    words.chat_template = TEMPLATE
    assert Reading(words).text(words("who is oscar").input_ids) == "who is oscar"


def test_a_template_that_fails_is_passed_over(words: hf.PreTrainedTokenizerFast) -> None:
    words.chat_template = "{{ raise_exception('no') }}"
    assert Reading(words).text(words("who is oscar").input_ids) == "who is oscar"


def test_prompts_end_at_the_key_token_or_a_lag_before(words: hf.PreTrainedTokenizerFast) -> None:
    row = torch.tensor([[-1, *ids(words, "who is oscar"), 7]])
    prompts = Prompts(Reading(words), row, torch.tensor([1]))
    assert prompts.text(0) == "who is oscar"
    assert prompts.text(0, lag=1) == words.decode(row[0, 1:-2]).strip()


def test_a_forward_offers_its_prompts(words: hf.PreTrainedTokenizerFast) -> None:
    batch = words(["who is oscar", "green whiskey says no"], padding=True, padding_side="left", return_tensors="pt")
    call = read_call(dict(batch), Snapshot(), reading=Reading(words))
    assert call.prompts is not None
    assert [call.prompts.text(row) for row in range(2)] == ["who is oscar", "green whiskey says no"]


def test_a_decode_step_offers_none(words: hf.PreTrainedTokenizerFast) -> None:
    generation = Generation(Snapshot(), 3)
    step = {"input_ids": torch.tensor([[5]]), "past_key_values": _Cache(3)}
    assert read_call(step, Snapshot(), generation=generation, reading=Reading(words)).prompts is None


def test_without_a_tokenizer_there_are_none() -> None:
    assert read_call({"input_ids": torch.tensor([[5, 6]])}, Snapshot()).prompts is None


class _Cache:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


@pytest.mark.parametrize("name", ["gpt2", "gemma3-sliding"])
def test_embeddings_are_read_as_the_tokens_they_are_of(name: str) -> None:
    """Gemma scales what its table gives; a soft prompt's vectors are no token's."""
    table = next(family for family in FAMILIES if family.name == name).load().model.get_input_embeddings()
    ids = torch.tensor([[5, 300, 5, 42], [7, 8, 9, 0]])
    embedded = table(ids).detach()
    assert torch.equal(tokens_of(embedded, table)[:, :3], ids[:, :3])
    soft = embedded.clone()
    soft[0, 1] += 0.01
    assert tokens_of(soft, table)[0].tolist() == [5, -1, 5, 42]
