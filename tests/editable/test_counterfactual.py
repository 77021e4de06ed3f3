"""A counterfactual model reads on over what it keeps as if it had read everything at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editable import Edit
from editable.counterfactual import Counterfactual, context, fitted, in_context, shipped, texts
from editable.errors import InputError
from editable.inputs import Reader
from editable.lowrank import fresh, put_beside
from editable.site import attention_projections, block_paths
from tests.families import EOS, FAMILIES, Loaded

CAUSAL = [family for family in FAMILIES if family.kind == "causal"]
SEQ2SEQ = [family for family in FAMILIES if family.kind == "seq2seq"]
TEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
NEXT = torch.tensor([[20, 21, 22], [30, 31, 32]])


def whole(loaded: Loaded, ids: list[int]) -> torch.Tensor:
    """(positions, features) after the last block, of one text read at once by a model without anything."""
    output = loaded.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    hidden: torch.Tensor = output.hidden_states[-1]
    return hidden[0]


def final_norm(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Hidden states come out behind the final norm."""
    norm = getattr(model.base_model, "norm", None) or model.base_model.ln_f
    normed: torch.Tensor = norm(rows)
    return normed


@pytest.mark.parametrize("family", CAUSAL, ids=lambda f: f.name)
@torch.no_grad()
def test_a_decoder_reads_on(family: Any) -> None:
    loaded = family.load()
    model = Counterfactual.of_base(loaded.model)
    features, read = model.begin(TEXTS, torch.zeros(2, 4), 4)
    steps = [features[:, -1:]]
    for column in range(3):
        features, read = model.go_on(NEXT[:, column : column + 1], 4 + column, read)
        steps.append(features)
    found = final_norm(loaded.model, torch.cat(steps, dim=1))
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(found[row], whole(loaded, [*text, *NEXT[row].tolist()])[-4:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ], ids=lambda f: f.name)
@pytest.mark.parametrize("taken_back", [1, 2])
@torch.no_grad()
def test_what_the_base_has_taken_back_is_forgotten(family: Any, taken_back: int) -> None:
    """As assisted decoding does: tokens were read that are not there any more when the next come."""
    model = Counterfactual.of_base(family.load().model)
    start = torch.tensor([[2, 2], [2, 2]])
    _, read = model.begin(TEXTS, start, 2)
    _, longer = model.go_on(NEXT, 2, read)
    kept = 3 - taken_back
    _, straight = model.go_on(NEXT[:, :kept], 2, read)
    other = torch.tensor([[40], [41]])
    after, _ = model.go_on(other, 2 + kept, longer)
    expected, _ = model.go_on(other, 2 + kept, straight)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ], ids=lambda f: f.name)
def test_what_it_has_read_has_its_rows_first(family: Any) -> None:
    model = Counterfactual.of_base(family.load().model)
    features, read = model.begin(TEXTS, torch.tensor([[2], [2]]), 1)
    assert len(features) == 2
    assert {len(tensor) for tensor in read.values()} == {2}
    swapped = {name: tensor[[1, 0]] for name, tensor in read.items()}
    straight, _ = model.go_on(NEXT, 1, read)
    moved, _ = model.go_on(NEXT[[1, 0]], 1, swapped)
    torch.testing.assert_close(moved, straight[[1, 0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL, ids=lambda f: f.name)
@torch.no_grad()
def test_deltas_stand_beside_the_weights(family: Any) -> None:
    loaded, twin = family.load(), family.load()
    paths = [path for block in block_paths(loaded.model) for path in attention_projections(loaded.model, block)]
    draw = torch.Generator().manual_seed(1)
    deltas = {
        path: (down, torch.randn(up.shape, generator=draw))
        for path, (down, up) in fresh(loaded.model, paths, 2, draw).items()
    }
    features, _ = Counterfactual.of_base(loaded.model, deltas).begin(TEXTS, torch.zeros(2, 1), 1)
    plain = [whole(twin, text)[-1] for text in TEXTS]
    put_beside(twin.model, deltas)
    found = final_norm(loaded.model, features[:, -1])
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(found[row], whole(twin, text)[-1], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(found[row], plain[row], atol=1e-2)


def test_the_base_gets_no_hook_and_no_copy() -> None:
    loaded = CAUSAL[1].load()
    model = Counterfactual.of_base(loaded.model)
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert model.usable
    pairs = zip(model.model.parameters(), loaded.model.parameters(), strict=True)
    assert all(mine.data_ptr() == its.data_ptr() for mine, its in pairs)


def test_it_is_of_no_use_once_the_base_has_moved() -> None:
    loaded = CAUSAL[1].load()
    model = Counterfactual.of_base(loaded.model)
    loaded.model.to(torch.bfloat16)
    assert not model.usable


def test_an_edit_reads_as_prompt_answer_end_and_line() -> None:
    loaded = CAUSAL[0].load()
    reader = Reader(loaded.model, loaded.tokenizer)
    request = reader.request("", Edit("alpha bravo", " delta echo"))
    assert loaded.tokenizer.decode(context(request, reader)) == "alpha bravo delta echo</s>\n"


def test_edits_stand_in_front_of_every_prompt_of_a_request() -> None:
    loaded = CAUSAL[0].load()
    reader = Reader(loaded.model, loaded.tokenizer)
    edits = [reader.request("", Edit("alpha bravo", " delta echo")), reader.request("", Edit("kilo", " lima"))]
    asked = reader.request("", Edit("golf", " hotel", rephrases=("golf golf",)))
    told = in_context(edits, asked, reader)
    texts_of = [loaded.tokenizer.decode(prompt["input_ids"][0]) for prompt in told.prompts]
    assert texts_of == [f"alpha bravo delta echo</s>\nkilo lima</s>\n{question}" for question in ("golf", "golf golf")]
    assert told.answer == asked.answer and told.answer[-1] == EOS


def test_texts_leave_padding_out() -> None:
    tokens = torch.tensor([[-1, -1, 4, 5], [6, 7, 8, -1], [9, 9, 9, 9]])
    assert texts([[1, 2], [3]], tokens, [1, 0]) == [[1, 2, 6, 7, 8], [3, 4, 5]]


def test_no_weights_are_shipped_for_a_model_nobody_knows() -> None:
    assert shipped(CAUSAL[1].load().model) == {}


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"'nowhere.safetensors' holds no fitted weights, expected a file that fit"):
        fitted("nowhere.safetensors", CAUSAL[1].load().model)
