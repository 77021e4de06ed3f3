"""The answer handed in beside the prompt is predicted token by token, with labels and without."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.contract.harness import LEARNED, Edited, both_dtypes, only, routing
from tests.families import EOS, PAD, Side, positions

IGNORED = -100


def _forced(edited: Edited, side: Side | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts of `edited[:4]` with their answers in one batch, and what each position has to predict."""
    loaded = edited.loaded
    prompts = [loaded.tokenizer(text).input_ids for text in loaded.edited[:LEARNED]]
    answers = [loaded.wanted(index) for index in range(LEARNED)]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    wanted = [
        [IGNORED] * (len(prompt) - 1) + answer + [IGNORED] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    mask = _padded([[1] * len(row) for row in rows], 0, side)
    feed = {"input_ids": _padded(rows, PAD, side), "attention_mask": mask, "position_ids": positions(mask)}
    return feed, _padded(wanted, IGNORED, side)


def _padded(rows: list[list[int]], fill: int, side: Side | None) -> Tensor:
    width = max(map(len, rows))
    pads = [[fill] * (width - len(row)) for row in rows]
    return torch.tensor([row + pad if side == "right" else pad + row for row, pad in zip(rows, pads, strict=True)])


@only("causal")
@both_dtypes
def test_without_labels(edited: Edited) -> None:
    for side in edited.loaded.family.sides:
        feed, wanted = _forced(edited, side)
        answer = edited.loaded.model(**feed).logits.argmax(-1)
        assert torch.equal(answer[wanted != IGNORED], wanted[wanted != IGNORED])
        base = edited.twin.model(**feed).logits.argmax(-1)
        assert not torch.equal(base[wanted != IGNORED], wanted[wanted != IGNORED])


@only("causal")
@both_dtypes
def test_with_labels(edited: Edited) -> None:
    for side in edited.loaded.family.sides:
        feed, wanted = _forced(edited, side)
        labels = wanted.roll(1, dims=1)  # the model shifts them back itself
        output = edited.loaded.model(**feed, labels=labels)
        answer = output.logits.argmax(-1)
        assert torch.equal(answer[wanted != IGNORED], wanted[wanted != IGNORED])
        assert output.loss < edited.twin.model(**feed, labels=labels).loss


@only("causal")
def test_all_tokens_as_labels(edited: Edited) -> None:
    """Labels that do not mask the prompt, as language modelling scripts pass them."""
    feed, wanted = _forced(edited)
    labels = feed["input_ids"].masked_fill(feed["attention_mask"] == 0, IGNORED)
    answer = edited.loaded.model(**feed, labels=labels).logits.argmax(-1)
    assert torch.equal(answer[wanted != IGNORED], wanted[wanted != IGNORED])


@only("causal")
def test_one_row_alone(edited: Edited) -> None:
    feed, wanted = _forced(edited)
    for row in range(LEARNED):
        real = feed["attention_mask"][row].bool()
        ids = feed["input_ids"][row, real][None]
        answer = edited.loaded.model(input_ids=ids).logits.argmax(-1)[0]
        kept = wanted[row, real]
        assert torch.equal(answer[kept != IGNORED], kept[kept != IGNORED])


@routing
@only("causal")
def test_left_of_the_prompts_end_nothing_changes(edited: Edited) -> None:
    """An edit says what comes after its prompt; what the model makes of the prompt so far stays."""
    feed, wanted = _forced(edited)
    now, base = edited.loaded.model(**feed).logits, edited.twin.model(**feed).logits
    before = (wanted != IGNORED).long().cumsum(1) == 0  # positions left of the prompt's last
    assert torch.equal(now[before], base[before])


@only("seq2seq")
@both_dtypes
def test_seq2seq(edited: Edited) -> None:
    """By labels, and by the decoder's own input: the same forward twice."""
    loaded = edited.loaded
    said = loaded.generate(loaded.edited[:LEARNED])
    assert all(tokens[-1] == EOS for tokens in said)
    labels = _padded(said, IGNORED, "right")
    batch = loaded.encode(loaded.edited[:LEARNED])
    output = loaded.model(**batch, labels=labels)
    answer = output.logits.argmax(-1)
    assert torch.equal(answer[labels != IGNORED], labels[labels != IGNORED])
    assert output.loss < edited.twin.model(**batch, labels=labels).loss
    fed = loaded.model.prepare_decoder_input_ids_from_labels(labels=labels)
    assert torch.equal(loaded.model(**batch, decoder_input_ids=fed).logits, output.logits)
