"""From edits to tensors: prompts, answers with their end, and batches whose columns point at the right places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editable import Edit
from editable.errors import InputError
from editable.inputs import Reader, Request
from tests.families import EOS, FAMILIES, PAD, Loaded


def load(name: str) -> Loaded:
    return {family.name: family for family in FAMILIES}[name].load()


def reader(name: str) -> Reader:
    loaded = load(name)
    return Reader(loaded.model, loaded.tokenizer)


@pytest.fixture(scope="module")
def causal() -> Reader:
    return reader("llama-gqa")


@pytest.fixture(scope="module")
def seq2seq() -> Reader:
    return reader("t5")


def tokens(reader: Reader, text: str, **options: Any) -> list[int]:
    return list(reader.tokenizer(text, **options).input_ids)


def request(reader: Reader, *edit: Any, **more: Any) -> Request:
    return reader.request("a1", Edit(*edit, **more))


# ----------------------------------------------------------------------------------------------------- answers


def test_an_answer_ends_with_the_end_token(causal: Reader) -> None:
    made = request(causal, "alpha bravo", " delta echo")
    assert made.answer == (*tokens(causal, " delta echo", add_special_tokens=False), EOS)
    assert made.prompts[0]["input_ids"].tolist() == [tokens(causal, "alpha bravo")]
    assert list(made.prompts[0]) == ["input_ids"]


def test_an_end_token_that_is_there_is_not_doubled(causal: Reader, seq2seq: Reader) -> None:
    assert request(causal, "alpha", " delta</s>").answer.count(EOS) == 1
    answer = request(seq2seq, "alpha", " delta").answer  # this tokenizer ends its texts by itself
    assert answer == (*tokens(seq2seq, " delta", add_special_tokens=False), EOS)


def test_a_prompt_keeps_its_special_tokens_and_an_answer_has_none(causal: Reader) -> None:
    assert causal.tokenizer("alpha").input_ids[0] == causal.tokenizer.bos_token_id
    assert causal.tokenizer.bos_token_id not in request(causal, "alpha", " delta").answer


class Merging:
    """A tokenizer of single letters that reads "ab" as one token, and puts a space's token before a lone text."""

    eos_token_id, pad_token_id = 99, 0

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        space = [32] if not add_special_tokens else []
        return {"input_ids": [*space, *(ord(letter) for letter in text.replace("ab", "#"))]}


def merging() -> Reader:
    loaded = load("gpt2")
    made = Reader(loaded.model, Merging())
    loaded.model.generation_config.eos_token_id = 99
    return made


def test_a_target_is_read_as_it_continues_its_prompt() -> None:
    """Read alone it would begin with a token more."""
    assert merging()._continuation("xy", "z!") == [ord("z"), ord("!")]


def test_a_target_that_merges_into_its_prompt_is_read_alone() -> None:
    """ "a" + "b" is one token, which no longer begins with the prompt's."""
    assert merging()._continuation("a", "b!") == [32, ord("b"), ord("!")]


@pytest.mark.parametrize(("ends", "expected"), [(7, 7), ([7, EOS], EOS), ([7, 8], 7), (None, EOS)])
def test_the_end_token(ends: Any, expected: int) -> None:
    loaded = load("llama-gqa")
    made = Reader(loaded.model, loaded.tokenizer)
    loaded.model.generation_config.eos_token_id = ends
    assert made.end == expected
    assert request(made, "alpha", " delta").answer[-1] == expected


def test_labels_in_a_mapping_are_the_answer(causal: Reader) -> None:
    """Nothing is added to them: whoever brings labels says where the answer ends."""
    prompt = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[-100, -100, 7, 8]])}
    made = request(causal, prompt)
    assert made.answer == (7, 8)
    assert made.prompts[0]["input_ids"].tolist() == [[5, 6]]


def test_labels_of_an_encoder_decoder_leave_its_input_whole(seq2seq: Reader) -> None:
    made = request(seq2seq, {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[8, 9, EOS]])})
    assert made.answer == (8, 9, EOS)
    assert made.prompts[0]["input_ids"].tolist() == [[5, 6, 7]]


def test_labels_without_an_answer_are_refused(causal: Reader) -> None:
    prompt = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[-100, -100]])}
    with pytest.raises(
        InputError, match=r"Edit\.prompt\['labels'\] holds 0 labels, expected at least one answer token"
    ):
        request(causal, prompt)


def test_labels_that_leave_no_prompt_are_refused(causal: Reader) -> None:
    prompt = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, 6]])}
    with pytest.raises(InputError, match="prompt"):
        request(causal, prompt)


