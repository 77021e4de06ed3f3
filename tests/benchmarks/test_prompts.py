"""Prompts of one length, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from editable import Edit
from editable.benchmarks.prompts import ROWS, TOKENS, images, prompts, refuse_without_text
from editable.datasets import Case
from editable.errors import InputError
from tests.families import FAMILIES, WORDS, Loaded


def texts(count: int, words: int = 12) -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.sample(WORDS.split(), words)) for _ in range(count)]


def cases(count: int) -> list[Case]:
    return [
        Case(Edit(f"{text} {index}", f" answer {index}", subject="nobody"))
        for index, text in enumerate(texts(count, 3))
    ]


def test_all_prompts_have_the_same_length_and_hits_end_as_their_facts_do(tiny: Loaded) -> None:
    found = prompts(tiny.tokenizer, cases(20), texts(40))
    assert found.miss.shape == found.hit.shape == (ROWS, TOKENS)
    for row, edit in zip(found.hit, found.edits, strict=True):
        assert tiny.tokenizer(edit.prompt)["input_ids"] == row.tolist()
    known = {f" answer {index}": case.edit.prompt for index, case in enumerate(cases(20))}
    assert all(str(edit.prompt).endswith(str(known[str(edit.target)])) for edit in found.edits)
    assert len({tuple(row) for row in [*found.miss.tolist(), *found.hit.tolist()]}) == 2 * ROWS
    shortest = min(len(tiny.tokenizer(e.target, add_special_tokens=False)["input_ids"]) for e in found.edits)
    assert found.answer_tokens == shortest


def test_a_subject_that_was_cut_off_is_left_out(tiny: Loaded) -> None:
    found = prompts(tiny.tokenizer, cases(20), texts(40))
    assert {edit.subject for edit in found.edits} == {None}


def test_few_edits_are_asked_about_again_and_again(tiny: Loaded) -> None:
    found = prompts(tiny.tokenizer, cases(20), texts(40))
    assert found.hits(3).tolist() == [found.hit[row % 3].tolist() for row in range(ROWS)]
    assert found.hits(1000).equal(found.hit)


def test_too_few_texts_are_refused(tiny: Loaded) -> None:
    with pytest.raises(InputError) as caught:
        prompts(tiny.tokenizer, cases(2), texts(40))
    assert str(caught.value) == (
        "Of 2 facts and 8 unrelated questions a prompt of 16 tokens can be made, expected 8 of each; give more of them "
        "with --data or --unrelated."
    )


@pytest.mark.parametrize("name", ["t5", "bert", "vit"])
def test_models_without_prefill_and_decode_steps_are_refused(name: str) -> None:
    loaded: Any = next(family for family in FAMILIES if family.name == name).load()
    with pytest.raises(InputError) as caught:
        refuse_without_text(loaded.model, loaded.tokenizer, "latency")
    assert str(caught.value) == (
        f"--model is a {type(loaded.model).__name__}, expected a decoder that generates text: latency times its "
        "prefill and its decode steps; choose another model, such as smollm2."
    )


def test_a_decoder_is_not_refused(tiny: Loaded) -> None:
    refuse_without_text(tiny.model, tiny.tokenizer, "latency")


def test_images_have_the_size_that_the_transform_makes() -> None:
    made = images(lambda picture: torch.zeros(len(picture.getbands()), 24, 32), seed=3)
    assert made.miss.shape == made.hit.shape == (ROWS, 3, 24, 32)
    assert [edit.target for edit in made.edits] == list(range(ROWS))
    for edit, image in zip(made.edits, made.hit, strict=True):
        assert torch.equal(torch.as_tensor(edit.prompt), image)
    assert torch.equal(made.hits(2), made.hit[[0, 1] * 4])
    assert torch.equal(made.miss, images(lambda _: torch.zeros(3, 24, 32), seed=3).miss)
    assert not torch.equal(made.miss, images(lambda _: torch.zeros(3, 24, 32), seed=4).miss)
    shown = torch.cat([made.miss, made.hit]).flatten(1)
    assert float(torch.cdist(shown, shown).fill_diagonal_(99).min()) > 10