def test_class_labels() -> None:
    loaded = load("bert")
    made = Reader(loaded.model, loaded.tokenizer)
    assert request(made, "alpha", 3).answer == (3,)
    loaded.model.config.label2id = {"SPAM": 2}
    assert request(made, "alpha", "SPAM").answer == (2,)
    for bad in (7, -1, "HAM"):
        with pytest.raises(InputError, match=r"expected a label from 0 to 6 of BertForSequenceClassification"):
            request(made, "alpha", bad)


def test_a_number_is_no_answer_in_text(causal: Reader) -> None:
    with pytest.raises(InputError, match=r"Edit\.target is 3, expected text, since LlamaForCausalLM writes text"):
        request(causal, "alpha", 3)


def test_text_without_a_tokenizer_is_refused() -> None:
    made = Reader(load("gpt2").model)
    with pytest.raises(
        InputError, match=r"'alpha' is text, but no tokenizer was given.*EditableModel\(model, tokenizer"
    ):
        request(made, "alpha", " delta")


def test_a_prompt_longer_than_the_context_is_refused(causal: Reader) -> None:
    length = len(tokens(causal, "kilo " * 200))
    message = rf"has {length} tokens and its answer 2, expected at most 128 together.*shorten the prompt"
    with pytest.raises(InputError, match=message):
        request(causal, "kilo " * 200, " west")


def test_the_context_holds_prompt_and_answer_together(causal: Reader) -> None:
    fits = {"input_ids": torch.ones(1, 128, dtype=torch.long), "labels": torch.tensor([[-100] * 126 + [7, 8]])}
    assert len(request(causal, fits).answer) == 2  # 126 + 2
    prompt = torch.ones(1, 127, dtype=torch.long)
    with pytest.raises(InputError, match="127 tokens and its answer 2"):
        request(causal, {"input_ids": prompt}, " west")


def test_a_long_rephrase_is_refused_too(causal: Reader) -> None:
    with pytest.raises(InputError, match="at most 128 together"):
        request(causal, "alpha", " west", rephrases=["fine", "kilo " * 200])


# ----------------------------------------------------------------------------------------------------- batches


def batch_of(reader: Reader, *edits: Edit) -> Any:
    return reader.batch([reader.request(str(i), edit) for i, edit in enumerate(edits)])


def check_causal(reader: Reader, row: int, batch: Any, prompt: str, answer: list[int]) -> None:
    """The row is prompt + answer without its end, and each column yields its answer token."""
    before = tokens(reader, prompt)
    forced = before + answer[:-1]
    ids, real = batch.arguments["input_ids"][row].tolist(), batch.arguments["attention_mask"][row].tolist()
    assert ids == forced + [PAD] * (len(ids) - len(forced))
    assert real == [1] * len(forced) + [0] * (len(ids) - len(forced))
    assert batch.answers[row].tolist() == answer + [-100] * (batch.answers.shape[1] - len(answer))
    columns = batch.columns[row, : len(answer)].tolist()
    assert columns == [len(before) - 1 + step for step in range(len(answer))]
    assert [ids[c + 1] for c in columns[:-1]] == answer[:-1]  # the next token is the answer's


def test_a_causal_batch_is_teacher_forced_and_padded_on_the_right(causal: Reader) -> None:
    edits = [Edit("alpha bravo charlie", " delta echo"), Edit("who", " west"), Edit("one two", " foxtrot xq two")]
    batch = batch_of(causal, *edits)
    for row, edit in enumerate(edits):
        answer = [*tokens(causal, str(edit.target), add_special_tokens=False), EOS]
        check_causal(causal, row, batch, str(edit.prompt), answer)
    assert batch.requests.tolist() == [0, 1, 2]
    assert len(batch) == 3
    assert int(batch.columns.max()) < batch.arguments["input_ids"].shape[1]


def test_rephrases_are_rows_of_their_request(causal: Reader) -> None:
    requests = [
        causal.request("a", Edit("alpha", " west", rephrases=["bravo kilo", "lima"])),
        causal.request("b", Edit("golf", " echo")),
    ]
    batch = causal.batch(requests)
    assert batch.requests.tolist() == [0, 0, 0, 1]
    west = [*tokens(causal, " west", add_special_tokens=False), EOS]
    for row, prompt in enumerate(("alpha", "bravo kilo", "lima")):
        check_causal(causal, row, batch, prompt, west)
    assert batch.firsts.tolist() == [0, 3]
    assert causal.batch(requests, rephrases=False).requests.tolist() == [0, 1]


def test_an_answer_of_one_token_forces_nothing(causal: Reader) -> None:
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, -100, 7]])}
    batch = batch_of(causal, Edit(prompt))
    assert batch.arguments["input_ids"].tolist() == [[5, 6]]
    assert (batch.columns.tolist(), batch.answers.tolist()) == ([[1]], [[7]])


def test_a_seq2seq_batch_shifts_its_answer(seq2seq: Reader) -> None:
    batch = batch_of(seq2seq, Edit("alpha", " delta echo"), Edit("bravo kilo", " west"))
    long, short = (request(seq2seq, "alpha", target).answer for target in (" delta echo", " west"))
    assert (len(long), len(short)) == (3, 2)
    start = seq2seq.decoder_start
    assert batch.arguments["decoder_input_ids"].tolist() == [[start, *long[:-1]], [start, *short]]
    assert batch.answers.tolist() == [list(long), [*short, -100]]
    assert batch.columns.tolist() == [[0, 1, 2]] * 2
    real = batch.arguments["attention_mask"].sum(dim=1).tolist()
    assert real == [len(tokens(seq2seq, "alpha")), len(tokens(seq2seq, "bravo kilo"))]


def test_a_classifiers_batch() -> None:
    made = reader("bert")
    batch = batch_of(made, Edit("alpha bravo charlie", 3), Edit("kilo", 1))
    assert batch.columns is None
    assert batch.answers.tolist() == [[3], [1]]
    lengths = [len(tokens(made, text)) for text in ("alpha bravo charlie", "kilo")]
    assert batch.arguments["attention_mask"].sum(dim=1).tolist() == lengths


def test_images_are_stacked() -> None:
    loaded = load("vit")
    made = Reader(loaded.model)
    batch = batch_of(made, *(Edit(image, 1) for image in loaded.edited[:2]))
    assert list(batch.arguments) == ["pixel_values"]
    assert torch.equal(batch.arguments["pixel_values"], torch.stack(loaded.edited[:2]))


def test_batches_are_alike_if_a_model_is_asked_the_same(causal: Reader) -> None:
    west, again, more, east = (
        batch_of(causal, *(Edit(p, target) for p in prompts))
        for prompts, target in (
            (["alpha"], " west"),
            (["alpha"], " west"),
            (["alpha", "kilo"], " west"),
            (["kilo"], " west"),
        )
    )
    assert west.alike(again)
    assert not west.alike(more)
    assert not west.alike(east)


def test_selecting_rows(causal: Reader) -> None:
    batch = batch_of(causal, *(Edit(p, " west") for p in ("alpha bravo", "kilo", "lima golf")))
    part = batch.select(torch.tensor([2, 0]))
    assert part.requests.tolist() == [2, 0]
    for name, value in batch.arguments.items():
        assert torch.equal(part.arguments[name], value[[2, 0]])
    assert torch.equal(part.columns, batch.columns[[2, 0]])
    assert torch.equal(part.answers, batch.answers[[2, 0]])


def test_the_columns_yield_the_answer_of_a_model_that_knows_it(causal: Reader) -> None:
    """Learned by heart: at each column of a forward over the batch stands the prediction of its answer token."""
    loaded = load("llama-gqa")
    prompts = list(loaded.edited[:3])
    own = [loaded.generate([prompt], max_new_tokens=3)[0] for prompt in prompts]
    ids = [torch.tensor(tokens(causal, prompt)) for prompt in prompts]
    edits = [Edit(_labelled(before, answer)) for before, answer in zip(ids, own, strict=True)]
    batch = batch_of(causal, *edits)
    with torch.no_grad():
        logits = loaded.model(**batch.arguments).logits
    at = logits.gather(1, batch.columns[..., None].expand(-1, -1, logits.shape[-1])).argmax(-1)
    wanted = batch.answers != -100
    assert torch.equal(at[wanted], batch.answers[wanted])


def _labelled(before: Tensor, answer: list[int]) -> dict[str, Tensor]:
    after = torch.tensor(answer)
    labels = torch.cat([torch.full_like(before, -100), after])
    return {"input_ids": torch.cat([before, after])[None], "labels": labels[None]}


# ------------------------------------------------------------------------------------------------- small things


def test_the_pad_token() -> None:
    made = reader("gpt2")
    assert made.pad == PAD
    made.tokenizer.pad_token = None
    assert made.pad == EOS


def test_the_decoders_start() -> None:
    assert reader("t5").decoder_start == PAD
    assert reader("bart").decoder_start == EOS
